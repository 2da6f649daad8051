"""Gains of several runs that differ in their seed, with an interval over seeds.

python experiments/summarize.py runs/long-0 runs/long-1 runs/long-2 --output-dir runs/long
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from experiments.common.logs import read_metrics, write_json
from experiments.common.report import plot_seeds

# Two-sided 95 % quantiles of Student's t for 1 to 9 degrees of freedom.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass
class Args:
    """Gains of several runs that differ in their seed, with an interval over seeds."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of 2 to 10 finished runs."""
    output_dir: Path = Path("runs/summary")
    """Where ``seeds.json`` and ``seeds.png`` are written."""
    seed: int = 0
    """Accepted as everywhere; nothing here is random."""


def main(args: Args) -> dict[str, Any]:
    """Print the table; returns what ``seeds.json`` holds."""
    if not 2 <= len(args.runs) <= len(T_QUANTILES) + 1:
        raise SystemExit(f"{len(args.runs)} runs given: an interval over seeds needs 2 to 10")
    scores = [read_scores(folder) for folder in args.runs]
    found: dict[str, Any] = {"runs": [str(folder) for folder in args.runs]}
    table = Table(
        title=f"{len(scores)} seeds, gIoU on {scores[0]['before']['questions']} questions"
    )
    for column in ("", "before", "after (each seed)", "gain [95 % over seeds]"):
        table.add_column(column)
    for kind in ("sampled", "greedy"):
        before = np.array([giou_of(one, "before", kind) for one in scores])
        after = np.array([giou_of(one, "after", kind) for one in scores])
        gain, low, high = t_interval(100 * (after - before))
        found[kind] = {
            "before": before.tolist(),
            "after": after.tolist(),
            "gain_points": gain,
            "gain_interval": [low, high],
        }
        each = ", ".join(f"{100 * value:.1f}" for value in after)
        table.add_row(
            kind, f"{100 * before.mean():.1f}", each, f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]"
        )
    for kind in ("sampled", "greedy") if "first" in scores[0]["after"] else ():
        points = [100 * improvement_of(one, kind) for one in scores]
        better, low, high = t_interval(points)
        found[kind]["improvement_points"] = better
        found[kind]["improvement_interval"] = [low, high]
        each = ", ".join(f"{value:+.1f}" for value in points)
        table.add_row(f"{kind}, later turns", "", each, f"{better:+.1f} [{low:+.1f}, {high:+.1f}]")
    found["minutes"] = [one["minutes"] for one in scores]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(args.output_dir / "seeds.json", found)
    plot_seeds([read_metrics(folder) for folder in args.runs], args.output_dir / "seeds.png")
    Console().print(table)
    return found


def t_interval(values: Any) -> tuple[float, float, float]:
    """Mean of ``(n,)`` independent values with Student's 95 % interval, ``2 <= n <= 10``."""
    values = np.asarray(values, dtype=np.float64)
    half = T_QUANTILES[len(values) - 2] * values.std(ddof=1) / math.sqrt(len(values))
    mean = float(values.mean())
    return mean, mean - float(half), mean + float(half)


def read_scores(folder: Path) -> dict[str, Any]:
    """What ``scores.json`` of a finished run holds."""
    path = folder / "scores.json"
    if not path.exists():
        raise SystemExit(f"{path} is missing: has the run of {folder} finished?")
    scores: dict[str, Any] = json.loads(path.read_text())
    return scores


def giou_of(scores: dict[str, Any], side: str, kind: str) -> float:
    """The gIoU of ``greedy`` or ``sampled`` answers ``before`` or ``after``, 0 to 1."""
    part = scores[side] if kind == "greedy" else scores[side]["sampled"]
    return float(part["giou"])


def improvement_of(scores: dict[str, Any], kind: str) -> float:
    """What the turns after the first added to the gIoU after training, 0 to 1."""
    part = scores["after"] if kind == "greedy" else scores["after"]["sampled"]
    return float(part["improvement"]["giou"])


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
