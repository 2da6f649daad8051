"""What the turns after the first did to the outlines of episodes of several turns."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from experiments.common.report import Evaluations, plot_before_after
from experiments.evaluation.loop import Evaluation
from seg_env.envs.core import ReferringCore

BORDERS = (0.0, 0.1, 0.3, 0.5, 0.7, 1.0)
"""Of the classes of first outlines, by IoU."""


def report_turns(core: ReferringCore, side: Evaluations, folder: Path) -> str:
    """Draw ``turns.png`` and ``first_last.png``; returns the part of the report that shows them.

    Args:
        core: Who asked.
        side: Evaluations after the last turn and after the first.
        folder: Of the run.
    """
    pairs = {
        "greedy": (side["first"], side["greedy"]),
        "sampled": (side["sampled_first"], side["sampled"]),
    }
    plot_turns(pairs, folder / "turns.png")
    plot_before_after(
        core, *pairs["greedy"], path=folder / "first_last.png", names=("first", "last")
    )
    return f"""
What the later turns did to the outlines of the first one, after training, greedy:

{turns_table(*pairs["greedy"])}

and sampled:

{turns_table(*pairs["sampled"])}

![IoU of first and last outlines](turns.png)

The target, the first outline and the last, on the first held-out questions:

![First and last outlines](first_last.png)
"""


def turns_table(first: Evaluation, last: Evaluation) -> str:
    """How often outlines were changed, and what became of those, by IoU of the first outline."""
    before, after = first.iou.ravel(), last.iou.ravel()
    changed = (np.array(first.texts) != np.array(last.texts)).ravel()
    lines = [
        "| IoU of the first outline | outlines | changed | first, of those changed | last |",
        "|---|---:|---:|---:|---:|",
    ]
    classes = [
        (f"{low:g} to {high:g}", (before >= low) & ((before < high) | (high == BORDERS[-1])))
        for low, high in pairwise(BORDERS)
    ]
    for name, chosen in [*classes, ("all", np.ones_like(changed))]:
        both = chosen & changed
        cells = [name, f"{chosen.sum()}"]
        cells.append(f"{100 * changed[chosen].mean():.0f} %" if chosen.any() else "–")
        pair = (before, after) if both.any() else ()
        cells += [f"{100 * values[both].mean():.1f}" for values in pair] or ["–", "–"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot_turns(pairs: dict[str, tuple[Evaluation, Evaluation]], path: Path) -> None:
    """IoU of last outlines over that of first ones; what was left alone lies on the diagonal."""
    figure, axes = plt.subplots(1, len(pairs), figsize=(9, 4.4), layout="constrained")
    for axis, (name, (first, last)) in zip(axes, pairs.items(), strict=True):
        axis.plot([0, 1], [0, 1], color="gray", linewidth=0.8)
        axis.scatter(first.iou.ravel(), last.iou.ravel(), s=8, alpha=0.4)
        axis.set(title=name, xlabel="IoU of the first outline", ylabel="IoU of the last")
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
