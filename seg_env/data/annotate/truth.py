"""Procedural scenes as a stand-in for the web, and their truth as a stand-in for models.

With them the whole path from archives of pictures to training data runs anywhere, and every record
can be compared with what it should be.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image

from seg_env.data.annotate.filters import box_iou, mask_iou
from seg_env.data.annotate.nouns import Detection, Found, Picture, Segment
from seg_env.data.annotate.plan import unique
from seg_env.data.scenes import Scenes, Split
from seg_env.data.scenes.layout import Difficulty
from seg_env.data.scenes.scene import Scene
from seg_env.geometry.rle import Rle

_KEY = re.compile(
    r"scenes-([a-z]{1,9})-([a-z]{1,9})-([0-9]{1,9})-seed([0-9]{1,9})-size([0-9]{1,4})"
)


def write_scene_shards(
    folder: str | os.PathLike[str],
    count: int,
    *,
    per_shard: int = 200,
    difficulty: Difficulty = "medium",
    seed: int = 0,
    size: int = 128,
    on_scene: Callable[[int], object] | None = None,
) -> list[Path]:
    """Render scenes into tar archives in WebDataset's layout; archives that are there stay.

    Args:
        folder: Where ``scenes-<number>.tar`` are written, each under a temporary name first.
        count: Number of scenes.
        per_shard: Scenes in an archive.
        difficulty: See `seg_env.data.scenes.Scenes`.
        seed: Number that all scenes depend on.
        size: Side of the pictures in pixels.
        on_scene: Called with the number of scenes that are there.

    Returns:
        The archives in order.
    """
    scenes = Scenes("train", difficulty, seed, length=count, size=size)
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    paths = []
    for start in range(0, count, per_shard):
        path = root / f"scenes-{start // per_shard:06d}.tar"
        partial = unique(path)
        paths.append(path)
        numbers = range(start, min(start + per_shard, count))
        if not path.exists():
            with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as archive:
                for number in numbers:
                    _add_scene(archive, scenes, number)
                    if on_scene is not None:
                        on_scene(number + 1)
            os.replace(partial, path)
        if on_scene is not None:
            on_scene(numbers.stop)
    return paths


def _add_scene(archive: tarfile.TarFile, scenes: Scenes, number: int) -> None:
    key = f"{scenes.name}-{scenes.split}-{number:06d}-seed{scenes.seed}-size{scenes.size}"
    buffer = io.BytesIO()
    Image.fromarray(scenes[number].image).save(buffer, "PNG")
    text = json.dumps({"caption": "", "url": "", "license": "CC0-1.0"}).encode()
    for ending, content in (("png", buffer.getvalue()), ("json", text)):
        member = tarfile.TarInfo(f"{key}.{ending}")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


def scene_of(key: str, size: tuple[int, int]) -> Scene | None:
    """The scene that a picture of `write_scene_shards` shows; None for any other name or size."""
    match = _KEY.fullmatch(key)
    if match is None or match[1] not in get_args(Difficulty) or match[2] not in get_args(Split):
        return None
    return _scene(key) if size == (int(match[5]), int(match[5])) else None


@lru_cache(maxsize=64)
def _scene(key: str) -> Scene:
    match = _KEY.fullmatch(key)
    assert match is not None
    number, seed, size = int(match[3]), int(match[4]), int(match[5])
    scenes = Scenes(match[2], match[1], seed, length=number + 1, size=size)  # type: ignore[arg-type]
    return scenes.scene(number)


class TrueBoxes:
    """A detector that knows the scenes."""

    def detect(self, pictures: Sequence[Picture]) -> list[list[Detection]]:
        """See `seg_env.data.annotate.stages.Detector`."""
        return [self._of(scene_of(picture.key, picture.size)) for picture in pictures]

    def _of(self, scene: Scene | None) -> list[Detection]:
        if scene is None:
            return []
        found = []
        for number, mask in enumerate(scene.masks):
            facts = scene.describe(number)
            x0, y0, x1, y1 = Rle.from_mask(mask).bbox
            found.append(Detection((x0, y0, x1, y1), 1.0, f"{facts['color']} {facts['shape']}"))
        return found


class TrueMasks:
    """A segmenter that knows the scenes: the object whose box overlaps most with the one given."""

    def segment(
        self, pictures: Sequence[Picture], detections: Sequence[Sequence[Detection]]
    ) -> list[list[Segment | None]]:
        """See `seg_env.data.annotate.stages.Segmenter`."""
        return [
            [self._of(scene_of(picture.key, picture.size), detection) for detection in some]
            for picture, some in zip(pictures, detections, strict=True)
        ]

    def _of(self, scene: Scene | None, detection: Detection) -> Segment | None:
        if scene is None:
            return None
        masks = [Rle.from_mask(mask) for mask in scene.masks]
        overlaps = [box_iou(mask.bbox, detection.box) for mask in masks]
        best = int(np.argmax(overlaps))
        return Segment(masks[best]) if overlaps[best] > 0 else None


class TrueExpressions:
    """A describer that knows the scenes: the expression of the object whose mask fits best."""

    def describe(
        self, pictures: Sequence[Picture], objects: Sequence[Sequence[Found]]
    ) -> list[list[str]]:
        """See `seg_env.data.annotate.stages.Describer`."""
        return [
            [self._of(scene_of(picture.key, picture.size), found) for found in some]
            for picture, some in zip(pictures, objects, strict=True)
        ]

    def _of(self, scene: Scene | None, found: Found) -> str:
        if scene is None:
            return ""
        number, overlap = best_object(scene, found.target.rle)
        return scene.expressions[number] if overlap > 0 else ""


def best_object(scene: Scene, mask: Rle) -> tuple[int, float]:
    """The object of a scene that a mask fits best, and their IoU."""
    overlaps = [mask_iou(Rle.from_mask(each), mask) for each in scene.masks]
    best = int(np.argmax(overlaps))
    return best, overlaps[best]
