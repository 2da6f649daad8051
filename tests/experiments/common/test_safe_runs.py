"""Runs that are interrupted, damaged or run full: a sentence, a whole checkpoint, no traceback."""

import fcntl
import json
import os
import pty
import resource
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch
import tyro
from agents_fixtures import THREADS, same_parameters
from short_runs import ROOT, hear_signals, start, timeless

from agents.policy.model import VLMPolicy
from agents.training.checkpoints import complete_checkpoints, require_whole
from experiments import run_gspo
from experiments.common.command import is_full_disk
from experiments.common.logs import read_metrics

pytestmark = pytest.mark.timeout(600)


def options(policy, output, *more):
    return [
        *("--policy", str(policy), "--precision", "float32", "--output-dir", str(output)),
        *("--updates", "6", "--checkpoint-every", "2", "--gspo.prompts-per-update", "2"),
        *("--gspo.group-size", "3", "--gspo.max-new-tokens", "24"),
        *("--gspo.learning-rate", "1e-3", "--evaluation.questions", "4"),
        *("--evaluation.answers", "1", "--evaluation.every", "0", *more),
    ]


def run(words):
    return run_gspo.main(tyro.cli(run_gspo.Args, args=words))


@pytest.fixture(scope="module")
def finished(policy_folder, tmp_path_factory):
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("finished")
    run(options(policy_folder, folder))
    return folder


@pytest.fixture
def half(finished, policy_folder, tmp_path):
    """One that ended after its fourth update, and its command line."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for name in ("scores.json", "report.md"):
        (folder / name).unlink()
    config = json.loads((folder / "config.json").read_text()) | {"output_dir": str(folder)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, options(policy_folder, folder, "--resume")


def check_same(folder, finished):
    assert timeless(folder) == timeless(finished)
    policies = (VLMPolicy.from_pretrained(each / "policy") for each in (folder, finished))
    assert same_parameters(*policies)
    scores = [json.loads((each / "scores.json").read_text()) for each in (folder, finished)]
    ours, theirs = ({**one, "minutes": 0} for one in scores)
    assert ours == theirs


def test_the_previous_whole_checkpoint_is_used_and_other_damage_is_named(half, finished, capsys):
    folder, words = half
    checkpoints = folder / "checkpoints"
    assert [path.name for path in complete_checkpoints(checkpoints)] == [
        "update_000002",
        "update_000004",
    ]
    weights = checkpoints / "update_000004" / "policy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    (folder / "before.json").write_text((folder / "before.json").read_text()[:50])
    (folder / "config.json").write_text("{")
    (checkpoints / "update_000009").mkdir()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(["garbage", *lines, ""]))
    with pytest.warns(UserWarning, match="is damaged") as told:
        run(words)
    warned = " ".join(str(one.message) for one in told)
    for name in ("config.json is damaged", "before.json is damaged", "1 lines are no rows"):
        assert name in warned
    output = capsys.readouterr().out
    assert "update_000004 is damaged: policy/model.safetensors is not what was written" in output
    assert "update_000009 is no checkpoint and is left alone" in output
    assert "resumed after update 2" in output
    assert (checkpoints / "update_000004.damaged").exists()
    assert [path.name for path in complete_checkpoints(checkpoints)] == [
        "update_000002",
        "update_000004",
    ]
    check_same(folder, finished)


def test_with_no_whole_checkpoint_it_starts_again_and_says_so(half, finished, capsys):
    folder, words = half
    for path in complete_checkpoints(folder / "checkpoints"):
        (path / "state.pt").write_bytes(bytes(4096))
    run(words)
    output = capsys.readouterr().out
    assert output.count("state.pt is not what was written") == 2
    assert "no checkpoint is whole, so training starts again" in output
    check_same(folder, finished)


def test_run_time_goes_on(half, finished):
    folder, words = half
    rows = read_metrics(folder)
    rows[-1]["time/elapsed"] = 3600.0
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert 60 < run(words)["minutes"] < 70
    assert read_metrics(folder)[-1]["time/elapsed"] > 3600


EVALUATING = """
import signal, sys, os
from pathlib import Path
import experiments.common.run as module
from experiments import run_gspo

when, number = sys.argv[1], int(sys.argv[2])
ask = module.evaluate_turns

def ask_and_be_interrupted(policy, *asked, **settings):
    trained = (Path(os.environ["FOLDER"]) / "checkpoints").exists()
    if trained == (when == "after"):
        os.kill(os.getpid(), number)
    return ask(policy, *asked, **settings)

