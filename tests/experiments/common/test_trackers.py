"""Trackers: what they are given is there afterwards, by their own packages."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments import run_gspo
from experiments.common import trackers
from experiments.common.trackers import check_trackers, open_trackers
from seg_env.errors import WrongOptionError

ROOT = Path(__file__).parents[3]
CONFIG = {"seed": 1, "gspo.loss": "gspo", "rewards": ["mask_iou=1", "format=0.1"]}
METRICS = [{"rollout/reward": 0.25 * update, "eval/greedy_giou": 0.5} for update in range(3)]


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    Image.fromarray(np.full((8, 6, 3), 200, np.uint8)).save(run / "answers.png")
    return run


def follow(name, folder):
    (tracker,) = open_trackers([name], folder, CONFIG, -1)
    for update, metrics in enumerate(METRICS):
        tracker.write(update, metrics)
    tracker.show(2, "eval/answers", folder / "answers.png")
    tracker.close()


def read_board(folder):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_tensorboard_has_curves_pictures_and_settings(folder):
    follow("tensorboard", folder)
    events = read_board(folder)
    curve = [(event.step, event.value) for event in events.Scalars("rollout/reward")]
    assert curve == [(0, 0), (1, 0.25), (2, 0.5)]
    (image,) = events.Images("eval/answers")
    assert (image.step, image.width, image.height) == (2, 6, 8)
    assert "config/text_summary" in events.Tags()["tensors"]


def run_apart(name, folder, **variables):
    """Follow in a process of its own: these packages start threads and processes of their own."""
    code = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[3:]\n"
        "from test_trackers import follow; follow(sys.argv[1], Path(sys.argv[2]))"
    )
    words = [sys.executable, "-c", code, name, str(folder), str(Path(__file__).parent)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), **variables}
    subprocess.run(words, check=True, timeout=120, env=environment, capture_output=True)


@pytest.mark.trackers
def test_trackio_has_curves_and_pictures(folder, tmp_path):
    data = tmp_path / "trackio"
    run_apart("trackio", folder, TRACKIO_DIR=str(data), SIMPLESEG_PROJECT="mine")
    with sqlite3.connect(data / "mine.db") as base:
        rows = base.execute("select step, metrics from metrics order by step, id").fetchall()
    found = [(step, json.loads(metrics)) for step, metrics in rows]
    curve = [(step, row["rollout/reward"]) for step, row in found if "rollout/reward" in row]
    assert curve == [(0, 0), (1, 0.25), (2, 0.5)]
    assert any("eval/answers" in row for _, row in found)
    assert list(data.rglob("*.png"))


@pytest.mark.trackers
def test_wandb_has_its_files_and_pictures_in_the_folder_and_sends_nothing(folder):
    run_apart("wandb", folder, WANDB_MODE="offline")
    (run,) = (folder / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))
    assert list(run.rglob("answers_2_*.png"))


@pytest.mark.trackers
def test_swanlab_has_its_log_in_the_folder(folder):
    run_apart("swanlab", folder)
    assert list((folder / "swanlab").rglob("config.yaml"))


@pytest.mark.parametrize("name", ["trackio", "wandb", "swanlab"])
def test_what_is_not_installed_is_named_before_training(name, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    with pytest.raises(WrongOptionError, match=f"needs the package {name}.*pip install {name}"):
        check_trackers(["tensorboard", name])


def test_none_goes_alone():
    check_trackers(["none"])
    assert open_trackers(["none"], Path(), {}, -1) == []
    with pytest.raises(WrongOptionError, match="none goes alone"):
        check_trackers(["none", "tensorboard"])


def test_the_command_line_takes_several():
    args = tyro.cli(run_gspo.Args, args=["--track", "wandb", "trackio"])
    assert args.track == ("wandb", "trackio")


def test_a_run_shows_its_answers_at_every_evaluation_and_what_changed(policy_folder, tmp_path):
    args = tyro.cli(
        run_gspo.Args,
        args=[
            *("--policy", str(policy_folder), "--output-dir", str(tmp_path / "run")),
            *("--updates", "2", "--gspo.prompts-per-update", "2", "--gspo.group-size", "2"),
            *("--gspo.max-new-tokens", "20", "--evaluation.questions", "3"),
            *("--evaluation.answers", "1", "--evaluation.every", "1"),
        ],
    )
    run_gspo.main(args)
    events = read_board(tmp_path / "run")
    assert [event.step for event in events.Images("eval/answers")] == [0, 1, 2]
    assert [event.step for event in events.Images("before_after")] == [2]
    assert {"rollout/reward", "train/policy_loss", "eval/greedy_giou", "time/collect"} <= set(
        events.Tags()["scalars"]
    )
