"""ReasonSeg: questions that need reasoning, with regions that do not count."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from seg_env.data.folders import first_existing
from seg_env.data.images import image_size
from seg_env.data.readers.annotated_images import AnnotatedImages, Entry, Options
from seg_env.data.readers.labelme import image_beside, points_of, read_json_file, shapes_of
from seg_env.data.records import Fault, Id, Record, RecordError, located
from seg_env.data.segmentations import check_crossings, check_inside
from seg_env.geometry.limits import check_limit
from seg_env.geometry.rle import Rle
from seg_env.types import Target


class ReasonSeg(AnnotatedImages[str]):
    """One split of ReasonSeg (Lai et al. 2023, arXiv 2308.00692): one sample for each sentence.

    On disk, as it was published::

        <data_root>/
          ReasonSeg/
            train/  00001_abc.jpg  00001_abc.json ...        (239 images)
            val/    ...                                      (200)
            test/   ...                                      (779)

    with ``<data_root>/train`` and so on being found too. A ``.json`` holds ``text`` (a list of
    sentences, or one), ``is_sentence`` and ``shapes``, each with a ``label`` and ``points`` in
    pixels. A label that contains "ignore" marks void pixels (`Target.ignore`), a shape named "flag"
    is skipped, all others are the target. Shapes are painted from the largest to the smallest,
    borders included, see `fill_inclusive`: these are the pixels that the published evaluation
    scores. It reads images upright, as EXIF data turn them, and a few files in Windows-1252, which
    is the default ``encoding`` here.

    A few images are left with an empty target, as in the published evaluation: there ``[]`` is
    the right answer. The metadata holds ``file_name``, ``is_sentence`` and ``sentence`` (its
    number), and ``sentences`` where samples are images.
    """

    sentence_key = "sentence"

    def __init__(
        self,
        data_root: str | os.PathLike[str],
        split: str = "val",
        *,
        per_reference: bool = False,
        **options: Unpack[Options],
    ) -> None:
        """Read the sentences of a split.

        With ``per_reference`` an image is one sample, with its first sentence, as in the published
        evaluation.
        """
        super().__init__("reasonseg", split, per_reference=per_reference, **options)
        root = Path(data_root).expanduser().absolute()
        places = (f"ReasonSeg/{split}", split)
        self.image_root = first_existing(root, places, f"folder of the split {split!r}")
        paths = sorted(self.image_root.glob("*.json"))
        if not paths:
            raise FileNotFoundError(f"{self.image_root} has no .json files")
        for path in paths:
            with self._reading_record():
                record = self._record(path)
                labels = [str(shape.get("label")).lower() for shape in shapes_of(record)]
                self.unused.update(["flag shapes"] * labels.count("flag"))
                self._ask(path.name, _texts(record))

    def _record(self, path: Path) -> Record:
        return read_json_file(path, self._encoding or "cp1252")

    def _read(self, key: str) -> Entry:
        record, image = self._record(self.image_root / key), image_beside(self.image_root / key)
        size = image_size(image, upright=True)
        is_sentence = bool(record.get("is_sentence", True))
        return Entry(
            id=f"{self.name}-{self.split}-{Path(key).stem}",
            sentences=_texts(record),
            image=image,
            size=size,
            target=partial(painted_target, record, size),
            metadata={"file_name": image.name, "is_sentence": is_sentence},
            upright=True,
        )

    def _image_name(self, key: str) -> str:
        return key


def painted_target(record: Record, size: tuple[int, int]) -> Target:
    """Paint the shapes of a file, the largest first; smaller ones cover larger ones."""
    layers: list[tuple[int, bool, Rle]] = []
    runs, shapes = 0, shapes_of(record)
    with located(record.where):
        what = f"{len(shapes)} shapes on {size[0] * size[1]} pixels"
        check_limit("painted", len(shapes) * size[0] * size[1], what)
    for shape in shapes:
        label = shape.text("label").lower()
        if label == "flag":
            continue
        points = points_of(shape)
        with located(shape.where):
            check_inside(np.trunc(points) + 0.5, size)
            check_crossings(points, size)
            check_crossings(points[:, ::-1], size[::-1])
            filled = Rle.from_mask(fill_inclusive(points, size))
            runs += len(filled.counts)
            check_limit("runs", runs, f"shapes of at least {runs} runs")
        layers.append((filled.area, "ignore" in label, filled))
    if not layers:
        problem = "'shapes' is empty: there is nothing to outline"
        raise RecordError(f"{record.where}: {problem}", Fault.EMPTY)
    painted = np.zeros(size, dtype=np.uint8)  # 1 target, 2 void
    layers.sort(key=lambda layer: layer[0])
    for _, is_void, filled in reversed(layers):
        painted[filled.to_mask()] = 2 if is_void else 1
    ignore = Rle.from_mask(painted == 2) if (painted == 2).any() else None
    return Target(Rle.from_mask(painted == 1), ignore=ignore)


def _texts(record: Record) -> dict[Id, str]:
    texts = record.get("text")
    if not texts and not isinstance(texts, str):
        raise record.error("text", "must be a list of sentences")
    return dict(enumerate([texts] if isinstance(texts, str) else record.texts("text")))


def fill_inclusive(points: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill a polygon, ``(V, 2)`` in pixels, borders included; even-odd where it crosses itself.

    LISA (arXiv 2308.00692) publishes polygons together with the code that paints them: OpenCV's
    ``polylines`` over ``fillPoly``. It truncates coordinates, takes corners as centres of pixels
    and fills borders as well; COCO's rule would leave out half a pixel all around, which costs some
    percent of IoU on small objects. One or two vertices draw a point or a line.

    Within the image, pixels are the same as OpenCV's. If a polygon reaches out, OpenCV moves
    corners to the border by rules that differ between its versions; here what lies outside is cut
    off. Time is bounded by the length of the outline, which `check_inside` keeps near the image.
    """
    mask = np.zeros(size, dtype=np.bool_)
    if not len(points) or not mask.size:
        return mask
    corners = np.trunc(np.clip(points, -(2.0**30), 2.0**30)).astype(np.int64)
    edges = list(zip(corners.tolist(), np.roll(corners, -1, axis=0).tolist(), strict=True))
    for start, end in edges:
        _toggle_right_of(mask, start, end)
    np.logical_xor.accumulate(mask, axis=1, out=mask)
    canvas = Image.fromarray(mask.view(np.uint8))
    for edge in edges:  # Pillow rounds halves up, OpenCV down: so from right to left
        ImageDraw.Draw(canvas).line([tuple(end) for end in sorted(edge, reverse=True)], fill=1)
    return np.asarray(canvas).astype(np.bool_)


def _toggle_right_of(mask: NDArray[np.bool_], start: list[int], end: list[int]) -> None:
    """Toggle, in every row that an edge crosses, the first pixel that is not left of it."""
    (y0, x0), (y1, x1) = sorted((y, x) for x, y in (start, end))
    rows = np.arange(max(y0, 0), min(y1, mask.shape[0]))  # the lower end belongs to the next edge
    columns = -((rows - y0) * (x0 - x1) // max(y1 - y0, 1)) + x0  # rounded up
    inside = columns < mask.shape[1]
    mask[rows[inside], np.maximum(columns[inside], 0)] ^= True
