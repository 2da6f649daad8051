"""What is measured of every answer, and the file it is kept in."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np

from experiments.evaluation.answers import Answer
from experiments.evaluation.reader import advise_frame
from seg_env.envs.core import ReferringCore
from seg_env.geometry.rle import Rle
from seg_env.metrics import Columns, ceiling, join_columns, measure
from seg_env.types import Prediction, Sample, Target

CHUNK = 64
"""Questions worked on at a time; what is kept of each is a row of numbers."""

_TEXTS = {"id", "expression", "issues", "size", "failure"}
_FLAGS = {"valid", "given"}


@dataclass(frozen=True)
class Item:
    """A question with its answers."""

    index: int
    """Position of the sample in the data set."""
    answers: list[Answer]
    """One or more."""


class OtherObjects(Sequence[Rle]):
    """Masks of the other annotated objects of a sample's picture, read only when looked at.

    They are needed for failed answers alone, to tell a wrong object from a wrong outline.
    """

    def __init__(self, load: Callable[[], Sequence[Target]]) -> None:
        """Remember how to read them."""
        self._load = load

    @cached_property
    def _masks(self) -> list[Rle]:
        return [target.rle for target in self._load()]

    def __len__(self) -> int:
        """Number of objects."""
        return len(self._masks)

    def __getitem__(self, index: Any) -> Any:
        """The mask of one object."""
        return self._masks[index]


def measure_answers(
    core: ReferringCore,
    items: Sequence[Item],
    *,
    details: bool,
    empty_union: float,
    warn: Callable[[str], None],
    on_chunk: Callable[[int, float], None],
) -> Columns:
    """Measure all answers, chunk by chunk.

    Args:
        core: Who asked; reads the answers.
        items: ``n`` questions with ``k`` answers each.
        details: Add boundary scores, PoLiS and the ceiling of each sample.
        empty_union: IoU where answer and target are both empty.
        warn: Told when the answers seem to be in another frame.
        on_chunk: Called with the number of questions done and the mean IoU so far.

    Returns:
        Columns ``(n * k,)`` of `seg_env.metrics.measure`, and ``id``, ``expression``, ``answer``
        (number among those to the question), ``characters``, ``tokens`` (-1 if not known), and
        ``ceiling`` with ``details``.
    """
    parts: list[Columns] = []
    total, count = 0.0, 0
    dataset, (form,) = core.dataset, core.tasks.forms
    for start in range(0, len(items), CHUNK):
        chunk = items[start : start + CHUNK]
        samples = [dataset[item.index] for item in chunk]
        pairs = [
            (sample, answer)
            for sample, item in zip(samples, chunk, strict=True)
            for answer in item.answers
        ]
        texts, asked = [answer.text for _, answer in pairs], [sample for sample, _ in pairs]
        read = core.scorer.read(texts, asked, forms=[form] * len(pairs))
        if not start:
            advice = advise_frame(core.answer_frame, texts, asked, read)
            if advice:
                warn(advice)
        others = None
        if hasattr(dataset, "others"):
            others = [
                OtherObjects(partial(dataset.others, item.index))
                for item in chunk
                for _ in item.answers
            ]
        part = _measure_chunk(samples, pairs, read, others, details, empty_union)
        part["answer"] = np.concatenate([np.arange(len(item.answers)) for item in chunk])
        parts.append(part)
        total, count = total + float(part["iou"].sum()), count + len(pairs)
        on_chunk(len(chunk), total / count)
    return join_columns(parts)


def _measure_chunk(
    samples: Sequence[Sample],
    pairs: Sequence[tuple[Sample, Answer]],
    read: Sequence[Prediction],
    others: Sequence[OtherObjects] | None,
    details: bool,
    empty_union: float,
) -> Columns:
    """Columns of some answers."""
    columns = measure(
        read,
        [sample.target for sample, _ in pairs],
        others=others,
        boundaries=details,
        outlines=details,
        empty_union=empty_union,
    )
    if details:
        best = dict(zip(map(id, samples), ceiling(samples), strict=True))
        columns["ceiling"] = np.array([best[id(sample)] for sample, _ in pairs])
    columns["id"] = np.array([sample.id for sample, _ in pairs], dtype=np.str_)
    columns["expression"] = np.array([sample.expression for sample, _ in pairs], dtype=np.str_)
    columns["characters"] = np.array([len(answer.text) for _, answer in pairs])
    columns["tokens"] = np.array(
        [-1 if answer.tokens is None else answer.tokens for _, answer in pairs]
    )
    return columns


def save_samples(folder: Path, columns: Columns) -> Path:
    """Write one row an answer: ``per_sample.parquet``, or ``.csv`` where pyarrow is missing."""
    first = ["id", "answer", "expression"]
    ordered = {name: columns[name] for name in [*first, *sorted(columns.keys() - set(first))]}
    if find_spec("pyarrow") is not None:
        table = import_module("pyarrow").table({k: v.tolist() for k, v in ordered.items()})
        path = folder / "per_sample.parquet"
        import_module("pyarrow.parquet").write_table(table, path)
        return path
    path = folder / "per_sample.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(ordered)
        writer.writerows(zip(*(column.tolist() for column in ordered.values()), strict=True))
    return path


def load_samples(path: Path) -> Columns:
    """Read what `save_samples` wrote.

    Args:
        path: The file, or the folder that holds it.

    Raises:
        FileNotFoundError: There is none.
        ImportError: It is a parquet file and pyarrow is missing.
    """
    if path.is_dir():
        found = [path / name for name in ("per_sample.parquet", "per_sample.csv")]
        path = next((each for each in found if each.exists()), found[0])
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; give a folder that evaluate.py wrote")
    if path.suffix != ".csv":
        if find_spec("pyarrow") is None:
            raise ImportError(f"reading {path} needs pyarrow: pip install 'simpleseg-rl[hub]'")
        table = import_module("pyarrow.parquet").read_table(path)
        return {name: np.array(table[name].to_pylist()) for name in table.column_names}
    with path.open(encoding="utf-8", newline="") as file:
        names, *rows = list(csv.reader(file))
    return {name: _typed(name, [row[i] for row in rows]) for i, name in enumerate(names)}


def _typed(name: str, cells: list[str]) -> Any:
    """A column of a CSV file."""
    if name in _TEXTS:
        return np.array(cells, dtype=np.str_)
    if name in _FLAGS:
        return np.array([cell == "True" for cell in cells], dtype=np.bool_)
    return cast("Any", np.array(cells, dtype=np.float64))
