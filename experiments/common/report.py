"""What a run leaves to look at: curves, outlines before and after, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from experiments.evaluation.loop import Evaluation
from seg_env.envs.core import Question, ReferringCore
from seg_env.envs.render import draw_overlay
from seg_env.metrics import giou, paired_bootstrap_interval
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

Evaluations = dict[str, Evaluation]
"""``greedy`` and ``sampled`` evaluations of one policy; of several turns, also
``first`` and ``sampled_first``, those of the first turn."""


def scores_of(before: Evaluations, after: Evaluations) -> dict[str, Any]:
    """What ``scores.json`` holds: summaries and paired gains with 95 % intervals.

    ``before`` and ``after`` give the greedy scores at their top level and those of sampled answers
    under ``sampled``. Where episodes have several turns they are those of the last one; ``first``
    and ``sampled_first`` have those of the first, and ``improvement``, at the top level and under
    ``sampled``, what the other turns added to them.
    """
    gains = {}
    for kind in before:
        old, new = before[kind].iou.mean(axis=1), after[kind].iou.mean(axis=1)
        gain, low, high = paired_bootstrap_interval(giou, [old], [new])
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
            pair = [side[name].iou.mean(axis=1)], [side[last].iou.mean(axis=1)]
            better, low, high = paired_bootstrap_interval(giou, *pair)
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
    table = Table(
        title=title, caption="change with a 95 % paired bootstrap interval over questions"
    )
    for column in ("", "before", "after", "change"):
        table.add_column(column, justify="left" if not column else "right")
    for row in table_rows(scores):
        table.add_row(*row)
    return table


def markdown_table(scores: dict[str, Any]) -> str:
    """The table for a report."""
    lines = ["| | before | after | change [95 %] |", "|---|---:|---:|---:|"]
    lines += [f"| {' | '.join(row)} |" for row in table_rows(scores)]
    return "\n".join(lines)


def plot_learning(metrics: list[dict[str, Any]], path: Path) -> None:
    """Curves of a run: reward and IoU of sampled answers, held-out scores, health of the update."""
    figure, axes = plt.subplots(2, 3, figsize=(15, 7.5), layout="constrained")
    panels = [
        ("Sampled answers", ["rollout/iou", "rollout/reward"]),
        ("Held-out gIoU", ["eval/sampled_giou", "eval/greedy_giou", "eval/first_giou"]),
        ("Reward terms", sorted({k for row in metrics for k in row if "reward/" in k})),
        ("Clip fraction, approximate KL", ["train/clip_fraction", "train/approx_kl"]),
        ("Entropy, group spread", ["train/entropy", "rollout/group_spread"]),
        ("Well-formed, degenerate groups", ["rollout/valid", "rollout/degenerate_groups"]),
    ]
    for axis, (title, names) in zip(axes.flat, panels, strict=True):
        plot_panel(axis, metrics, title, names)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_cloning(metrics: list[dict[str, Any]], path: Path) -> None:
    """Curves of behaviour cloning: loss per answer token, and held-out scores."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    panels = [
        ("Cross-entropy per answer token", ["train/loss"]),
        ("Held-out scenes", ["eval/greedy_giou", "eval/well_formed"]),
    ]
    for axis, (title, names) in zip(axes, panels, strict=True):
        plot_panel(axis, metrics, title, names)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_seeds(runs: list[list[dict[str, Any]]], path: Path) -> None:
    """Held-out gIoU of runs with different seeds: each thin, their mean thick."""
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, color in (("eval/sampled_giou", "tab:blue"), ("eval/greedy_giou", "tab:orange")):
        curves = [{row["update"]: row[name] for row in rows if name in row} for rows in runs]
        updates = sorted(set.intersection(*(set(curve) for curve in curves)))
        values = np.array([[curve[update] for update in updates] for curve in curves])
        for row in values:
            axis.plot(updates, row, color=color, alpha=0.3, linewidth=1)
        if updates:
            label = f"{name.split('/')[1].replace('_', ' ')}, mean of {len(runs)} seeds"
            axis.plot(updates, values.mean(axis=0), color=color, linewidth=2.5, label=label)
    axis.set(xlabel="update", ylabel="gIoU on held-out scenes")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_panel(axis: Any, metrics: list[dict[str, Any]], title: str, names: list[str]) -> None:
    """Curves of some metrics over updates, as far as they were logged."""
    for name in names:
        points = [(row["update"], row[name]) for row in metrics if name in row]
        if points:
            _plot_curve(axis, points, name.split("/", 1)[1])
    axis.set(title=title, xlabel="update")
    axis.grid(alpha=0.3)
    if axis.lines:
        axis.legend(frameon=False)


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
    count: int = 12,
    names: tuple[str, str] = ("before", "after"),
) -> None:
    """Outlines of target, before and after on the first ``count`` questions, unselected."""
    columns, count = 3, min(count, len(before.indices))
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(6.3 * columns, 2.5 * rows), layout="constrained"
    )
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
    """Pictures side by side: the target of a question, and every answer to it."""
    target, image = question.sample.target, question.sample.image
    pictures = [draw_overlay(image, target, short_side=256)]
    for prediction in answers:
        pictures.append(draw_overlay(image, None, prediction, short_side=256, numbered=False))
    gap = np.full((pictures[0].shape[0], 6, 3), 255, dtype=np.uint8)
    between = [part for picture in pictures for part in (gap, picture)]
    return np.concatenate(between[1:], axis=1)
