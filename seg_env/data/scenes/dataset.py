"""Procedural scenes: an endless supply of images, expressions and exact masks.

Everything about scene ``i`` follows from ``(seed, split, difficulty, i)``, so a data set is a few
numbers, needs no files, and costs one (easy) to eight (hard) milliseconds per scene.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from numbers import Real
from typing import Literal, get_args

import numpy as np

from seg_env.data.scenes.language import describe_absent, vocabulary
from seg_env.data.scenes.layout import Difficulty
from seg_env.data.scenes.scene import Scene, compose
from seg_env.types import Sample, Target

Split = Literal["train", "val", "test"]

LENGTHS: dict[str, int] = {"train": 1_000_000, "val": 4096, "test": 4096}
"""Number of scenes of a split unless told otherwise; scenes are made when asked for."""
SMALLEST_SIZE = 32
"""Least side of an image in pixels."""
_ABSENT = 1  # Last part of the key by which absent objects are drawn, apart from the scene itself.


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
            split: ``"train"``, ``"val"`` or ``"test"``; their scenes are drawn with different keys.
            difficulty: ``"easy"``, ``"medium"`` or ``"hard"``.
            seed: Number from 0 that all scenes depend on.
            length: Number of scenes; by default a million for training and 4096 otherwise.
            size: Side of the square images in pixels, at least 32.
            negatives: Share of the questions, 0 to 1, that are about an object that is not in the
                image; the answer is ``[]``. Images and all other questions stay the same.

        Raises:
            ValueError: An argument outside what is listed here.
        """
        _require_one_of("split", split, get_args(Split))
        _require_one_of("difficulty", difficulty, get_args(Difficulty))
        _require_at_least("seed", seed, 0)
        _require_at_least("length", LENGTHS[split] if length is None else length, 1)
        _require_at_least("size", size, SMALLEST_SIZE)
        is_number = isinstance(negatives, Real) and not isinstance(negatives, bool)
        if not is_number or not 0.0 <= negatives <= 1.0:
            raise ValueError(f"negatives={negatives!r} is no share; use a number from 0 to 1")
        self.negatives = float(negatives)
        self.name = f"scenes-{difficulty}"
        self.split: str = split
        self.difficulty: Difficulty = difficulty
        self.seed = seed
        self.size = size
        self._length = LENGTHS[split] if length is None else length

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word that an expression of this difficulty can contain."""
        return vocabulary(self.difficulty)

    def __len__(self) -> int:
        """Number of scenes, which is the number of samples."""
        return self._length

    def __iter__(self) -> Iterator[Sample]:
        """All samples in order."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """The question of scene ``index``; negative indices count from the end.

        Raises:
            IndexError: Outside ``[-len, len)``.
        """
        scene, resolved = self.scene(index), self._resolve(index)
        absent = self._absent(scene, resolved)
        return self._sample(scene, resolved, scene.chosen) if absent is None else absent

    def name_of(self, index: int) -> str:
        """What scene ``index`` is called in reports."""
        return f"{self.name} ({self.split}) scene {index}"

    def samples_of(self, index: int) -> list[Sample]:
        """One sample for each object of scene ``index``, bottom first; they share the image.

        The scene's own sample, ``self[index]``, is one of them; if that is about an absent object,
        it comes last.

        Raises:
            IndexError: Outside ``[-len, len)``.
        """
        scene = self.scene(index)
        resolved = self._resolve(index)
        samples = [self._sample(scene, resolved, number) for number in range(len(scene.objects))]
        absent = self._absent(scene, resolved)
        return samples if absent is None else [*samples, absent]

    def others(self, index: int) -> list[Target]:
        """Masks of the objects of scene ``index`` that its question does not ask for.

        Raises:
            IndexError: Outside ``[-len, len)``.
        """
        scene = self.scene(index)
        absent = self._absent(scene, self._resolve(index))
        return [
            Target.from_mask(mask)
            for number, mask in enumerate(scene.masks)
            if number != scene.chosen or absent is not None
        ]

    def scene(self, index: int) -> Scene:
        """Draw scene ``index``; the image itself is painted when it is asked for.

        Raises:
            IndexError: Outside ``[-len, len)``.
        """
        rng = self._generator(self._resolve(index))
        while True:
            scene = compose(rng, self.difficulty, self.size)
            if scene is not None:
                return scene

    def _generator(self, index: int, *stream: int) -> np.random.Generator:
        """What decides about scene ``index``, or about something beside it."""
        splits, difficulties = get_args(Split), get_args(Difficulty)
        key = (splits.index(self.split), difficulties.index(self.difficulty), index, *stream)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))

    def _absent(self, scene: Scene, index: int) -> Sample | None:
        """The question about an object that is not in the scene, if that is its question."""
        if not self.negatives:
            return None
        rng = self._generator(index, _ABSENT)
        if rng.random() >= self.negatives:
            return None
        return Sample(
            id=f"{self.name}-{self.split}-{index:06d}-absent",
            expression=describe_absent(scene.objects, self.difficulty, rng),
            target=Target.from_mask(np.zeros(scene.masks.shape[1:], dtype=np.bool_)),
            load_image=scene.image,
            metadata={
                "difficulty": self.difficulty,
                "others": [scene.describe(number) for number in range(len(scene.objects))],
            },
        )

    def _resolve(self, index: int) -> int:
        """The index counted from the start."""
        number = operator.index(index)
        if not -self._length <= number < self._length:
            raise IndexError(f"scene {number} is not in a data set of {self._length} scenes")
        return number % self._length

    def _sample(self, scene: Scene, index: int, number: int) -> Sample:
        """The question about object ``number`` of a scene."""
        identifier = f"{self.name}-{self.split}-{index:06d}"
        if number != scene.chosen:
            identifier += f"-{number}"
        others = [scene.describe(k) for k in range(len(scene.objects)) if k != number]
        return Sample(
            id=identifier,
            expression=scene.expressions[number],
            target=Target.from_mask(scene.masks[number]),
            load_image=scene.image,
            metadata={
                **scene.describe(number),
                "difficulty": self.difficulty,
                "others": others,
            },
        )


def _require_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown; use one of {', '.join(allowed)}")


def _require_at_least(name: str, value: int, smallest: int) -> None:
    if operator.index(value) < smallest:
        raise ValueError(f"{name}={value} is too small; use a whole number from {smallest}")
