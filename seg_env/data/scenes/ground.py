"""Grounds that scenes stand on: papers with a soft gradient, and clutter of harmless marks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Picture = NDArray[np.float32]
"""``(H, W, 3)``, red, green and blue in [0, 255]."""

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

Tone = tuple[int, int, int]


def paper(size: int, rng: np.random.Generator) -> Picture:
    """A muted sheet, slightly mottled and lit from one side, ``(size, size, 3)``."""
    tone = np.array(PAPERS[rng.integers(len(PAPERS))], dtype=np.float32)
    tone += rng.uniform(-6.0, 6.0, size=3).astype(np.float32)
    mottle = Image.fromarray(rng.normal(0.0, 1.0, (5, 5)).astype(np.float32))
    light = np.asarray(mottle.resize((size, size), Image.Resampling.BICUBIC)) * np.float32(0.012)
    light = light + slope(size, rng.uniform(0.0, 2.0 * np.pi), rng.uniform(0.02, 0.1))
    return np.asarray(tone * (1.0 + light[..., None]), dtype=np.float32)


def slope(size: int, angle: float, strength: float) -> NDArray[np.float32]:
    """A ramp from ``-strength`` to about ``strength`` in direction ``angle``, ``(size, size)``."""
    line = np.linspace(-strength, strength, size, dtype=np.float32)
    return np.float32(np.cos(angle)) * line + np.float32(np.sin(angle)) * line[:, None]


def pool(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Light that is brightest at one spot and falls off around it, a factor, ``(size, size)``."""
    focus = rng.uniform(0.2, 0.8, size=2)
    fall = rng.uniform(0.15, 0.5)
    line = (np.arange(size) + 0.5) / size
    squared = (line - focus[0]) ** 2 + (line - focus[1])[:, None] ** 2
    return np.asarray(1.06 - fall * squared, dtype=np.float32)


def clutter(picture: Picture, rng: np.random.Generator) -> Picture:
    """Scatter one or two kinds of marks, none of which could be taken for an object."""
    size = len(picture)
    base = picture.mean(axis=(0, 1))
    canvas = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    canvas = canvas.resize((size * SAMPLES, size * SAMPLES), Image.Resampling.NEAREST)
    for kind in rng.permutation(len(KINDS))[: rng.integers(1, 3)]:
        canvas = KINDS[kind](canvas, base, rng)
    return np.asarray(canvas.reduce(SAMPLES), dtype=np.float32)


def _tone(base: NDArray[np.float32], rng: np.random.Generator, spread: float) -> Tone:
    """The ground's colour, somewhat lighter or darker and slightly off in hue."""
    tone = base * (1.0 + rng.uniform(-spread, spread)) + rng.uniform(-5.0, 5.0, size=3)
    red, green, blue = np.clip(tone, 0, 255).astype(int).tolist()
    return red, green, blue


def _pebbles(
    canvas: Image.Image, base: NDArray[np.float32], rng: np.random.Generator
) -> Image.Image:
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
    return canvas


def _scratches(
    canvas: Image.Image, base: NDArray[np.float32], rng: np.random.Generator
) -> Image.Image:
    draw, side = ImageDraw.Draw(canvas), canvas.width
    lean = rng.uniform(0.0, np.pi)
    for x, y, length, turn in rng.random((int(rng.integers(25, 60)), 4)).tolist():
        angle = lean + 0.7 * (turn - 0.5)
        reach = (0.05 + 0.35 * length) * side
        end = (x * side + reach * np.cos(angle), y * side + reach * np.sin(angle))
        width = int(rng.integers(1, 2 + side // 130))
        draw.line((x * side, y * side, *end), _tone(base, rng, 0.2), width)
    return canvas


def _crumbs(
    canvas: Image.Image, base: NDArray[np.float32], rng: np.random.Generator
) -> Image.Image:
    """Tiny triangles in any orientation."""
    draw, side = ImageDraw.Draw(canvas), canvas.width
    for x, y, radius, angle in rng.random((int(rng.integers(60, 140)), 4)).tolist():
        turns = 2.0 * np.pi * (angle + np.arange(3) / 3.0)
        reach = (0.008 + 0.014 * radius) * side
        xs, ys = x * side + reach * np.cos(turns), y * side + reach * np.sin(turns)
        draw.polygon(list(zip(xs.tolist(), ys.tolist(), strict=True)), _tone(base, rng, 0.25))
    return canvas


def _tiles(canvas: Image.Image, base: NDArray[np.float32], rng: np.random.Generator) -> Image.Image:
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
    return canvas


def _clouds(
    canvas: Image.Image, base: NDArray[np.float32], rng: np.random.Generator
) -> Image.Image:
    draw, side = ImageDraw.Draw(canvas), canvas.width
    for x, y, radius in rng.random((8, 3)).tolist():
        reach = (0.08 + 0.15 * radius) * side
        box = (x * side - reach, y * side - reach, x * side + reach, y * side + reach)
        draw.ellipse(box, _tone(base, rng, 0.22))
    return canvas.filter(ImageFilter.BoxBlur(0.04 * side))


KINDS = (_clouds, _pebbles, _scratches, _crumbs, _tiles)
"""Ways to clutter a ground; each takes a canvas, the ground's mean colour and a generator."""