module.evaluate_turns = ask_and_be_interrupted
run_gspo.command_line(sys.argv[3:])
"""


@pytest.mark.parametrize(
    ("when", "number"),
    [
        ("after", signal.SIGINT),
        ("before", signal.SIGHUP),
        pytest.param("before", signal.SIGINT, marks=[pytest.mark.slow]),
        pytest.param("after", signal.SIGHUP, marks=[pytest.mark.slow]),
        pytest.param("after", signal.SIGTERM, marks=[pytest.mark.slow]),
    ],
)
def test_a_signal_while_evaluating_ends_in_a_sentence(
    when, number, finished, policy_folder, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    monkeypatch.setenv("FOLDER", str(folder))
    monkeypatch.setenv("OMP_NUM_THREADS", THREADS)
    words = options(policy_folder, folder)
    done = subprocess.run(
        [sys.executable, "-c", EVALUATING, when, str(int(number)), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=hear_signals,
    )
    assert done.returncode == 128 + number, done.stderr
    verb = "interrupted" if number == signal.SIGINT else "terminated"
    reached = 6 if when == "after" else 0
    last = folder / "checkpoints" / "update_000006" if reached else "the start"
    assert f"{verb} after update {reached}; --resume goes on from {last}" in done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    found = complete_checkpoints(folder / "checkpoints")
    assert [path.name for path in found[-1:]] == (["update_000006"] if reached else [])
    for path in found:
        require_whole(path)
    run([*words, "--resume"])
    check_same(folder, finished)


def take_terminal():
    hear_signals()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_terminal_that_is_closed_while_training_leaves_a_checkpoint(policy_folder, tmp_path):
    words = options(policy_folder, tmp_path / "run", "--updates", "1000000")
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "experiments/run_gspo.py", *words, "--evaluation.every", "1"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": THREADS},
        **dict.fromkeys(("stdin", "stdout", "stderr"), inside),
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(inside)
    deadline = time.monotonic() + 200
    while len(read_metrics(tmp_path / "run")) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 65536)
    os.close(terminal)
    assert process.wait(timeout=100) == 128 + signal.SIGHUP
    reached = read_metrics(tmp_path / "run")[-1]["update"]
    (*_, last) = complete_checkpoints(tmp_path / "run" / "checkpoints")
    assert last.name == f"update_{reached:06d}"
    require_whole(last)


@pytest.mark.parametrize(
    "size", [100_000, *(pytest.param(size, marks=[pytest.mark.slow]) for size in (300, 3_000))]
)
def test_a_full_disk_ends_in_a_sentence_and_the_run_goes_on(
    size, finished, policy_folder, tmp_path
):
    folder = tmp_path / "run"
    words = options(policy_folder, folder)
    done = subprocess.run(
        [sys.executable, "experiments/run_gspo.py", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert f"error: {folder} cannot be written to, the disk or a quota is full" in done.stderr
    for path in complete_checkpoints(folder / "checkpoints"):
        require_whole(path)
    run([*words, "--resume"])
    check_same(folder, finished)


def test_a_full_disk_is_known_by_what_the_libraries_say():
    with pytest.raises(RuntimeError) as raised:
        torch.save(torch.zeros(10_000), "/dev/full")
    assert is_full_disk(raised.value)
    with pytest.raises(OSError, match="No space left") as raised, Path("/dev/full").open("w") as f:
        f.write("a" * 100_000)
    assert is_full_disk(raised.value)
    assert not is_full_disk(FileNotFoundError(2, "missing"))


def test_a_rate_that_wrecks_the_policy_ends_in_a_sentence_that_names_a_checkpoint(
    policy_folder, tmp_path
):
    folder = tmp_path / "wrecked"
    words = options(policy_folder, folder, "--gspo.learning-rate", "1e30")
    process = start("run_gspo.py", *words)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 2, output
    assert "Traceback" not in output
    assert "not finite" in output
    assert "start again in another --output-dir, with a lower learning rate" in output
    assert not (folder / "scores.json").exists()
    assert not (folder / "policy").exists()


def test_a_policy_with_a_damaged_weight_is_not_trained(policy_folder, tmp_path):
    policy = VLMPolicy.from_pretrained(policy_folder)
    policy.model.get_input_embeddings().weight.data[0, 0] = torch.nan
    policy.save(tmp_path / "policy")
    process = start("run_gspo.py", *options(tmp_path / "policy", tmp_path / "run"))
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 2, output
    assert f"error: the policy {tmp_path}/policy has weights that are not finite" in output
