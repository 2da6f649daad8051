"""What is in a run's folder, as the page shows it: groups, answers before and after, curves.

Whoever made the folder is not trusted: files are read up to a size, what is malformed is counted
and reported, and no code that ``config.json`` names is called unless that is asked for. Files are
read when they are shown, so that a run can be watched.
"""

from __future__ import annotations

import json
import re
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from experiments.common.arguments import RunArguments, TrainingArguments
from experiments.common.logs import read_metrics
from experiments.common.report import PANELS, plot_curves
from experiments.common.rollouts import (
    MOST_ANSWERS,
    Group,
    read_bounded,
    read_rollout,
    rollout_files,
)
from experiments.evaluation.loop import Evaluation
from seg_env.data.sources import names_code
from seg_env.envs.core import Question, ReferringCore
from seg_env.envs.left_out import loading
from seg_env.envs.referring import open_rules
from seg_env.errors import ExplainedError, WrongOptionError
from seg_env.frames import AUTO, AnswerFrame, is_frame_name
from seg_env.registration import ENVIRONMENT_IDS, REFINE_IDS
from seg_env.tasks import check_task
from seg_env.types import counted, without_surrogates

MOST_CONFIG_BYTES = 1 << 20
MOST_EVALUATION_BYTES = 1 << 25
"""Limit of ``before.json`` and ``after.json``; those of the main job have 0.8 MB."""
MOST_METRICS_BYTES = 1 << 25
"""Limit of ``metrics.jsonl``; an update has 1 kB."""
MOST_CURVES = 200
"""Metrics of a run that are drawn."""
MOST_TERMS = 12
"""Rewards that have a column of their own."""
HELD_OUT = {"held-out, greedy": "greedy", "held-out, sampled": "sampled"}
"""Evaluations by what the page calls them."""
_METRIC = re.compile(r"[\w./@+-]{1,80}")
_KINDS = {"iou": "f", "valid": "b", "vertices": "iu", "tokens": "iu"}
"""Numbers of each answer in an evaluation, with what numpy calls their kind."""


@dataclass(frozen=True)
class Line:
    """An answer as the page lists it."""

    text: str
    """As the policy wrote it."""
    drawn: str
    """What is drawn of it."""
    cells: tuple[str, ...]
    """Under the headings of its `View`."""
    is_faulty: bool
    """Whether it is malformed, was cut off, or outlines nothing."""


@dataclass(frozen=True)
class Item:
    """A question with its answers."""

    index: int
    sample: str
    """Id of the sample, empty where it was not kept."""
    task: str
    prompt: str
    """Empty where it was not kept."""
    lines: tuple[Line, ...]
    first: int
    """The line that is drawn first; those before it are faint."""
    value: float
    """Mean reward of a group, mean IoU after training."""
    gain: float
    """Mean IoU after training minus that before; of a group the spread of its rewards."""

    @property
    def is_faulty(self) -> bool:
        """Whether one of its answers is faulty."""
        return any(line.is_faulty for line in self.lines)

    @property
    def caption(self) -> str:
        """A few words about it."""
        faults = ", with faults" if self.is_faulty else ""
        if self.sample:
            return f"reward {self.value:.2f} ± {self.gain:.2f}{faults}"
        return f"IoU {self.value:.2f} ({self.gain:+.2f}){faults}"


@dataclass(frozen=True)
class View:
    """Questions that are shown together."""

    rules: ReferringCore
    headings: tuple[str, ...]
    items: tuple[Item, ...]
    note: str
    """What is missing and what was malformed, in words."""


