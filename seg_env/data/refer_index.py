"""A ``refs(*).p`` file as arrays: which sentence names which annotation."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seg_env.data.instances import describe, integer, text_field
from seg_env.data.safe_pickle import MAX_BYTES, load_plain_pickle

MAX_REPETITION = 8
"""How many times its own size a file may unfold to: pickles can name one list many times."""


@dataclass(frozen=True, eq=False)
class ReferIndex:
    """The references of one split, about fifty bytes a sentence.

    R references, S sentences, in the order of the file.
    """

    path: Path
    """The file."""
    reference_ids: NDArray[np.int64]
    """``(R,)``."""
    annotation_ids: NDArray[np.int64]
    """``(R,)``."""
    image_ids: NDArray[np.int64]
    """``(R,)``."""
    category_ids: NDArray[np.int64]
    """``(R,)``."""
    references: NDArray[np.int64]
    """``(S,)`` row of the reference that each sentence belongs to."""
    sentence_ids: NDArray[np.int64]
    """``(S,)``."""
    text: bytes
    """All sentences one after another, UTF-8."""
    text_ends: NDArray[np.int64]
    """``(S,)`` where each sentence ends in `text`."""

    def __len__(self) -> int:
        """Number of sentences."""
        return len(self.sentence_ids)

    def sentence(self, index: int) -> str:
        """Sentence ``index`` of ``[0, S)``."""
        start = int(self.text_ends[index - 1]) if index else 0
        return self.text[start : int(self.text_ends[index])].decode("utf-8", "replace")


def read_references(path: Path, split: str) -> ReferIndex:
    """Read the references of one split from ``refs(*).p`` or ``refs(*).json``.

    Nothing in the file is executed, see `seg_env.data.safe_pickle`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The split is not in the file (names those that are), or the file or a record of
            it is malformed (names file and record).
    """
    size = path.stat().st_size
    records = _load(path, size)
    splits: Counter[str] = Counter()
    builder = _Builder(path, size * MAX_REPETITION)
    for row, record in enumerate(records):
        where = f"{path}: record {row}"
        found = text_field(record, "split", where)
        splits[found] += 1
        if found == split:
            builder.add(record, where)
    if split not in splits:
        present = ", ".join(f"{name[:40]!r} ({n} references)" for name, n in splits.most_common(20))
        raise ValueError(f"{path} has no split {split!r}; it has {present or 'no references'}")
    return builder.finish()


def _load(path: Path, size: int) -> list[Any]:
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes; files up to {MAX_BYTES} bytes are read")
    data = path.read_bytes()
    if path.suffix == ".json":
        try:
            records = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
    else:
        records = load_plain_pickle(data, str(path))
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected a list of references, got {describe(records)}")
    return records


class _Builder:
    """Collects references column by column."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._ids: set[int] = set()
        self._columns = {key: array("q") for key in ("ref_id", "ann_id", "image_id", "category_id")}
        self._references = array("q")
        self._sentence_ids = array("q")
        self._text = bytearray()
        self._ends = array("q")

    def add(self, record: Mapping[str, Any], where: str) -> None:
        for key, column in self._columns.items():
            column.append(integer(record, key, where))
        identifier = self._columns["ref_id"][-1]
        if identifier in self._ids:
            raise ValueError(f"{where}: ref_id {identifier} appears twice")
        self._ids.add(identifier)
        sentences = record.get("sentences")
        if not isinstance(sentences, list):
            raise ValueError(f"{where}: 'sentences' must be a list, got {describe(sentences)}")
        if len({self._add_sentence(sentence, where) for sentence in sentences}) < len(sentences):
            raise ValueError(f"{where}: a sent_id appears twice")

    def _add_sentence(self, sentence: object, where: str) -> int:
        identifier = integer(sentence, "sent_id", f"{where}, sentence")
        self._text += text_field(sentence, "sent", f"{where}, sentence").encode("utf-8", "replace")
        self._sentence_ids.append(identifier)
        self._references.append(len(self._ids) - 1)
        self._ends.append(len(self._text))
        # Eight bytes a sentence for its number, so that empty sentences count too.
        if len(self._text) + 8 * len(self._ends) > self._limit:
            raise ValueError(
                f"{where}: the file unfolds to more than {MAX_REPETITION} times its own size"
            )
        return identifier

    def finish(self) -> ReferIndex:
        columns = {key: np.array(column, dtype=np.int64) for key, column in self._columns.items()}
        return ReferIndex(
            path=self._path,
            reference_ids=columns["ref_id"],
            annotation_ids=columns["ann_id"],
            image_ids=columns["image_id"],
            category_ids=columns["category_id"],
            references=np.array(self._references, dtype=np.int64),
            sentence_ids=np.array(self._sentence_ids, dtype=np.int64),
            text=bytes(self._text),
            text_ends=np.array(self._ends, dtype=np.int64),
        )
