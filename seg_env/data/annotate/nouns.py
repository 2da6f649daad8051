"""What passes from stage to stage when pictures are annotated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from seg_env.geometry.rle import Rle
from seg_env.types import Target

Box = tuple[float, float, float, float]
"""``x0, y0, x1, y1`` in pixels, end exclusive."""


class Reason(StrEnum):
    """Why something of a source did not become a picture; filters have reasons of their own."""

    UNREADABLE = "unreadable picture"
    """Damaged, or of a format that is not read."""
    TOO_MANY_PIXELS = "too many pixels"
    """Larger than is decoded: perhaps a decompression bomb."""
    TOO_SMALL = "picture too small"
    """A side is shorter than asked for."""
    NO_PICTURE = "no picture"
    """Text or metadata without a picture, as a failed download leaves it."""
    TOO_MANY_BYTES = "file too large"
    """A file, or a member of an archive, with more bytes than are read."""
    UNSAFE_NAME = "unsafe name"
    """A member of an archive whose name leads out of a folder."""
    NOT_A_FILE = "link or device"
    """A link or device in an archive, or a link that leads out of the folder."""
    TRUNCATED = "truncated archive"
    """An archive that stops before its end; what came before is used."""
    CORRUPT = "corrupt archive"
    """An archive with something in it that is no header; what came before is used."""
    BOMB = "archive unpacks too large"
    """A compressed archive of far more content than bytes; what came before is used."""
    CORRUPT_TABLE = "corrupt parquet"
    """A parquet file, or a row group of one, that cannot be read."""


@dataclass(frozen=True)
class Shard:
    """A part of a source that one worker annotates: whole, or not at all."""

    number: int
    """Its place in the source, from 0."""
    name: str
    """What manifests call it."""
    paths: tuple[str, ...]
    """Its files."""


@dataclass(frozen=True, eq=False)
class RawPicture:
    """A picture as it lies in its source, not looked into."""

    key: str
    """Its name there. Data from outside: never a path, never unique for certain."""
    data: bytes = field(repr=False)
    """The encoded picture."""
    text: str = ""
    """What the source says about it, such as the alternative text of a web page."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What else is kept of it: where it came from and under which licence."""


@dataclass(frozen=True)
class Rejected:
    """Something of a source that did not become a picture."""

    reason: Reason
    """Why."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture."""

    key: str
    """See `RawPicture`."""
    data: bytes = field(repr=False)
    """The encoded picture as it will be written; it decodes to `image` without being turned."""
    suffix: str
    """Ending of a file with this content, such as ``".jpg"``."""
    image: NDArray[np.uint8] = field(repr=False)
    """``(H, W, 3) uint8``."""
    text: str = ""
    """See `RawPicture`."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """See `RawPicture`."""

    @property
    def size(self) -> tuple[int, int]:
        """``(H, W)`` in pixels."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(frozen=True)
class Detection:
    """A box around something."""

    box: Box
    """Where, in pixels."""
    score: float
    """How sure the detector is, 0 to 1."""
    label: str = ""
    """What the detector calls it."""


@dataclass(frozen=True, eq=False)
class Segment:
    """The pixels of something."""

    rle: Rle
    """The mask at the size of the picture."""
    score: float = 1.0
    """How good the segmenter thinks it is, 0 to 1."""


@dataclass(frozen=True, eq=False)
class Found:
    """One object on its way through the stages."""

    detection: Detection
    """Its box."""
    segment: Segment | None = None
    """Its pixels, once it has been segmented."""
    expression: str = ""
    """Its description, once it has been described."""

    @cached_property
    def target(self) -> Target:
        """The mask as a target, whose outline is traced once.

        Raises:
            ValueError: It has not been segmented yet.
        """
        if self.segment is None:
            raise ValueError(f"{self.detection} has no mask yet: this needs the segmenter's output")
        return Target(self.segment.rle)
