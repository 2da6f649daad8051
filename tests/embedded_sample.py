"""Writes the files below `embedded_root`: procedural scenes in the form of the RefCOCO family.

They stand in where users have not pointed to their copy of the data, show what each file looks
like, and are small enough to come with the package.

    PYTHONPATH=. python tests/embedded_sample.py      # writes them again
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
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

INFO = {"description": "procedural scenes in the form of RefCOCO; not RefCOCO"}


def write_embedded(root: Path) -> None:
    """Write the whole sample below ``root``."""
    for folder, count in (("images/mscoco/images/train2014", 30), ("images/saiapr_tc-12", 16)):
        of_clef = "saiapr" in folder
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        expressions: list[str] = []  # one for each annotation
        for number in range(1, count + 1):
            samples, rows = _draw(number, of_clef)
            file = f"{number % 3}/{number}.jpg" if of_clef else f"COCO_train2014_{number:012d}.jpg"
            path = root / folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = samples[0].image[rows]
            Image.fromarray(pixels).save(path, quality=88, optimize=True)
            size = {"height": pixels.shape[0], "width": pixels.shape[1]}
            images.append({"id": number, "file_name": file, **size})
            for position, sample in enumerate(samples):
                target = Target.from_mask(sample.target.mask()[rows])
                x0, y0, x1, y1 = target.rle.bbox
                annotations.append(
                    {
                        "id": number * 10 + position,
                        "image_id": number,
                        "category_id": list(SHAPES).index(sample.metadata["shape"]) + 1,
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": target.area,
                        "iscrowd": 0,
                        "segmentation": [run_lengths(target.rle)] if of_clef else _polygons(target),
                    }
                )
                expressions.append(sample.expression)
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(SHAPES)]
        tables = {"images": images, "annotations": annotations, "categories": categories}
        for (name, split_by), held_out in HELD_OUT_SPLITS.items():
            if name != "grefcoco" and (name == "refclef") == of_clef:
                references = _references(annotations, expressions, name, held_out)
                for file, content in (
                    ("instances.json", {"info": INFO, **tables}),
                    (f"refs({split_by}).json", references),
                ):
                    (root / name).mkdir(parents=True, exist_ok=True)
                    text = json.dumps(content, separators=(",", ":")) + "\n"
                    (root / name / file).write_text(text, encoding="ascii")


def _draw(number: int, of_clef: bool) -> tuple[list[Sample], slice]:
    """The questions about a scene, and its rows without borders where nothing is lost."""
    index = number - 1
    size = (128, 144, 160)[index % 3]
    dataset = Scenes("val", ("medium", "hard")[index % 2], seed=int(of_clef), size=size)
    samples = dataset.samples_of(index)
    # "At the top" is said of the whole image: such a scene stays whole.
    if any(place in sample.expression for sample in samples for place in PLACES):
        return samples, slice(0, size)
    masks = np.array([sample.target.mask() for sample in samples])
    filled = np.flatnonzero(masks.any(axis=(0, 2)))
    return samples, slice(max(0, int(filled[0]) - 4), min(size, int(filled[-1]) + 5))


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
    annotations: list[dict[str, Any]], expressions: list[str], name: str, held_out: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Two sentences about each object; of eight images five are for training."""
    # RefCOCO+ was collected with the rule that words of location are forbidden.
    located = (*PLACES, *SUPERLATIVES[:4], "left", "right", "above", "below")
    forbidden = located if name == "refcoco+" else ()
    records: list[dict[str, Any]] = []
    for annotation, expression in zip(annotations, expressions, strict=True):
        if any(words in expression for words in forbidden):
            continue
        number, image_id, ann_id = len(records), annotation["image_id"], annotation["id"]
        block, slot = divmod(image_id - 1, 8)
        sentences = [
            {"sent_id": 2 * number + k, "sent": text, "raw": text, "tokens": text.split()}
            for k, text in enumerate((expression, expression.removeprefix("the ")))
        ]
        records.append(
            {
                "ref_id": number,
                "ann_id": ann_id,
                "image_id": image_id,
                "category_id": annotation["category_id"],
                "split": "train" if slot < 5 else held_out[(3 * block + slot - 5) % len(held_out)],
                "file_name": f"COCO_train2014_{image_id:012d}_{ann_id}.jpg",
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
                "sentences": sentences,
            }
        )
    return records


if __name__ == "__main__":
    write_embedded(embedded_root())
