"""One odd record, answer or line of a file is left out and counted; it does not end a run."""

import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from experiments.common.logs import warn
from experiments.evaluate import Args, main
from experiments.evaluation.answers import read_answers
from experiments.evaluation.scores import load_samples
from seg_env.data.export import export_jsonlines
from seg_env.data.readers.jsonlines import JsonLines
from seg_env.envs.left_out import UnusableSampleError
from seg_env.types import Sample, Target, without_surrogates

OUTLINE = "[[[0.1,0.1],[0.6,0.1],[0.6,0.7]]]"
HUGE = 10**400

ODD_RECORDS = {
    "plain": ({}, 2),
    "lone surrogate in the expression": ({"expression": "the \ud800 star"}, 2),
    "lone surrogate in the id": ({"id": "\ud801"}, 2),
    "lone surrogate in the image's name": ({"image": "\ud800.png"}, 1),
    "formula": ({"expression": "costs $5 and $10_{"}, 2),
    "markup": ({"id": "[/red]", "image": "[/blue].png"}, 1),
    "control characters": ({"expression": "\0\x1b[31m \n x"}, 2),
    "long": ({"expression": "x" * 100_000, "id": "y" * 100_000}, 2),
    "size of 400 digits": ({"size": [HUGE, 64]}, 1),
    "vertex of 400 digits": ({"rings": [[[HUGE, 0], [1, 1], [0, 1]]]}, 1),
    "run length of 400 digits": ({"rings": None, "rle": {"size": [64, 64], "counts": [HUGE]}}, 1),
    "another object of 400 digits": ({"others": [{"size": [HUGE, 64], "counts": [HUGE]}]}, 2),
    "metadata": ({"metadata": {"bbox": [HUGE, "\ud800"]}}, 2),
}
"""Fields of a record, and how many of two questions are asked with it and a plain one."""


