"""Trackers: what they are given is there afterwards, by their own packages."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

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


def follow(name, folder, start=-1):
    (tracker,) = open_trackers([name], folder, CONFIG, int(start))
    for update, metrics in enumerate(METRICS, int(start) + 1):
        tracker.write(update, metrics)
    tracker.show(int(start) + 3, "eval/answers", folder / "answers.png")
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


def run_apart(name, folder, start=-1, **variables):
    """Follow in a process of its own: these packages start threads and processes of their own."""
    code = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[4:]\n"
        "from test_trackers import follow; follow(sys.argv[1], Path(sys.argv[2]), sys.argv[3])"
    )
    words = [sys.executable, "-c", code, name, str(folder), str(start), str(Path(__file__).parent)]
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
def test_trackio_tells_runs_in_folders_named_alike_apart_and_resumes_each(tmp_path):
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    variables = {"TRACKIO_DIR": str(tmp_path / "trackio"), "SIMPLESEG_PROJECT": "mine"}
    for folder in folders:
        folder.mkdir(parents=True)
        Image.new("RGB", (6, 8)).save(folder / "answers.png")
        run_apart("trackio", folder, **variables)
    run_apart("trackio", folders[1], start=2, **variables)
    with sqlite3.connect(tmp_path / "trackio" / "mine.db") as base:
        rows = base.execute("select run_id, step, metrics from metrics order by step").fetchall()
    steps = {}
    for run, step, metrics in rows:
        if "rollout/reward" in json.loads(metrics):
            steps.setdefault(run, []).append(step)
    assert sorted(steps.values()) == [[0, 1, 2], [0, 1, 2, 3, 4, 5]]


@pytest.mark.trackers
def test_wandb_goes_on_with_a_resumed_run_and_not_with_what_was_there_before(folder):
    known = []
    for start in (-1, 2, -1):
        run_apart("wandb", folder, start, WANDB_MODE="offline")
        before = {path.name for path in known}
        known += [path for path in (folder / "wandb").glob("offline-*") if path.name not in before]
    first, resumed, again = (path.name.rpartition("-")[2] for path in known)
    assert first == resumed != again


@pytest.mark.trackers
def test_swanlab_has_its_log_in_the_folder(folder):
    run_apart("swanlab", folder)
    assert list((folder / "swanlab").rglob("config.yaml"))


# What a run is known by.


@pytest.fixture
def known_by(monkeypatch):
    """What trackio and wandb are told of a run in a folder, without the packages."""
    told = {}

    def init(**given):
        told.update(given)

    monkeypatch.setattr(trackers, "import_module", lambda name: SimpleNamespace(init=init))

    def opened(folder, start):
        folder.mkdir(parents=True, exist_ok=True)
        open_trackers(["wandb", "trackio"], folder, {}, start)
        assert told["name"] == f"{folder.name}-{told['id']}"
        return told["id"], told["resume"]

    return opened


def test_a_resumed_run_is_known_again(known_by, tmp_path):
    name, resume = known_by(tmp_path, -1)
    assert resume == "never"
    assert known_by(tmp_path, 0) == known_by(tmp_path, 40) == (name, "allow")


def test_folders_named_alike_hold_different_runs(known_by, tmp_path):
    assert known_by(tmp_path / "a" / "gspo", -1) != known_by(tmp_path / "b" / "gspo", -1)


def test_a_run_that_begins_where_another_one_was_is_not_that_one(known_by, tmp_path):
    """Also where files are left of it: no checkpoint was whole, so it begins again."""
    found = {known_by(tmp_path, -1)[0] for _ in range(3)}
    assert len(found) == 3


@pytest.mark.parametrize(
    "content", [b"", b"../../mine", b"0123456", b"0123456789", b"\xff\xfe", b"0" * 10_000]
)
def test_an_id_that_was_never_drawn_is_not_used(known_by, tmp_path, content):
    outside = tmp_path / "outside"
    outside.write_bytes(content)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / trackers.IDENTIFIER).symlink_to(outside)
    with pytest.warns(UserWarning, match=r"tracking_id\.txt has no id of a run"):
        name, _ = known_by(tmp_path / "run", 3)
    assert re.fullmatch("[0-9a-f]{8}", name)
    assert known_by(tmp_path / "run", 5)[0] == name
    assert outside.read_bytes() == content


def test_a_run_that_no_tracker_needs_an_id_of_has_none(tmp_path):
    for tracker in open_trackers(["tensorboard"], tmp_path, {}, -1):
        tracker.close()
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]


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
