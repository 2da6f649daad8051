"""What the training benchmark makes of its measurements: ratios, tables, and one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from rich.console import Console
from rich.table import Table

mpl.use("Agg")
import matplotlib.pyplot as plt

LEGS = {
    "ours": "ours",
    "repeated": "ours, repeated",
    "trl": "TRL",
}
"""Contestants and their names in tables."""
COLORS = {"ours": "tab:green", "repeated": "tab:olive", "trl": "tab:red"}
PARTS = ("sampling", "scoring", "backward", "total")


Updates = dict[str, list[dict[str, float]]]
"""By leg: seconds of the parts of each update, and memory."""


def summarize(measured: dict[str, dict[int, Updates]]) -> dict[str, Any]:
    """Medians, ratios and growth; keys are strings, as in the file."""
    seconds: dict[str, Any] = {}
    memory: dict[str, Any] = {}
    results: dict[str, Any] = {}
    growth: dict[str, Any] = {}
    for length, row in measured.items():
        smallest, largest = min(row), max(row)
        for group_size, updates in row.items():
            cell = {
                leg: {
                    part: float(np.median([one[part] for one in found]))
                    for part in ("sampling", "scoring", "backward", "total")
                }
                for leg, found in updates.items()
            }
            seconds.setdefault(length, {})[str(group_size)] = cell
            memory.setdefault(length, {})[str(group_size)] = {
                leg: max(one["memory"] for one in found) for leg, found in updates.items()
            }
            for theirs in ("trl", "repeated"):
                if theirs in updates and "ours" in updates:
                    middle, low, high = ratio(updates[theirs], updates["ours"])
                    name = f"ratio_vs_{theirs}"
                    results.setdefault(name, {}).setdefault(length, {})[str(group_size)] = middle
                    ranges = results.setdefault(f"{name}_range", {}).setdefault(length, {})
                    ranges[str(group_size)] = [low, high]
        growth[length] = {
            leg: seconds[length][str(largest)][leg]["total"] / first["total"]
            for leg, first in seconds[length][str(smallest)].items()
        }
    return results | {"seconds_per_update": seconds, "memory_mib": memory, "growth": growth}


def ratio(theirs: list[dict[str, float]], ours: list[dict[str, float]]) -> tuple[float, ...]:
    """Median, least and largest of ``theirs / ours`` over the rounds."""
    found = [one["total"] / other["total"] for one, other in zip(theirs, ours, strict=True)]
    return float(np.median(found)), min(found), max(found)


def show(results: dict[str, Any], console: Console) -> None:
    """Print the figures."""
    settings = results["settings"]
    for length, row in results["seconds_per_update"].items():
        sizes = results["sizes"][length]
        table = Table(
            title=f"{length}: {sizes['prompt_tokens']} prompt tokens, "
            f"{settings['prompts'][length]} questions per update, "
            f"{sizes['parameters'] / 1e6:.3g} M parameters, {settings['precision']}",
            caption="seconds per update (medians); memory beyond the loaded policy; theirs / ours",
        )
        table.add_column("G", justify="right")
        table.add_column("")
        for heading in (*PARTS, "MiB", "ratio"):
            table.add_column(heading, justify="right")
        for group_size, cell in row.items():
            for number, (leg, seconds) in enumerate(cell.items()):
                ratios = results.get(f"ratio_vs_{leg}")
                table.add_row(
                    "" if number else group_size,
                    LEGS[leg],
                    *(f"{seconds[part]:.3g}" for part in PARTS),
                    f"{results['memory_mib'][length][group_size][leg]:.0f}",
                    f"{ratios[length][group_size]:.2f}" if ratios else "",
                    end_section=number == len(cell) - 1,
                )
        console.print(table)
        grown = results["growth"][length]
        first, last = min(row, key=int), max(row, key=int)
        console.print(
            f"cost of an update from G={first} to G={last}: "
            + ", ".join(f"{LEGS[leg]} x {factor:.2f}" for leg, factor in grown.items())
        )


def plot(results: dict[str, Any], path: Path) -> None:
    """Seconds per update and memory against G, a column for each length."""
    rows = results["seconds_per_update"]
    figure, axes = plt.subplots(
        2, len(rows), figsize=(5.5 * len(rows), 7.5), layout="constrained", squeeze=False
    )
    for column, (length, row) in enumerate(rows.items()):
        sizes = [int(group_size) for group_size in row]
        for leg in next(iter(row.values())):
            seconds = [cell[leg]["total"] for cell in row.values()]
            memory = [results["memory_mib"][length][size][leg] for size in row]
            style = {"marker": "o", "color": COLORS[leg], "label": LEGS[leg]}
            axes[0, column].plot(sizes, seconds, **style)
            axes[1, column].plot(sizes, memory, **style)
        prompt = results["sizes"][length]["prompt_tokens"]
        answer = length.split(":")[1]
        axes[0, column].set_title(f"prompts of {prompt} tokens, answers of {answer}")
        for axis, label in ((axes[0, column], "seconds per update"), (axes[1, column], "MiB")):
            axis.set(xlabel="answers per question, G", ylabel=label, xticks=sizes, ylim=(0, None))
            axis.grid(alpha=0.3)
            axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
