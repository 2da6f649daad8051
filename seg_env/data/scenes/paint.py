"""How a scene becomes an image: the ground it stands on, colours, fills and shadows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from seg_env.data.scenes.layout import Difficulty, Patch, SceneObject

Pixels = NDArray[np.float32]
"""``(H, W, 3)``, red, green and blue in [0, 255]."""

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
PAPERS = (
    (238, 230, 214),
    (216, 223, 228),
    (208, 216, 204),
    (224, 208, 184),
    (196, 186, 196),
    (150, 158, 166),
    (132, 122, 112),
    (92, 102, 114),
    (84, 94, 88),
    (56, 60, 72),
)
"""Muted tones that let every colour of the palette stand out."""
SAMPLES = 3
"""Samples per pixel side of the clutter."""


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
    image = _paper(size, rng)
    if difficulty == "hard":
        image = _clutter(image, rng)
    sun = rng.uniform(0.0, 2.0 * np.pi)
    for thing, patch in zip(objects, patches, strict=True):
        _cast_shadow(image, patch, sun)
        _blend(image, patch, _fill(thing, patch, size, sun, rng))
    if difficulty == "hard":  # light that is brightest at one spot and falls off around it
        focus, fall = rng.uniform(0.2, 0.8, size=2), rng.uniform(0.15, 0.5)
        line = (np.arange(size) + 0.5) / size
        squared = (line - focus[0]) ** 2 + (line - focus[1])[:, None] ** 2
        image *= np.asarray(1.06 - fall * squared, dtype=np.float32)[..., None]
    return _finish(image, rng, grain=rng.uniform(4.0, 14.0 if difficulty == "medium" else 36.0))


def _paint_easy(
    objects: Sequence[SceneObject], patches: Sequence[Patch], size: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    ground = rng.uniform(70.0, 215.0) + rng.uniform(-6.0, 6.0, size=3)
    image = np.broadcast_to(ground.astype(np.float32), (size, size, 3)).copy()
    for thing, patch in zip(objects, patches, strict=True):
        color = np.array(PALETTE[thing.color]) * rng.uniform(0.9, 1.06)
        _blend(image, patch, color.astype(np.float32))
    return _finish(image, rng, grain=rng.uniform(6.0, 20.0))


def _blend(image: Pixels, patch: Patch, color: NDArray[np.float32]) -> None:
    """Paint over ``image`` in place where ``patch`` covers it; ``color`` is (3,) or (h, w, 3)."""
    region = image[patch.window]
    region += patch.coverage[..., None] * (color - region)


def _cast_shadow(image: Pixels, patch: Patch, sun: float) -> None:
    """Darken what lies under an object, on the side away from the light, in place."""
    size = len(image)
    reach = 0.014 * size
    canvas = Image.new("L", (size, size))
    stamp = Image.fromarray((patch.coverage * 255.0).astype(np.uint8))
    top, left = (side.start for side in patch.window)
    offset = (round(left - reach * np.cos(sun)), round(top - reach * np.sin(sun)))
    canvas.paste(stamp, offset)
    shadow = np.asarray(canvas.filter(ImageFilter.GaussianBlur(0.016 * size)), dtype=np.float32)
    image *= 1.0 - np.float32(0.42 / 255.0) * shadow[..., None]


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
    # The second colour of a texture: a light tint of dark colours, a deep shade of light ones.
    luminance = float(color @ np.array([0.299, 0.587, 0.114], dtype=np.float32))
    accent = color * np.float32(0.66) if luminance > 150.0 else color + (250.0 - color) * 0.6
    mixed = color + (accent - color) * amount
    return np.asarray(mixed * light[..., None], dtype=np.float32)


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


def _finish(image: Pixels, rng: np.random.Generator, grain: float) -> NDArray[np.uint8]:
    """Add even noise of at most ``grain / 2`` levels either way and round to bytes."""
    noise = rng.random(image.shape, dtype=np.float32)
    noise -= np.float32(0.5)
    noise *= np.float32(grain)
    image = image + noise
    return np.clip(image, 0.0, 255.0, out=image).astype(np.uint8)


def _paper(size: int, rng: np.random.Generator) -> Pixels:
    """A muted sheet, slightly mottled and lit from one side."""
    tone = np.array(PAPERS[rng.integers(len(PAPERS))], dtype=np.float32)
    tone += rng.uniform(-6.0, 6.0, size=3).astype(np.float32)
    mottle = Image.fromarray(rng.normal(0.0, 1.0, (5, 5)).astype(np.float32))
    light = np.asarray(mottle.resize((size, size), Image.Resampling.BICUBIC)) * np.float32(0.012)
    angle, strength = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(0.02, 0.1)
    ramp = np.linspace(-strength, strength, size, dtype=np.float32)
    light = light + (np.float32(np.cos(angle)) * ramp + np.float32(np.sin(angle)) * ramp[:, None])
    return np.asarray(tone * (1.0 + light[..., None]), dtype=np.float32)


def _clutter(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Scatter one or two kinds of marks, none of which could be taken for an object."""
    size = len(image)
    base = image.mean(axis=(0, 1))
    canvas = Image.fromarray(image.clip(0, 255).astype(np.uint8))
    canvas = canvas.resize((size * SAMPLES, size * SAMPLES), Image.Resampling.NEAREST)
    for kind in rng.permutation(len(KINDS))[: rng.integers(1, 3)]:
        KINDS[kind](canvas, base, rng)
    return np.asarray(canvas.reduce(SAMPLES), dtype=np.float32)


