"""The boxes that annotators drew, from every layout that has them to the scores."""

import json

import numpy as np
import pyarrow
import pytest
from data_trees import (
    BESIDE,
    HEIGHT,
    PHOTO,
    SQUARE,
    WIDTH,
    annotation,
    instances,
    reference,
    write_json,
    write_photo,
)
from pyarrow import parquet

from seg_env.data import GRefCoco, Refer, open_dataset
from seg_env.data.export import export_jsonlines
from seg_env.data.readers.jsonlines import JsonLines
from seg_env.grammar import decode, encode
from seg_env.grammar.answers import decode_answer
from seg_env.metrics import measure, summarize
from seg_env.tasks import answer, box_of, point_of

BOX = [8, 9.5, 24, 21.5]
"""Around `SQUARE`, as annotators draw: x, y, width, height."""
UNIT = (8 / WIDTH, 9.5 / HEIGHT, 32 / WIDTH, 31 / HEIGHT)
OTHER_BOX = [24.0, 19.0, 22.0, 17.0]
BOTH = (8 / WIDTH, 9.5 / HEIGHT, 46 / WIDTH, 36 / HEIGHT)
ROW = {"image": PHOTO, "expression": "the square", "size": [HEIGHT, WIDTH]}
RINGS = [[[10 / 60, 0.25], [0.5, 0.25], [0.5, 0.75], [10 / 60, 0.75]]]


def coco(root, box=BOX, **options):
    write_json(root / "instances_val.json", instances(annotation(1, [SQUARE], bbox=box)))
    write_photo(root / "val" / PHOTO)
    return open_dataset("coco", split="val", data_root=root, **options)


def refer(root):
    write_json(root / "refcoco/instances.json", instances(annotation(1, [SQUARE], bbox=BOX)))
    write_json(root / "refcoco/refs(unc).json", [reference(1, 1, ["a"])])
    write_photo(root / "images/train2014" / PHOTO)
    return Refer(root, split="val")


def lmms(root):
    write_photo(root / PHOTO)
    image = {"bytes": (root / PHOTO).read_bytes(), "path": PHOTO}
    row = {"question_id": "1", "image": image, "answer": ["a"], "segmentation": SQUARE}
    parquet.write_table(pyarrow.Table.from_pylist([row | {"bbox": BOX}]), root / "val.parquet")
    return open_dataset("parquet", split="val", data_root=root)


def jxu124(root):
    write_photo(root / "train2014" / PHOTO)
    row = {
        "ref_id": 1,
        "sentences": [{"sent": "a"}],
        "raw_anns": json.dumps({"segmentation": [SQUARE], "bbox": BOX}),
        "raw_image_info": json.dumps({"height": HEIGHT, "width": WIDTH}),
        "image_path": f"train2014/{PHOTO}",
        "bbox": [8.0, 9.5, 32.0, 31.0],
    }
    parquet.write_table(pyarrow.Table.from_pylist([row]), root / "val.parquet")
    return open_dataset("parquet", split="val", data_root=root)


def json_lines(root, **fields):
    write_photo(root / PHOTO)
    row = ROW | {"rings": RINGS, "box": UNIT} | fields
    (root / "val.jsonl").write_text(json.dumps(row) + "\n")
    return JsonLines(root, "val")


@pytest.mark.filterwarnings("ignore::seg_env.data.readers.refer.CountWarning")
@pytest.mark.parametrize("make", [coco, refer, lmms, jxu124, json_lines])
def test_the_annotated_box_is_the_true_one(make, tmp_path):
    target = make(tmp_path)[0].target
    assert target.box == pytest.approx(UNIT)
    np.testing.assert_allclose(box_of(target), UNIT)
    assert target.rle.bbox == (10, 10, 30, 30)


def test_an_annotated_box_survives_an_export(tmp_path):
    export_jsonlines(coco(tmp_path / "coco"), tmp_path / "out")
    assert JsonLines(tmp_path / "out", "val")[0].target.box == pytest.approx(UNIT)


def test_of_several_objects_it_is_the_box_around_theirs(tmp_path):
    for second, expected in ((OTHER_BOX, BOTH), (None, None)):
        annotations = annotation(1, [SQUARE], bbox=BOX), annotation(2, [BESIDE], bbox=second)
        write_json(tmp_path / "grefcoco/instances.json", instances(*annotations))
        refs = [reference(1, [1, 2], ["both"], category_id=[3, 3]), reference(2, [-1], ["none"])]
        write_json(tmp_path / "grefcoco/grefs(unc).json", refs)
        write_photo(tmp_path / "images/train2014" / PHOTO)
        both, nothing = (sample.target for sample in GRefCoco(tmp_path, "val"))
        assert both.box == (expected and pytest.approx(expected))
        assert nothing.box is None
        assert box_of(nothing).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "box",
    [
        None,
        [],
        "text",
        {"x": 1},
        [1, 2, 3],
        [0, 0, 0, 0],
        [0, 0, 1, 1],
        [10, 10, -5, 5],
        [float("nan"), 1, 1, 1],
        [10, 10, float("inf"), 5],
        [10**400, 1, 1, 1],
        ["\ud800", 1, 1, 1],
        [[1], 2, 3, 4],
    ],
)
def test_of_a_placeholder_the_box_is_that_of_the_mask(box, tmp_path):
    target = coco(tmp_path, box)[0].target
    assert target.box is None
    np.testing.assert_allclose(box_of(target), (10 / WIDTH, 0.25, 0.5, 0.75))


@pytest.mark.parametrize("box", [5, [1, 2], [0.5, 0.1, 0.2, 0.3], [0, 0, 1, 10**400], ["a"] * 4])
def test_a_broken_box_of_our_own_format_is_named(box, tmp_path):
    dataset = json_lines(tmp_path, box=box)
    with pytest.raises(ValueError, match=r"val.jsonl: line 1: "):
        dataset[0]
    nothing = json_lines(tmp_path, rings=[], box=UNIT)[0].target
    assert nothing.box is None


def test_verdicts_follow_the_box(tmp_path):
    """The box of the mask is 20 x 20 pixels, the annotated one 24 x 21.5."""
    target = coco(tmp_path)[0].target
    outline = decode(encode(target.rings, decimals=6))
    written = decode_answer(answer(coco(tmp_path)[0], "text->bbox", decimals=6), "bbox")
    assert measure([outline], [target])["box_iou"] == pytest.approx(400 / 516, abs=1e-4)
    assert measure([written], [target])["box_iou"] == pytest.approx(1, abs=1e-4)
    # Three quarters of the height: .75 of the mask's box, and less than .5 of the annotated one.
    text = "[[[0.1666667,0.25],[0.4,0.25],[0.4,0.7],[0.1666667,0.7]]]"
    columns = measure([decode(text)], [target])
    assert columns["box_iou"] == pytest.approx(252 / 516, abs=1e-4)
    assert columns["annotated_box"].tolist() == [True]
    assert summarize(columns, resamples=0)["rec_accuracy"] == 0
    assert point_of(target).tolist() == [20 / WIDTH, 0.5]
