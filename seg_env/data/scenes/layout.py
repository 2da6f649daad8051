"""The layout of scenes: objects are drawn at random, from bottom to top as they are painted.

Filling an object with eight samples per pixel side gives a coverage in [0, 1]; pixels with a
coverage of at least one half belong to it, so mask and antialiased image agree by construction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from seg_env.data.scenes.shapes import SHAPES, Outline

Difficulty = Literal["easy", "medium", "hard"]

EASY_SHAPES = ("circle", "square", "triangle", "star", "cross")
EASY_COLORS = ("red", "green", "blue", "yellow", "purple", "cyan")
COLORS = (*EASY_COLORS, "orange", "pink")
TEXTURES = ("striped", "dotted", "checkered")
SCALES = {"small": (0.09, 0.107), "medium": (0.132, 0.152), "large": (0.188, 0.225)}
"""Radius of a circle that looks as large, by size word; the gaps keep the words unmistakable."""


class Patch(NamedTuple):
    """Coverage of a rectangle of pixels; everything outside it is uncovered."""

    window: tuple[slice, slice]
    """Rows and columns in the image."""
    coverage: NDArray[np.float32]
    """``(h, w)``, covered share of each pixel, in [0, 1]."""


@dataclass(frozen=True)
class SceneObject:
    """One thing in a scene; lengths are in the unit frame."""

    shape: str
    """A key of `SHAPES`."""
    color: str
    center: tuple[float, float]
    radius: float
    """Of the circle around it."""
    angle: float
    """Rotation in radians, clockwise on screen."""
    texture: str = "plain"
    """``"plain"`` or one of `TEXTURES`."""

    @property
    def scale(self) -> float:
        """Radius of a circle that looks as large."""
        return self.radius / SHAPES[self.shape].stretch

    @property
    def size(self) -> str:
        """``"small"``, ``"medium"`` or ``"large"``."""
        return "small" if self.scale < 0.12 else "medium" if self.scale < 0.17 else "large"

    def cover(self, size: int) -> Patch:
        """How much of each pixel it covers in an image of ``size`` by ``size`` pixels.

        The patch is the bounding rectangle, clipped to the image.
        """
        shape, samples = SHAPES[self.shape], 8
        outer = self._place(shape.outer) * size
        low = np.clip(np.floor(outer.min(axis=0)).astype(int), 0, size - 1)
        high = np.clip(np.ceil(outer.max(axis=0)).astype(int), low + 1, size)
        canvas = Image.new("L", tuple(((high - low) * samples).tolist()))
        draw = ImageDraw.Draw(canvas)
        for outline, fill in ((shape.outer, 255), (shape.hole, 0)):
            if outline is not None:  # integer points of the canvas are the samples' centres
                corners = np.rint((self._place(outline) * size - low) * samples - 0.5)
                draw.polygon(list(map(tuple, corners.astype(int).tolist())), fill=fill)
        coverage = np.asarray(canvas.reduce(samples), dtype=np.float32) / np.float32(255.0)
        columns, rows = map(slice, low.tolist(), high.tolist())
        return Patch((rows, columns), coverage)

    def _place(self, outline: Outline) -> Outline:
        cosine, sine = np.cos(self.angle), np.sin(self.angle)
        turn = np.array([(cosine, sine), (-sine, cosine)])
        return np.asarray(self.radius * (outline @ turn) + np.asarray(self.center))


@dataclass(frozen=True)
class Recipe:
    """How crowded the scenes of a difficulty are."""

    counts: tuple[int, int]
    nearness: float
    """Smallest distance of two centres as a share of the sum of their radii."""
    overhang: float
    """Largest share of its radius by which an object may stick out of the image."""
    crossing: float
    """Probability of a long bar that lies across another object."""
    textured: float
    """Probability that an object has a texture."""
    least_visible: float
    """Least share of an object that must stay visible."""


RECIPES: dict[Difficulty, Recipe] = {
    "medium": Recipe((2, 4), 0.85, 0.0, 0.0, 0.35, 0.7),
    "hard": Recipe((3, 5), 0.6, 0.15, 0.7, 0.35, 0.4),
}


def arrange(rng: np.random.Generator, difficulty: Difficulty) -> list[SceneObject]:
    """Draw the objects of a scene, bottom first."""
    if difficulty == "easy":
        return _arrange_easy(rng)
    recipe = RECIPES[difficulty]
    count = int(rng.integers(recipe.counts[0], recipe.counts[1] + 1))
    crossed = rng.random() < recipe.crossing
    while True:
        objects: list[SceneObject] = []
        for _ in range(count - crossed):
            thing = _draw_object(rng, objects, recipe)
            free = (_locate(rng, thing, recipe.overhang) for _ in range(20))
            placed = next((it for it in free if _is_free(it, objects, recipe.nearness)), None)
            if placed is None:
                break
            objects.append(placed)
        else:
            return [*objects, _crossing_bar(rng, objects)] if crossed else objects


def _arrange_easy(rng: np.random.Generator) -> list[SceneObject]:
    """Draw one or two large objects that do not touch and differ in colour or shape."""
    names = _easy_names(rng)
    while True:  # two of the largest rarely fit: then both sizes are drawn again
        radii = rng.uniform(0.15, 0.275, size=len(names))
        centers = rng.uniform(radii + 0.01, 0.99 - radii, size=(2, len(names))).T
        if len(names) == 1 or np.hypot(*(centers[0] - centers[1])) > radii.sum() + 0.03:
            break
    turns = rng.uniform(-1.0, 1.0, size=len(names))
    return [
        SceneObject(shape, color, (float(x), float(y)), float(radius), _angle(shape, float(turn)))
        for (color, shape), (x, y), radius, turn in zip(names, centers, radii, turns, strict=True)
    ]


def _easy_names(rng: np.random.Generator) -> list[tuple[str, str]]:
    """Colour and shape of one or two objects; half of the pairs share one of the two words."""
    colors = [EASY_COLORS[k] for k in rng.permutation(len(EASY_COLORS))[:2]]
    shapes = [EASY_SHAPES[k] for k in rng.permutation(len(EASY_SHAPES))[:2]]
    if rng.random() < 0.4:
        return [(colors[0], shapes[0])]
    shared = rng.choice(["nothing", "color", "shape"], p=[0.5, 0.25, 0.25])
    second = (
        colors[0] if shared == "color" else colors[1],
        shapes[0] if shared == "shape" else shapes[1],
    )
    return [(colors[0], shapes[0]), second]


def _draw_object(
    rng: np.random.Generator, others: list[SceneObject], recipe: Recipe
) -> SceneObject:
    """Draw everything but the place; often like an earlier object, so one word is not enough."""
    shape, color = str(rng.choice(list(SHAPES))), str(rng.choice(COLORS))
    if others:
        model = others[rng.integers(len(others))]
        likeness = rng.random()
        shape = model.shape if likeness < 0.45 else shape
        color = model.color if 0.3 < likeness < 0.7 else color
    scale = rng.uniform(*SCALES[str(rng.choice(list(SCALES)))])
    texture = str(rng.choice(TEXTURES)) if rng.random() < recipe.textured else "plain"
    angle = _angle(shape, rng.uniform(-1.0, 1.0))
    return SceneObject(shape, color, (0.5, 0.5), scale * SHAPES[shape].stretch, angle, texture)


def _locate(rng: np.random.Generator, thing: SceneObject, overhang: float) -> SceneObject:
    border = max(thing.radius * (1.0 - overhang), thing.scale) + 0.015
    x, y = rng.uniform(border, 1.0 - border, size=2)
    return replace(thing, center=(float(x), float(y)))


def _is_free(thing: SceneObject, others: list[SceneObject], nearness: float) -> bool:
    """Whether an object is far enough from all others, and touches none of its colour."""
    return all(
        np.hypot(thing.center[0] - other.center[0], thing.center[1] - other.center[1])
        > (1.0 if thing.color == other.color else nearness) * (thing.radius + other.radius)
        for other in others
    )


def _crossing_bar(rng: np.random.Generator, objects: list[SceneObject]) -> SceneObject:
    """Draw a long bar across the middle of the largest of some objects."""
    below = max(objects, key=lambda thing: thing.scale)
    x, y = np.asarray(below.center) + rng.uniform(-0.25, 0.25, size=2) * below.scale
    radius = rng.uniform(*SCALES["large"]) * SHAPES["bar"].stretch
    colors = sorted(set(COLORS) - {thing.color for thing in objects})
    angle = _angle("bar", rng.uniform(-1.0, 1.0))
    return SceneObject("bar", str(rng.choice(colors)), (float(x), float(y)), float(radius), angle)


def _angle(shape: str, turn: float) -> float:
    """The rotation in radians; ``turn`` in [-1, 1] is a share of what the shape's name allows."""
    return float(np.radians(SHAPES[shape].rotation) * turn)
