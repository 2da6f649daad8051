"""Procedural scenes instead of web images, and their truth, with noise, instead of models.

So every record can be compared with what it should be. Each class of noise wraps another stage; the
noise depends on its seed and the image's name, so a run that was interrupted resumes with the noise
it would have had.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image, ImageFilter

from seg_env.data.annotate.filters import mask_iou
from seg_env.data.annotate.job import partial_path
from seg_env.data.annotate.stages import (
    DecodedImage,
    Describer,
    Detection,
    Detector,
    Found,
    Segment,
    Segmenter,
    check_between,
    check_whole,
    load_stage,
)
from seg_env.data.scenes import Scenes, Split
from seg_env.data.scenes.dataset import Scene
from seg_env.data.scenes.layout import Difficulty
from seg_env.geometry.rle import Rle
from seg_env.metrics.scores import iou_of_boxes


def write_scene_shards(
    folder: str | os.PathLike[str],
    count: int,
    *,
    per_shard: int = 200,
    difficulty: Difficulty = "medium",
    seed: int = 0,
    size: int = 128,
    on_scenes: Callable[[int], object] = lambda count: None,
) -> list[Path]:
    """Render scenes into tar archives in WebDataset's layout; returns the paths of all of them.

    Archives that are already there are kept. For ``difficulty``, ``seed`` and ``size`` see
    `seg_env.data.scenes.Scenes`; ``on_scenes`` is called with the number of scenes so far.
    """
    scenes = Scenes("train", difficulty, seed, length=count, size=size)
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    paths = []
    for start in range(0, count, per_shard):
        path = root / f"scenes-{start // per_shard:06d}.tar"
        unfinished = partial_path(path)
        stop = min(start + per_shard, count)
        if not path.exists():
            with tarfile.open(unfinished, "w", format=tarfile.USTAR_FORMAT) as archive:
                for number in range(start, stop):
                    _add_scene(archive, scenes, number)
            os.replace(unfinished, path)
        paths.append(path)
        on_scenes(stop)
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


@lru_cache(maxsize=64)
def scene_of(key: str, size: tuple[int, int]) -> Scene | None:
    """The scene that an image of `write_scene_shards` shows; None for any other name or size."""
    match = re.fullmatch(
        r"scenes-([a-z]{1,9})-([a-z]{1,9})-([0-9]{1,9})-seed([0-9]{1,9})-size([0-9]{1,4})", key
    )
    if match is None or match[1] not in get_args(Difficulty) or match[2] not in get_args(Split):
        return None
    number, seed, side = int(match[3]), int(match[4]), int(match[5])
    if size != (side, side):
        return None
    scenes = Scenes(match[2], match[1], seed, length=number + 1, size=side)  # type: ignore[arg-type]
    return scenes.scene(number)


class Truth:
    """All three stages, answered from the scenes; nothing is found in images that show none."""

    def detect(self, images: Sequence[DecodedImage]) -> list[list[Detection]]:
        """The box of each object, with color and shape for a label."""
        return [self._boxes(scene_of(image.key, image.size)) for image in images]

    def segment(self, objects: Sequence[Found]) -> list[Segment | None]:
        """The mask of the object whose box overlaps most with the one given."""
        return list(map(self._mask, objects))

    def describe(self, objects: Sequence[Found]) -> list[str]:
        """The expression of the object whose mask fits best."""
        return list(map(self._expression, objects))

    def _boxes(self, scene: Scene | None) -> list[Detection]:
        if scene is None:
            return []
        label = "{color} {shape}"
        return [
            Detection(Rle.from_mask(mask).bbox, 1.0, label.format_map(scene.describe(number)))
            for number, mask in enumerate(scene.masks)
        ]

    def _mask(self, found: Found) -> Segment | None:
        scene = scene_of(found.image.key, found.image.size)
        if scene is None:
            return None
        masks = [Rle.from_mask(mask) for mask in scene.masks]
        boxes = [found.detection.box] * len(masks)
        overlaps = iou_of_boxes([mask.bbox for mask in masks], boxes, 0.0)
        best = int(overlaps.argmax())
        return Segment(masks[best]) if overlaps[best] > 0 else None

    def _expression(self, found: Found) -> str:
        scene = scene_of(found.image.key, found.image.size)
        if scene is None:
            return ""
        number, overlap = best_object(scene, found.target.rle)
        return scene.expressions[number] if overlap > 0 else ""


def best_object(scene: Scene, mask: Rle) -> tuple[int, float]:
    """The object of a scene that a mask fits best, and their IoU."""
    overlaps = [mask_iou(Rle.from_mask(each), mask) for each in scene.masks]
    best = int(np.argmax(overlaps))
    return best, overlaps[best]


class JitteredBoxes:
    """Moves the sides of boxes.

    ``sigma`` is the standard deviation of each side as a share of the box's width or height.
    """

    def __init__(self, stage: str, sigma: float = 0.05, seed: int = 0) -> None:
        check_between(0, 10, sigma=sigma)
        check_whole(0, seed=seed)
        self._inner: Detector = load_stage(stage, Detector)
        self._sigma, self._seed = sigma, seed

    def detect(self, images: Sequence[DecodedImage]) -> list[list[Detection]]:
        """See `seg_env.data.annotate.stages.Detector`."""
        pairs = zip(self._inner.detect(images), _rngs(images, self._seed, 0), strict=True)
        return [[self._moved(each, rng) for each in some] for some, rng in pairs]

    def _moved(self, detection: Detection, rng: np.random.Generator) -> Detection:
        x0, y0, x1, y1 = detection.box
        scale = self._sigma * np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0])
        left, top, right, bottom = (detection.box + rng.normal(size=4) * scale).tolist()
        box = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
        return replace(detection, box=box)


class FrayedMasks:
    """Grows or shrinks each mask by a whole number of pixels drawn from ``[-most, most]``."""

    def __init__(self, stage: str, most: int = 2, seed: int = 0) -> None:
        check_whole(0, most=most, seed=seed)
        self._inner: Segmenter = load_stage(stage, Segmenter)
        self._most, self._seed = most, seed

    def segment(self, objects: Sequence[Found]) -> list[Segment | None]:
        """See `seg_env.data.annotate.stages.Segmenter`."""
        frayed = []
        rngs = _rngs([found.image for found in objects], self._seed, 1)
        for segment, rng in zip(self._inner.segment(objects), rngs, strict=True):
            pixels = int(rng.integers(-self._most, self._most + 1))
            if segment is not None and pixels != 0:
                rank = ImageFilter.MaxFilter if pixels > 0 else ImageFilter.MinFilter
                mask = Image.fromarray(segment.rle.to_mask().astype(np.uint8))
                grown = mask.filter(rank(2 * abs(pixels) + 1))
                segment = Segment(Rle.from_mask(np.asarray(grown)), segment.score)
            frayed.append(segment)
        return frayed


class MixedUpExpressions:
    """Gives a share of the objects the description of another one in the same batch of images."""

    def __init__(self, stage: str, share: float = 0.1, seed: int = 0) -> None:
        check_between(0, 1, share=share)
        check_whole(0, seed=seed)
        self._inner: Describer = load_stage(stage, Describer)
        self._share, self._seed = share, seed

    def describe(self, objects: Sequence[Found]) -> list[str]:
        """See `seg_env.data.annotate.stages.Describer`."""
        texts = self._inner.describe(objects)
        mixed = []
        rngs = _rngs([found.image for found in objects], self._seed, 2)
        for text, rng in zip(texts, rngs, strict=True):
            wrong, draw = rng.random(2)
            others = sorted(set(texts) - {text})
            is_wrong = wrong < self._share and others
            mixed.append(others[int(draw * len(others))] if is_wrong else text)
        return mixed


def _rngs(images: Sequence[DecodedImage], seed: int, stage: int) -> list[np.random.Generator]:
    """A generator for each image, seeded by its name; entries of one image share its generator."""
    names = {image: zlib.crc32(image.key.encode("utf-8", "replace")) for image in images}
    made = {image: np.random.default_rng([seed, stage, name]) for image, name in names.items()}
    return [made[image] for image in images]
