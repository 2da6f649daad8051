"""A sample of procedural scenes on disk in the form of the RefCOCO family.

It stands in where users have not pointed to their copy of the data, shows what each file looks
like, and is small enough to come with the package.

    python -m seg_env.data.embedded_sample      # writes it again
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shapely.geometry import Polygon

from seg_env.data.readers.refer import embedded_root
from seg_env.data.scenes import Scenes
from seg_env.data.scenes.language import PLACES, SUPERLATIVES
from seg_env.data.scenes.shapes import SHAPES
from seg_env.geometry.polygon import roles
from seg_env.types import Sample, Target

PARTITIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "refcoco": {"unc": ("val", "testA", "testB"), "google": ("val", "test")},
    "refcoco+": {"unc": ("val", "testA", "testB")},
    "refcocog": {"umd": ("val", "test"), "google": ("val",)},
    "refclef": {"unc": ("val", "testA", "testB", "testC"), "berkeley": ("val", "test")},
}
"""Splits beside ``"train"`` by data set and by who made the partition."""

PICTURES = {"images/mscoco/images/train2014": 30, "images/saiapr_tc-12": 16}
"""Number of pictures by folder."""
SIZES = (128, 144, 160)
QUALITY = 88
OUTLINE_TOLERANCE = 0.004
"""Share of the perimeter; about as coarse as outlines drawn by hand."""


@dataclass(frozen=True, eq=False)
class _Picture:
    """One scene, its borders cut off where nothing is lost."""

    number: int
    samples: list[Sample]
    rows: slice

    @property
    def pixels(self) -> NDArray[np.uint8]:
        return self.samples[0].image[self.rows]

    def mask(self, sample: Sample) -> NDArray[np.bool_]:
        return sample.target.mask()[self.rows]


def write_embedded(root: Path) -> None:
    """Write the whole sample below ``root``."""
    from PIL import Image

    for folder, count in PICTURES.items():
        of_clef = "saiapr" in folder
        pictures = list(_pictures(count, seed=int(of_clef)))
        (root / folder).mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            path = root / folder / _file_name(picture.number, of_clef)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.pixels).save(path, quality=QUALITY, optimize=True)
        for name, partitions in PARTITIONS.items():
            if (name == "refclef") == of_clef:
                _write_json(root / name / "instances.json", _instances(pictures, of_clef))
                for split_by, held_out in partitions.items():
                    records = _references(pictures, name, held_out)
                    _write_json(root / name / f"refs({split_by}).json", records)


def _pictures(count: int, seed: int) -> Iterator[_Picture]:
    for number in range(count):
        difficulty = ("medium", "hard")[number % 2]
        scenes = Scenes("val", difficulty, seed=seed, size=SIZES[number % 3])  # type: ignore[arg-type]
        samples = scenes.samples_of(number)
        size = scenes.size
        rows = slice(0, size)
        # "At the top" is said of the whole picture: such a scene stays whole.
        if not any(place in sample.expression for sample in samples for place in PLACES):
            masks = np.array([sample.target.mask() for sample in samples])
            filled = np.flatnonzero(masks.any(axis=(0, 2)))
            rows = slice(max(0, int(filled[0]) - 4), min(size, int(filled[-1]) + 5))
        yield _Picture(number + 1, samples, rows)


def _file_name(number: int, of_clef: bool) -> str:
    return f"{number % 3}/{number}.jpg" if of_clef else f"COCO_train2014_{number:012d}.jpg"


def _ann_id(picture: _Picture, position: int) -> int:
    return picture.number * 10 + position


def _category_id(sample: Sample) -> int:
    return list(SHAPES).index(sample.metadata["shape"]) + 1


def _instances(pictures: list[_Picture], of_clef: bool) -> dict[str, Any]:
    images, annotations = [], []
    for picture in pictures:
        height, width = picture.pixels.shape[:2]
        file_name = _file_name(picture.number, of_clef)
        images.append(
            {"id": picture.number, "file_name": file_name, "height": height, "width": width}
        )
        for position, sample in enumerate(picture.samples):
            mask = picture.mask(sample)
            annotations.append(_annotation(picture, position, sample, mask, of_clef))
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(SHAPES)]
    info = {"description": "procedural scenes in the form of RefCOCO; not RefCOCO"}
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}


def _annotation(
    picture: _Picture, position: int, sample: Sample, mask: NDArray[np.bool_], of_clef: bool
) -> dict[str, Any]:
    target = Target.from_mask(mask)
    x0, y0, x1, y1 = target.rle.bbox
    run_lengths = {"size": list(mask.shape), "counts": target.rle.to_string().decode("ascii")}
    return {
        "id": _ann_id(picture, position),
        "image_id": picture.number,
        "category_id": _category_id(sample),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": target.area,
        "iscrowd": 0,
        "segmentation": [run_lengths] if of_clef else _polygons(target),
    }


def _polygons(target: Target) -> list[list[int]]:
    """Flat polygons in pixels, one for each part.

    COCO's form has no holes. As its annotators do, a part with holes is written as one ring with a
    slit to each hole; the two sides of a slit cancel in the even-odd fill.
    """
    height, width = target.size
    rings = target.outline(OUTLINE_TOLERANCE)
    corners = [np.rint(ring * (width, height)).astype(int).tolist() for ring in rings]
    filled = roles(rings)
    parts = {index: list(corners[index]) for index in np.flatnonzero(filled).tolist()}
    for index in np.flatnonzero(~filled).tolist():
        inside = Polygon(corners[index]).representative_point()
        around = min(
            (part for part in parts if Polygon(corners[part]).contains(inside)),
            key=lambda part: Polygon(corners[part]).area,
        )
        hole, start = corners[index], corners[around][0]
        parts[around] += [start, *hole, hole[0]]
    return [[number for corner in part for number in corner] for part in parts.values()]


def _references(
    pictures: list[_Picture], name: str, held_out: tuple[str, ...]
) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for picture in pictures:
        split = _split(picture.number, held_out)
        for position, sample in enumerate(picture.samples):
            # RefCOCO+ was collected with the rule that words of location are forbidden.
            if name == "refcoco+" and _is_about_location(sample.expression):
                continue
            records.append(_reference(picture, position, sample, split, len(records)))
    return records


def _reference(
    picture: _Picture, position: int, sample: Sample, split: str, number: int
) -> dict[str, Any]:
    texts = [sample.expression, sample.expression.removeprefix("the ")]
    sentences = [
        {"sent_id": 2 * number + k, "sent": text, "raw": text, "tokens": text.split()}
        for k, text in enumerate(texts)
    ]
    ann_id = _ann_id(picture, position)
    return {
        "ref_id": number,
        "ann_id": ann_id,
        "image_id": picture.number,
        "category_id": _category_id(sample),
        "split": split,
        "file_name": f"COCO_train2014_{picture.number:012d}_{ann_id}.jpg",
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "sentences": sentences,
    }


def _split(number: int, held_out: tuple[str, ...]) -> str:
    """Five pictures of eight are for training, the other three go around the other splits."""
    block, slot = divmod(number - 1, 8)
    return "train" if slot < 5 else held_out[(3 * block + slot - 5) % len(held_out)]


def _is_about_location(expression: str) -> bool:
    located = (*PLACES, *SUPERLATIVES[:4], "left", "right", "above", "below")
    return any(words in expression for words in located)


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, separators=(",", ":")) + "\n", encoding="ascii")


if __name__ == "__main__":
    write_embedded(embedded_root())
