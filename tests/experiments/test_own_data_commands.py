"""Commands about data of one's own: held-out images, the check, and what is said once."""

import json
import re
from importlib import import_module

import numpy as np
import pytest
from agents_fixtures import SMALL
from PIL import Image

from agents.settings import BehaviorCloningConfig
from experiments import check, evaluate, run_bc
from experiments.__main__ import COMMANDS
from experiments.common.arguments import EvaluationPlan, TrainingArguments
from seg_env.data import export_jsonlines
from seg_env.data.readers.annotated_images import image_key
from seg_env.data.scenes import Scenes
from seg_env.errors import WrongOptionError

IMAGES = 20


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """``mine.jsonl``: as scenes are, but data of one's own."""
    folder = tmp_path_factory.mktemp("own")
    written = export_jsonlines(Scenes("train", length=IMAGES, size=64), folder)
    return written.rename(folder / "mine.jsonl")


def test_cloning_is_measured_on_held_out_images_of_the_same_data(lines, tmp_path, capsys):
    args = run_bc.Args(
        model=SMALL,
        data=str(lines),
        updates=1,
        cloning=BehaviorCloningConfig(batch_size=2),
        evaluation=EvaluationPlan(questions=9, answers=1, every=0),
        max_new_tokens=8,
        output_dir=tmp_path / "run",
    )
    scores = run_bc.main(args)
    assert (scores["dataset"], scores["split"]) == ("jsonl", "mine, held-out images")
    assert scores["after"]["questions"] == 2
    held_out = json.loads((tmp_path / "run/held_out.json").read_text())["images"]
    assert len(held_out) == 2
    learned = run_bc.open_images(args)
    names = {image_key(learned.name_of(index)) for index in range(len(learned))}
    assert len(names) == IMAGES - 2
    assert not names & {image_key(name) for name in held_out}
    assert "held out of" in capsys.readouterr().out
    assert "jsonl (mine, train images)" in (tmp_path / "run/report.md").read_text()

    # evaluate finds the same images again
    asked = evaluate.Args(dataset=str(lines), part="held-out").environment()
    assert asked == {"dataset": str(lines), "part": "held-out", "on_error": "skip"}


def test_splits_of_the_data_are_what_is_measured_on(tmp_path):
    for split in ("train", "val"):
        export_jsonlines(Scenes(split, length=2, size=64), tmp_path)
    args = TrainingArguments(dataset=str(tmp_path))
    assert (args.environment()["split"], args.held_out()["split"]) == ("train", "val")
    assert "part" not in args.environment() | args.held_out()
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(WrongOptionError, match="has the split 'val' and no 'train'"):
        args.environment()


def test_other_data_may_be_measured_on(lines):
    plan = EvaluationPlan(dataset="scenes", split="test")
    args = run_bc.Args(dataset=str(lines), evaluation=plan)
    assert "part" not in args.environment()
    assert args.held_out() == {"dataset": "scenes", "split": "test", "difficulty": "easy"}


def test_a_shipped_policy_says_once_that_it_knows_other_images(lines, tmp_path, capsys):
    args = {"questions": 2, "max_new_tokens": 8, "details": False, "pictures": False}
    evaluate.main(evaluate.Args(dataset=str(lines), output_dir=tmp_path / "own", **args))
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("embedded was made for procedural scenes") == 1
    evaluate.main(evaluate.Args(output_dir=tmp_path / "scenes", **args))
    assert "was made for" not in capsys.readouterr().out


def test_check_tells_what_is_there_and_what_is_left_out(lines, tmp_path, capsys):
    broken = lines.with_name("broken.jsonl")
    record = {"image": "images/none.png", "expression": "the star", "size": [64, 64], "rings": []}
    broken.write_text(lines.read_text() + json.dumps(record) + "\n")
    found = check.command_line([str(broken), "--output-dir", str(tmp_path)])
    assert (found["layout"], found["samples"], found["images"]) == ("jsonl", IMAGES, IMAGES)
    assert found["left_out"] == {"left out for missing photo": 1}
    assert found["image_width"] == [64] * 5
    assert found["ceilings"][0]["giou"] > 0.99
    assert "missing photo" in capsys.readouterr().out
    drawing = np.asarray(Image.open(tmp_path / "samples.png").convert("RGB"))
    assert drawing.shape[0] > 1000  # four rows
    assert json.loads((tmp_path / "check.json").read_text()) == json.loads(json.dumps(found))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "error: jsonl (mine) has nothing to ask about: it has no records"),
        ('{"image": 3}\n', "mine.jsonl: line 1: 'image' must be a string, got 3"),
    ],
)
def test_check_of_nothing_tells_why_and_ends_with_status_2(tmp_path, capsys, text, told):
    (tmp_path / "mine.jsonl").write_text(text)
    with pytest.raises(SystemExit) as ended:
        check.command_line([str(tmp_path / "mine.jsonl"), "--output-dir", str(tmp_path)])
    assert ended.value.code == 2
    assert told in "".join(capsys.readouterr())


@pytest.mark.parametrize("name", ["gspo", "ppo", "bc", "evaluate", "demo"])
def test_every_command_about_data_takes_the_same_names(name, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["simpleseg"])
    with pytest.raises(SystemExit):
        import_module(COMMANDS[name][0]).command_line(["--help-all"])
    told = capsys.readouterr().out
    for option in ("dataset", "data-root", "image-root", "split", "per-annotation", "on-error"):
        assert re.search(f"--{option}[ ,]", told), option
