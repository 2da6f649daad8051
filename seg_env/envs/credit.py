"""Which vertex of an answer earned which part of its reward."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from seg_env.envs.core import Question, ReferringCore
from seg_env.frames import Frame
from seg_env.grammar import decode
from seg_env.types import IssueKind, ParseIssue, Prediction

MAX_ENTRIES = 256
"""Most entries for one answer; vertices of longer ones are credited several at a time."""

_VERTEX = re.compile(r"\[[^\[\]]*+\]")


@dataclass(frozen=True, eq=False)
class VertexCredit:
    """The reward of one answer, taken apart into ``K`` entries: its vertices, then its closing."""

    ends: NDArray[np.int64]
    """``(K,)`` index behind the last character of each entry; the last is the text's length."""
    rewards: NDArray[np.float64]
    """``(K,)`` what the weighted reward grew by."""
    iou: NDArray[np.float64]
    """``(K,)`` what the mask IoU grew by."""


def vertex_credit(
    core: ReferringCore, questions: Sequence[Question], texts: Sequence[str]
) -> list[VertexCredit]:
    """Take the rewards of ``N`` answers apart by vertex, scored in one call of each reward.

    A vertex is credited with the difference that it made to the reward of the text so far, brackets
    closed, as in ``step_mode="vertex"`` (see `VertexRules`); that of no text is 0. So the credits
    sum to the reward of the answer. The last entry has what the end of the text changed: nothing,
    as a rule. A text with any issue, or without a ring, gets a single entry at its end; any other
    at most `MAX_ENTRIES` + 1.
    """
    other = next((question.task for question in questions if question.form != "mask"), None)
    if other is not None:
        raise ValueError(f"only outlines have vertices to credit; task={other!r} asks for none")
    if core.answer_frame.writes_tokens:
        raise ValueError(
            f"vertices are credited where they are written in brackets; frame "
            f"{core.answer_frame.family!r} writes location tokens"
        )
    if len(questions) != len(texts):
        raise ValueError(f"{len(texts)} answers to {len(questions)} questions; give one each")
    if not len(texts):
        return []
    prefixes = [
        _prefixes(text, question.frame) for text, question in zip(texts, questions, strict=True)
    ]
    predictions, asked = [], []
    for question, (_, read) in zip(questions, prefixes, strict=True):
        predictions += read
        asked += [question] * len(read)
    scores = core.judge(predictions, asked)
    credits, start = [], 0
    for ends, read in prefixes:
        own = slice(start, start + len(read))
        total, iou = (np.diff(values[own], prepend=0.0) for values in (scores.total, scores.iou))
        credits.append(VertexCredit(np.array(ends, dtype=np.int64), total, iou))
        start += len(read)
    return credits


def _prefixes(text: str, frame: Frame) -> tuple[list[int], list[Prediction]]:
    """Ends of the entries of one answer, and what has been answered up to each of them.

    The predictions are those that `decode` reads from ``text[:end] + "]]"`` (the last, from the
    text itself), mostly without reading anything again.
    """
    whole = decode(text, frame)
    if not whole.valid or not whole.rings:
        return [len(text)], [whole]
    spans = [match.span() for match in _VERTEX.finditer(text)]
    stride = 1 + (len(spans) - 1) // MAX_ENTRIES
    chosen = range((len(spans) - 1) % stride, len(spans), stride)  # with the last vertex
    ends = [spans[index][1] for index in chosen]
    if frame.integer and not {".", "e", "E"}.isdisjoint(text):
        # Up to some vertex the answer may look as if it were about another frame.
        predictions = [decode(text[:end] + "]]", frame) for end in ends]
    else:
        places = _places(text, spans)
        predictions = [_prefix(whole, *places[index], spans[index][1]) for index in chosen]
    return [*ends, len(text)], [*predictions, whole]


def _places(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """For each vertex of a valid text the index of its ring, and its own there, counted from 1."""
    ring, count = 0, 1
    places = [(ring, count)]
    for (_, end), (start, _) in pairwise(spans):
        if "[" in text[end:start]:
            ring, count = ring + 1, 0
        count += 1
        places.append((ring, count))
    return places


def _prefix(whole: Prediction, ring: int, count: int, end: int) -> Prediction:
    """What is read from a valid text up to the ``count``-th vertex of a ring, brackets closed."""
    text, rings = whole.text[:end] + "]]", whole.rings[:ring]
    if count < 3:
        detail = f"ring with {count} of 3 vertices"
        issue = ParseIssue(IssueKind.TOO_FEW_VERTICES, end, detail)
        return Prediction(rings, (issue,), text)
    points = whole.rings[ring]
    # A vertex that returns to the first one closes the ring and is not a vertex of its own; as the
    # last vertex of the whole ring it is not in the array.
    if count > len(points) or (count > 3 and (points[count - 1] == points[0]).all()):
        count -= 1
    return Prediction((*rings, points[:count]), (), text)
