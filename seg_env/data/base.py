"""The protocol of all data sets."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from seg_env.types import Sample


@runtime_checkable
class Dataset(Protocol):
    """A finite, indexable source of samples.

    Data sets are picklable (workers get a copy), hold no open files, and load images only when
    `Sample.image` is asked for. One that knows the other objects of an image has ``others(index)``,
    a list of their `Target`s at the size of the image: with them an evaluation can tell an answer
    that outlines the wrong object from a bad outline of the right one.
    """

    name: str
    """Reported with every score, for example ``"refcoco"``."""
    split: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample:
        """The sample at ``index``; negative indices count from the end.

        Raises:
            IndexError: Outside ``[-len, len)``, so that iteration stops by itself.
        """
        ...


def not_asked(dataset: Dataset) -> dict[str, int]:
    """Counts of records in a data set's files that are not asked about, by reason."""
    found = {"left out for their image": getattr(dataset, "excluded", 0)}
    found |= {f"left out for {key}": n for key, n in getattr(dataset, "skipped", {}).items()}
    found |= {f"not used, {key}": n for key, n in getattr(dataset, "unused", {}).items()}
    return {reason: count for reason, count in found.items() if count}
