"""The affine map between the numbers of an answer and the unit frame of its image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""``(V, 2)`` points ``(x, y)``; the unit depends on the frame."""


@dataclass(frozen=True, slots=True)
class Frame:
    """How the numbers of an answer relate to the unit frame of the image asked about.

    Numbers are ``size * points + origin`` of the unit frame. Where the policy saw the image inside
    a canvas, those are pixels of the canvas, and ``inner`` says how such pixels are written.
    """

    name: str
    """Short name for logs and configuration files."""
    limits: tuple[float, float]
    """Largest legal x and y as written, in the order written; the smallest is 0 for both."""
    integer: bool = True
    """Whether answers are written with whole numbers."""
    size: tuple[float, float] = (1.0, 1.0)
    """Width and height of the image in numbers of this frame."""
    origin: tuple[float, float] = (0.0, 0.0)
    """Numbers of the image's top left corner."""
    row_first: bool = False
    """Whether a point is written ``(y, x)``."""
    inner: Frame | None = None
    """Frame of the numbers relative to the whole canvas; None without a canvas."""
    canvas: tuple[int, int] = (1, 1)
    """``(width, height)`` of the canvas in pixels."""

    def to_unit(self, points: Points) -> Points:
        """Map numbers as written to the unit frame; no copy where nothing changes."""
        if self == UNIT:
            return points
        if self.inner is not None:
            points = self.inner.to_unit(points) * self.canvas
        if self.row_first:
            points = points[:, ::-1]
        return (points - self.origin) / self.size

    def from_unit(self, points: Points) -> Points:
        """Map points of the unit frame to unrounded numbers; no copy where nothing changes."""
        if self == UNIT:
            return points
        points = points * self.size + self.origin
        if self.row_first:
            points = points[:, ::-1]
        return points if self.inner is None else self.inner.from_unit(points / self.canvas)


UNIT = Frame("unit", (1.0, 1.0), integer=False)
"""``x / W`` and ``y / H``: the default, of SimpleSeg (arXiv 2601.19228) and of this library."""

PERMILLE = Frame("permille", (1000.0, 1000.0), size=(1000.0, 1000.0))
"""Whole numbers 0-1000 relative to the image (Qwen2-VL, Qwen3-VL)."""

BINS = Frame("bins-1000", (999.0, 999.0), size=(1000.0, 1000.0), origin=(-0.5, -0.5))
"""Numbers of 1000 equal bins a side, each standing for its middle (Florence-2).

Source: the quantizer of Florence-2's processor: ``floor(x / W * 1000)`` is written and
``(bin + 0.5) / 1000 * W`` read. `Frame.from_unit` gives -0.5 to 999.5; rounded and cut to the
limits it is the bin of the point."""

ROW_FIRST = Frame("row-first-1023", (1023.0, 1023.0), size=(1023.0, 1023.0), row_first=True)
"""Points written as ``(y, x)``, whole numbers from 0 to 1023 at the far border (PaliGemma).

Source: the preprocessing of big_vision's PaliGemma, which writes ``round(y / H * 1023)`` before
``round(x / W * 1023)``. Readers that divide by 1024 are off by up to a thousandth of the image."""


def pixel_frame(width: int, height: int) -> Frame:
    """Pixels of the image the model sees (Qwen2.5-VL: after its own resizing)."""
    check_size("pixel_frame", (height, width))
    size = float(width), float(height)
    return Frame(f"pixels-{width}x{height}", size, size=size)


def letterbox_frame(
    inner: Frame, source_size: tuple[int, int], canvas_size: tuple[int, int]
) -> Frame:
    """Answers about an image that was scaled into a canvas and padded, mapped to the source image.

    The placement is that of `letterbox_geometry`, so code that draws the canvas and this frame
    agree to the pixel. Numbers that point at the padding are legal and map outside [0, 1].

    Args:
        inner: Frame of the answers relative to the whole canvas.
        source_size: ``(H, W)`` of the source image in pixels.
        canvas_size: ``(H, W)`` of the canvas in pixels.
    """
    left, top, width, height = letterbox_geometry(source_size, canvas_size)
    canvas_height, canvas_width = canvas_size
    placement = f"{source_size[1]}x{source_size[0]}-in-{canvas_width}x{canvas_height}"
    return Frame(
        f"letterbox-{placement}-{inner.name}",
        inner.limits,
        inner.integer,
        size=(width, height),
        origin=(left, top),
        inner=inner,
        canvas=(canvas_width, canvas_height),
    )


def letterbox_geometry(
    source_size: tuple[int, int], canvas_size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Place an image of ``(H, W)`` pixels centrally in a canvas, as large as it fits.

    The side that limits the scale fills the canvas exactly; the other is rounded half up in integer
    arithmetic (so every platform agrees) and is at least one pixel.

    Returns:
        ``(left, top, width, height)`` of the scaled image in canvas pixels.
    """
    check_size("source_size", source_size)
    check_size("canvas_size", canvas_size)
    (source_height, source_width), (canvas_height, canvas_width) = source_size, canvas_size
    width, height = canvas_width, canvas_height
    if source_width * canvas_height >= source_height * canvas_width:
        height = max(1, _divide_half_up(source_height * canvas_width, source_width))
    else:
        width = max(1, _divide_half_up(source_width * canvas_height, source_height))
    return (canvas_width - width) // 2, (canvas_height - height) // 2, width, height


def _divide_half_up(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


def check_size(what: str, size: tuple[int, int]) -> None:
    """Raise ValueError if a side of ``(H, W)`` is not positive."""
    if min(size) < 1:
        raise ValueError(f"{what}: (H, W) = {size}, but both sides must be at least 1 pixel")
