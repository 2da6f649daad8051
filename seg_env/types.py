"""The nouns every layer shares: samples, targets, predictions and what was wrong with them.

Everything here lives in the *unit frame*: a ring is a ``(V, 2) float64`` array of
``(x / W, y / H)``, where pixel column ``j`` covers ``[j, j + 1)``, so a pixel's centre is
``j + 0.5``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from seg_env.geometry.contour import trace
from seg_env.geometry.drawing import as_png, draw_overlay
from seg_env.geometry.limits import LimitError
from seg_env.geometry.rle import Rle
from seg_env.geometry.simplify import simplify_rings

Ring = NDArray[np.float64]
"""One closed outline, ``(V, 2)`` in the unit frame, first vertex not repeated."""

Form = Literal["mask", "bbox", "point"]
"""What an answer is: an outline, a box along the axes, or a single point."""


class IssueKind(StrEnum):
    """What can be wrong with an answer. Values are stable: they appear in logs and reports."""

    EMPTY = "empty"
    """There is no text at all, or only white space."""
    NO_POLYGON = "no_polygon"
    """Text without anything that reads as a list of points."""
    SURROUNDING_TEXT = "surrounding_text"
    """Words before or after the outline that no known answer sentence explains."""
    TRUNCATED = "truncated"
    """The outline stops before its closing brackets."""
    BAD_NESTING = "bad_nesting"
    """Brackets of the wrong depth, for example a single polygon without the outer list."""
    OTHER_FORM = "other_form"
    """Places in another notation than the grammar's; the detail names it, such as ``quad_2d``."""
    BAD_NUMBER = "bad_number"
    """A coordinate that is not a finite plain decimal number."""
    BAD_VERTEX = "bad_vertex"
    """A point without exactly two coordinates."""
    TOO_FEW_VERTICES = "too_few_vertices"
    """A ring of fewer than three vertices; it is dropped."""
    TOO_MANY_VERTICES = "too_many_vertices"
    """More vertices or rings than are read; the rest is dropped."""
    OUT_OF_RANGE = "out_of_range"
    """A coordinate slightly outside the image; kept as written."""
    BAD_BOX = "bad_box"
    """Corners of a box in the wrong order (it is read as if right), or a box without area."""
    WRONG_FRAME = "wrong_frame"
    """Numbers of another coordinate frame (pixels, 0-1000); the rings are dropped."""


