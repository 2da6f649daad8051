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

from seg_env.data.readers.instances import Column, describe, integer, narrow, text_field
from seg_env.data.readers.safe_pickle import MAX_BYTES, load_plain_pickle

MAX_OBJECTS = 1000
"""Most objects that one reference may name."""
MAX_REPETITION = 8
"""How many times its own size a file may unfold to: pickles can name one list many times."""


@dataclass(frozen=True, eq=False)
class ReferIndex:
    """The references of one split, about fifty bytes a sentence, most of them text.

    R references, S sentences, in the order of the file.
    """

    path: Path
    """The file."""
    reference_ids: Column
    """``(R,)``."""
    annotation_ids: Column
    """``(T,)`` of all references one after another; ``T = R`` where each has one object."""
    annotation_ends: Column
    """``(R,)`` where the objects of each reference end in `annotation_ids`."""
    image_ids: Column
    """``(R,)``."""
    category_ids: Column
    """``(R,)``, -1 where the category is that of the objects."""
    references: Column
    """``(S,)`` row of the reference that each sentence belongs to."""
    sentence_ids: Column
    """``(S,)``."""
    text: bytes
    """All sentences one after another, UTF-8."""
    text_ends: Column
    """``(S,)`` where each sentence ends in `text`."""

    def __len__(self) -> int:
        """Number of sentences."""
        return len(self.sentence_ids)

    def annotations_of(self, row: int) -> list[int]:
        """Ids of the objects of reference ``row``; none where it refers to nothing."""
        start = int(self.annotation_ends[row - 1]) if row else 0
        ids: list[int] = self.annotation_ids[start : int(self.annotation_ends[row])].tolist()
        return ids

    def sentence(self, index: int) -> str:
        """Sentence ``index`` of ``[0, S)``."""
        start = int(self.text_ends[index - 1]) if index else 0
        return self.text[start : int(self.text_ends[index])].decode("utf-8", "replace")


def read_references(
    path: Path, split: str, *, several: bool = False, broken: list[str] | None = None
) -> ReferIndex:
    """Read the references of one split from ``refs(*).p`` or ``refs(*).json``.

    Nothing in the file is executed, see `seg_env.data.readers.safe_pickle`.

    Args:
        path: The file.
        split: Which references to keep.
        several: The form of gRefCOCO: ``ann_id`` is a list, ``[-1]`` refers to nothing, and the
            category is that of the objects.
        broken: Where given, the errors of broken records are put here instead of being raised.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The split is not in the file (names those that are), or the file or a record of
            it is malformed (names file and record).
    """
    size = path.stat().st_size
    records = _load(path, size)
    splits: Counter[str] = Counter()
    builder = _Builder(path, size * MAX_REPETITION, several)
    for row, record in enumerate(records):
        where = f"{path}: record {row}"
        try:
            found = text_field(record, "split", where)
            splits[found] += 1
            if found == split:
                builder.add(record, where)
        except ValueError as error:
            if broken is None or isinstance(error, _TooRepetitiveError):
                raise
            broken.append(str(error))
    if split not in splits:
        present = ", ".join(f"{name[:40]!r} ({n} references)" for name, n in splits.most_common(20))
        raise ValueError(f"{path} has no split {split!r}; it has {present or 'no references'}")
    return builder.finish()


class _TooRepetitiveError(ValueError):
    """The file unfolds to too much; there is no record to leave out."""


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
    """Collects references column by column; a reference that raises leaves nothing behind."""

    def __init__(self, path: Path, limit: int, several: bool) -> None:
        self._path = path
        self._limit = limit
        self._several = several
        keys = ("ref_id", "image_id") if several else ("ref_id", "image_id", "category_id")
        self._columns = {key: array("q") for key in keys}
        self._ids: set[int] = set()
        self._annotations = array("q")
        self._annotation_ends = array("q")
        self._references = array("q")
        self._sentence_ids = array("q")
        self._text = bytearray()
        self._ends = array("q")

    def add(self, record: Mapping[str, Any], where: str) -> None:
        numbers = [integer(record, key, where) for key in self._columns]
        if numbers[0] in self._ids:
            raise ValueError(f"{where}: ref_id {numbers[0]} appears twice")
        annotations = self._objects(record, where)
        sentences = self._sentences(record, where)
        self._ids.add(numbers[0])
        for column, number in zip(self._columns.values(), numbers, strict=True):
            column.append(number)
        self._annotations.extend(annotations)
        self._annotation_ends.append(len(self._annotations))
        for identifier, text in sentences:
            self._text += text
            self._sentence_ids.append(identifier)
            self._references.append(len(self._ids) - 1)
            self._ends.append(len(self._text))

    def _objects(self, record: Mapping[str, Any], where: str) -> list[int]:
        if not self._several:
            return [integer(record, "ann_id", where)]
        listed = record.get("ann_id")
        listed = [listed] if isinstance(listed, int) else listed  # the published reader takes both
        if not isinstance(listed, list) or not listed or len(listed) > MAX_OBJECTS:
            raise ValueError(
                f"{where}: 'ann_id' must be a list of 1 to {MAX_OBJECTS} integers, [-1] for no "
                f"target, got {describe(listed)}"
            )
        ids = [integer({"ann_id": each}, "ann_id", where) for each in listed]
        return [] if ids == [-1] else ids

    def _sentences(self, record: Mapping[str, Any], where: str) -> list[tuple[int, bytes]]:
        listed = record.get("sentences")
        if not isinstance(listed, list):
            raise ValueError(f"{where}: 'sentences' must be a list, got {describe(listed)}")
        found: list[tuple[int, bytes]] = []
        # Eight bytes a sentence for its number, so that empty sentences count too.
        taken = len(self._text) + 8 * len(self._ends)
        for sentence in listed:
            identifier = integer(sentence, "sent_id", f"{where}, sentence")
            text = text_field(sentence, "sent", f"{where}, sentence").encode("utf-8", "replace")
            found.append((identifier, text))
            taken += len(text) + 8
            if taken > self._limit:
                raise _TooRepetitiveError(
                    f"{where}: the file unfolds to more than {MAX_REPETITION} times its own size"
                )
        if len({identifier for identifier, _ in found}) < len(found):
            raise ValueError(f"{where}: a sent_id appears twice")
        return found

    def finish(self) -> ReferIndex:
        columns = {key: narrow(column) for key, column in self._columns.items()}
        return ReferIndex(
            path=self._path,
            reference_ids=columns["ref_id"],
            annotation_ids=narrow(self._annotations),
            annotation_ends=narrow(self._annotation_ends),
            image_ids=columns["image_id"],
            category_ids=columns.get("category_id", np.full(len(self._ids), -1, dtype=np.int32)),
            references=narrow(self._references),
            sentence_ids=narrow(self._sentence_ids),
            text=bytes(self._text),
            text_ends=narrow(self._ends),
        )
