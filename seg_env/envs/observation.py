"""What the agent sees of a sample: the picture, letterboxed if asked for, with outlines on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from seg_env.envs.overlay import ANSWER_COLOR, WHITE
from seg_env.frames import letterbox_geometry
from seg_env.types import Ring

PADDING_GRAY = 127
"""Brightness of the padding: the middle of the range, neither dark nor light."""


def letterbox(image: NDArray[np.uint8], canvas_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Scale a picture into a canvas without changing its proportions, and pad with gray.

    The placement is `seg_env.frames.letterbox_geometry`, which `letterbox_frame` inverts exactly.
    Shrinking averages over the area of each new pixel, so thin objects fade instead of vanishing.

    Args:
        image: ``(H, W, 3) uint8``.
        canvas_size: ``(H', W')`` of the result in pixels.

    Returns:
        ``(H', W', 3) uint8``, always newly allocated.
    """
    if image.shape[:2] == canvas_size:
        return image.copy()
    height, width = image.shape[:2]
    left, top, new_width, new_height = letterbox_geometry((height, width), canvas_size)
    # Pillow's bilinear filter widens with the scale; `reducing_gap` halves most of the cost of
    # photos that are much larger than the canvas and changes values by less than a level.
    scaled = Image.fromarray(image).resize(
        (new_width, new_height), Image.Resampling.BILINEAR, reducing_gap=3.0
    )
    canvas = np.full((*canvas_size, 3), PADDING_GRAY, dtype=np.uint8)
    canvas[top : top + new_height, left : left + new_width] = np.asarray(scaled)
    return canvas


def draw_outline(
    image: NDArray[np.uint8], rings: Sequence[Ring], open_ring: Ring | None = None
) -> NDArray[np.uint8]:
    """Draw the outline so far on a picture of what is seen, at the picture's own size.

    The lines are thin and nothing is filled, so that the object stays visible. The first vertex of
    each ring is a white dot: with it, the direction of the lines can be told.

    Args:
        image: ``(H, W, 3) uint8``; not changed.
        rings: Closed rings, ``(V, 2)`` in the unit frame of the picture seen.
        open_ring: A ring that is still being drawn, ``(V, 2)``, joined to nothing at its end.

    Returns:
        ``(H, W, 3) uint8``, newly allocated.
    """
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    height, width = image.shape[:2]
    thickness = max(1, round(min(height, width) / 200))
    paths = [(ring, True) for ring in rings]
    if open_ring is not None and len(open_ring):
        paths.append((open_ring, False))
    for ring, closed in paths:
        # What is far outside is moved nearer: lines of any length would take any time.
        points = np.clip(np.nan_to_num(ring), -1.0, 2.0) * (width, height)
        corners = [(x, y) for x, y in points.tolist()]
        draw.line(corners + corners[:1] * closed, fill=ANSWER_COLOR, width=thickness)
        (x, y), radius = corners[0], thickness + 0.5
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=WHITE)
    return np.asarray(picture).copy()
