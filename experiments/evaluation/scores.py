"""From measured answers to the scores of a report."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from seg_env.metrics import (
    Columns,
    breakdown,
    ceiling_class,
    compare,
    giou,
    paired_bootstrap_interval,
    percentile_interval,
    resampled_ratios,
    summarize,
)
from seg_env.tasks import form_of
from seg_env.types import Form

PERCENTAGES = (
    ("gIoU", "giou"),
    ("cIoU", "ciou"),
    *((f"precision@{limit}", f"precision@{limit}") for limit in (0.5, 0.6, 0.7, 0.8, 0.9)),
    ("box IoU", "box_giou"),
    ("REC accuracy@0.5, from the outline", "rec_accuracy"),
    ("pointing accuracy", "pointing_accuracy"),
    ("boundary IoU", "boundary_iou"),
    ("boundary F", "boundary_f"),
    ("well-formed answers", "well_formed"),
    ("no-target accuracy", "n_acc"),
    ("target accuracy", "t_acc"),
)
"""Scores shown in per cent: label and key."""
NUMBERS = (
    ("distance from the best point, % of the picture's side", "point_distance"),
    ("HD95, pixels", "hd95"),
    ("PoLiS, pixels", "polis"),
    ("vertices per answer", "vertices"),
    ("vertices, relative to the target's", "vertex_ratio"),
    ("characters per answer", "characters"),
    ("tokens per answer", "tokens"),
)
"""Scores shown as they are."""

ANY_FORM = {"well_formed", "n_acc", "t_acc", "characters", "tokens"}
MEANINGFUL: dict[Form, set[str]] = {
    "mask": {key for _, key in (*PERCENTAGES, *NUMBERS)} - {"box_giou"},
    "bbox": ANY_FORM | {"box_giou", "rec_accuracy", "giou"},
    "point": ANY_FORM | {"pointing_accuracy", "point_distance"},
}
"""Scores that say something about answers of each form; the others are left out of tables."""


def score(columns: Columns, answers: int, empty_union: float, seed: int) -> dict[str, Any]:
    """All scores of some answers, see `seg_env.metrics.summarize`; JSON-able.

    With several answers per question, intervals are over questions, as the answers to one question
    resemble each other, and are given for the scores of `PERCENTAGES` that are means or cIoU.

    Args:
        columns: What `measure_answers` returned.
        answers: Answers per question; those to one question stand next to each other.
        empty_union: IoU where answer and target are both empty.
        seed: Seed of the bootstrap.
    """
    resamples = 2000 if answers == 1 else 0
    found = summarize(columns, empty_union=empty_union, seed=seed, resamples=resamples)
    if answers > 1:
        found["intervals"] = _intervals_over_questions(columns, answers, found, seed)
    found["characters"] = float(columns["characters"].mean())
    known = columns["tokens"] >= 0
    found["tokens"] = float(columns["tokens"][known].mean()) if known.any() else None
    groups = {"size": columns["size"]}
    if "ceiling" in columns:
        groups["ceiling"] = ceiling_class(columns["ceiling"])
        found["representation_ceiling"] = float(columns["ceiling"].mean())
    means = columns["iou"].reshape(-1, answers).mean(axis=1)
    found["breakdown"] = {
        name: {
            label: {
                "questions": group.samples,
                "giou": group.score.estimate,
                "interval": [group.score.low, group.score.high],
            }
            for label, group in breakdown(means, labels[::answers], seed=seed).items()
        }
        for name, labels in groups.items()
    }
    return found


def _intervals_over_questions(
    columns: Columns, answers: int, found: dict[str, Any], seed: int
) -> dict[str, list[float]]:
    """Intervals of scores that are quotients of sums, whole questions drawn at a time."""
    each = np.ones(len(columns["iou"]))
    quotients = {
        "giou": (columns["iou"], each),
        "ciou": (columns["intersection"], columns["union"]),
    }
    for _, key in PERCENTAGES:
        if key.startswith("precision@"):
            quotients[key] = (columns["iou"] >= float(key.split("@")[1]), each)
    quotients["box_giou"] = (columns["box_iou"], each)
    quotients["rec_accuracy"] = (columns["box_iou"] > 0.5, each)
    if "inside" in columns:
        quotients["pointing_accuracy"] = (columns["inside"], each)
    quotients["well_formed"] = (columns["valid"], each)
    quotients |= {
        key: (columns[key], each) for key in ("boundary_iou", "boundary_f") if key in columns
    }
    above, below = (
        np.stack([pair[side] for pair in quotients.values()], axis=1)
        .astype(np.float64)
        .reshape(-1, answers, len(quotients))
        .sum(axis=1)
        for side in (0, 1)
    )
    draws = resampled_ratios(above, below, seed=seed)
    return {
        key: list(percentile_interval(found[key], draws[:, place])[1:])
        for place, key in enumerate(quotients)
    }


def gains(
    before: Columns, after: Columns, answers: int, empty_union: float, seed: int
) -> dict[str, dict[str, Any]]:
    """Paired gains over other answers to the same questions; JSON-able.

    Args:
        before: Columns of the other answers, in any order.
        after: Columns of ours.
        answers: Answers per question; with several, only the gain in gIoU is given.
        empty_union: IoU where answer and target are both empty.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: The two are not about the same questions.
    """
    before, after = (_by_question(columns) for columns in (before, after))
    same = all(np.array_equal(before[key], after[key]) for key in ("id", "answer", "target_area"))
    if not same:
        only = {*before["id"].tolist()} ^ {*after["id"].tolist()}
        raise ValueError(
            f"the answers compared with are {len(before['id'])} to other questions than these "
            f"{len(after['id'])}; {len(only)} ids are only in one of them, such as "
            f"{sorted(only)[:2]}. Evaluate both with the same --env, --split and --questions"
        )
    if answers == 1:
        intervals = compare(before, after, empty_union=empty_union, seed=seed)
    else:
        means = [columns["iou"].reshape(-1, answers).mean(axis=1) for columns in (before, after)]
        gain = paired_bootstrap_interval(giou, means[:1], means[1:], seed=seed)
        intervals = {"giou": gain}
    return {
        name: {"gain": gain.estimate, "interval": [gain.low, gain.high]}
        for name, gain in intervals.items()
        if not math.isnan(gain.estimate)
    }


def _by_question(columns: Columns) -> Columns:
    order = np.lexsort((columns["answer"], columns["id"]))
    return {name: column[order] for name, column in columns.items()}


def score_rows(scores: dict[str, Any]) -> list[tuple[str, str, str]]:
    """``(label, value, interval)`` of every score that is known and means something, as text."""
    rows = []
    form = form_of(scores["task"])
    for names, factor in ((PERCENTAGES, 100.0), (NUMBERS, 1.0)):
        for label, key in names:
            value = scores.get(key)
            # Where every object is there, nothing is learnt from how many are said to be.
            idle = key == "t_acc" and scores["n_acc"] is None
            if value is not None and not idle and key in MEANINGFUL[form]:
                ends = scores["intervals"].get(key)
                times = 100.0 if key == "point_distance" else factor
                shown = label if form == "mask" else label.removesuffix(", from the outline")
                rows.append((shown, f"{times * value:.1f}", _between(ends, times)))
    return rows


def gain_rows(found: dict[str, dict[str, Any]], form: Form = "mask") -> list[tuple[str, str, str]]:
    """The same of paired gains of answers of one form."""
    rows = []
    for names, factor in ((PERCENTAGES, 100.0), (NUMBERS, 1.0)):
        for label, key in names:
            idle = key == "t_acc" and "n_acc" not in found
            if key in found and not idle and key in MEANINGFUL[form]:
                times = 100.0 if key == "point_distance" else factor
                gain = f"{times * found[key]['gain']:+.1f}"
                rows.append((label, gain, _between(found[key]["interval"], times, "+")))
    return rows


def _between(ends: list[float | None] | None, factor: float, sign: str = "") -> str:
    if not ends or None in ends:
        return ""
    low, high = (factor * end for end in ends if end is not None)
    return f"[{low:{sign}.1f}, {high:{sign}.1f}]"
