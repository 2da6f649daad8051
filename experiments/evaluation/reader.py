"""Which frame answers seem to be written in, and the evidence for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from experiments.common.tables import terminal_table
from rewards.mask_iou import MaskIoU
from seg_env.frames import FAMILIES, TOKEN_FAMILIES, AnswerFrame, normalize_tokens
from seg_env.grammar.answers import read_answer
from seg_env.metrics import bootstrap_interval, giou_gain
from seg_env.types import Form, IssueKind, Prediction, Sample

GUESS = "guess"
"""The value of ``--frame`` that compares frames by the answers."""


class Reading(NamedTuple):
    """How answers read if their numbers are taken to be in one frame."""

    family: str
    in_range: float
    """Share of the numbers that the frame allows."""
    read: float
    """Share of the answers from which anything can be read."""
    iou: float
    """The mean of the scores."""
    scores: NDArray[np.float64]
    """``(N,)`` IoU of each answer with its target."""

    def to_json(self) -> dict[str, Any]:
        """The evidence without the scores of single answers."""
        return {name: value for name, value in self._asdict().items() if name != "scores"}


def compare_frames(
    frame: AnswerFrame, texts: Sequence[str], samples: Sequence[Sample], form: Form = "mask"
) -> list[Reading]:
    """Read ``N`` answers about ``N`` samples in every frame there is, the best reading first.

    Images are resized and letterboxed as in ``frame``.
    """
    found = []
    asked = list(zip(texts, samples, strict=True))
    for family in FAMILIES:
        if family in TOKEN_FAMILIES and not any(normalize_tokens(t, family) != t for t in texts):
            continue
        other = replace(frame, family=family, fixed=None, reason="")
        try:
            read = [read_answer(text, each.target.size, other, form) for text, each in asked]
        except ValueError:  # no processor of the family takes such images
            continue
        scores = MaskIoU()(read, [sample.target for sample in samples])
        allowed = np.array([_allowed(other, text, sample) for text, sample in asked]).sum(axis=0)
        usable = sum(each.valid or not each.is_empty for each in read)
        in_range = int(allowed[0]) / max(1, int(allowed[1]))
        share = usable / max(1, len(read))
        found.append(Reading(family, in_range, share, float(scores.mean()), scores))
    return sorted(found, key=lambda reading: (reading.iou, reading.read, reading.in_range))[::-1]


def conclusion(readings: Sequence[Reading]) -> str:
    """One sentence: which frame the answers seem to be in, or why that cannot be told."""
    best, second = readings[0], readings[1]
    gain, low, high = bootstrap_interval(giou_gain, second.scores, best.scores)
    evidence = (
        f"IoU {best.iou:.3f}, better than read as {second.family} by {gain:.3f} "
        f"[{low:.3f}, {high:.3f}]; {best.in_range:.0%} of the numbers in range"
    )
    if low > 0:
        return f"The answers seem to be in frame {best.family} ({evidence}): --frame {best.family}"
    return (
        f"No reading is clearly better than the others (best: {best.family}, {evidence}); look at "
        f"the answers, or ask more questions, before a frame is chosen"
    )


def reading_table(readings: Sequence[Reading]) -> Table:
    """The evidence for a terminal."""
    rows = [
        [one.family, *(f"{100 * share:.1f}" for share in (one.in_range, one.read, one.iou))]
        for one in readings
    ]
    headings = ["frame", "numbers in range", "answers read", "mean IoU"]
    title, caption = "Answers read in every frame", "in per cent, best reading first"
    return terminal_table(headings, rows, title=title, caption=caption)


def advise_frame(
    frame: AnswerFrame,
    texts: Sequence[str],
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
) -> str | None:
    """A warning when many answers look as if written in another frame, None otherwise.

    The ``N`` predictions, all of one form, are the texts as read in ``frame``.
    """
    kinds = [{issue.kind for issue in each.issues} for each in predictions]
    foreign = sum(IssueKind.WRONG_FRAME in each for each in kinds) / max(1, len(kinds))
    if foreign <= 0.1:
        return None
    readings = compare_frames(frame, texts, samples, predictions[0].form)
    return (
        f"{foreign:.0%} of the answers have numbers of another frame than {frame.family}. "
        f"{conclusion(readings)}. --frame {GUESS} shows what each frame would make of them"
    )


def _allowed(frame: AnswerFrame, text: str, sample: Sample) -> tuple[int, int]:
    """How many numbers of an answer the frame allows, and how many there are."""
    seen = frame.for_view(sample.target.size)
    found = re.finditer(r"-?[0-9]{1,9}(?:\.[0-9]{1,20})?", frame.normalize(text))
    # 4000 numbers of a long answer are enough to show its frame.
    numbers = [float(match[0]) for match in islice(found, 4000)]
    whole = any(number > 1 for number in numbers)
    inside = sum(
        0 <= number <= seen.limits[place % 2]
        and (not seen.integer or (whole and number.is_integer()))
        for place, number in enumerate(numbers)
    )
    return inside, len(numbers)
