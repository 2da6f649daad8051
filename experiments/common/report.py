"""What a run leaves to look at: a table, curves, outlines before and after, and what turns did."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from experiments.evaluation.loop import Evaluation
from seg_env.envs.core import Question, ReferringCore
from seg_env.envs.render import draw_overlay
from seg_env.metrics import bootstrap_interval, giou_gain
from seg_env.types import Prediction

mpl.use("Agg")
import matplotlib.pyplot as plt

ROWS = (
    ("sampled gIoU of first answers", "sampled_first", "giou", 100),
    ("greedy gIoU of the first answer", "first", "giou", 100),
    ("sampled gIoU (temperature 1)", "sampled", "giou", 100),
    ("greedy gIoU", "greedy", "giou", 100),
    ("greedy cIoU", "greedy", "ciou", 100),
    ("greedy precision@0.5", "greedy", "precision@0.5", 100),
    ("greedy precision@0.7", "greedy", "precision@0.7", 100),
    ("greedy precision@0.9", "greedy", "precision@0.9", 100),
    ("well-formed, sampled", "sampled", "well_formed", 100),
    ("well-formed, greedy", "greedy", "well_formed", 100),
    ("vertices per outline", "greedy", "vertices", 1),
    ("tokens per answer", "greedy", "tokens", 1),
)
"""Rows of the table: label, which evaluation, which score, factor (100 for per cent).

The first two are for episodes of several turns only."""

LEARNING_PANELS = (
    ("Cross-entropy per answer token", ["train/loss"]),
    ("Sampled answers", ["rollout/iou", "rollout/reward"]),
    ("Held-out gIoU", ["eval/sampled_giou", "eval/greedy_giou", "eval/first_giou"]),
    ("Reward terms", ["reward/"]),
    ("Clip fraction, approximate KL", ["train/clip_fraction", "train/approx_kl"]),
    ("Entropy, group standard deviation", ["train/entropy", "rollout/group_std"]),
    (
        "Well-formed, degenerate groups",
        ["rollout/valid", "eval/well_formed", "rollout/degenerate_groups"],
    ),
)
"""Curves of any run: titles, and names of metrics; all that contain one ending in a slash."""
CRITIC_PANELS = (
    ("Value loss", ["train/value_loss"]),
    ("Explained variance", ["train/explained_variance"]),
    ("Reward, and what the critic expects per token", ["rollout/reward", "train/value"]),
    ("KL to the sampling policy, per token", ["train/approx_kl"]),
    (
        "KL to the warm start, per answer, and its weight",
        ["train/reference_kl", "train/kl_coefficient"],
    ),
    ("Clip fractions", ["train/clip_fraction", "train/value_clip_fraction"]),
    ("Entropy per token", ["train/entropy"]),
    ("Gradient norm", ["train/grad_norm"]),
)
"""Curves of what happens inside PPO's updates: titles, and names of metrics."""

Panels = Sequence[tuple[str, list[str]]]
Evaluations = dict[str, Evaluation]
"""``greedy`` and ``sampled`` evaluations of one policy; of several turns these are of the last one,
and ``first`` and ``sampled_first`` of the first."""


def scores_of(before: Evaluations, after: Evaluations) -> dict[str, Any]:
    """What ``scores.json`` holds: summaries and paired gains with 95 % intervals.

    ``before`` and ``after`` give the greedy scores at their top level and those of sampled answers
    under ``sampled``. Of several turns the last counts; ``first`` and ``sampled_first`` have the
    scores of the first, and ``improvement``, at both levels, what the other turns added.
    """
    gains = {}
    for kind in before:
        old, new = before[kind].iou.mean(axis=1), after[kind].iou.mean(axis=1)
        gain, low, high = bootstrap_interval(giou_gain, old, new)
        gains[kind] = {"giou": gain, "giou_interval": [low, high]}
    return {"before": _summary(before), "after": _summary(after), "gain": gains}


def _summary(side: Evaluations) -> dict[str, Any]:
    summary = {**side["greedy"].summary(), "sampled": side["sampled"].summary()}
    for name, last, part in (
        ("first", "greedy", summary),
        ("sampled_first", "sampled", summary["sampled"]),
    ):
        if name in side:
            summary[name] = side[name].summary()
            pair = side[name].iou.mean(axis=1), side[last].iou.mean(axis=1)
            better, low, high = bootstrap_interval(giou_gain, *pair)
            part["improvement"] = {"giou": better, "giou_interval": [low, high]}
    return summary