Key = Callable[[Item], Any]
FILTERS: dict[bool, dict[str, Callable[[Item], bool]]] = {
    False: {
        "all": lambda item: True,
        "with a fault": lambda item: item.is_faulty,
        "rewards differ": lambda item: item.gain > 0,
        "rewards all equal": lambda item: item.gain == 0,
    },
    True: {
        "all": lambda item: True,
        "with a gain": lambda item: item.gain > 0,
        "with a loss": lambda item: item.gain < 0,
        "with a fault": lambda item: item.is_faulty,
    },
}
"""Which items are shown, of groups and (True) of held-out questions."""
ORDERS: dict[bool, dict[str, Key]] = {
    False: {
        "as asked": lambda item: 0,
        "lowest reward": lambda item: item.value,
        "highest reward": lambda item: -item.value,
        "widest spread": lambda item: -item.gain,
    },
    True: {
        "as asked": lambda item: 0,
        "largest gain": lambda item: -item.gain,
        "largest loss": lambda item: item.gain,
        "lowest IoU": lambda item: item.value,
    },
}
"""What items are sorted by, as `FILTERS`."""


class RunFolder:
    """The folder of a run, and the questions that it was asked."""

    def __init__(
        self, path: Path, moved: Mapping[str, str | None] | None = None, *, trust_code: bool = False
    ) -> None:
        """Open the data that the run learned from and was measured on.

        ``moved`` are arguments that replace those in ``config.json``, where they are not None.

        Raises:
            ExplainedError: It is no folder of a run, or its data cannot be opened.
        """
        self.path = path
        if not (path / "config.json").exists():
            raise WrongOptionError(f"{path} is no folder of a run: it has no config.json")
        given = self._read_object("config.json")
        kind = TrainingArguments if "rewards" in given else RunArguments
        # What is kept is scored already, and rewards may be code.
        settings = {name: each for name, each in given.items() if name not in ("policy", "rewards")}
        settings |= {name: each for name, each in (moved or {}).items() if each is not None}
        try:
            args = TypeAdapter(kind).validate_python(settings)
        except ValidationError as error:
            (fault, *_) = error.errors(include_input=False, include_url=False)
            where = ".".join(map(str, fault["loc"]))
            raise ExplainedError(f"{path / 'config.json'}: {where}: {fault['msg']}") from error
        self._check(args, moved or {}, trust_code)
        frame = self._frame(args.frame)
        with loading():
            self._measured = open_rules(args.env, **args.held_out(), frame=frame)
            self._learned = self._measured
            if kind is TrainingArguments:
                self._learned = open_rules(args.env, **args.environment(), frame=frame)
        self._lock = threading.Lock()
        self._ask = lru_cache(maxsize=64)(self._load)

    def _check(self, args: RunArguments, moved: Mapping[str, str | None], trust_code: bool) -> None:
        """Make sure that opening the data calls no untrusted code."""
        if args.env not in (known := ENVIRONMENT_IDS + REFINE_IDS):
            raise ExplainedError(
                f"{self.path / 'config.json'}: env is {args.env[:80]!r}, not one of "
                f"{', '.join(known)}"
            )
        for name in (args.dataset, args.evaluation.dataset):
            if name and names_code(name) and not trust_code and name != moved.get("dataset"):
                raise WrongOptionError(
                    f"{self.path / 'config.json'} names a function as data, {name[:80]}: pass "
                    "--trust-code if the run is your own"
                )

    def _frame(self, asked: str) -> AnswerFrame:
        """The frame that answers are in; runs from before it was recorded have the unit frame."""
        if not (self.path / "frame.json").exists():
            return AnswerFrame.from_spec("unit" if asked == AUTO else asked)
        stored = self._read_object("frame.json")
        try:
            frame = TypeAdapter(AnswerFrame).validate_python({**stored, "fixed": None})
        except ValidationError as error:
            raise ExplainedError(f"{self.path / 'frame.json'} holds no frame") from error
        if not is_frame_name(frame.family):
            raise ExplainedError(
                f"{self.path / 'frame.json'}: there is no frame {frame.family[:80]!r}"
            )
        return frame

    def _read_object(self, name: str, most: int = MOST_CONFIG_BYTES) -> dict[str, Any]:
        path = self.path / name
        try:
            found = json.loads(read_bounded(path, most))
        except (ValueError, RecursionError) as error:
            raise ExplainedError(f"{path} is no JSON: {str(error)[:200]}") from error
        if not isinstance(found, dict):
            raise ExplainedError(f"{path} holds a {type(found).__name__} where settings should be")
        return found

    def views(self) -> list[str]:
        """What can be shown: updates, the newest first, and held-out questions."""
        updates = [f"update {number}" for number in reversed(rollout_files(self.path / "rollouts"))]
        return updates + (list(HELD_OUT) if (self.path / "before.json").is_file() else [])

    def view(self, name: str) -> View:
        """What is shown under one of the names of `views`.

        Raises:
            ExplainedError: It cannot be read.
        """
        if name in HELD_OUT:
            return self._held_out(HELD_OUT[name])
        path = rollout_files(self.path / "rollouts").get(int(name.removeprefix("update ")))
        if path is None:
            raise ExplainedError(f"the rollout of {name} is not kept any more: choose another")
        kept = read_rollout(path)
        terms = list(kept.groups[0].answers[0].rewards)[:MOST_TERMS] if kept.groups else []
        note = []
        if (missing := kept.made - len(kept.groups) - kept.malformed) > 0:
            note.append(f"{missing} of {counted(kept.made, 'group')} were too much to be kept")
        if kept.malformed:
            note.append(f"{counted(kept.malformed, 'line')} of {path.name} could not be read")
        headings = ("answer", "reward", "advantage", "IoU", "tokens", "faults", *terms)
        items = tuple(_group_item(group, terms) for group in kept.groups)
        return View(self._learned, headings, items, "; ".join(note))

    def _held_out(self, kind: str) -> View:
        """Answers to the held-out questions, those before and those after under each other."""
        sides, note = {}, []
        for side in ("before", "after"):
            if not (self.path / f"{side}.json").exists():
                note.append(f"there is no {side}.json yet")
                continue
            stored = self._read_object(f"{side}.json", MOST_EVALUATION_BYTES)
            sides[side] = _read_evaluation(stored.get(kind))
            if sides[side] is None:
                note.append(f"{side}.json holds no {kind} answers that can be read")
        found = {side: each for side, each in sides.items() if each is not None}
        items = tuple(_held_out_items(found))
        headings = ("answer", "IoU", "vertices", "tokens", "faults")
        return View(self._measured, headings, items, "; ".join(note))

    def question(self, view: View, item: Item) -> Question:
        """The question that an item is about, with its image.

        Raises:
            ExplainedError: The data have no such question.
        """
        question = self._ask(view.rules, item.index, item.task)
        if item.sample and item.sample != question.sample.id:
            raise ExplainedError(
                f"question {item.index} was {item.sample[:80]!r} and is {question.sample.id!r} "
                "now: the data are others than those the run learned from"
            )
        return question

    def _load(self, rules: ReferringCore, index: int, task: str) -> Question:
        with self._lock, loading():
            return rules.ask(rules.check_index(index, "the question"), check_task(task))

    def curves(self) -> tuple[list[dict[str, Any]], str]:
        """Rows of metrics, and what was wrong with some, in words."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return [], "there are no metrics"
        try:
            read_bounded(path, MOST_METRICS_BYTES)
        except ExplainedError as error:
            return [], str(error)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            rows = read_metrics(self.path)
        names = sorted({name for row in rows for name in row if _METRIC.fullmatch(name)})
        names = ["update", *names[:MOST_CURVES]]
        kept = [
            {name: value for name in names if (value := _finite(row.get(name))) is not None}
            for row in rows
        ]
        told = "; ".join(str(each.message) for each in said)
        return [row for row in kept if "update" in row], told


def panels_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Titles of the panels of a report for which there are metrics."""
    logged = {name for row in rows for name in row}
    return [
        title
        for title, names in PANELS
        if any(
            name in logged or (name.endswith("/") and any(name in each for each in logged))
            for name in names
        )
    ]


