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
from seg_env.data.sources import HELD_OUT_SPLITS
from seg_env.geometry.polygon import roles
from seg_env.types import Sample, Target

IMAGE_FOLDERS = {"images/mscoco/images/train2014": 30, "images/saiapr_tc-12": 16}
"""Number of images by folder."""
SIZES = (128, 144, 160)
QUALITY = 88
OUTLINE_TOLERANCE = 0.004
"""Share of the perimeter; about as coarse as outlines drawn by hand."""


@dataclass(frozen=True, eq=False)
class _CroppedScene:
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

    for folder, count in IMAGE_FOLDERS.items():
        of_clef = "saiapr" in folder
        scenes = list(_cropped_scenes(count, seed=int(of_clef)))
        (root / folder).mkdir(parents=True, exist_ok=True)
        for scene in scenes:
            path = root / folder / _file_name(scene.number, of_clef)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(scene.pixels).save(path, quality=QUALITY, optimize=True)
        for (name, split_by), held_out in HELD_OUT_SPLITS.items():
            if name != "grefcoco" and (name == "refclef") == of_clef:
                _write_json(root / name / "instances.json", _instances(scenes, of_clef))
                records = _references(scenes, name, held_out)
                _write_json(root / name / f"refs({split_by}).json", records)


def _cropped_scenes(count: int, seed: int) -> Iterator[_CroppedScene]:
    for number in range(count):
        difficulty = ("medium", "hard")[number % 2]
        size = SIZES[number % 3]
        dataset = Scenes("val", difficulty, seed=seed, size=size)  # type: ignore[arg-type]
        samples = dataset.samples_of(number)
        rows = slice(0, size)
        # "At the top" is said of the whole image: such a scene stays whole.
        if not any(place in sample.expression for sample in samples for place in PLACES):
            masks = np.array([sample.target.mask() for sample in samples])
            filled = np.flatnonzero(masks.any(axis=(0, 2)))
            rows = slice(max(0, int(filled[0]) - 4), min(size, int(filled[-1]) + 5))
        yield _CroppedScene(number + 1, samples, rows)


def _file_name(number: int, of_clef: bool) -> str:
    return f"{number % 3}/{number}.jpg" if of_clef else f"COCO_train2014_{number:012d}.jpg"


def _ann_id(scene: _CroppedScene, position: int) -> int:
    return scene.number * 10 + position


def _category_id(sample: Sample) -> int:
    return list(SHAPES).index(sample.metadata["shape"]) + 1


def _instances(scenes: list[_CroppedScene], of_clef: bool) -> dict[str, Any]:
    entries, annotations = [], []
    for scene in scenes:
        height, width = scene.pixels.shape[:2]
        file_name = _file_name(scene.number, of_clef)
        entries.append(
            {"id": scene.number, "file_name": file_name, "height": height, "width": width}
        )
        for position, sample in enumerate(scene.samples):
            mask = scene.mask(sample)
            annotations.append(_annotation(scene, position, sample, mask, of_clef))
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(SHAPES)]
    info = {"description": "procedural scenes in the form of RefCOCO; not RefCOCO"}
    return {"info": info, "images": entries, "annotations": annotations, "categories": categories}


def _annotation(
    scene: _CroppedScene, position: int, sample: Sample, mask: NDArray[np.bool_], of_clef: bool
) -> dict[str, Any]:
    target = Target.from_mask(mask)
    x0, y0, x1, y1 = target.rle.bbox
    run_lengths = {"size": list(mask.shape), "counts": target.rle.to_string().decode("ascii")}
    return {
        "id": _ann_id(scene, position),
        "image_id": scene.number,
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
    scenes: list[_CroppedScene], name: str, held_out: tuple[str, ...]
) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for scene in scenes:
        split = _split(scene.number, held_out)
        for position, sample in enumerate(scene.samples):
            # RefCOCO+ was collected with the rule that words of location are forbidden.
            if name == "refcoco+" and _is_about_location(sample.expression):
                continue
            records.append(_reference(scene, position, sample, split, len(records)))
    return records


def _reference(
    scene: _CroppedScene, position: int, sample: Sample, split: str, number: int
) -> dict[str, Any]:
    texts = [sample.expression, sample.expression.removeprefix("the ")]
    sentences = [
        {"sent_id": 2 * number + k, "sent": text, "raw": text, "tokens": text.split()}
        for k, text in enumerate(texts)
    ]
    ann_id = _ann_id(scene, position)
    return {
        "ref_id": number,
        "ann_id": ann_id,
        "image_id": scene.number,
        "category_id": _category_id(sample),
        "split": split,
        "file_name": f"COCO_train2014_{scene.number:012d}_{ann_id}.jpg",
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "sentences": sentences,
    }


def _split(number: int, held_out: tuple[str, ...]) -> str:
    """Five images of eight are for training, the other three go around the other splits."""
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
