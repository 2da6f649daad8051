"""Filled regions as one bit per pixel: erosion, boundaries and overlap, 64 pixels at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seg_env.geometry.overlap import PreparedTarget, prepare
from seg_env.geometry.raster import ring_spans
from seg_env.types import Prediction, Ring, Target


@dataclass(frozen=True, eq=False)
class Bitmap:
    """Some columns of a mask, one bit per pixel; there is nothing in all other columns."""

    left: int
    """Image column of the first column stored."""
    words: NDArray[np.uint64]
    """``(C, K)``: bit ``b`` of word ``k`` is row ``64 k + b``. Bits beyond the last row are 0, and
    every column has at least one of them."""

    def count(self) -> int:
        """Number of pixels."""
        return int(np.bitwise_count(self.words).sum())

    def common(self, other: Bitmap) -> int:
        """Number of pixels in both bitmaps of one image."""
        start = max(self.left, other.left)
        end = min(self.left + len(self.words), other.left + len(other.words))
        if start >= end:
            return 0
        mine = self.words[start - self.left : end - self.left]
        theirs = other.words[start - other.left : end - other.left]
        return int(np.bitwise_count(mine & theirs).sum())


@dataclass(frozen=True, eq=False)
class Region:
    """What an outline or a mask fills, as vertical spans; all else is derived when asked for."""

    size: tuple[int, int]
    """``(H, W)`` of the image in pixels."""
    starts: NDArray[np.int64]
    """``(S,)`` keys ``column * (H + 1) + row`` where the spans start, increasing."""
    ends: NDArray[np.int64]
    """``(S,)`` keys where they end, exclusive; spans of one column do not touch."""
    _bands: dict[int, Bitmap] = field(default_factory=dict, repr=False)

    @classmethod
    def of_rings(cls, rings: Sequence[Ring], size: tuple[int, int]) -> Region:
        """What rings of the unit frame fill by COCO's rule, holes taken out."""
        spans = ring_spans(rings, size)
        return cls(size, spans[0::2], spans[1::2])

    @classmethod
    def of_target(cls, target: Target) -> Region:
        """A target's mask; made once and kept in ``target.cache["region"]``."""
        region: Region | None = target.cache.get("region")
        if region is None:
            prepared = prepared_target(target)
            region = target.cache["region"] = cls(target.size, prepared.starts, prepared.ends)
        return region

    @cached_property
    def area(self) -> int:
        """Number of pixels."""
        return int((self.ends - self.starts).sum())

    @cached_property
    def box(self) -> tuple[int, int, int, int]:
        """``(x0, y0, x1, y1)`` in pixel edges, end exclusive; all 0 for an empty region."""
        if not len(self.starts):
            return 0, 0, 0, 0
        column = self.size[0] + 1
        top, bottom = (self.starts % column).min(), (self.ends % column).max()
        left, right = self.starts[0] // column, self.starts[-1] // column + 1
        return int(left), int(top), int(right), int(bottom)

    @cached_property
    def bitmap(self) -> Bitmap:
        """The pixels."""
        return Bitmap(self.box[0], self._eroded_columns(0))

    def band(self, radius: int) -> Bitmap:
        """The pixels that an erosion by a square of ``2 * radius + 1`` pixels takes away.

        Pixels at the border of the image belong to the band: there is nothing beyond.
        """
        if radius not in self._bands:
            inside = self._eroded_columns(radius)
            size = 2 * radius + 1
            words = self.bitmap.words.copy()
            if len(words) >= size:
                # The AND of 1, 2, 4, ... neighbouring columns, then of exactly ``size``.
                width = 1
                while 2 * width <= size:
                    inside = inside[:-width] & inside[width:]
                    width *= 2
                if rest := size - width:
                    inside = inside[:-rest] & inside[rest:]
                words[radius : len(words) - radius] &= ~inside
            self._bands[radius] = Bitmap(self.box[0], words)
        return self._bands[radius]

    @cached_property
    def edge(self) -> NDArray[np.int64]:
        """``(N, 2)`` rows and columns of the pixels of which one of the four neighbours is outside.

        What lies beyond the border of the image is outside.
        """
        words = self.bitmap.words.copy()
        if len(words) >= 3:
            inside = self._eroded_columns(1)[1:-1] & words[:-2] & words[2:]
            words[1:-1] &= ~inside
        bits = np.unpackbits(words.astype("<u8", copy=False).view(np.uint8), bitorder="little")
        columns, rows = np.divmod(np.flatnonzero(bits.view(np.bool_)), 64 * words.shape[1])
        return np.stack((rows, columns + self.box[0]), axis=1)

    @cached_property
    def edge_tree(self) -> Any:
        """A ``scipy.spatial.KDTree`` of `edge`."""
        from scipy.spatial import KDTree  # Slow to import, and few metrics need it.

        return KDTree(self.edge, balanced_tree=False)  # Built faster, found as fast.

    def _eroded_columns(self, margin: int) -> NDArray[np.uint64]:
        """``(C, K)`` bits of the region's columns, each span shortened at both of its ends."""
        left, _, right, _ = self.box
        height = self.size[0]
        words_per_column = height // 64 + 1
        words = np.zeros((right - left) * words_per_column, dtype=np.uint64)
        starts, ends = self.starts, self.ends
        if margin:
            long = ends - starts > 2 * margin
            starts, ends = starts[long] + margin, ends[long] - margin
        for keys in (starts, ends):
            columns, rows = np.divmod(keys, height + 1)
            bits = (columns - left) * (64 * words_per_column) + rows
            # No two of these bits are the same, so adding is setting.
            np.add.at(words, bits >> 6, np.uint64(1) << (bits & 63).astype(np.uint64))
        _fill_between(words)
        return words.reshape(right - left, words_per_column)


def _fill_between(words: NDArray[np.uint64]) -> None:
    """Set every bit that an odd number of set bits precedes or is at: from start to end."""
    for shift in (1, 2, 4, 8, 16, 32):
        words ^= words << shift
    open_after = np.bitwise_xor.accumulate(words >> 63)
    words[1:] ^= np.negative(open_after[:-1])


def prepared_target(target: Target) -> PreparedTarget:
    """A target's runs for `overlap_batch`; made once and kept in ``target.cache["overlap"]``."""
    prepared: PreparedTarget | None = target.cache.get("overlap")
    if prepared is None:
        prepared = target.cache["overlap"] = prepare(target.rle)
    return prepared


def region_pairs(
    predictions: Sequence[Prediction], targets: Sequence[Target]
) -> Iterator[tuple[Region, Region]]:
    """The region of each answer at its target's size, and the target's."""
    check_lengths(predictions, targets)
    for prediction, target in zip(predictions, targets, strict=True):
        yield Region.of_rings(prediction.rings, target.size), Region.of_target(target)


def check_lengths(predictions: Sequence[Prediction], targets: Sequence[Target]) -> None:
    """Raise ValueError unless there is one target for each prediction."""
    if len(predictions) != len(targets):
        raise ValueError(f"{len(predictions)} predictions for {len(targets)} targets")
