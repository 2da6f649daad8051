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
from PIL import Image
from shapely.geometry import Polygon

from seg_env.data.export import run_lengths
from seg_env.data.readers.refer import embedded_root
from seg_env.data.scenes import Scenes
from seg_env.data.scenes.language import PLACES, SUPERLATIVES
from seg_env.data.scenes.shapes import SHAPES
from seg_env.data.sources import HELD_OUT_SPLITS
from seg_env.geometry.polygon import roles
from seg_env.types import Sample, Target


@dataclass(frozen=True, eq=False)
class _CroppedScene:
    """One scene, its borders cut off where nothing is lost."""

    number: int
    file_name: str
    samples: list[Sample]
    rows: slice

    @property
    def pixels(self) -> NDArray[np.uint8]:
        return self.samples[0].image[self.rows]

    def ann_id(self, position: int) -> int:
        return self.number * 10 + position


def write_embedded(root: Path) -> None:
    """Write the whole sample below ``root``."""
    for folder, count in (("images/mscoco/images/train2014", 30), ("images/saiapr_tc-12", 16)):
        of_clef = "saiapr" in folder
        scenes = list(_cropped_scenes(count, of_clef))
        for scene in scenes:
            path = root / folder / scene.file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(scene.pixels).save(path, quality=88, optimize=True)
        for (name, split_by), held_out in HELD_OUT_SPLITS.items():
            if name != "grefcoco" and (name == "refclef") == of_clef:
                _write_json(root / name / "instances.json", _instances(scenes, of_clef))
                records = _references(scenes, name, held_out)
                _write_json(root / name / f"refs({split_by}).json", records)


def _cropped_scenes(count: int, of_clef: bool) -> Iterator[_CroppedScene]:
    for index in range(count):
        size = (128, 144, 160)[index % 3]
        dataset = Scenes("val", ("medium", "hard")[index % 2], seed=int(of_clef), size=size)
        samples = dataset.samples_of(index)
        rows = slice(0, size)
        # "At the top" is said of the whole image: such a scene stays whole.
        if not any(place in sample.expression for sample in samples for place in PLACES):
            masks = np.array([sample.target.mask() for sample in samples])
            filled = np.flatnonzero(masks.any(axis=(0, 2)))
            rows = slice(max(0, int(filled[0]) - 4), min(size, int(filled[-1]) + 5))
        number = index + 1
        name = f"{number % 3}/{number}.jpg" if of_clef else f"COCO_train2014_{number:012d}.jpg"
        yield _CroppedScene(number, name, samples, rows)


def _category_id(sample: Sample) -> int:
    return list(SHAPES).index(sample.metadata["shape"]) + 1


def _instances(scenes: list[_CroppedScene], of_clef: bool) -> dict[str, Any]:
    images, annotations = [], []
    for scene in scenes:
        height, width = scene.pixels.shape[:2]
        images.append(
            {"id": scene.number, "file_name": scene.file_name, "height": height, "width": width}
        )
        for position, sample in enumerate(scene.samples):
            target = Target.from_mask(sample.target.mask()[scene.rows])
            x0, y0, x1, y1 = target.rle.bbox
            annotations.append(
                {
                    "id": scene.ann_id(position),
                    "image_id": scene.number,
                    "category_id": _category_id(sample),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": target.area,
                    "iscrowd": 0,
                    "segmentation": [run_lengths(target.rle)] if of_clef else _polygons(target),
                }
            )
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(SHAPES)]
    info = {"description": "procedural scenes in the form of RefCOCO; not RefCOCO"}
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}


def _polygons(target: Target) -> list[list[int]]:
    """Flat polygons in pixels, one for each part.

    COCO's form has no holes. As its annotators do, a part with holes is written as one ring with a
    slit to each hole; the two sides of a slit cancel in the even-odd fill.
    """
    height, width = target.size
    rings = target.outline(0.004)  # about as coarse as outlines drawn by hand
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
    # RefCOCO+ was collected with the rule that words of location are forbidden.
    located = (*PLACES, *SUPERLATIVES[:4], "left", "right", "above", "below")
    forbidden = located if name == "refcoco+" else ()
    records: list[dict[str, Any]] = []
    for scene in scenes:
        # Five images of eight are for training, the other three go around the other splits.
        block, slot = divmod(scene.number - 1, 8)
        split = "train" if slot < 5 else held_out[(3 * block + slot - 5) % len(held_out)]
        for position, sample in enumerate(scene.samples):
            if any(words in sample.expression for words in forbidden):
                continue
            number, ann_id = len(records), scene.ann_id(position)
            texts = [sample.expression, sample.expression.removeprefix("the ")]
            sentences = [
                {"sent_id": 2 * number + k, "sent": text, "raw": text, "tokens": text.split()}
                for k, text in enumerate(texts)
            ]
            records.append(
                {
                    "ref_id": number,
                    "ann_id": ann_id,
                    "image_id": scene.number,
                    "category_id": _category_id(sample),
                    "split": split,
                    "file_name": f"COCO_train2014_{scene.number:012d}_{ann_id}.jpg",
                    "sent_ids": [sentence["sent_id"] for sentence in sentences],
                    "sentences": sentences,
                }
            )
    return records


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, separators=(",", ":")) + "\n", encoding="ascii")


if __name__ == "__main__":
    write_embedded(embedded_root())
