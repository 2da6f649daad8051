"""Pictures of an evaluation: the worst and best answers, and how the IoU is distributed."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from seg_env.envs.render import draw_overlay
from seg_env.metrics import Columns, Failure
from seg_env.types import Prediction, Sample

mpl.use("Agg")
import matplotlib.pyplot as plt

FAILURE_COLORS = {
    Failure.GOOD: "#2a9d8f",
    Failure.WRONG_OUTLINE: "#e9c46a",
    Failure.WRONG_OBJECT: "#e76f51",
    Failure.NO_OBJECT: "#b5507a",
    Failure.MISSED: "#6c757d",
    Failure.FALSE_ALARM: "#457b9d",
    Failure.MALFORMED: "#22223b",
}
"""Colour of each kind of answer in the histogram."""
GRID = (4, 3)
"""Columns and rows of the sheets."""


@dataclass(frozen=True)
class Exhibit:
    """One answer on a sheet."""

    sample: Sample
    """What was asked about."""
    prediction: Prediction
    """The answer."""
    iou: float
    """Its score."""
    remark: str
    """What became of it, in one short line."""


def extremes(columns: Columns, answers: int, *, best: bool) -> list[int]:
    """Rows of the best or worst answers, most extreme first: one a question.

    Args:
        columns: Must hold ``iou``, ``(n * answers,)``.
        answers: Answers per question.
        best: Which end.
    """
    scores = columns["iou"].reshape(-1, answers)
    column = (scores.argmax if best else scores.argmin)(axis=1)
    chosen = np.take_along_axis(scores, column[:, None], axis=1)[:, 0]
    order = np.argsort(-chosen if best else chosen, kind="stable")
    return [int(question * answers + column[question]) for question in order]


def pick_varied(samples: Iterable[tuple[int, Sample]], count: int = GRID[0] * GRID[1]) -> list[int]:
    """Rows of the first samples that show different objects; others only fill what is left.

    Several sentences about one object tend to be answered alike, and would fill the sheet.

    Args:
        samples: Row and sample, most wanted first.
        count: How many.
    """
    seen: set[tuple[Any, ...]] = set()
    first: list[int] = []
    rest: list[int] = []
    for row, sample in samples:
        rle = sample.target.rle
        key = (*rle.size, rle.counts.tobytes())
        (rest if key in seen else first).append(row)
        seen.add(key)
        if len(first) == count:
            break
    return (first + rest)[:count]


def draw_sheet(exhibits: Sequence[Exhibit], title: str, path: Path) -> None:
    """Draw targets (green) and answers (orange) on their pictures, beside each other."""
    columns = min(GRID[0], len(exhibits))
    rows = -(-len(exhibits) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(3.6 * columns, 3.5 * rows + 0.6),
        layout="constrained",
        squeeze=False,
    )
    figure.suptitle(f"{title}: target green, answer orange", fontsize=13)
    for axis, exhibit in zip(axes.flat, exhibits, strict=False):
        sample = exhibit.sample
        axis.imshow(draw_overlay(sample.image, sample.target, exhibit.prediction, numbered=False))
        wording = textwrap.shorten(_printable(sample.expression), 84, placeholder="…")
        remark = exhibit.remark if len(exhibit.remark) <= 42 else f"{exhibit.remark[:41]}…"
        remark = _printable(remark)
        heading = f"{exhibit.iou:.2f}  {remark}\n" + textwrap.fill(f"“{wording}”", 44)
        axis.set_title(heading, fontsize=9, loc="left")
    for axis in axes.flat:
        axis.axis("off")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_histogram(columns: Columns, scores: dict[str, Any], path: Path) -> None:
    """How many answers have which IoU, by what became of them."""
    figure, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    kinds = [kind for kind in FAILURE_COLORS if (columns["failure"] == kind.value).any()]
    values = [columns["iou"][columns["failure"] == kind.value] for kind in kinds]
    axis.hist(
        values,
        bins=[place / 20 for place in range(21)],
        stacked=True,
        color=[FAILURE_COLORS[kind] for kind in kinds],
        label=[
            f"{kind.value.replace('_', ' ')} ({len(some)})"
            for kind, some in zip(kinds, values, strict=True)
        ],
    )
    axis.axvline(scores["giou"], color="black", linewidth=1.2, label=f"gIoU {scores['giou']:.3f}")
    best = scores.get("representation_ceiling")
    if best is not None:
        axis.axvline(
            best, color="black", linewidth=1.2, linestyle=":", label=f"truth at ε .005: {best:.3f}"
        )
    axis.set(xlabel="mask IoU", ylabel="answers", xlim=(0, 1))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(frameon=False, loc="best")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _printable(text: str) -> str:
    """A text in one line, without what matplotlib would read as mathematics."""
    return " ".join(text.split()).replace("$", r"\$")
