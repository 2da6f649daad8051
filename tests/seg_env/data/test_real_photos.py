"""RefCOCO's own images and outlines, where somebody has them; they are never part of this project.

The variable SIMPLESEG_TEST_DATA names a folder with ``mini_refcoco/`` (a few references in the
layout of RefCOCO, and their masks as PNG) and ``coco_polygons_495169/`` (outlines of COCO).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seg_env.data import Refer, open_dataset
from seg_env.data.segmentations import target_from_segmentation
from seg_env.geometry.overlap import iou_batch
from seg_env.grammar import decode, encode
from seg_env.types import Sample

DATA = Path(
    os.environ.get("SIMPLESEG_TEST_DATA", Path(__file__).parents[4] / "shared" / "data")
).absolute()
SPLITS = [("refcoco", "unc", "testA"), ("refcoco", "unc", "testB"), ("refcocog", "google", "val")]

pytestmark = pytest.mark.skipif(
    not (DATA / "mini_refcoco").is_dir(),
    reason="no real photos: set SIMPLESEG_TEST_DATA to the folder that holds mini_refcoco/",
)


def samples_of(name: str, split_by: str, split: str) -> list[Sample]:
    return list(Refer(DATA / "mini_refcoco", name, split, split_by))


@pytest.mark.parametrize(
    ("where", "count"), zip(SPLITS, (12, 14, 1), strict=True), ids=lambda value: str(value)
)
def test_every_sentence_is_a_sample_with_its_image(where: tuple[str, str, str], count: int) -> None:
    samples = samples_of(*where)
    assert len(samples) == count == len({sample.id for sample in samples})
    for sample in samples:
        assert sample.image.shape == (*sample.target.size, 3)
        assert sample.image.std() > 20
        assert sample.expression == sample.expression.strip() != ""


@pytest.mark.parametrize("where", SPLITS, ids=str)
def test_masks_are_those_of_the_reference_rasteriser(where: tuple[str, str, str]) -> None:
    for sample in samples_of(*where):
        image, reference = sample.metadata["image_id"], sample.metadata["ref_id"]
        if where[0] == "refcocog":
            reference = f"g{sample.metadata['ann_id']}"
        path = DATA / "mini_refcoco" / "masks" / f"{image}_{reference}.png"
        expected = np.asarray(Image.open(path)) > 0
        np.testing.assert_array_equal(sample.target.mask(), expected, err_msg=path.name)


@pytest.mark.parametrize(("epsilon", "least"), [(0.0, 0.9999), (0.0005, 0.995), (0.001, 0.99)])
@pytest.mark.parametrize("where", SPLITS, ids=str)
def test_what_the_ground_truth_scores_when_written_as_text(
    where: tuple[str, str, str], epsilon: float, least: float
) -> None:
    scores = []
    for sample in samples_of(*where):
        prediction = decode(encode(sample.target.outline(epsilon)))
        assert prediction.valid
        scores.append(iou_batch([prediction.rings], sample.target.rle)[0])
    assert np.mean(scores) >= least


def test_the_area_of_cocos_own_polygons() -> None:
    path = DATA / "coco_polygons_495169" / "refcoco_495169_excerpt.json"
    annotations = json.loads(path.read_text())["annotations"]
    areas = {
        annotation["id"]: target_from_segmentation(annotation["segmentation"], (480, 640)).area
        for annotation in annotations
    }
    assert areas == {220551: 25275, 213980: 28019, 115528: 15903, 2159841: 31419}


def test_outlines_of_yolo_are_those_of_cocos_pixels() -> None:
    """Fractions of width and height, filled by COCO's rule at the size of the photo."""
    dataset = open_dataset(str(DATA / "yolo_coco"), split="val", per_annotation=True)
    assert len(dataset) == 55
    label = (DATA / "yolo_coco/labels/val2017/000000000139.txt").read_text().splitlines()
    for sample, line in zip(dataset, label, strict=False):
        points = np.array(line.split()[1:], float).reshape(-1, 2) * sample.target.size[::-1]
        segmentation = [points.ravel().tolist()]
        expected = target_from_segmentation(segmentation, sample.target.size)
        assert sample.target.rle == expected.rle
