"""Procedural scenes: an endless supply of images, expressions and exact masks.

Everything about scene ``i`` follows from ``(seed, split, difficulty, i)``, so a data set is a few
numbers, needs no files, and costs one (easy) to eight (hard) milliseconds per scene.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from seg_env.data.scenes.language import describe_absent, establish, refer
from seg_env.data.scenes.layout import RECIPES, Difficulty, Patch, SceneObject, arrange
from seg_env.data.scenes.paint import paint
from seg_env.geometry.contour import trace
from seg_env.geometry.polygon import ring_area
from seg_env.types import Sample, Target

Split = Literal["train", "val", "test"]


class Scenes:
    """Data set of procedural scenes: sample ``i`` is one question about scene ``i``.

    Its name is ``"scenes-easy"``, ``"scenes-medium"`` or ``"scenes-hard"``.

    - Easy: one or two large flat shapes on plain gray, named by colour and shape.
    - Medium: two to four paper cut-outs of three sizes, some with textures, that overlap a little;
      named also by size, texture, place and superlatives.
    - Hard: three to five on a cluttered ground under uneven light, often cut in two by a bar; named
      also by their relation to another object.
    """

    def __init__(
        self,
        split: Split = "train",
        difficulty: Difficulty = "easy",
        seed: int = 0,
        length: int | None = None,
        size: int = 128,
        negatives: float = 0.0,
    ) -> None:
        """Describe the data set; nothing is drawn yet.

        Args:
            split: Splits have different scenes.
            difficulty: See above.
            seed: A number from 0.
            length: Number of scenes; by default a million for training and 4096 otherwise.
            size: Side of the square images in pixels, at least 32.
            negatives: Share of the questions, 0 to 1, that are about an object that is not in the
                image; the answer is ``[]``. Images and all other questions stay the same.

        Raises:
            ValueError: An argument is out of range.
        """
        _require_one_of("split", split, get_args(Split))
        _require_one_of("difficulty", difficulty, get_args(Difficulty))
        self._length = (1_000_000 if split == "train" else 4096) if length is None else length
        _require_at_least("seed", seed, 0)
        _require_at_least("length", self._length, 1)
        _require_at_least("size", size, 32)
        is_number = isinstance(negatives, Real) and not isinstance(negatives, bool)
        if not is_number or not 0.0 <= negatives <= 1.0:
            raise ValueError(f"negatives={negatives!r} is no share; use a number from 0 to 1")
        self.negatives = float(negatives)
        self.name = f"scenes-{difficulty}"
        self.split: str = split
        self.difficulty: Difficulty = difficulty
        self.seed = seed
        self.size = size

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """The question of scene ``index``; negative indices count from the end."""
        scene = self.scene(index)
        return self._sample(scene, index, None if scene.absent else scene.chosen)

    def name_of(self, index: int) -> str:
        """The name of scene ``index`` in reports."""
        return f"{self.name} ({self.split}) scene {index}"

    def samples_of(self, index: int) -> list[Sample]:
        """One sample for each object of scene ``index``, bottom first; they share the image.

        The scene's own sample, ``self[index]``, is one of them; if that is about an absent object,
        it comes last.
        """
        scene = self.scene(index)
        asked = [*range(len(scene.objects)), *([None] if scene.absent else [])]
        return [self._sample(scene, index, number) for number in asked]

    def others(self, index: int) -> list[Target]:
        """Masks of the objects of scene ``index`` that its question does not ask for."""
        scene = self.scene(index)
        asked = None if scene.absent else scene.chosen
        return [Target.from_mask(mask) for k, mask in enumerate(scene.masks) if k != asked]

    def scene(self, index: int) -> Scene:
        """Draw scene ``index``; the image itself is painted when it is asked for."""
        rng = self._generator(index)
        while (scene := compose(rng, self.difficulty, self.size)) is None:
            pass
        if self.negatives:
            rng = self._generator(index, 1)  # not the scene's own: images stay the same
            if rng.random() < self.negatives:
                absent = describe_absent(scene.objects, self.difficulty, rng)
                return replace(scene, absent=absent)
        return scene

    def _generator(self, index: int, *stream: int) -> np.random.Generator:
        splits, difficulties = get_args(Split), get_args(Difficulty)
        number = self._resolve(index)
        key = (splits.index(self.split), difficulties.index(self.difficulty), number, *stream)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))

    def _resolve(self, index: int) -> int:
        number = operator.index(index)
        if not -self._length <= number < self._length:
            raise IndexError(f"scene {number} is not in a data set of {self._length} scenes")
        return number % self._length

    def _sample(self, scene: Scene, index: int, number: int | None) -> Sample:
        """The question about an object of a scene, or, for None, about the absent one."""
        identifier = f"{self.name}-{self.split}-{self._resolve(index):06d}"
        others = [scene.describe(k) for k in range(len(scene.objects)) if k != number]
        metadata: dict[str, Any] = {"difficulty": self.difficulty, "others": others}
        if number is None:
            identifier += "-absent"
            expression, mask = scene.absent, np.zeros_like(scene.masks[0])
        else:
            identifier += "" if number == scene.chosen else f"-{number}"
            expression, mask = scene.expressions[number], scene.masks[number]
            metadata = scene.describe(number) | metadata
        return Sample(identifier, expression, Target.from_mask(mask), scene.image, metadata)


@dataclass(frozen=True, eq=False)
class Scene:
    """One arrangement of objects, with a question about each of them."""

    objects: tuple[SceneObject, ...]
    """From bottom to top, as in the fields that follow."""
    patches: tuple[Patch, ...]
    """Coverage of each object as if it stood alone."""
    masks: NDArray[np.bool_]
    """Visible pixels of each object, ``(N, H, W)``; no pixel belongs to two."""
    expressions: tuple[str, ...]
    """Unambiguous in this scene."""
    chosen: int
    """The object that the scene's own sample asks for."""
    difficulty: Difficulty
    paint_seed: int
    absent: str = ""
    """An expression for an object that is not there, if the question is about that instead."""

    @cached_property
    def _painted(self) -> NDArray[np.uint8]:
        size = self.masks.shape[1]
        rng = np.random.default_rng(self.paint_seed)
        return paint(self.objects, self.patches, size, self.difficulty, rng)

    def image(self) -> NDArray[np.uint8]:
        """The image, ``(H, W, 3) uint8``: painted once, a new copy on every call."""
        return self._painted.copy()

    def describe(self, number: int) -> dict[str, Any]:
        """Facts about one object, JSON-able; ``bbox`` is x, y, width, height in pixels."""
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


def _require_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown; use one of {', '.join(allowed)}")


def _require_at_least(name: str, value: int, smallest: int) -> None:
    if operator.index(value) < smallest:
        raise ValueError(f"{name}={value} is too small; use a whole number from {smallest}")


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
    """Whether enough of every object is visible, without tiny parts or holes."""
    before, after = alone.sum(axis=(1, 2)), visible.sum(axis=(1, 2))
    if (after < np.maximum(0.01 * visible[0].size, least * before)).any():
        return False
    return all(
        abs(ring_area(ring)) >= 0.001
        for number in np.flatnonzero(after < before)
        for ring in trace(visible[number])
    )