def draw_curves(rows: list[dict[str, Any]], title: str) -> bytes:
    """One panel of a report, as PNG."""
    drawn = BytesIO()
    plot_curves(rows, [panel for panel in PANELS if panel[0] == title], drawn)
    return drawn.getvalue()


def _finite(value: object) -> float | None:
    if type(value) not in (int, float):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:
        return None
    return number if np.isfinite(number) else None


def _group_item(group: Group, terms: Sequence[str]) -> Item:
    lines = []
    for number, answer in enumerate(group.answers, 1):
        faults = answer.faults or _outlines_nothing(group.task, answer.vertices, answer.iou)
        lines.append(
            Line(
                answer.text,
                answer.text if answer.outline is None else answer.outline,
                (
                    str(number),
                    f"{answer.reward:.3f}",
                    f"{answer.advantage:+.2f}",
                    f"{answer.iou:.3f}",
                    str(answer.tokens),
                    ", ".join(faults)[:200],
                    *(f"{answer.rewards.get(name, np.nan):.3f}" for name in terms),
                ),
                bool(faults),
            )
        )
    rewards = [answer.reward for answer in group.answers]
    return Item(
        group.index,
        group.sample,
        group.task,
        group.prompt,
        tuple(lines),
        first=max(range(len(rewards)), key=rewards.__getitem__),
        value=float(np.mean(rewards)),
        gain=float(np.std(rewards)) if len(set(rewards)) > 1 else 0.0,  # which rounding makes 1e-17
    )