def _tone(
    base: NDArray[np.float32], rng: np.random.Generator, spread: float
) -> tuple[int, int, int]:
    """The ground's colour, somewhat lighter or darker and slightly off in hue."""
    tone = base * (1.0 + rng.uniform(-spread, spread)) + rng.uniform(-5.0, 5.0, size=3)
    red, green, blue = np.clip(tone, 0, 255).astype(int).tolist()
    return red, green, blue


def _pebbles(canvas: Image.Image, base: NDArray[np.float32], rng: np.random.Generator) -> None:
    draw, side = ImageDraw.Draw(canvas), canvas.width
    for x, y, radius, flat in rng.random((int(rng.integers(50, 130)), 4)).tolist():
        across = (0.008 + 0.02 * radius) * side
        down = across * (0.55 + 0.45 * flat)
        left, top = x * side - across, y * side - down
        shade = tuple(int(value * 0.72) for value in base)
        drop = 0.2 * down
        draw.ellipse(
            (left + drop, top + drop, left + 2 * across + drop, top + 2 * down + drop), shade
        )
        draw.ellipse((left, top, left + 2 * across, top + 2 * down), _tone(base, rng, 0.16))


def _scratches(canvas: Image.Image, base: NDArray[np.float32], rng: np.random.Generator) -> None:
    draw, side = ImageDraw.Draw(canvas), canvas.width
    lean = rng.uniform(0.0, np.pi)
    for x, y, length, turn in rng.random((int(rng.integers(25, 60)), 4)).tolist():
        angle = lean + 0.7 * (turn - 0.5)
        reach = (0.05 + 0.35 * length) * side
        end = (x * side + reach * np.cos(angle), y * side + reach * np.sin(angle))
        width = int(rng.integers(1, 2 + side // 130))
        draw.line((x * side, y * side, *end), _tone(base, rng, 0.2), width)


def _crumbs(canvas: Image.Image, base: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Tiny triangles in any orientation."""
    draw, side = ImageDraw.Draw(canvas), canvas.width
    for x, y, radius, angle in rng.random((int(rng.integers(60, 140)), 4)).tolist():
        turns = 2.0 * np.pi * (angle + np.arange(3) / 3.0)
        reach = (0.008 + 0.014 * radius) * side
        xs, ys = x * side + reach * np.cos(turns), y * side + reach * np.sin(turns)
        draw.polygon(list(zip(xs.tolist(), ys.tolist(), strict=True)), _tone(base, rng, 0.25))


def _tiles(canvas: Image.Image, base: NDArray[np.float32], rng: np.random.Generator) -> None:
    draw, side = ImageDraw.Draw(canvas), canvas.width
    pitch = side * rng.uniform(0.09, 0.17)
    shift = rng.uniform(0.0, pitch, size=2)
    count = int(side / pitch) + 2
    for row in range(count):
        for column in range(count):
            left = column * pitch - shift[0] - (row % 2) * pitch / 2
            top = row * pitch - shift[1]
            corner = (left + pitch - SAMPLES, top + pitch - SAMPLES)
            draw.rectangle((left, top, *corner), _tone(base, rng, 0.07))


def _clouds(canvas: Image.Image, base: NDArray[np.float32], rng: np.random.Generator) -> None:
    draw, side = ImageDraw.Draw(canvas), canvas.width
    for x, y, radius in rng.random((8, 3)).tolist():
        reach = (0.08 + 0.15 * radius) * side
        box = (x * side - reach, y * side - reach, x * side + reach, y * side + reach)
        draw.ellipse(box, _tone(base, rng, 0.22))
    canvas.paste(canvas.filter(ImageFilter.BoxBlur(0.04 * side)))


KINDS = (_clouds, _pebbles, _scratches, _crumbs, _tiles)
"""Ways to clutter a ground in place, given its mean colour."""
