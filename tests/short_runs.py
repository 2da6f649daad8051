"""Runs of commands that take seconds: started as a user does, and what they leave."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from agents_fixtures import THREADS

from experiments.common.logs import read_metrics

ROOT = Path(__file__).parents[1]


def start(script, *options, columns="200"):
    """Run a script of experiments in its own process."""
    return subprocess.Popen(
        [sys.executable, f"experiments/{script}", *options],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": THREADS, "COLUMNS": columns},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=hear_signals,
    )


def run_on_two_ranks(script, *options):
    """Run a script of experiments by torchrun, to its end; what it printed."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    process = subprocess.run(
        [*launcher, "2", f"experiments/{script}", *options],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": THREADS},
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def hear_signals():
    """Undo what a shell does to jobs in the background, and nohup: signals are not ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def timeless(folder):
    """Metrics of a run without how long things took."""
    return [
        {key: value for key, value in row.items() if not key.startswith("time/")}
        for row in read_metrics(folder)
    ]
