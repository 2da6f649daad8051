"""Measure this project against what else computes the same.

python experiments/benchmark.py rewards --json rewards.json    speed and exactness of the mask IoU
python experiments/benchmark.py evaluate --json evaluate.json  answers scored per second, memory
python experiments/benchmark.py train --json train.json        seconds and memory of an update
python experiments/benchmark.py rewards --help
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from importlib import import_module

import tyro


def main() -> None:
    """Run the benchmark named on the command line, a function of the module of that name."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=("rewards", "train", "evaluate"))
    name = parser.parse_args(sys.argv[1:2]).benchmark
    # Importing one does not cost what the others need: seconds for torch, or memory to be measured.
    function = getattr(import_module(f"experiments.benchmarks.{name}"), f"benchmark_{name}")
    tyro.cli(function, prog=" ".join(sys.argv[:2]), args=sys.argv[2:])


if __name__ == "__main__":
    main()
