"""The PPO experiment from its command line: what it writes, and that it goes on where it was."""

import json

import numpy as np
import pytest
import tyro
from PIL import Image
from short_runs import timeless

from agents.ppo import PPO
from experiments import run_ppo
from experiments.common.logs import read_metrics
from experiments.common.report import PANELS, plot_curves


def arguments(policy, output, *more):
    return tyro.cli(
        run_ppo.Args,
        args=[
            *("--policy", str(policy), "--precision", "float32", "--output-dir", str(output)),
            *("--seed", "3", "--updates", "3", "--checkpoint-every", "1"),
            *("--ppo.prompts-per-update", "2", "--ppo.group-size", "3"),
            *("--ppo.max-new-tokens", "40", "--ppo.learning-rate", "1e-3"),
            *("--ppo.kl-coefficient", "0.02"),
            *("--evaluation.questions", "4", "--evaluation.answers", "1"),
            *("--evaluation.every", "0", *more),
        ],
    )


@pytest.fixture(scope="module")
def finished(policy_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, run_ppo.main(arguments(policy_folder, folder))


def test_a_run_leaves_scores_a_report_and_curves(finished):
    folder, returned = finished
    assert json.loads((folder / "scores.json").read_text()) == returned
    config = json.loads((folder / "config.json").read_text())
    assert config["seed"] == config["ppo"]["seed"] == 3
    assert config["ppo"]["credit"] == "vertex"
    report = (folder / "report.md").read_text()
    for name in ("learning_curve.png", "before_after.png"):
        assert report.count(f"({name})") == 1
        pixels = np.asarray(Image.open(folder / name).convert("RGB"))
        assert pixels.std() > 10


def test_every_curve_of_training_is_of_a_metric_that_is_logged(finished):
    names = {name for _, names in PANELS for name in names if name.startswith("train/")}
    rows = read_metrics(finished[0])
    assert [row["update"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert names - {"train/loss"} <= row.keys()  # that is of cloning


def test_a_run_goes_on_to_the_numbers_it_would_have_had(
    finished, policy_folder, tmp_path, monkeypatch
):
    class Tired(PPO):
        """Is interrupted in its third update."""

        def collect(self):
            if self.update == 2:
                raise KeyboardInterrupt
            return super().collect()

    folder = tmp_path / "half"
    monkeypatch.setattr("agents.ppo.PPO", Tired)
    with pytest.raises(SystemExit):
        run_ppo.main(arguments(policy_folder, folder))
    monkeypatch.undo()
    run_ppo.main(arguments(policy_folder, folder, "--resume"))
    assert timeless(folder) == timeless(finished[0])


def test_a_run_without_metrics_is_drawn_as_empty_panels(tmp_path):
    plot_curves([], PANELS, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size[0] > 1000
