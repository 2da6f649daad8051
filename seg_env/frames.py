"""Coordinate frames: what the numbers in an answer mean, and the way to the unit frame and back.

Vision-language models disagree about the numbers they were trained to write: SimpleSeg writes
``x / W``, Qwen3-VL 0-1000, Qwen2.5-VL pixels of the resized image. Conversion happens at the
border, here and nowhere else; everything inside the library lives in the unit frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""``(V, 2)`` points ``(x, y)``; the unit depends on the frame."""


class Frame(Protocol):
    """How the numbers of an answer relate to the unit frame of the image asked about."""

    @property
    def name(self) -> str:
        """Short name for logs and configuration files."""

    @property
    def limits(self) -> tuple[float, float]:
        """Largest legal x and the largest legal y; the smallest is 0 for both."""

    @property
    def limit(self) -> float:
        """The larger of `limits`."""

    @property
    def integer(self) -> bool:
        """True when answers in this frame are written with whole numbers."""

    def to_unit(self, points: Points) -> Points:
        """Map ``(V, 2)`` numbers as written to the unit frame."""

    def from_unit(self, points: Points) -> Points:
        """Map ``(V, 2)`` unit-frame points to (unrounded) numbers of this frame."""


@dataclass(frozen=True, slots=True)
class UnitFrame:
    """``x / W`` and ``y / H``, the frame of SimpleSeg (arXiv 2601.19228) and of this library."""

    @property
    def name(self) -> str:
        """Always ``"unit"``."""
        return "unit"

    @property
    def limits(self) -> tuple[float, float]:
        """``(1, 1)``."""
        return 1.0, 1.0

    @property
    def limit(self) -> float:
        """1."""
        return 1.0

    @property
    def integer(self) -> bool:
        """False: numbers are decimal fractions."""
        return False

    def to_unit(self, points: Points) -> Points:
        """Return the points themselves, not a copy."""
        return points

    def from_unit(self, points: Points) -> Points:
        """Return the points themselves, not a copy."""
        return points


@dataclass(frozen=True, slots=True)
class PermilleFrame:
    """Whole numbers 0-1000 relative to the image (Qwen2-VL, Qwen3-VL)."""

    @property
    def name(self) -> str:
        """Always ``"permille"``."""
        return "permille"

    @property
    def limits(self) -> tuple[float, float]:
        """``(1000, 1000)``."""
        return 1000.0, 1000.0

    @property
    def limit(self) -> float:
        """1000."""
        return 1000.0

    @property
    def integer(self) -> bool:
        """True: numbers are whole."""
        return True

    def to_unit(self, points: Points) -> Points:
        """Divide by 1000."""
        return points / 1000.0

    def from_unit(self, points: Points) -> Points:
        """Multiply by 1000."""
        return points * 1000.0


@dataclass(frozen=True, slots=True)
class PixelFrame:
    """Pixels of the picture the model sees (Qwen2.5-VL: after its own resizing).

    Raises:
        ValueError: if a side is not positive.
    """

    width: int
    """Width of that picture in pixels."""
    height: int
    """Height of that picture in pixels."""

    def __post_init__(self) -> None:
        """Reject an empty picture."""
        _check_size("PixelFrame", (self.height, self.width))

    @property
    def name(self) -> str:
        """For example ``"pixels-640x480"``, width first."""
        return f"pixels-{self.width}x{self.height}"

    @property
    def limits(self) -> tuple[float, float]:
        """``(width, height)``: the right and the lower border are legal positions."""
        return float(self.width), float(self.height)

    @property
    def limit(self) -> float:
        """The longer side."""
        return float(max(self.width, self.height))

    @property
    def integer(self) -> bool:
        """True: numbers are whole."""
        return True

    def to_unit(self, points: Points) -> Points:
        """Divide x by the width and y by the height."""
        return points / (self.width, self.height)

    def from_unit(self, points: Points) -> Points:
        """Multiply x by the width and y by the height."""
        return points * (self.width, self.height)


@dataclass(frozen=True, slots=True)
class LetterboxFrame:
    """Answers about a picture that was scaled into a canvas and padded, mapped to the source image.

    The placement is that of `letterbox_geometry`, so code that draws the canvas and this frame
    agree to the pixel. Numbers that point at the padding are legal and map outside [0, 1].

    Raises:
        ValueError: if a size is not positive.
    """

    inner: Frame
    """Frame of the answers relative to the whole canvas."""
    source_size: tuple[int, int]
    """``(H, W)`` of the source image in pixels."""
    canvas_size: tuple[int, int]
    """``(H, W)`` of the canvas in pixels."""

    def __post_init__(self) -> None:
        """Reject empty pictures."""
        letterbox_geometry(self.source_size, self.canvas_size)

    @property
    def name(self) -> str:
        """For example ``"letterbox-640x480-in-224x224-unit"``, widths first."""
        (source_height, source_width), (height, width) = self.source_size, self.canvas_size
        placement = f"{source_width}x{source_height}-in-{width}x{height}"
        return f"letterbox-{placement}-{self.inner.name}"

    @property
    def content_box(self) -> tuple[int, int, int, int]:
        """``(left, top, width, height)`` of the image within the canvas, in canvas pixels."""
        return letterbox_geometry(self.source_size, self.canvas_size)

    @property
    def limits(self) -> tuple[float, float]:
        """Those of the inner frame: the padding may be pointed at."""
        return self.inner.limits

    @property
    def limit(self) -> float:
        """That of the inner frame."""
        return self.inner.limit

    @property
    def integer(self) -> bool:
        """As in the inner frame."""
        return self.inner.integer

    def to_unit(self, points: Points) -> Points:
        """Map numbers about the canvas to the unit frame of the source image."""
        left, top, width, height = self.content_box
        canvas_height, canvas_width = self.canvas_size
        pixels = self.inner.to_unit(points) * (canvas_width, canvas_height)
        return (pixels - (left, top)) / (width, height)

    def from_unit(self, points: Points) -> Points:
        """Map unit-frame points of the source image to numbers about the canvas."""
        left, top, width, height = self.content_box
        canvas_height, canvas_width = self.canvas_size
        pixels = points * (width, height) + (left, top)
        return self.inner.from_unit(pixels / (canvas_width, canvas_height))


def letterbox_geometry(
    source_size: tuple[int, int], canvas_size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Place an image centrally in a canvas, as large as it fits, in whole pixels.

    The side that limits the scale fills the canvas exactly; the other is rounded half up in integer
    arithmetic (so every platform agrees) and is at least one pixel.

    Args:
        source_size: ``(H, W)`` of the image in pixels.
        canvas_size: ``(H, W)`` of the canvas in pixels.

    Returns:
        ``(left, top, width, height)`` of the scaled image in canvas pixels.

    Raises:
        ValueError: if a side is not positive.
    """
    _check_size("source_size", source_size)
    _check_size("canvas_size", canvas_size)
    (source_height, source_width), (canvas_height, canvas_width) = source_size, canvas_size
    width, height = canvas_width, canvas_height
    if source_width * canvas_height >= source_height * canvas_width:
        height = max(1, _divide_half_up(source_height * canvas_width, source_width))
    else:
        width = max(1, _divide_half_up(source_width * canvas_height, source_height))
    return (canvas_width - width) // 2, (canvas_height - height) // 2, width, height


def _divide_half_up(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


def _check_size(what: str, size: tuple[int, int]) -> None:
    if min(size) < 1:
        raise ValueError(f"{what}: (H, W) = {size}, but both sides must be at least 1 pixel")


UNIT = UnitFrame()
"""The default frame."""
