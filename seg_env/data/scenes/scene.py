"""One scene: arranged, measured, put into words, and painted when it is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seg_env.data.scenes.facts import establish
from seg_env.data.scenes.language import refer
from seg_env.data.scenes.layout import RECIPES, Difficulty, SceneObject, arrange
from seg_env.data.scenes.paint import paint
from seg_env.data.scenes.shapes import Patch
from seg_env.geometry.contour import trace
from seg_env.geometry.polygon import ring_area

SMALLEST_AREA = 0.01
"""Least visible share of the image that an object may have."""
SMALLEST_PART = 0.001
"""Least share of the image that each visible part or hole of an object may have."""


@dataclass(frozen=True, eq=False)
class Scene:
    """One arrangement of objects, with a question about each of them."""

    objects: tuple[SceneObject, ...]
    """From bottom to top."""
    patches: tuple[Patch, ...]
    """Coverage of each object as if it stood alone."""
    masks: NDArray[np.bool_]
    """Visible pixels of each object, ``(N, H, W)``; no pixel belongs to two."""
    expressions: tuple[str, ...]
    """One unambiguous expression for each object."""
    chosen: int
    """The object that the scene's own sample asks for."""
    difficulty: Difficulty
    """How it is painted."""
    paint_seed: int
    """Seed of everything that only the painter decides."""

    @cached_property
    def _painted(self) -> NDArray[np.uint8]:
        size = self.masks.shape[1]
        rng = np.random.default_rng(self.paint_seed)
        return paint(self.objects, self.patches, size, self.difficulty, rng)

    def image(self) -> NDArray[np.uint8]:
        """The image, ``(H, W, 3) uint8``: painted once, a new copy on every call."""
        return self._painted.copy()

    def describe(self, number: int) -> dict[str, Any]:
        """What is known of one object, JSON-able; ``bbox`` is x, y, width, height in pixels."""
        thing, mask = self.objects[number], self.masks[number]
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
        return {
            "expression": self.expressions[number],
            "color": thing.color,
            "shape": thing.shape,
            "size": thing.size,
            "texture": thing.texture,
            "bbox": [int(value) for value in box],
        }


def compose(rng: np.random.Generator, difficulty: Difficulty, size: int) -> Scene | None:
    """Draw a scene, or None if some object of it is hardly visible or cannot be named."""
    objects = tuple(arrange(rng, difficulty))
    patches = tuple(thing.cover(size) for thing in objects)
    alone = np.zeros((len(objects), size, size), dtype=np.bool_)
    visible = alone.copy()
    for number, patch in enumerate(patches):
        inside = patch.coverage >= 0.5
        alone[number][patch.window] = visible[number][patch.window] = inside
        visible[:number, *patch.window] &= ~inside
    if difficulty != "easy" and not _is_clear(alone, visible, RECIPES[difficulty].least_visible):
        return None
    expressions = refer(establish(objects, alone, visible), difficulty, rng)
    if expressions is None:
        return None
    chosen, paint_seed = int(rng.integers(len(objects))), int(rng.integers(2**63))
    return Scene(objects, patches, visible, expressions, chosen, difficulty, paint_seed)


def _is_clear(alone: NDArray[np.bool_], visible: NDArray[np.bool_], least: float) -> bool:
    """Whether enough is left of every object and no mere crumb of any sticks out somewhere."""
    before, after = alone.sum(axis=(1, 2)), visible.sum(axis=(1, 2))
    if (after < np.maximum(SMALLEST_AREA * visible[0].size, least * before)).any():
        return False
    return all(
        abs(ring_area(ring)) >= SMALLEST_PART
        for number in np.flatnonzero(after < before)
        for ring in trace(visible[number])
    )
