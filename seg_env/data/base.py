"""What every data set is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from seg_env.types import Sample


@runtime_checkable
class Dataset(Protocol):
    """A finite, indexable source of samples.

    Data sets are picklable (workers get a copy), hold no open files, and load pictures only when
    `Sample.image` is asked for.
    """

    name: str
    """What is reported with every score, for example ``"refcoco"``."""
    split: str
    """Which part it is, for example ``"train"`` or ``"testA"``."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int, /) -> Sample:
        """The sample at ``index``; negative indices count from the end.

        Raises:
            IndexError: Outside ``[-len, len)``, so that iteration stops by itself.
        """
        ...
