"""Measure this project against what else computes the same.

python experiments/benchmark.py rewards --json rewards.json
python experiments/benchmark.py evaluate --json evaluate.json
python experiments/benchmark.py cloning --json cloning.json
python experiments/benchmark.py train --json train.json
python experiments/benchmark.py budget
python experiments/benchmark.py rewards --help
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

import tyro

BENCHMARKS = ("rewards", "evaluate", "cloning", "train", "budget")
"""Benchmark ``name`` is the function ``benchmark_<name>`` of the module of that name."""


def main() -> None:
    """Run the benchmark named on the command line."""
    # Importing one does not cost what the others need: seconds for torch, or memory to be measured.
    wanted = [name for name in sys.argv[1:2] if name in BENCHMARKS] or BENCHMARKS
    functions = {name: load(name) for name in wanted}
    if len(functions) == 1:
        tyro.cli(functions[sys.argv[1]], prog=" ".join(sys.argv[:2]), args=sys.argv[2:])
    else:
        tyro.extras.subcommand_cli_from_dict(functions, description=__doc__)


def load(name: str) -> Callable[..., None]:
    """The benchmark's function."""
    function: Callable[..., None] = getattr(
        import_module(f"experiments.benchmarks.{name}"), f"benchmark_{name}"
    )
    return function


if __name__ == "__main__":
    main()