def table_rows(scores: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """``(label, before, after, change)`` for every row of `ROWS`."""
    rows = []
    for label, kind, key, factor in ROWS:
        if kind != "greedy" and kind not in scores["after"]:
            continue
        old, new = (
            factor * (scores[side] if kind == "greedy" else scores[side][kind])[key]
            for side in ("before", "after")
        )
        change = f"{new - old:+.1f}"
        if key == "giou":
            low, high = (factor * value for value in scores["gain"][kind]["giou_interval"])
            change += f"  [{low:+.1f}, {high:+.1f}]"
        rows.append((label, f"{old:.1f}", f"{new:.1f}", change))
    return rows


def rich_table(scores: dict[str, Any], title: str) -> Table:
    """The table for a terminal."""
    caption = "change with a 95 % paired bootstrap interval over questions"
    table = Table("", title=title, caption=caption)
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right")
    for row in table_rows(scores):
        table.add_row(*row)
    return table


def markdown_table(scores: dict[str, Any]) -> str:
    """The table for a report."""
    lines = ["| | before | after | change [95 %] |", "|---|---:|---:|---:|"]
    lines += [f"| {' | '.join(row)} |" for row in table_rows(scores)]
    return "\n".join(lines)


def plot_curves(metrics: list[dict[str, Any]], panels: Panels, path: Path) -> None:
    """Draw metrics of a run over its updates, in two rows, without panels that have none."""
    logged = sorted({name for row in metrics for name in row})
    found = []
    for title, names in panels:
        parts = [name for name in names if name.endswith("/")]
        names = [name for name in names if name in logged]
        names += [name for name in logged if any(part in name for part in parts)]
        if names:
            found.append((title, names))
    columns = -(-len(found or panels) // 2)
    figure, axes = plt.subplots(2, columns, figsize=(5 * columns, 7.5), layout="constrained")
    for axis, (title, names) in zip(axes.flat, found, strict=False):
        for name in names:
            points = [(row["update"], row[name]) for row in metrics if name in row]
            _plot_curve(axis, points, name.split("/", 1)[1])
        axis.set(title=title, xlabel="update")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    for axis in axes.flat[len(found) :]:
        axis.axis("off")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot_curve(axis: Any, points: list[tuple[int, float]], label: str) -> None:
    """A curve; a dense one is drawn thin with its moving average on top."""
    updates, values = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    if len(values) < 30:
        axis.plot(updates, values, marker="o", label=label)
        return
    (line,) = axis.plot(updates, values, alpha=0.25, linewidth=0.8)
    width = max(5, len(values) // 20)
    smooth = np.convolve(values, np.ones(width) / width, mode="valid")
    middle = updates[(width - 1) // 2 :][: len(smooth)]
    axis.plot(middle, smooth, color=line.get_color(), label=label)


def plot_before_after(
    core: ReferringCore,
    before: Evaluation,
    after: Evaluation,
    path: Path,
    names: tuple[str, str] = ("before", "after"),
) -> None:
    """Outlines of target, before and after on the first twelve questions, unselected."""
    count = min(12, len(before.indices))
    rows = -(-count // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(6.3 * 3, 2.5 * rows), layout="constrained")
    for axis, number in zip(axes.flat, range(count), strict=False):
        question = core.ask(int(before.indices[number]))
        texts = [before.texts[number][0], after.texts[number][0]]
        axis.imshow(draw_answers(question, core.read(texts, [question] * 2)))
        axis.set_title(
            f"{question.sample.expression}: target · {names[0]} {before.iou[number, 0]:.2f} · "
            f"{names[1]} {after.iou[number, 0]:.2f}",
            fontsize=10,
        )
    for axis in axes.flat:
        axis.axis("off")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def draw_answers(question: Question, answers: Sequence[Prediction]) -> NDArray[np.uint8]:
    """Images side by side: the target of a question, and every answer to it."""
    target, image = question.sample.target, question.sample.image
    drawn = [draw_overlay(image, target, short_side=256)]
    for prediction in answers:
        drawn.append(draw_overlay(image, None, prediction, short_side=256, numbered=False))
    gap = np.full((drawn[0].shape[0], 6, 3), 255, dtype=np.uint8)
    between = [part for each in drawn for part in (gap, each)]
    return np.concatenate(between[1:], axis=1)


def report_turns(core: ReferringCore, side: Evaluations, folder: Path) -> str:
    """Draw ``turns.png`` and ``first_last.png``; returns the part of the report that shows them."""
    pairs = {
        "greedy": (side["first"], side["greedy"]),
        "sampled": (side["sampled_first"], side["sampled"]),
    }
    figure, axes = plt.subplots(1, len(pairs), figsize=(9, 4.4), layout="constrained")
    for axis, (name, (first, last)) in zip(axes, pairs.items(), strict=True):
        # What was left alone lies on the diagonal.
        axis.plot([0, 1], [0, 1], color="gray", linewidth=0.8)
        axis.scatter(first.iou.ravel(), last.iou.ravel(), s=8, alpha=0.4)
        axis.set(title=name, xlabel="IoU of the first outline", ylabel="IoU of the last")
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axis.grid(alpha=0.3)
    figure.savefig(folder / "turns.png", dpi=110)
    plt.close(figure)
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
    borders = (0.0, 0.1, 0.3, 0.5, 0.7, 1.0)
    before, after = first.iou.ravel(), last.iou.ravel()
    changed = (np.array(first.texts) != np.array(last.texts)).ravel()
    lines = [
        "| IoU of the first outline | outlines | changed | first, of those changed | last |",
        "|---|---:|---:|---:|---:|",
    ]
    classes = [
        (f"{low:g} to {high:g}", (before >= low) & ((before < high) | (high == borders[-1])))
        for low, high in pairwise(borders)
    ]
    for name, chosen in [*classes, ("all", np.ones_like(changed))]:
        both = chosen & changed
        cells = [name, f"{chosen.sum()}"]
        cells.append(f"{100 * changed[chosen].mean():.0f} %" if chosen.any() else "–")
        pair = (before, after) if both.any() else ()
        cells += [f"{100 * values[both].mean():.1f}" for values in pair] or ["–", "–"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
