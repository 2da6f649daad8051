"""Measure this project against what else computes the same.

python experiments/benchmark.py rewards --json rewards.json
python experiments/benchmark.py evaluate --json evaluate.json
python experiments/benchmark.py rewards --help
"""

from __future__ import annotations

import tyro

from experiments.benchmark_evaluate import benchmark_evaluate
from experiments.benchmark_rewards import benchmark_rewards


def main() -> None:
    """Run the benchmark named on the command line."""
    tyro.extras.subcommand_cli_from_dict(
        {"rewards": benchmark_rewards, "evaluate": benchmark_evaluate}, description=__doc__
    )


if __name__ == "__main__":
    main()
