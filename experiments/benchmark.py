"""Measure this project against other programs that compute the same.

python experiments/benchmark.py rewards --json rewards.json    speed and exactness of the mask IoU
python experiments/benchmark.py evaluate --json evaluate.json  answers scored per second, memory
python experiments/benchmark.py train --json train.json        seconds and memory of an update
python experiments/benchmark.py serve --json serve.json        answers scored per second over HTTP
python experiments/benchmark.py cheats --json cheats.json      what rewards pay answers that cheat
python experiments/benchmark.py rewards --help
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import tyro

from experiments.common.command import brief_errors


def command_line(words: Sequence[str] | None = None) -> None:
    """Run the benchmark that the first word names, a function of the module of that name."""
    words = sys.argv[1:] if words is None else words
    program = Path(sys.argv[0]).name
    parser = ArgumentParser(
        program, description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", choices=("rewards", "train", "evaluate", "serve", "cheats"))
    options = [word for word in words[1:] if word != "--debug"]
    with brief_errors(debug="--debug" in words):
        name = parser.parse_args(words[:1]).benchmark
        # Only the named one is imported: others need seconds for torch, or distort measured memory.
        function = getattr(import_module(f"experiments.benchmarks.{name}"), f"benchmark_{name}")
        tyro.cli(function, prog=f"{program} {name}", args=options)


if __name__ == "__main__":
    command_line()
