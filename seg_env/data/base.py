"""What every data set is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from seg_env.types import Sample, Target


@runtime_checkable
class Dataset(Protocol):
    """A finite, indexable source of samples.

    Data sets are picklable (workers get a copy), hold no open files, and load images only when
    `Sample.image` is asked for.
    """

    name: str
    """What is reported with every score, for example ``"refcoco"``."""
    split: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample:
        """The sample at ``index``; negative indices count from the end.

        Raises:
            IndexError: Outside ``[-len, len)``, so that iteration stops by itself.
        """
        ...


@runtime_checkable
class KnowsOthers(Dataset, Protocol):
    """A data set that also knows the other objects of an image.

    With them an evaluation can tell an answer that outlines the wrong object from a bad outline of
    the right one. The method is optional: ask by ``isinstance(dataset, KnowsOthers)``.
    """

    def others(self, index: int, /) -> list[Target]:
        """Masks of the other known objects in the image of sample ``index``, at its size."""
        ...
