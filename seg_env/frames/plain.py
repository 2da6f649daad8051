"""Frames whose numbers are fractions, parts of a thousand, pixels or bins of the picture seen."""

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
        check_size("PixelFrame", (self.height, self.width))

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
class BinFrame:
    """Numbers of equal bins, each standing for its middle (Florence-2: 1000 bins a side).

    Source: the quantizer of Florence-2's processor: ``floor(x / W * bins)`` is written and
    ``(bin + 0.5) / bins * W`` read.

    Raises:
        ValueError: if there is no bin.
    """

    bins: int = 1000
    """Bins along each side."""

    def __post_init__(self) -> None:
        """Reject a picture without bins."""
        if self.bins < 1:
            raise ValueError(f"BinFrame: bins={self.bins}, but at least 1 is needed")

    @property
    def name(self) -> str:
        """For example ``"bins-1000"``."""
        return f"bins-{self.bins}"

    @property
    def limits(self) -> tuple[float, float]:
        """The last bin, twice."""
        return self.limit, self.limit

    @property
    def limit(self) -> float:
        """The last bin."""
        return float(self.bins - 1)

    @property
    def integer(self) -> bool:
        """True: numbers are whole."""
        return True

    def to_unit(self, points: Points) -> Points:
        """The middle of each bin."""
        return (points + 0.5) / self.bins

    def from_unit(self, points: Points) -> Points:
        """From -0.5 to ``bins - 0.5``; rounded and cut to `limits` it is the bin of the point."""
        return points * self.bins - 0.5


@dataclass(frozen=True, slots=True)
class RowFirstFrame:
    """Points written as ``(y, x)``, whole numbers from one border to the other (PaliGemma).

    Source: the preprocessing of big_vision's PaliGemma, which writes ``round(y / H * 1023)`` before
    ``round(x / W * 1023)``. Readers that divide by 1024 are off by up to a thousandth of the image.
    """

    largest: int = 1023
    """What the right and the lower border are written as."""

    @property
    def name(self) -> str:
        """For example ``"row-first-1023"``."""
        return f"row-first-{self.largest}"

    @property
    def limits(self) -> tuple[float, float]:
        """The same for both."""
        return self.limit, self.limit

    @property
    def limit(self) -> float:
        """The number of the right and the lower border."""
        return float(self.largest)

    @property
    def integer(self) -> bool:
        """True: numbers are whole."""
        return True

    def to_unit(self, points: Points) -> Points:
        """Divide, and put x first."""
        return points[:, ::-1] / self.largest

    def from_unit(self, points: Points) -> Points:
        """Multiply, and put y first."""
        return points[:, ::-1] * self.largest


UNIT = UnitFrame()
"""The default frame."""


def check_size(what: str, size: tuple[int, int]) -> None:
    """Raise ValueError if a side of ``(H, W)`` is not positive."""
    if min(size) < 1:
        raise ValueError(f"{what}: (H, W) = {size}, but both sides must be at least 1 pixel")
