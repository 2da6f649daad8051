"""What all data sets have in common that read annotated images from files."""

from __future__ import annotations

import operator
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from seg_env.data.images import check_image
from seg_env.data.records import Fault, OnError, RecordError
from seg_env.types import Sample, Target

Key = TypeVar("Key")
_COCO_NAME = re.compile(r"(?:coco_(?:train|val|test)\d{4}_)?(\d{12})(?:_\d+)?")


class AnnotatedImages(ABC):
    """A data set whose records lie in files: indexing, leaving out, counting what was left out.

    Readers take ``exclude_images=``, image ids or names of image files to leave out (see
    `seg_env.data.held_out_images`), and ``on_error=``, what to do about broken records (see
    `seg_env.data.records.OnError`). They raise a `FileNotFoundError` that says what is missing and
    what was looked for, and a `ValueError` that names file and record.

    A *row* is one question as the files have it. Subclasses call `_choose_rows` at the end of their
    constructor.
    """

    name: str
    split: str
    skipped: dict[str, int]
    """Number of records left out for being broken, by `seg_env.data.records.Fault`."""
    excluded: int
    """Number of samples left out for their image (``exclude_images=``)."""

    def __init__(self, name: str, split: str, on_error: OnError) -> None:
        """Start with nothing left out."""
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r} is unknown; use 'raise' or 'skip'")
        self.name = name
        self.split = split
        self.skipped = {}
        self.excluded = 0
        self._on_error = on_error
        self._rows: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int, /) -> Sample:
        """The sample at ``index``; negative indices count from the end.

        Raises:
            IndexError: Outside ``[-len, len)``.
            ValueError: The record is broken; names file and record.
        """
        return self._sample(self._row(index))

    def others(self, index: int, /) -> list[Target]:
        """Masks of the other annotated objects in the image; broken annotations are left out."""
        return self._others(self._row(index))

    def image_path(self, index: int, /) -> Path | None:
        """The file of a sample's image, or None where it does not lie in a file."""
        return self._image_path(self._row(index))

    def image_names(self) -> frozenset[str]:
        """Names of the files of all images, as far as they are known without reading them."""
        by_unit = {self._unit(row): row for row in self._rows.tolist()}
        return frozenset(self._image_name(row) for row in by_unit.values())

    def _row(self, index: int) -> int:
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"index {number} is outside of {len(self)} samples")
        return int(self._rows[number])

    def _choose_rows(
        self, rows: Iterable[int], exclude_images: Collection[str | int] | None
    ) -> None:
        """Keep the rows whose images are allowed and, on request, whose records are sound."""
        self._rows = np.array(list(rows), dtype=np.int64)
        if exclude_images:
            keys = {image_key(image) for image in exclude_images}
            self.excluded = len(self._drop(lambda row: image_key(self._image_name(row)) in keys))
        if self._on_error == "skip":
            faults = Counter(str(fault) for fault in self._drop(self._fault))
            self.skipped = dict(Counter(self.skipped) + faults)

    def _drop(self, reason_of: Callable[[int], object]) -> list[object]:
        """Drop the rows for which there is a reason; asked once for each unit."""
        rows = self._rows.tolist()
        units = [self._unit(row) for row in rows]
        asked = {unit: reason_of(row) for unit, row in dict(zip(units, rows, strict=True)).items()}
        found = [asked[unit] for unit in units]
        self._rows = self._rows[np.array([not reason for reason in found], dtype=np.bool_)]
        return [reason for reason in found if reason]

    def _fault(self, row: int) -> Fault | None:
        try:
            self._check(row)
        except FileNotFoundError:
            return Fault.MISSING_IMAGE
        except ValueError as error:
            return getattr(error, "fault", Fault.MALFORMED)
        return None

    def _broken(self, error: ValueError, count: int = 1) -> None:
        """Raise the error of a broken record, or count it where such records are left out."""
        if self._on_error == "raise":
            raise error
        self.skipped = dict(Counter(self.skipped) + Counter({str(Fault.MALFORMED): count}))

    @contextmanager
    def _reading_record(self) -> Iterator[None]:
        """Treat a `RecordError` of the block as `_broken` does."""
        try:
            yield
        except RecordError as error:
            self._broken(error)

    @abstractmethod
    def _sample(self, row: int) -> Sample: ...

    @abstractmethod
    def _image_name(self, row: int) -> str: ...

    @abstractmethod
    def _image_path(self, row: int) -> Path | None: ...

    def _others(self, row: int) -> list[Target]:
        return []

    def _unit(self, row: int) -> Hashable:
        """Equal for rows that ask for the same object in other words."""
        return row

    def _check(self, row: int) -> None:
        """Raise what is wrong with the annotation or, as its header tells, the image of a row."""
        sample, path = self._sample(row), self._image_path(row)
        if path is not None:
            check_image(path, sample.target.size)


def valid_targets(target_of: Callable[[Key], Target], keys: Iterable[Key]) -> list[Target]:
    """The targets of some objects, without the broken ones."""
    found = []
    for key in keys:
        try:
            found.append(target_of(key))
        except RecordError:
            continue
    return found


def images_of(datasets: Iterable[AnnotatedImages]) -> frozenset[str]:
    """The keys of all images of some data sets, for ``exclude_images=``."""
    return frozenset(image_key(name) for each in datasets for name in each.image_names())


def image_key(name: str | int) -> str:
    """What two names of one image have in common: the file's name without folder and ending.

    Of COCO's names only the number is left: ``COCO_train2014_000000581857.jpg``, the same with an
    object's number behind it, ``000000581857.jpg`` of 2017 and the id ``581857`` are one image.
    """
    if isinstance(name, int):
        return str(name)
    stem = PurePosixPath(name.replace("\\", "/")).stem.casefold()
    match = _COCO_NAME.fullmatch(stem)
    return str(int(match[1])) if match else stem
