"""Drawing outlines on pictures: the target as a tint, the answer as numbered vertices."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from seg_env.geometry.raster import rasterize
from seg_env.types import Prediction, Ring, Target

Color = tuple[int, int, int]
Box = tuple[float, float, float, float]

TARGET_COLOR: Color = (0, 190, 160)
ANSWER_COLOR: Color = (255, 96, 48)
WHITE: Color = (255, 255, 255)
INK: Color = (22, 26, 34)

SHORT_SIDE = 384
"""Smallest side of a drawing in pixels; smaller pictures are enlarged."""
LONG_SIDE = 1600
"""Largest side of a drawing in pixels; larger pictures are reduced."""
_FINER = 3
"""Lines are drawn this many times larger and averaged, as Pillow's lines have hard edges."""
_MOST_VERTICES = 200
"""Answers with more vertices are drawn without dots, which would hide the outline."""


def draw_overlay(
    image: NDArray[np.uint8],
    target: Target | None = None,
    prediction: Prediction | None = None,
    *,
    short_side: int = SHORT_SIDE,
    numbered: bool = True,
) -> NDArray[np.uint8]:
    """Draw a target and an answer on their picture.

    The target is tinted green within its exact outline; the answer is tinted orange within a line
    with white borders, its vertices dots with numbers as far as there is room for them. The start
    of a ring, vertex 0, is a white dot, and so is an answer that is a point.

    Args:
        image: ``(H, W, 3) uint8``; not changed.
        target: What should be outlined, None to leave it out.
        prediction: The answer, rings in the unit frame of the picture, None to leave it out.
        short_side: Smaller pictures are enlarged so that their shorter side has this many pixels.
        numbered: Write numbers beside the vertices.

    Returns:
        ``(H', W', 3) uint8`` with the proportions of the picture.
    """
    width, height = _drawing_size(image.shape[1], image.shape[0], short_side)
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    scale = min(width, height) / SHORT_SIDE
    if target is not None:
        tint = Image.fromarray(target.mask()).resize((width, height), Image.Resampling.NEAREST)
        picture.paste(TARGET_COLOR, mask=tint.convert("L").point(lambda value: value * 90 // 255))
    if prediction is not None and prediction.rings:
        filled = Image.fromarray(rasterize(prediction.rings, (height, width)))
        picture.paste(ANSWER_COLOR, mask=filled.convert("L").point(lambda value: value * 70 // 255))
    lines = Image.new("RGBA", (width * _FINER, height * _FINER))
    if target is not None:
        _draw_rings(lines, target.rings, TARGET_COLOR, INK, 2.0 * scale)
    if prediction is not None:
        _draw_rings(lines, prediction.rings, ANSWER_COLOR, WHITE, 2.0 * scale)
        point = () if prediction.point is None else (prediction.point[None],)
        _draw_vertices(lines, (*prediction.rings, *point), 3.2 * scale)
    lines = lines.convert("RGBa").resize((width, height), Image.Resampling.BOX).convert("RGBA")
    picture.paste(lines, mask=lines)
    if numbered and prediction is not None:
        _draw_numbers(picture, prediction.rings, scale)
    return np.asarray(picture).copy()


@lru_cache(maxsize=32)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's built-in font at a size in pixels."""
    return ImageFont.load_default(size)


def _drawing_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height of the drawing of a picture."""
    scale = max(1.0, short_side / min(width, height))
    scale = min(scale, LONG_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _pixels(ring: Ring, size: tuple[int, int]) -> list[tuple[float, float]]:
    """A ring in pixels of a canvas ``(width, height)``; what is far outside is moved nearer."""
    points = np.clip(np.nan_to_num(ring), -1.0, 2.0) * size
    return [(x, y) for x, y in points.tolist()]


def _draw_rings(
    lines: Image.Image, rings: tuple[Ring, ...], color: Color, border: Color, width: float
) -> None:
    """Closed outlines with a border on both sides, so that they show on any background."""
    draw = ImageDraw.Draw(lines)
    for paint, share in ((border, 2.2), (color, 1.0)):
        thickness = max(1, round(width * share * _FINER))
        for ring in rings:
            points = _pixels(ring, lines.size)
            draw.line([*points, *points[:2]], fill=(*paint, 255), width=thickness, joint="curve")


def _draw_vertices(lines: Image.Image, rings: tuple[Ring, ...], radius: float) -> None:
    if sum(len(ring) for ring in rings) > _MOST_VERTICES:
        return
    draw = ImageDraw.Draw(lines)
    for ring in rings:
        points = _pixels(ring, lines.size)
        for number, (x, y) in reversed(list(enumerate(points))):
            fill, border = (WHITE, ANSWER_COLOR) if number == 0 else (ANSWER_COLOR, WHITE)
            size = radius * _FINER * (1.4 if number == 0 else 1.0)
            draw.ellipse(
                (x - size, y - size, x + size, y + size),
                fill=(*fill, 255),
                outline=(*border, 255),
                width=max(1, round(size / 2.5)),
            )


def _draw_numbers(picture: Image.Image, rings: tuple[Ring, ...], scale: float) -> None:
    """Vertex numbers beside their dots, away from the middle of the ring, never overlapping."""
    if sum(len(ring) for ring in rings) > _MOST_VERTICES:
        return
    draw = ImageDraw.Draw(picture)
    letters = font(max(9, round(11 * scale)))
    taken: list[Box] = []
    for ring in rings:
        points = np.array(_pixels(ring, picture.size))
        outwards = points - points.mean(axis=0)
        outwards /= np.maximum(np.linalg.norm(outwards, axis=1, keepdims=True), 1e-9)
        places = points + outwards * 12.0 * scale
        for number, (x, y) in enumerate(places.tolist()):
            box = draw.textbbox((x, y), str(number), font=letters, anchor="mm", stroke_width=2)
            inside = box[0] >= 0 and box[1] >= 0
            inside = inside and box[2] <= picture.width and box[3] <= picture.height
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                draw.text(
                    (x, y), str(number), WHITE, letters, "mm", stroke_width=2, stroke_fill=INK
                )


def _overlap(one: Box, two: Box) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]
