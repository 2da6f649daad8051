"""Colours, fills, shadows, and how a scene becomes a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from seg_env.data.scenes.ground import Picture, clutter, paper, pool
from seg_env.data.scenes.layout import Difficulty, SceneObject
from seg_env.data.scenes.shapes import Patch

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (226, 61, 68),
    "green": (52, 168, 92),
    "blue": (52, 94, 214),
    "yellow": (250, 202, 62),
    "purple": (139, 74, 196),
    "cyan": (40, 190, 212),
    "orange": (245, 130, 38),
    "pink": (246, 140, 184),
}
"""Red, green, blue of every colour that expressions name."""


def paint(
    objects: Sequence[SceneObject],
    patches: Sequence[Patch],
    size: int,
    difficulty: Difficulty,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Paint objects from bottom to top, ``(size, size, 3) uint8``.

    Easy: flat colours on a plain gray ground. Medium: paper cut-outs with textures, shading and
    shadows. Hard: the same on a cluttered ground under uneven light, with more noise.
    """
    if difficulty == "easy":
        return _paint_easy(objects, patches, size, rng)
    picture = paper(size, rng)
    if difficulty == "hard":
        picture = clutter(picture, rng)
    sun = rng.uniform(0.0, 2.0 * np.pi)
    for thing, patch in zip(objects, patches, strict=True):
        _cast_shadow(picture, patch, sun)
        _blend(picture, patch, _fill(thing, patch, size, sun, rng))
    if difficulty == "hard":
        picture *= pool(size, rng)[..., None]
    return _finish(picture, rng, grain=rng.uniform(4.0, 14.0 if difficulty == "medium" else 36.0))


def _paint_easy(
    objects: Sequence[SceneObject], patches: Sequence[Patch], size: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    ground = rng.uniform(70.0, 215.0) + rng.uniform(-6.0, 6.0, size=3)
    picture = np.broadcast_to(ground.astype(np.float32), (size, size, 3)).copy()
    for thing, patch in zip(objects, patches, strict=True):
        color = np.array(PALETTE[thing.color]) * rng.uniform(0.9, 1.06)
        _blend(picture, patch, color.astype(np.float32))
    return _finish(picture, rng, grain=rng.uniform(6.0, 20.0))


def _blend(picture: Picture, patch: Patch, color: NDArray[np.float32]) -> None:
    """Paint over ``picture`` in place where ``patch`` covers it; ``color`` is (3,) or (h, w, 3)."""
    region = picture[patch.window]
    region += patch.coverage[..., None] * (color - region)


def _cast_shadow(picture: Picture, patch: Patch, sun: float) -> None:
    """Darken what lies under an object, on the side away from the light, in place."""
    size = len(picture)
    reach = 0.014 * size
    canvas = Image.new("L", (size, size))
    stamp = Image.fromarray((patch.coverage * 255.0).astype(np.uint8))
    offset = (round(patch.left - reach * np.cos(sun)), round(patch.top - reach * np.sin(sun)))
    canvas.paste(stamp, offset)
    shadow = np.asarray(canvas.filter(ImageFilter.GaussianBlur(0.016 * size)), dtype=np.float32)
    picture *= 1.0 - np.float32(0.42 / 255.0) * shadow[..., None]


def _fill(
    thing: SceneObject, patch: Patch, size: int, sun: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Colour of each pixel of a patch: texture, shading towards the light, ``(h, w, 3)``."""
    rows, columns = patch.window
    x = (np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5) / size - thing.center[0]
    y = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) / size - thing.center[1]
    color = np.array(PALETTE[thing.color], dtype=np.float32) * np.float32(rng.uniform(0.94, 1.05))
    towards_light = (x * np.cos(sun) + y[:, None] * np.sin(sun)) / np.float32(thing.radius)
    light = 1.0 + np.float32(rng.uniform(0.06, 0.16)) * towards_light
    if thing.texture == "plain":
        return np.asarray(color * light[..., None], dtype=np.float32)
    cosine, sine = np.cos(thing.angle), np.sin(thing.angle)
    along = x * cosine + y[:, None] * sine
    across = y[:, None] * cosine - x * sine
    amount = _texture(thing.texture, along, across, size)[..., None]
    second = color + (_accent(color) - color) * amount
    return np.asarray(second * light[..., None], dtype=np.float32)


def _accent(color: NDArray[np.float32]) -> NDArray[np.float32]:
    """The second colour of a texture: a light tint of dark colours, a deep shade of light ones."""
    luminance = float(color @ np.array([0.299, 0.587, 0.114], dtype=np.float32))
    return color * np.float32(0.66) if luminance > 150.0 else color + (250.0 - color) * 0.6


def _texture(
    name: str, along: NDArray[np.float32], across: NDArray[np.float32], size: int
) -> NDArray[np.float32]:
    """Share of the accent at each pixel, antialiased, in [0, 1]; lengths in the unit frame."""
    if name == "dotted":
        pitch = 0.068
        x = np.abs((along / pitch) % 1.0 - 0.5)
        y = np.abs((across / pitch) % 1.0 - 0.5)
        edge = pitch * (0.31 - np.hypot(x, y))
    elif name == "striped":
        pitch = 0.062
        edge = pitch * (np.abs((across / pitch) % 1.0 - 0.5) - 0.25)
    else:
        pitch = 0.11
        wave = np.sin(2.0 * np.pi / pitch * along) * np.sin(2.0 * np.pi / pitch * across)
        edge = pitch / (2.0 * np.pi) * wave
    return np.asarray(np.clip(0.5 + size * edge, 0.0, 1.0), dtype=np.float32)


def _finish(picture: Picture, rng: np.random.Generator, grain: float) -> NDArray[np.uint8]:
    """Add even noise of at most ``grain / 2`` levels either way and round to bytes."""
    noise = rng.random(picture.shape, dtype=np.float32)
    noise -= np.float32(0.5)
    noise *= np.float32(grain)
    picture = picture + noise
    return np.clip(picture, 0.0, 255.0, out=picture).astype(np.uint8)
