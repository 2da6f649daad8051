"""Outlines drawn on images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from seg_env.geometry.polygon import Ring
from seg_env.geometry.raster import rasterize

Color = tuple[int, int, int]

TARGET_COLOR: Color = (0, 190, 160)
ANSWER_COLOR: Color = (255, 96, 48)
WHITE: Color = (255, 255, 255)
DARK: Color = (22, 26, 34)

SHORT_SIDE = 384
"""Smallest side of a drawing in pixels; smaller images are enlarged."""
LONG_SIDE = 1600
"""Largest side of a drawing in pixels; larger images are reduced."""
FILL = 26
"""Opacity of the tints, out of 255."""
_OVERSAMPLING = 3
"""Lines are drawn this many times larger and averaged, as Pillow's lines have hard edges."""
_MAX_DOTS = 200
"""Answers with more vertices are drawn without dots, which would hide the outline."""


class Shape(Protocol):
    """What is drawn of a target."""

    @property
    def rings(self) -> tuple[Ring, ...]:
        """Its exact outline, in the unit frame."""

    def mask(self) -> NDArray[np.bool_]:
        """Its pixels, ``(H, W)``."""


class Outline(Protocol):
    """What is drawn of an answer."""

    @property
    def rings(self) -> tuple[Ring, ...]:
        """What it outlines, in the unit frame."""

    @property
    def point(self) -> NDArray[np.float64] | None:
        """``(x, y)``, where it is a point."""


def as_png(picture: NDArray[np.uint8]) -> bytes:
    """An image ``(H, W, 3)``, or a mask ``(H, W)``, as the content of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def draw_overlay(
    image: NDArray[np.uint8],
    target: Shape | None = None,
    prediction: Outline | None = None,
    *,
    short_side: int = SHORT_SIDE,
) -> NDArray[np.uint8]:
    """Draw a target and an answer on their image.

    The target's exact outline is green, the answer's is orange, each with a light and a dark
    border, so that it shows on any colour; inside them the image is tinted so faintly that its own
    colours can still be told. Vertices of the answer are dots; the start of a ring is a white dot,
    and so is an answer that is a point.

    Returns:
        ``(H', W', 3) uint8``, newly allocated, with the proportions of the image, which is enlarged
        until its shorter side has ``short_side`` pixels, but to at most `LONG_SIDE`.
    """
    height, width = image.shape[:2]
    zoom = min(max(1.0, short_side / min(width, height)), LONG_SIDE / max(width, height))
    width, height = max(1, round(width * zoom)), max(1, round(height * zoom))
    drawing = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    scale = min(width, height) / SHORT_SIDE

    def tint(mask: Image.Image, color: Color) -> None:
        drawing.paste(color, mask=mask.convert("L").point(lambda value: value * FILL // 255))

    if target is not None:
        mask = Image.fromarray(target.mask())
        tint(mask.resize((width, height), Image.Resampling.NEAREST), TARGET_COLOR)
    if prediction is not None and prediction.rings:
        tint(Image.fromarray(rasterize(prediction.rings, (height, width))), ANSWER_COLOR)
    lines = Image.new("RGBA", (width * _OVERSAMPLING, height * _OVERSAMPLING))
    if target is not None:
        _draw_rings(lines, target.rings, TARGET_COLOR, 1.8 * scale)
    if prediction is not None:
        _draw_rings(lines, prediction.rings, ANSWER_COLOR, 1.8 * scale)
        point = () if prediction.point is None else (prediction.point[None],)
        if sum(map(len, prediction.rings)) <= _MAX_DOTS:
            _draw_vertices(lines, (*prediction.rings, *point), 3.2 * scale)
    lines = lines.convert("RGBa").resize((width, height), Image.Resampling.BOX).convert("RGBA")
    drawing.paste(lines, mask=lines)
    return np.asarray(drawing).copy()


def draw_outline(image: NDArray[np.uint8], rings: Sequence[Ring], closed: int) -> NDArray[np.uint8]:
    """Draw the outline so far on a copy of the image seen, ``(H, W, 3) uint8``.

    Rings are ``(V, 2)`` in the unit frame of that image; those after the first ``closed`` are still
    being drawn. The lines are thin and nothing is filled, so that the object stays visible. A white
    dot on the first vertex of each ring shows the direction of the lines.
    """
    drawing = Image.fromarray(image)
    draw = ImageDraw.Draw(drawing)
    height, width = image.shape[:2]
    thickness = max(1, round(min(height, width) / 200))
    for number, ring in enumerate(rings):
        corners = _pixels(ring, (width, height))
        ends = corners[:1] if number < closed else []
        draw.line(corners + ends, fill=ANSWER_COLOR, width=thickness)
        (x, y), radius = corners[0], thickness + 0.5
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=WHITE)
    return np.asarray(drawing).copy()


def _pixels(ring: Ring, size: tuple[int, int]) -> list[tuple[float, float]]:
    """A ring in pixels of a canvas ``(width, height)``."""
    # Kept near the image: drawing takes time in proportion to the length of a line.
    points = np.clip(np.nan_to_num(ring), -1.0, 2.0) * size
    return [(x, y) for x, y in points.tolist()]


def _draw_rings(lines: Image.Image, rings: tuple[Ring, ...], color: Color, width: float) -> None:
    """Closed outlines with a light and a dark border, so that they show on any background."""
    draw = ImageDraw.Draw(lines)
    for paint, share in ((DARK, 2.8), (WHITE, 1.9), (color, 1.0)):
        thickness = max(1, round(width * share * _OVERSAMPLING))
        for ring in rings:
            points = _pixels(ring, lines.size)
            draw.line([*points, *points[:2]], fill=(*paint, 255), width=thickness, joint="curve")


def _draw_vertices(lines: Image.Image, rings: tuple[Ring, ...], radius: float) -> None:
    draw = ImageDraw.Draw(lines)
    for ring in rings:
        points = _pixels(ring, lines.size)
        for number, (x, y) in reversed(list(enumerate(points))):
            fill, border = (WHITE, ANSWER_COLOR) if number == 0 else (ANSWER_COLOR, WHITE)
            size = radius * _OVERSAMPLING * (1.4 if number == 0 else 1.0)
            draw.ellipse(
                (x - size, y - size, x + size, y + size),
                fill=(*fill, 255),
                outline=(*border, 255),
                width=max(1, round(size / 2.5)),
            )
