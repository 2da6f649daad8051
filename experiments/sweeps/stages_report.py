"""Table and plot of what stages are worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from rich.console import Console

from experiments.common.logs import write_atomically, write_json
from experiments.pipeline_steps import read_scores
from experiments.summarize import t_interval
from experiments.sweeps.ablate_report import print_cells
from experiments.sweeps.stages_studies import Study

mpl.use("Agg")
import matplotlib.pyplot as plt

SCORES = (
    ("greedy", "giou", "greedy gIoU"),
    ("greedy", "ciou", "greedy cIoU"),
    ("sampled", "giou", "sampled gIoU"),
)
"""Kind of answers, score, title."""


def compare_stages(name: str, study: Study, seeds: Sequence[int], output: Path) -> dict[str, Any]:
    """Scores of every arm over seeds; writes ``<name>.json``, ``.md`` and ``.png``.

    Differences from the first arm are paired by seed. Intervals are Student's t over seeds, 95 %,
    in points.

    Args:
        name: Of the study.
        study: What is compared; all of its runs are finished.
        seeds: 2 to 10 of them.
        output: Where the runs are, and the files go.

    Returns:
        What ``<name>.json`` holds.
    """
    arms: dict[str, Any] = {}
    questions = set()
    for arm, (run, stage) in study.arms.items():
        found = [read_scores(run.folder(output, seed) / stage) for seed in seeds]
        questions |= {one["greedy"]["questions"] for one in found}
        arms[arm] = {
            "stage": f"{run.name}/{stage}",
            "updates": found[0]["updates"],
            "minutes": [one["minutes"] for one in found],
            **{
                title: _over_seeds([one[kind][key] for one in found]) for kind, key, title in SCORES
            },
            "paper": study.paper.get(arm),
        }
    baseline = next(iter(arms.values()))
    for found in arms.values():
        for *_, title in SCORES:
            gaps = np.subtract(found[title]["each"], baseline[title]["each"])
            mean, *interval = t_interval(gaps)
            found[title] |= {"difference": mean, "difference_interval": interval}
    comparison = {
        "question": study.question,
        "seeds": list(seeds),
        "questions": sorted(questions),
        "arms": arms,
    }
    write_json(output / f"{name}.json", comparison)
    write_atomically(output / f"{name}.md", _markdown(name, comparison))
    _plot(comparison, output / f"{name}.png")
    return comparison


def _over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Scores in per cent, their mean and its interval."""
    each = [100 * value for value in values]
    mean, *interval = t_interval(each)
    return {"each": each, "mean": mean, "interval": interval}


def table_cells(comparison: dict[str, Any]) -> list[list[str]]:
    """The table: a row of titles, then a row for each arm."""
    arms = comparison["arms"]
    paper = any(found["paper"] is not None for found in arms.values())
    header = ["", "greedy gIoU, each seed", "mean [95 %]", "against the first [95 %]"]
    header += ["greedy cIoU", "sampled gIoU", *(["paper's gIoU"] if paper else [])]
    rows = [header]
    for number, (arm, found) in enumerate(arms.items()):
        greedy = found["greedy gIoU"]
        low, high = greedy["difference_interval"]
        difference = f"{greedy['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
        rows.append(
            [
                arm,
                ", ".join(f"{value:.1f}" for value in greedy["each"]),
                *(_mean(greedy), difference if number else ""),
                *(_mean(found["greedy cIoU"]), _mean(found["sampled gIoU"])),
                *([f"{found['paper']:.1f}" if found["paper"] else ""] if paper else []),
            ]
        )
    return rows


def _mean(score: dict[str, Any]) -> str:
    low, high = score["interval"]
    return f"{score['mean']:.1f} [{low:.1f}, {high:.1f}]"


def print_comparison(comparison: dict[str, Any], console: Console) -> None:
    """The table for a terminal."""
    caption = "per cent; Student's t over seeds"
    print_cells(table_cells(comparison), comparison["question"], caption, console)


def _markdown(name: str, comparison: dict[str, Any]) -> str:
    header, *rows = table_cells(comparison)
    seeds = ", ".join(map(str, comparison["seeds"]))
    questions = " or ".join(map(str, comparison["questions"]))
    lines = [
        f"# {comparison['question']}",
        "",
        f"Seeds {seeds}; {questions} questions of the test split; intervals: Student's t over "
        "seeds, differences paired by seed.",
        "",
        f"| {' | '.join(header)} |",
        "|---|" + "---:|" * (len(header) - 1),
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"![]({name}.png)",
        "",
    ]
    return "\n".join(lines)


def _plot(comparison: dict[str, Any], path: Path) -> None:
    """Scores of every arm with single seeds and intervals; the paper's beside them."""
    arms = comparison["arms"]
    paper = [found["paper"] for found in arms.values()]
    figure, axes = plt.subplots(
        1, 2 if any(paper) else 1, figsize=(11 if any(paper) else 7, 3.6), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    left = axes[0, 0]
    for row, (kind, marker) in enumerate((("greedy", "o"), ("sampled", "D"))):
        for number, found in enumerate(arms.values()):
            score, place = found[f"{kind} gIoU"], number + 0.16 * (2 * row - 1)
            color = ("tab:orange", "tab:blue")[row]
            left.plot([place, place], score["interval"], color=color)
            left.scatter([place] * len(score["each"]), score["each"], color=color, s=9, alpha=0.6)
            left.plot(place, score["mean"], marker, color=color, label=None if number else kind)
    left.set(title=f"here, {len(comparison['seeds'])} seeds", ylabel="gIoU in per cent")
    left.legend(frameon=False)
    if any(paper):
        axes[0, 1].plot(range(len(arms)), paper, "o", color="tab:orange")
        axes[0, 1].set(title="the paper's (Kimi-VL, one run)")
    for axis in axes.flat:
        axis.set_xticks(range(len(arms)), [arm.replace(" + ", " +\n") for arm in arms])
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
