"""A run that is killed again and again ends with the numbers of one that never was.

pytest -m slow tests/experiments/test_kill.py    # ten kills
"""

import json
import random
import signal
import time

import pytest
import tyro
from agents_fixtures import same_parameters
from short_runs import start, timeless

from agents.policy.model import VLMPolicy
from experiments import run_gspo
from experiments.common.logs import read_metrics


def arguments(policy, output, updates):
    """A command line of the main job that takes seconds."""
    return [
        *("--policy", str(policy), "--precision", "float32", "--output-dir", str(output)),
        *("--seed", "5", "--updates", str(updates), "--checkpoint-every", "1"),
        *("--gspo.prompts-per-update", "2", "--gspo.group-size", "3"),
        *("--gspo.max-new-tokens", "24", "--gspo.learning-rate", "1e-3"),
        *("--evaluation.questions", "4", "--evaluation.answers", "1", "--evaluation.every", "0"),
    ]


def finish(options):
    """Run the main job in this process, from its start or from where another left it."""
    run_gspo.main(tyro.cli(run_gspo.Args, args=[*options, "--resume"]))


def wait_until(condition, process):
    """Wait for what a run does; it must not end meanwhile."""
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.002)


def lines(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def kill_at_random(folder, options, choices):
    """Start or resume a run and kill it: while it writes a checkpoint, or at any other moment."""
    began = time.time()
    process = start("run_gspo.py", *options, "--resume")

    def goes_on():
        """Whether this process, and not one before it, has written metrics."""
        path = folder / "metrics.jsonl"
        return path.exists() and path.stat().st_mtime > began and lines(folder) > 0

    wait_until(goes_on, process)
    if choices.random() < 0.5:
        wait_until(lambda: list((folder / "checkpoints").glob("*.partial")), process)
        time.sleep(choices.uniform(0, 0.02))
    else:
        time.sleep(choices.uniform(0, 0.4))
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"


def numbers(folder):
    """Metrics and scores, without how long things took."""
    scores = json.loads((folder / "scores.json").read_text())
    del scores["minutes"]
    return timeless(folder), scores


def check_equal(folder, options, whole):
    """A run is as one of the same options that nothing interrupted; it goes to ``whole``."""
    options[options.index(str(folder))] = str(whole)
    finish(options)
    assert numbers(folder) == numbers(whole)
    policies = (VLMPolicy.from_pretrained(each / "policy") for each in (folder, whole))
    assert same_parameters(*policies)


ADAPTER = ["--lora-rank", "2", "--gspo.kl-coefficient", "0.1"]


@pytest.mark.parametrize(
    ("kills", "updates", "more"),
    [(2, 12, []), (1, 8, ADAPTER), pytest.param(10, 80, [], marks=[pytest.mark.slow])],
    ids=["weights", "adapter", "often"],
)
@pytest.mark.timeout(1800)
def test_a_run_killed_at_random_moments_ends_with_the_same_numbers(
    kills, updates, more, policy_folder, tmp_path
):
    folder = tmp_path / "killed"
    options = [*arguments(policy_folder, folder, updates), *more]
    seed = random.randrange(2**32)
    print(f"seed of the moments: {seed}")  # pytest shows it when the test fails
    choices = random.Random(seed)
    for _ in range(kills):
        kill_at_random(folder, options, choices)
        assert not (folder / "scores.json").exists()
    finish(options)
    check_equal(folder, options, tmp_path / "whole")


def test_a_run_that_is_asked_to_end_writes_a_checkpoint_and_goes_on_from_it(
    policy_folder, tmp_path
):
    folder = tmp_path / "terminated"
    options = arguments(policy_folder, folder, 12)
    options[options.index("--checkpoint-every") + 1] = "1000"
    process = start("run_gspo.py", *options)
    wait_until(lambda: lines(folder) > 0, process)
    process.terminate()
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 143, output
    reached = read_metrics(folder)[-1]["update"]
    assert f"terminated after update {reached}; --resume goes on there" in output
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"update_{reached:06d}"]
    finish(options)
    check_equal(folder, options, tmp_path / "whole")
