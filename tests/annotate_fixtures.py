"""Sources and stages for tests of annotation."""

import io
import tarfile

import numpy as np
from PIL import Image

from seg_env.data.annotate import Job, write_scene_shards
from seg_env.data.annotate.stages import DecodedImage, Detection, Found, Segment
from seg_env.geometry.rle import Rle

TRUTH = ("true_boxes", "true_masks", "true_expressions")


def scene_job(folder, count=12, per_shard=3, **options):
    """Render small scenes into archives; returns the job that annotates them by their truth."""
    write_scene_shards(folder, count, per_shard=per_shard, size=48, difficulty="easy")
    return Job(tar_source(folder), *TRUTH, **options)


def tar_source(path):
    return f'tar{{"path": "{path}"}}'


def encoded(height=40, width=60, form="PNG", seed=0, **how):
    """The bytes of an image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **how)
    return buffer.getvalue()


def tar_bytes(members, form=tarfile.USTAR_FORMAT):
    """A tar archive of ``(name, content)`` pairs; a `TarInfo` goes in as it is."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if content is not None:
                info.size = len(content)
            archive.addfile(info, None if content is None else io.BytesIO(content))
    return buffer.getvalue()


def gray_image(height=40, width=60, key="0"):
    """A decoded gray image."""
    gray = np.full((height, width, 3), 128, dtype=np.uint8)
    return DecodedImage(key, b"", suffix=".png", image=gray)


def found(mask, score=1.0, mask_score=1.0, expression="the thing", box=None):
    """An object with a mask in a gray image; its box is that of the mask unless told otherwise."""
    rle = Rle.from_mask(mask)
    detection = Detection(tuple(map(float, box or rle.bbox)), score, "thing")
    return Found(gray_image(*mask.shape), detection, Segment(rle, mask_score), expression)


def rectangle(x0, y0, x1, y1, size=(40, 60)):
    mask = np.zeros(size, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


class OneBox:
    """A detector that finds the middle of every image."""

    def detect(self, images):
        return [
            [Detection((w * 0.25, h * 0.25, w * 0.75, h * 0.75), 0.9, "box")]
            for h, w in (each.size for each in images)
        ]


class FillBox:
    """A segmenter that takes the whole box."""

    def segment(self, objects):
        return [self._fill(found.detection.box, found.image.size) for found in objects]

    def _fill(self, box, size):
        x0, y0, x1, y1 = map(round, box)
        return Segment(Rle.from_mask(rectangle(x0, y0, x1, y1, size)), 0.9)


class Failing(FillBox):
    """A segmenter that breaks at the second image it sees."""

    seen = 0

    def segment(self, objects):
        self.seen += len({found.image for found in objects})
        if self.seen > 1:
            raise RuntimeError("out of memory")
        return super().segment(objects)
