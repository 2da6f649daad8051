"""Rewards as the functions that other trainers call: those of TRL, ms-swift and verl.

All take the specification that environments take. The target of an answer is in the trainer's own
rows, in the columns that ``python -m seg_env.data export`` writes (`TARGET_COLUMNS`):

    rows = datasets.load_dataset("json", data_files="exported/train.jsonl")["train"]
    trainer = GRPOTrainer(..., reward_funcs=rewards.for_trl("mask_iou=1 format=0.1"))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from rewards.composite import DEFAULT_REWARDS, RewardSpec, RewardSum
from seg_env.data.readers.jsonlines import read_target, stated_size
from seg_env.data.records import Record, located
from seg_env.frames import AnswerFrame, Frame
from seg_env.grammar.answers import read_answer
from seg_env.tasks import DEFAULT_TASK, check_task, form_of
from seg_env.types import Form, Prediction, Target

TARGET_COLUMNS = ("rle", "rings", "size", "ignore", "box", "task")
"""What a row may say of its target, in the form of `seg_env.data.readers.jsonlines.JsonLines`: run
lengths, or an outline and the ``[H, W]`` of its image; void pixels; the annotated box; and which of
`seg_env.tasks.TASKS` is asked, by default an outline. None counts as missing."""

Row = Mapping[str, Any]
FrameSpec = str | Frame | AnswerFrame
RewardFunction = Callable[..., list[float]]


class RowRewards:
    """Scores answers to questions that rows of a table describe."""

    def __init__(self, spec: RewardSpec = DEFAULT_REWARDS, frame: FrameSpec = "unit") -> None:
        """Set up.

        Args:
            spec: Rewards, as `RewardSum` reads them.
            frame: What the numbers in answers mean, see `seg_env.frames.FAMILIES`.
        """
        self.rewards = RewardSum.from_spec(spec)
        self.frame = AnswerFrame.from_spec(frame)

    @property
    def name(self) -> str:
        """The rewards by name, as one identifier."""
        return "_and_".join(self.rewards.terms)

    def read(
        self, answers: Sequence[str], rows: Sequence[Row]
    ) -> tuple[list[Prediction], list[Target]]:
        """Decode ``N`` answers, any strings, to the questions of ``N`` rows.

        Raises:
            RecordError: A row is malformed; the message says which and how.
            ValueError: There are not as many rows.
        """
        predictions, targets, last = [], [], None
        for number, (answer, row) in enumerate(zip(answers, rows, strict=True)):
            with located(f"row {number}"):
                if row is not last:
                    given = {key: row[key] for key in TARGET_COLUMNS if row.get(key) is not None}
                    target, form = _remembered_row(json.dumps(given, default=_plain))
                    last = row
                predictions.append(read_answer(answer, target.size, self.frame, form))
            targets.append(target)
        return predictions, targets


def for_trl(spec: RewardSpec = DEFAULT_REWARDS, *, frame: FrameSpec = "unit") -> RewardFunction:
    """A reward function for TRL's GRPOTrainer, RLOOTrainer and others.

    It logs the mean of every reward as ``reward/<name>``.

    Args:
        spec: Rewards, ``"mask_iou=1 format=0.1"``.
        frame: What the numbers in answers mean, see `seg_env.frames.FAMILIES`.

    Raises:
        ValueError: The specification or the frame is malformed.
    """
    scorer = RowRewards(spec, frame)

    def reward(
        completions: Sequence[Any],
        log_metric: Callable[[str, float], object] | None = None,
        **columns: Any,
    ) -> list[float]:
        answers = list(map(_text, completions))
        scores = scorer.rewards.score(*scorer.read(answers, list(_rows(columns, len(answers)))))
        if log_metric is not None:
            for name, values in scores.terms.items():
                log_metric(f"reward/{name}", float(values.mean()))
        return [float(total) for total in scores.total]

    reward.__name__ = scorer.name
    return reward


def for_swift(
    spec: RewardSpec = DEFAULT_REWARDS, *, frame: FrameSpec = "unit"
) -> Callable[..., RewardFunction]:
    """A reward for the table ``orms`` of ms-swift, for a file that ``--external_plugins`` names.

        from swift.rewards import orms
        orms["outline"] = rewards.for_swift("mask_iou=1 format=0.1")

    ``--reward_funcs outline`` then uses it. Arguments and errors are those of `for_trl`, and so is
    the function that ms-swift builds from it, which logs under that function's name.
    """
    function = for_trl(spec, frame=frame)

    def build(args: object = None, **others: object) -> RewardFunction:
        return function

    build.__name__ = function.__name__
    return build


def for_verl(
    spec: RewardSpec = DEFAULT_REWARDS, *, frame: FrameSpec = "unit"
) -> Callable[..., dict[str, float]]:
    """A ``compute_score`` for verl, for a file that ``custom_reward_function.path`` names.

        compute_score = rewards.for_verl("mask_iou=1 format=0.1")

    ``reward_model["ground_truth"]`` of a row holds its `TARGET_COLUMNS`, as a dictionary or as JSON
    text. Arguments and errors are those of `for_trl`. Besides the ``score``, verl logs every reward
    as ``reward/<name>``.
    """
    scorer = RowRewards(spec, frame)

    def compute_score(
        data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **_: Any
    ) -> dict[str, float]:
        row = Record.parse(ground_truth, "ground_truth").values
        scores = scorer.rewards.score(*scorer.read([solution_str], [row]))
        terms = {f"reward/{name}": float(values[0]) for name, values in scores.terms.items()}
        return {"score": float(scores.total[0]), **terms}

    compute_score.__name__ = scorer.name
    return compute_score


def _rows(columns: Mapping[str, Sequence[Any]], count: int) -> Iterator[Row]:
    """The rows of a batch that trainers pass as columns."""
    given = [name for name in TARGET_COLUMNS if columns.get(name) is not None]
    if {"rle", "rings"}.isdisjoint(given):
        raise ValueError(
            f"the data have no column 'rle' or 'rings' that says what answers are about, but "
            f"{sorted(columns)}: python -m seg_env.data export writes such data"
        )
    return ({name: columns[name][row] for name in given} for row in range(count))


def _text(completion: Any) -> str:
    """The answer's text: the completion itself, or its last message, whole or in parts."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"] if completion else ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or ())


@lru_cache(maxsize=64)  # answers to one question share their target, and what is kept with it
def _remembered_row(text: str) -> tuple[Target, Form]:
    return read_row(Record.parse(text, "its target"))


def read_row(record: Record) -> tuple[Target, Form]:
    """What a row's `TARGET_COLUMNS` say, and the form that answers have.

    Raises:
        RecordError: They are malformed.
    """
    lengths = record.get("rle")
    stated = record if record.get("size") is not None else Record(lengths, "its 'rle'")
    if (size := stated_size(stated)) is None:
        raise record.error("size", "must be [height, width] of the image")
    return read_target(record, size), form_of(check_task(record.get("task", DEFAULT_TASK)))


def _plain(value: object) -> Any:
    """Convert values of tables that JSON does not know: arrays, and COCO's counts as bytes."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a target is made of plain values, got {type(value).__name__}")
