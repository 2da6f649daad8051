"""What all data sets have in common that read annotated pictures from files."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seg_env.data.faults import Fault, OnError, check_on_error, fault_of
from seg_env.data.leakage import image_key, keys_of
from seg_env.types import Sample, Target


class AnnotatedImages(ABC):
    """A data set whose records lie in files: indexing, leaving out, counting what was left out.

    A *row* is one question as the files have it, a *unit* what several questions share: a picture
    and an outline. Subclasses call `_choose_rows` at the end of their constructor.
    """

    name: str
    """What is reported with every score."""
    split: str
    """Which part it is."""
    skipped: dict[str, int]
    """Number of records left out for being broken, by `seg_env.data.faults.Fault`."""
    excluded: int
    """Number of samples left out for their picture (``exclude_images=``)."""

    def __init__(self, name: str, split: str) -> None:
        """Start with nothing left out."""
        self.name = name
        self.split = split
        self.skipped = {}
        self.excluded = 0
        self._rows: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._rows)

    def __iter__(self) -> Iterator[Sample]:
        """All samples in order."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int, /) -> Sample:
        """The sample at ``index``; negative indices count from the end.

        Raises:
            IndexError: Outside ``[-len, len)``.
            ValueError: The record is broken; names file and record.
        """
        return self._sample(self._row(index))

    def others(self, index: int, /) -> list[Target]:
        """Masks of the other annotated objects in the picture of sample ``index``.

        Broken annotations are passed over. Empty where nothing else is annotated.

        Raises:
            IndexError: Outside ``[-len, len)``.
        """
        return self._others(self._row(index))

    def photo_path(self, index: int, /) -> Path | None:
        """The file of sample ``index``'s picture, or None where it does not lie in a file.

        Raises:
            IndexError: Outside ``[-len, len)``.
        """
        return self._photo(self._row(index))

    def image_names(self) -> frozenset[str]:
        """Names of the files of all pictures, as far as they are known without reading them."""
        units = {self._unit(row) for row in self._rows.tolist()}
        return frozenset(self._image_name(unit) for unit in units)

    def _row(self, index: int) -> int:
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"index {number} is outside of {len(self)} samples")
        return int(self._rows[number])

    def _choose_rows(
        self,
        rows: ArrayLike,
        exclude_images: Collection[str | int] | None,
        on_error: OnError,
    ) -> None:
        """Keep the rows whose pictures are allowed and, on request, whose records are sound."""
        check_on_error(on_error)
        self._rows = np.asarray(rows, dtype=np.int64)
        if exclude_images:
            keys = keys_of(exclude_images)
            self.excluded = len(
                self._drop(lambda row: image_key(self._image_name(self._unit(row))) in keys)
            )
        if on_error == "skip":
            faults = Counter(str(fault) for fault in self._drop(self._fault))
            self.skipped = dict(Counter(self.skipped) + faults)

    def _drop(self, reason_of: Callable[[int], object]) -> list[object]:
        """Drop the rows for which there is a reason; asked once for each unit."""
        reasons: dict[int, object] = {}
        units = [self._unit(row) for row in self._rows.tolist()]
        for unit, row in zip(units, self._rows.tolist(), strict=True):
            if unit not in reasons:
                reasons[unit] = reason_of(row)
        found = [reasons[unit] for unit in units]
        self._rows = self._rows[np.array([not reason for reason in found], dtype=np.bool_)]
        return [reason for reason in found if reason]

    def _fault(self, row: int) -> Fault | None:
        try:
            self._check(row)
        except (ValueError, FileNotFoundError) as error:
            return fault_of(error)
        return None

    @abstractmethod
    def _sample(self, row: int) -> Sample:
        """Build the sample of a row."""

    @abstractmethod
    def _check(self, row: int) -> None:
        """Raise what is wrong with the annotation or, as its header tells, the picture of a row."""

    @abstractmethod
    def _unit(self, row: int) -> int:
        """The number of what this row asks about."""

    @abstractmethod
    def _image_name(self, unit: int) -> str:
        """The name of the file of a unit's picture."""

    def _photo(self, row: int) -> Path | None:
        return None

    def _others(self, row: int) -> list[Target]:
        return []
