"""Table and plot of a comparison over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.common.logs import read_metrics, write_atomically, write_json
from experiments.summarize import giou_of, read_scores, t_interval
from experiments.sweeps.ablate_studies import Study

mpl.use("Agg")
import matplotlib.pyplot as plt

KINDS = ("greedy", "sampled")


def compare(study: Study, folders: dict[str, list[Path]], output: Path) -> dict[str, Any]:
    """Gains of every arm and its differences from the first one; writes JSON, Markdown and PNG.

    Differences are paired by seed: runs of one seed are asked the same questions.
    """
    gains = {
        arm: {kind: [_gain(read_scores(place), kind) for place in places] for kind in KINDS}
        for arm, places in folders.items()
    }
    baseline = next(iter(gains.values()))
    arms = {
        arm: {
            "command": " ".join(study.arms[arm]),
            "minutes": [read_scores(place)["minutes"] for place in folders[arm]],
            **{kind: _summary(found[kind], baseline[kind]) for kind in KINDS},
        }
        for arm, found in gains.items()
    }
    comparison = {"question": study.question, "arms": arms}
    write_json(output / "comparison.json", comparison)
    write_atomically(output / "comparison.md", _markdown(comparison))
    _plot(comparison, folders, output / "comparison.png")
    return comparison


def print_comparison(comparison: dict[str, Any], console: Console) -> None:
    """The table for a terminal."""
    print_cells(
        _cells(comparison), comparison["question"], "gIoU points; Student's t over seeds", console
    )


def print_cells(cells: list[list[str]], title: str, caption: str, console: Console) -> None:
    """A table for a terminal, from a row of titles and rows of texts."""
    header, *rows = cells
    table = Table(title=title, caption=caption)
    for column in header:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _gain(scores: dict[str, Any], kind: str) -> float:
    return 100 * (giou_of(scores, "after", kind) - giou_of(scores, "before", kind))


def _summary(gains: list[float], baseline: list[float]) -> dict[str, Any]:
    gain, low, high = t_interval(gains)
    difference = t_interval(np.subtract(gains, baseline))
    return {
        "gains": gains,
        "gain": gain,
        "interval": [low, high],
        "difference": difference[0],
        "difference_interval": list(difference[1:]),
    }


def _cells(comparison: dict[str, Any]) -> list[list[str]]:
    """The table: a row of titles, then one row per arm."""
    rows = [["", *(f"{kind} {what}" for kind in KINDS for what in ("gain", "against the first"))]]
    for number, (arm, found) in enumerate(comparison["arms"].items()):
        cells = []
        for kind in KINDS:
            one = found[kind]
            cells.append(f"{one['gain']:+.1f} {_range(one['interval'])}")
            difference = f"{one['difference']:+.1f} {_range(one['difference_interval'])}"
            cells.append(difference if number else "")
        rows.append([arm, *cells])
    return rows


def _range(interval: list[float]) -> str:
    return f"[{interval[0]:+.1f}, {interval[1]:+.1f}]"


def _markdown(comparison: dict[str, Any]) -> str:
    header, *rows = _cells(comparison)
    lines = [f"| {' | '.join(header)} |", "|---|" + "---:|" * (len(header) - 1)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return f"# {comparison['question']}\n\n" + "\n".join(lines) + "\n\n![](comparison.png)\n"


def _plot(comparison: dict[str, Any], folders: dict[str, list[Path]], path: Path) -> None:
    """Gains with intervals and single seeds on the left, held-out curves beside them."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    for row, kind in enumerate(KINDS):
        for number, found in enumerate(comparison["arms"].values()):
            one, place = found[kind], -number + 0.12 * (1 - 2 * row)
            color = f"C{number}"
            axes[0].plot(one["interval"], [place, place], color=color, alpha=1 - 0.5 * row)
            axes[0].scatter(one["gains"], [place] * len(one["gains"]), color=color, s=10, alpha=0.6)
            axes[0].plot(one["gain"], place, "D" if row else "o", color=color, label=kind)
        for number, (arm, places) in enumerate(folders.items()):
            _plot_curves(axes[1 + row], places, f"eval/{kind}_giou", f"C{number}", arm)
        axes[1 + row].set(title=f"held-out {kind} gIoU", xlabel="update")
        if axes[1 + row].lines:
            axes[1 + row].legend(frameon=False)
    axes[0].set_yticks([-number for number in range(len(folders))], list(folders))
    axes[0].axvline(0, color="gray", linewidth=0.8)
    axes[0].set(title="gain in gIoU points: greedy ●, sampled ◆", xlabel="points")
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot_curves(axis: Any, places: list[Path], name: str, color: str, label: str) -> None:
    curves = [
        {row["update"]: row[name] for row in read_metrics(place) if name in row} for place in places
    ]
    updates = sorted(set.intersection(*(set(curve) for curve in curves)))
    if updates:
        values = np.array([[curve[update] for update in updates] for curve in curves])
        axis.plot(updates, values.mean(axis=0), color=color, label=label)
        axis.fill_between(updates, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15)