@dataclass(frozen=True, slots=True)
class ParseIssue:
    """One fault found while reading an answer."""

    kind: IssueKind
    position: int
    """Index of the character where it was noticed."""
    detail: str = ""
    """A short addition for people, at most 80 characters."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """A decoded answer."""

    rings: tuple[Ring, ...]
    """Usable rings in the unit frame of the target's image, as written (any orientation). A box is
    the ring of its four corners, clockwise from the top left; a point has none."""
    issues: tuple[ParseIssue, ...] = ()
    """In reading order."""
    text: str = ""
    """The answer as the model wrote it."""
    form: Form = "mask"
    """What was asked for, and so what the text was read as."""
    point: NDArray[np.float64] | None = None
    """``(x, y)`` in the unit frame, where a point was asked for and given; else None."""

    @property
    def is_empty(self) -> bool:
        """True when nothing was given that could be read: no ring, and no point."""
        return not self.rings and self.point is None

    @property
    def valid(self) -> bool:
        """True when the text was read without any issue (``[]`` is valid and means "no target")."""
        return not self.issues

    def _repr_png_(self) -> bytes:
        """The outline on white: how a notebook shows it."""
        return as_png(draw_overlay(np.full((128, 128, 3), 255, np.uint8), None, self))

    @property
    def issue_kinds(self) -> tuple[str, ...]:
        """Kinds of the issues, each once."""
        return tuple(dict.fromkeys(issue.kind.value for issue in self.issues))


@dataclass(frozen=True, eq=False)
class Target:
    """The object asked for, at the native size of its image, stored as run lengths."""

    rle: Rle
    """Column-major run lengths of the mask (COCO's order)."""
    cache: dict[str, Any] = field(default_factory=dict, repr=False)
    """Work shared by all predictions for this target; rewards may add theirs under their name."""
    ignore: Rle | None = None
    """Void pixels, which never overlap the mask: intersection and union leave them out, boundary
    scores and distances do not."""
    box: tuple[float, float, float, float] | None = None
    """The box that annotators drew, ``(x0, y0, x1, y1)`` in the unit frame; None where only the
    mask is known. `seg_env.tasks.box_of` has either."""
    record: str = ""
    """Its name in error messages."""

    @classmethod
    def from_mask(cls, mask: NDArray[np.bool_]) -> Target:
        """Build a target from an ``(H, W)`` boolean mask."""
        return cls(Rle.from_mask(mask))

    @property
    def size(self) -> tuple[int, int]:
        """``(H, W)`` of the image in pixels."""
        return self.rle.size

    @property
    def area(self) -> int:
        """Number of pixels of the mask."""
        return self.rle.area

    def mask(self) -> NDArray[np.bool_]:
        """The mask, ``(H, W)`` and newly allocated."""
        return self.rle.to_mask()

    def contains(self, point: NDArray[np.float64]) -> bool:
        """Whether the pixel under ``(x, y)``, in the unit frame, belongs to the mask."""
        height, width = self.size
        x, y = float(point[0]) * width, float(point[1]) * height
        if not (0 <= x < width and 0 <= y < height):
            return False
        starts, ends = self.rle.runs
        pixel = int(x) * height + int(y)
        run = int(np.searchsorted(starts, pixel, side="right")) - 1
        return run >= 0 and pixel < int(ends[run])

    @cached_property
    def rings(self) -> tuple[Ring, ...]:
        """Exact outline along pixel edges in canonical order: filling it gives back the mask."""
        return self._trace()

    def _trace(self) -> tuple[Ring, ...]:
        try:
            return trace(self.mask())
        except LimitError as error:
            raise LimitError(f"{self.record}: {error}" if self.record else str(error)) from error

    def outline(self, epsilon: float = 0.001) -> tuple[Ring, ...]:
        """The outline simplified with tolerance ``epsilon * perimeter``; kept in the cache."""
        key = f"outline:{epsilon}"
        if key not in self.cache:
            # Not `rings`, which would keep the far larger exact outline as well.
            self.cache[key] = simplify_rings(self._trace(), self.size, epsilon)
        found: tuple[Ring, ...] = self.cache[key]
        return found


def counted(number: int, noun: str, several: str = "") -> str:
    """A number of things in words, ``1 update`` or ``2 updates``."""
    return f"{number} {noun if number == 1 else several or f'{noun}s'}"


def without_surrogates(text: str) -> str:
    """The text with ``?`` for every lone surrogate: no file, font or tokenizer takes those."""
    return text.encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True, eq=False)
class Sample:
    """One question about one image."""

    id: str
    """Unique within its data set."""
    expression: str
    """The referring expression, for example ``"the small red star left of the ring"``."""
    target: Target
    load_image: Callable[[], NDArray[np.uint8]] = field(repr=False)
    """Returns the ``(H, W, 3) uint8`` image; called on first use of `image`."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able extras a loader knows: category, reference id, other objects of the image."""

    def __post_init__(self) -> None:
        """Take lone surrogates out of the id and the expression."""
        object.__setattr__(self, "id", without_surrogates(self.id))
        object.__setattr__(self, "expression", without_surrogates(self.expression))

    @cached_property
    def image(self) -> NDArray[np.uint8]:
        """The image, ``(H, W, 3) uint8``."""
        return self.load_image()

    def _repr_png_(self) -> bytes:
        """The image with the target's outline: how a notebook shows it."""
        return as_png(draw_overlay(self.image, self.target))
