"""Which boxes are true is an option of an evaluation, and its report says it."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments.evaluate import Args, main
from experiments.evaluation.scores import load_samples
from seg_env.errors import WrongOptionError

SQUARE = [[[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]]]
BOX = [0.125, 0.25, 0.875, 0.75]


@pytest.fixture
def files(tmp_path):
    """Two samples, of which the first has an annotated box, and answers that are the masks."""
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "0.png")
    row = {"image": "0.png", "expression": "it", "size": [64, 64], "rings": SQUARE}
    rows = [row | {"id": "0", "box": BOX}, row | {"id": "1"}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    answers = [{"id": each, "text": json.dumps(SQUARE)} for each in "01"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in answers))
    return tmp_path


def evaluate(files, name="out", **options):
    named = {"dataset": str(files / "data.jsonl"), "predictions": files / "a.jsonl"}
    return main(Args(**named, output_dir=files / name, pictures=False, **options))


def test_the_report_says_which_boxes_are_true(files, capsys):
    scores = evaluate(files)
    assert scores["true_boxes"] == {"annotated": 1, "mask": 1}
    assert scores["box_giou"] == pytest.approx((2 / 3 + 1) / 2)
    assert load_samples(files / "out")["box_iou"].tolist() == pytest.approx([2 / 3, 1])
    told = "true boxes: as annotated for 1 question, around the masks for 1"
    assert told in (files / "out" / "report.md").read_text()


def test_the_boxes_of_the_masks_can_be_asked_for(files, capsys):
    scores = evaluate(files, boxes="mask")
    assert scores["true_boxes"] == {"annotated": 0, "mask": 2}
    assert scores["box_giou"] == 1
    assert "true boxes: around the masks" in (files / "out" / "report.md").read_text()
    with pytest.raises(WrongOptionError, match="with the same --boxes"):
        evaluate(files, "again", compare=files / "out")
    assert evaluate(files, "same", boxes="mask", compare=files / "out")["gains"]["box_giou"]


def test_a_box_is_asked_for_as_it_was_annotated(files, capsys):
    answers = [{"id": "0", "text": json.dumps(BOX)}, {"id": "1", "text": "[0.25,0.25,0.75,0.75]"}]
    (files / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in answers))
    assert evaluate(files, task="text->bbox")["box_giou"] == pytest.approx(1)
    assert evaluate(files, task="text->bbox", boxes="mask")["box_giou"] < 0.9