@pytest.fixture
def data(tmp_path):
    """Writes a file of records, each a plain one but for the fields given, and returns it."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    rings = [[[0.1, 0.1], [0.6, 0.1], [0.6, 0.7]]]
    plain = {"image": "0.png", "expression": "the star", "size": [64, 64], "rings": rings}

    def write(*records):
        rows = [plain | {"id": str(number)} | odd for number, odd in enumerate(records)]
        rows = [{key: value for key, value in row.items() if value is not None} for row in rows]
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path, [row["id"] for row in rows]

    return write


def write_lines(path, *rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def evaluate(folder, data, answers=None, **options):
    return main(Args(dataset=str(data), predictions=answers, output_dir=folder, **options))


@pytest.mark.parametrize("name", ODD_RECORDS)
def test_an_odd_record_does_not_end_the_scoring_of_a_file(name, tmp_path, data, capsys):
    record, asked = ODD_RECORDS[name]
    path, ids = data({}, record)
    rows = [{"id": each, "text": OUTLINE} for each in ids]
    scores = evaluate(
        tmp_path / "out", path, write_lines(tmp_path / "a.jsonl", *rows), ignore_unknown=True
    )
    # Answers are scored where there is no image, too.
    readable = asked == 2 or "image" in record
    assert scores["questions"] == 1 + readable
    assert len(scores["left_out"]) == 1 - readable
    assert scores["giou"] > 0.98
    assert len(load_samples(tmp_path / "out")["id"]) == 1 + readable
    assert (tmp_path / "out" / "worst.png").exists()
    ceiling = evaluate(tmp_path / "out", path, ceiling=True)
    assert ceiling["questions"] == 1 + readable


@pytest.mark.parametrize(
    "name", ["lone surrogate in the expression", "lone surrogate in the image's name", "markup"]
)
def test_an_odd_record_does_not_end_the_asking_of_a_policy(name, tmp_path, data, capsys):
    record, asked = ODD_RECORDS[name]
    path, _ = data({}, record)
    scores = evaluate(tmp_path / "out", path, max_new_tokens=8)
    assert (scores["questions"], len(scores["left_out"])) == (asked, 2 - asked)


def test_samples_hold_text_that_can_be_written():
    target = Target.from_mask(np.ones((4, 4), bool))
    sample = Sample("a\ud800", "the \udfff é 龍", target, lambda: None)
    assert (sample.id, sample.expression) == ("a?", "the ? é 龍")
    assert without_surrogates("🐉") == "🐉"


def test_odd_records_can_be_exported(tmp_path, data):
    path, _ = data({"expression": "the \ud800", "metadata": {"category": "\udfff"}})
    export_jsonlines(JsonLines(path, "val"), tmp_path / "out")
    sample = JsonLines(tmp_path / "out", "val")[0]
    assert (sample.expression, sample.metadata["category"]) == ("the ?", "\udfff")


def test_odd_answers_are_scored(tmp_path, data, capsys):
    path, ids = data({}, {}, {})
    rows = [
        {"id": ids[0], "text": "the \ud800 $x_{ [/red]", "tokens": HUGE},
        {"id": ids[1], "text": OUTLINE, "tokens": 12},
        {"id": ids[2], "text": "[" * 100_000, "tokens": -1},
    ]
    answers = write_lines(tmp_path / "a.jsonl", *rows)
    scores = evaluate(tmp_path / "out", path, answers)
    assert scores["failures"] == {"malformed": 2, "good": 1}
    assert scores["tokens"] == 12
    assert load_samples(tmp_path / "out")["tokens"].tolist() == [-1, 12, -1]


@pytest.mark.parametrize("line", ["{", "[1]", '{"id": "2", "text": 5}', "1" * 5000])
def test_a_line_that_cannot_be_read_is_left_out_with_its_question(line, tmp_path, data, capsys):
    path, ids = data({}, {}, {})
    rows = [{"id": each, "text": OUTLINE} for each in ids[:2]]
    answers = write_lines(tmp_path / "a.jsonl", *rows, line)
    scores = evaluate(tmp_path / "out", path, answers)
    assert scores["questions"] == 2
    assert list(scores["left_out"]) == [f"{answers}, line 3"]
    assert "1 sample left out: 1 as" in (tmp_path / "out" / "report.md").read_text()
    with pytest.raises(ValueError, match="line 3"):
        evaluate(tmp_path / "out", path, answers, on_error="error")
    with pytest.raises(ValueError, match="line 3"):
        read_answers(answers)
    # One such line does not explain two questions without an answer.
    with pytest.raises(ValueError, match="2 of 3 questions have no answer"):
        evaluate(tmp_path / "out", path, write_lines(answers, rows[0], line))


def test_a_question_answered_twice_is_left_out_where_others_are_not(tmp_path, data, capsys):
    path, ids = data({}, {})
    rows = [{"id": each, "text": OUTLINE} for each in (ids[0], ids[1], ids[1])]
    answers = write_lines(tmp_path / "a.jsonl", *rows)
    scores = evaluate(tmp_path / "out", path, answers)
    assert scores["left_out"] == {ids[1]: "2 answers and --answers is 1"}
    assert scores["questions"] == 1
    with pytest.raises(ValueError, match="has 2 answers and --answers is 1"):
        evaluate(tmp_path / "out", path, answers, on_error="error")


def test_samples_of_one_id_are_left_out(tmp_path, data, capsys):
    path, _ = data({}, {"id": "twin"}, {"id": "twin"})
    rows = [{"id": each, "text": OUTLINE} for each in ("0", "twin")]
    scores = evaluate(tmp_path / "out", path, write_lines(tmp_path / "a.jsonl", *rows))
    assert scores["left_out"] == {"twin": "2 samples have this id"}
    assert scores["questions"] == 1
    scores = evaluate(tmp_path / "asked", path, max_new_tokens=8)
    assert scores["left_out"] == {"twin": "2 samples have this id"}


def test_without_a_sample_that_can_be_asked_a_sentence_says_why(tmp_path, data):
    path, _ = data({"size": [HUGE, 64]})
    answers = write_lines(tmp_path / "a.jsonl", {"id": "0", "text": "[]"})
    with pytest.raises(UnusableSampleError, match="no question can be asked: 1 sample left out"):
        evaluate(tmp_path / "out", path, answers, ignore_unknown=True)


def test_brackets_in_a_warning_are_no_markup(capsys):
    warn(Console(), "left out: [/red] [bold]")
    assert capsys.readouterr().out == "left out: [/red] [bold]\n"
