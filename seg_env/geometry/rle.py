"""Run-length encoded masks in COCO's order: column-major runs that start with background."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seg_env.geometry.limits import check_limit, limits


@dataclass(frozen=True, eq=False)
class Rle:
    """A mask as run lengths.

    Pixels are read column by column, top to bottom. ``counts[0]`` is background (it may be 0),
    ``counts[1]`` foreground, and so on. Only ``counts[0]`` may be 0 after construction: shorter
    ways of writing the same mask are merged, so equal masks have equal counts.
    """

    size: tuple[int, int]
    """``(H, W)`` in pixels; either may be 0."""
    counts: NDArray[np.int64]
    """``(R,)`` run lengths, alternately background and foreground, summing to ``H * W``."""

    def __post_init__(self) -> None:
        """Check the size and the runs, and bring the runs into their shortest form."""
        size = _checked_size(self.size)
        counts = np.asarray(self.counts)
        if counts.ndim != 1 or (counts.size and counts.dtype.kind not in "iu"):
            raise ValueError(
                f"RLE counts must be a flat list of integers, got shape {counts.shape} of "
                f"{counts.dtype}; pass COCO's uncompressed counts, or use Rle.from_string"
            )
        if counts.size and (int(counts.min()) < 0 or int(counts.max()) > limits().pixels):
            wrong = counts.min() if counts.min() < 0 else counts.max()
            raise ValueError(f"RLE run of length {wrong}; a run has 0 to H * W pixels")
        counts = counts.astype(np.int64)
        total, pixels = int(counts.sum()), size[0] * size[1]
        if total != pixels:
            raise ValueError(
                f"RLE counts sum to {total}, but the size (H, W) = {size} has {pixels} pixels; "
                f"check that the size is (height, width)"
            )
        counts = _shortest(counts)
        counts.flags.writeable = False
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "counts", counts)

    @classmethod
    def from_mask(cls, mask: NDArray[np.bool_]) -> Rle:
        """Encode an ``(H, W)`` mask; any non-zero value is foreground."""
        mask = np.asarray(mask)
        if mask.ndim != 2:
            raise ValueError(f"a mask has shape (H, W), got {mask.shape}")
        flat = (mask if mask.dtype == np.bool_ else mask != 0).T.ravel()
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        if flat.size and flat[0]:
            changes = np.concatenate(([0], changes))
        return cls._from_boundaries((mask.shape[0], mask.shape[1]), changes)

    @classmethod
    def from_counts(cls, size: Sequence[int], counts: ArrayLike) -> Rle:
        """Read COCO's uncompressed form, ``{"size": [H, W], "counts": [...]}``."""
        try:
            array = np.asarray(counts)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"RLE counts must be a flat list of integers: {error}") from error
        return cls(tuple(size), array)  # type: ignore[arg-type]  # one of another length is refused

    @classmethod
    def from_string(cls, size: Sequence[int], text: str | bytes) -> Rle:
        """Read COCO's compressed string (six bits a character; differences to two runs before).

        Source of the format: ``rleFrString`` of the COCO API (maskApi.c).

        Raises:
            ValueError: A character outside ``0`` to ``o``, a string that stops inside a number, or
                runs that do not fit the size.
        """
        data = text.encode("utf-8", "replace") if isinstance(text, str) else bytes(text)
        counts: list[int] = []
        value = shift = 0
        for position, code in enumerate(data):
            digit = code - 48
            if not 0 <= digit < 64 or shift > 30:
                raise ValueError(
                    f"compressed RLE has character {data[position : position + 1]!r} at position "
                    f"{position}; allowed are '0' to 'o', at most seven to a number"
                )
            value |= (digit & 0x1F) << shift
            shift += 5
            if digit & 0x20:
                continue
            if digit & 0x10:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
        if shift:
            raise ValueError(f"compressed RLE of {len(data)} characters stops inside a number")
        return cls.from_counts(size, np.array(counts, dtype=np.int64))

    @classmethod
    def union_of(cls, masks: Iterable[Rle]) -> Rle:
        """The union of one or more masks of one size."""
        masks = list(masks)
        if not masks:
            raise ValueError("the union of no masks has no size; pass at least one Rle")
        if len({mask.size for mask in masks}) > 1:
            raise ValueError(f"masks of different sizes: {sorted({mask.size for mask in masks})}")
        runs = np.concatenate([np.stack(mask.runs, axis=1) for mask in masks])
        return cls._from_boundaries(masks[0].size, union_spans(runs.ravel()))

    @classmethod
    def _from_boundaries(cls, size: tuple[int, int], boundaries: NDArray[np.int64]) -> Rle:
        """Runs from the increasing pixel indices where the mask changes."""
        return cls(size, np.diff(boundaries, prepend=0, append=size[0] * size[1]))

    def to_string(self) -> bytes:
        """COCO's compressed string, byte for byte what ``rleToString`` writes."""
        out = bytearray()
        counts = self.counts.tolist()
        for index, value in enumerate(counts):
            if index > 2:
                value -= counts[index - 2]
            while True:
                digit = value & 0x1F
                value >>= 5
                more = value != (-1 if digit & 0x10 else 0)
                out.append(digit + 48 + (0x20 if more else 0))
                if not more:
                    break
        return bytes(out)

    def to_mask(self) -> NDArray[np.bool_]:
        """The ``(H, W)`` boolean mask, newly allocated."""
        values = np.zeros(len(self.counts), dtype=np.bool_)
        values[1::2] = True
        flat = np.repeat(values, self.counts)
        return np.ascontiguousarray(flat.reshape(self.size[1], self.size[0]).T)

    @cached_property
    def area(self) -> int:
        """Number of foreground pixels."""
        return int(self.counts[1::2].sum())

    @cached_property
    def runs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``(starts, ends)`` of the foreground runs, ``(N,)`` column-major pixel indices."""
        edges = np.cumsum(self.counts)
        return edges[0:-1:2], edges[1::2]

    @property
    def bbox(self) -> tuple[int, int, int, int]:
        """``(x0, y0, x1, y1)`` in pixel edges, end exclusive; all 0 for an empty mask."""
        starts, ends = self.runs
        if not len(starts):
            return 0, 0, 0, 0
        height = self.size[0]
        x0, x1 = int(starts[0]) // height, int(ends[-1] - 1) // height + 1
        crosses = starts // height != (ends - 1) // height
        if crosses.any():  # A run over a column's border touches both the last and the first row.
            return x0, 0, x1, height
        return x0, int((starts % height).min()), x1, int(((ends - 1) % height).max()) + 1

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rle):
            return NotImplemented
        return self.size == other.size and np.array_equal(self.counts, other.counts)

    def __hash__(self) -> int:
        return hash((self.size, self.counts.tobytes()))


def union_spans(spans: NDArray[np.integer]) -> NDArray[np.int64]:
    """Unite spans that may overlap: pairs of start and end, the pairs in any order."""
    # Starts sort before ends at one place, so spans that touch become one.
    events = spans.astype(np.int64) * 2
    events[1::2] += 1
    events.sort()
    depth = np.cumsum(1 - 2 * (events & 1))
    outermost = (depth == 0) | ((depth == 1) & (events & 1 == 0))
    return np.asarray(events[outermost] >> 1)


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    fine = len(size) == 2 and all(
        isinstance(side, (int, np.integer)) and not isinstance(side, bool) for side in size
    )
    if not fine or min(size) < 0:
        raise ValueError(f"RLE size must be (H, W), two integers from 0, got {size!r}")
    check_limit("pixels", int(size[0]) * int(size[1]), f"RLE size {size!r}")
    return int(size[0]), int(size[1])


def _shortest(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Merge the neighbours of empty runs, so that only the first run may be empty."""
    if counts.size and counts[1:].all():
        return counts
    edges = np.cumsum(counts)[:-1]
    # An edge where an even number of runs end is no change of colour.
    positions, repeats = np.unique(edges, return_counts=True)
    total = int(counts.sum())
    positions = positions[(repeats % 2 == 1) & (positions < total)]
    return np.asarray(np.diff(positions, prepend=0, append=total), dtype=np.int64)