def _outlines_nothing(task: str, vertices: int, iou: float) -> tuple[str, ...]:
    """The fault of an answer that is well-formed and empty where there is an object."""
    return ("no outline",) if task.endswith("->mask") and not vertices and iou < 1 else ()


def _read_evaluation(stored: Any) -> Evaluation | None:
    """An evaluation whose arrays fit together; None where it is none."""
    try:
        found = Evaluation.from_json(stored)
        shape = questions, answers = found.iou.shape
        fits = answers <= MOST_ANSWERS and all(
            values.shape == shape and values.dtype.kind in kinds
            for name, kinds in _KINDS.items()
            for values in [getattr(found, name)]
        )
        fits = fits and found.indices.shape == found.tasks.shape == (questions,)
        fits = fits and found.indices.dtype.kind in "iu" and found.tasks.dtype.kind == "U"
        fits = (
            fits
            and found.texts.shape == shape
            and all(isinstance(x, str) for x in found.texts.flat)
        )
        return found if fits and ((found.iou >= 0) & (found.iou <= 1)).all() else None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def _held_out_items(sides: Mapping[str, Evaluation]) -> list[Item]:
    """One item for each question that was answered on either side."""
    rows = {
        side: {int(index): row for row, index in enumerate(found.indices)}
        for side, found in sides.items()
    }
    items = []
    for index in dict.fromkeys(index for places in rows.values() for index in places):
        lines: list[Line] = []
        means: dict[str, float] = {}
        for side, found in sides.items():
            if (row := rows[side].get(index)) is None:
                continue
            task, first = str(found.tasks[row]), len(lines)
            means[side] = float(found.iou[row].mean())
            columns = zip(found.texts[row], found.iou[row], found.vertices[row], strict=True)
            for column, (text, iou, vertices) in enumerate(columns):
                faults = _outlines_nothing(task, vertices, iou)
                faults = faults if found.valid[row, column] else ("not well-formed",)
                name = f"{side} {column + 1}" if found.iou.shape[1] > 1 else side
                tokens, text = str(found.tokens[row, column]), without_surrogates(text)
                cells = (name, f"{iou:.3f}", str(vertices), tokens, ", ".join(faults))
                lines.append(Line(text, text, cells, bool(faults)))
        value = means.get("after", means.get("before", 0.0))
        gain = value - means.get("before", value)
        items.append(Item(index, "", task, "", tuple(lines), first, value, gain))
    return items
