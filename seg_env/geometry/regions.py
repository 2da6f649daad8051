"""Filled regions, as vertical spans looked up by column and as one bit per pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seg_env.geometry.polygon import Ring
from seg_env.geometry.raster import ring_spans
from seg_env.geometry.rle import Rle

_MAX_LAYERS = 8  # With more spans than this in one column, interpolation is faster.


@dataclass(frozen=True, eq=False)
class Region:
    """What an outline or a mask fills, as vertical spans; all else is derived on first use.

    Bits are ``(C, K) uint64`` for the columns of the box: bit ``b`` of word ``k`` is row
    ``64 k + b``. Bits beyond the last row are 0, and every column has at least one of them.
    """

    size: tuple[int, int]
    """``(H, W)`` of the image in pixels."""
    starts: NDArray[np.int64]
    """``(S,)`` keys ``column * (H + 1) + row`` where the spans start, increasing."""
    ends: NDArray[np.int64]
    """``(S,)`` keys where they end, exclusive; spans of one column do not touch."""
    _bands: dict[int, NDArray[np.uint64]] = field(default_factory=dict, repr=False)

    @classmethod
    def of_rings(cls, rings: Sequence[Ring], size: tuple[int, int]) -> Region:
        """What rings of the unit frame fill by COCO's rule, holes taken out."""
        spans = ring_spans(rings, size)
        return cls(size, spans[0::2], spans[1::2])

    @classmethod
    def of_rle(cls, rle: Rle) -> Region:
        """The foreground of a mask, its runs cut at the borders of columns."""
        height, width = rle.size
        starts, ends = rle.runs
        columns = starts // height
        if ((ends - 1) // height != columns).any():  # Cut runs that go on in the next column.
            borders = np.arange(1, width) * height
            inside = np.searchsorted(starts, borders) > np.searchsorted(ends, borders, side="right")
            starts = np.sort(np.append(starts, borders[inside]))
            ends = np.sort(np.append(ends, borders[inside]))
            columns = starts // height
        return cls(rle.size, starts + columns, ends + columns)

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
    def _covered(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``(2 S + 1,)`` keys around the spans, and how many pixels come before each."""
        keys = np.append(-1.0, np.stack((self.starts, self.ends), axis=1))
        pixels = np.zeros(len(keys))
        pixels[2::2] = np.cumsum(self.ends - self.starts)
        pixels[3::2] = pixels[2:-1:2]
        return keys, pixels

    @cached_property
    def _layers(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """``(2, L, W)`` keys where the l-th span of each column starts and ends, 0 without one.

        And ``(W,)`` numbers of spans. L is the largest of these, at least 1, or 0 when that is too
        many to go through one by one.
        """
        columns = self.starts // (self.size[0] + 1)
        spans = np.bincount(columns, minlength=self.size[1])
        depth = max(1, int(spans.max(initial=0)))
        if depth > _MAX_LAYERS:
            return np.zeros((2, 0, self.size[1]), dtype=np.int32), spans
        layers = np.zeros((2, depth, self.size[1]), dtype=np.int32)
        layer: int | NDArray[np.int64] = 0
        if depth > 1:
            layer = np.arange(len(columns)) - (np.cumsum(spans) - spans)[columns]
        layers[0, layer, columns] = self.starts
        layers[1, layer, columns] = self.ends
        return layers, spans

    def intersections(
        self, starts: NDArray[np.integer], ends: NDArray[np.integer]
    ) -> NDArray[np.number]:
        """Pixels of the region in each span ``[start, end)`` of keys, which lies in one column."""
        (layer_starts, layer_ends), spans = self._layers
        if not len(layer_starts):
            # From key to key the pixels before it grow by one or not at all: this is exact.
            return np.asarray(np.interp(ends, *self._covered) - np.interp(starts, *self._covered))
        column = starts // (self.size[0] + 1)
        inside = np.minimum(ends, layer_ends[0][column])
        inside -= np.maximum(starts, layer_starts[0][column])
        np.maximum(inside, 0, out=inside)
        if len(layer_starts) > 1:
            # Few columns have a second span, fewer a third: go on with those only.
            count = spans[column]
            chosen = np.flatnonzero(count > 1)
            for layer in range(1, len(layer_starts)):
                chosen = chosen[count[chosen] > layer]
                where = column[chosen]
                overlap = np.minimum(ends[chosen], layer_ends[layer][where])
                overlap -= np.maximum(starts[chosen], layer_starts[layer][where])
                inside[chosen] += np.maximum(overlap, 0)
        return np.asarray(inside)

    @cached_property
    def bits(self) -> NDArray[np.uint64]:
        """Bits of the pixels."""
        return self._eroded_columns(0)

    def band(self, radius: int) -> NDArray[np.uint64]:
        """Bits of the pixels that an erosion by a square of ``2 * radius + 1`` pixels takes away.

        Pixels at the border of the image belong to the band: there is nothing beyond.
        """
        if radius not in self._bands:
            inside = self._eroded_columns(radius)
            size = 2 * radius + 1
            words = self.bits.copy()
            if len(words) >= size:
                # The AND of 1, 2, 4, ... neighbouring columns, then of exactly ``size``.
                width = 1
                while 2 * width <= size:
                    inside = inside[:-width] & inside[width:]
                    width *= 2
                if rest := size - width:
                    inside = inside[:-rest] & inside[rest:]
                words[radius : len(words) - radius] &= ~inside
            self._bands[radius] = words
        return self._bands[radius]

    @cached_property
    def edge(self) -> NDArray[np.int64]:
        """``(N, 2)`` rows and columns of the pixels with at least one of four neighbours outside.

        Everything beyond the border of the image is outside.
        """
        words = self.bits.copy()
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

        return KDTree(self.edge, balanced_tree=False)  # Faster to build, as fast to search.

    def _eroded_columns(self, margin: int) -> NDArray[np.uint64]:
        """Bits of the region with each span shortened at both of its ends."""
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
    """Set every bit with an odd number of set bits up to and including it: from start to end."""
    for shift in (1, 2, 4, 8, 16, 32):
        words ^= words << shift
    open_after = np.bitwise_xor.accumulate(words >> 63)
    words[1:] ^= np.negative(open_after[:-1])
