"""What is true of the objects of a scene: the meaning of every word that expressions use.

A word has two extensions, sets of objects written as bits of an integer: those that it *certainly*
fits and those that it *possibly* fits ("left of" is certain well to the left and possible already
slightly to the left). Places and sizes are measured on visible pixels, in the unit frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seg_env.data.scenes.layout import SceneObject


class Extension(NamedTuple):
    """The objects that a description fits; bit ``k`` stands for object ``k``."""

    certain: int
    possible: int
    """Includes the certain ones."""

    def both(self, other: Extension) -> Extension:
        """The objects that two descriptions fit together."""
        return Extension(self.certain & other.certain, self.possible & other.possible)


class Criterion(NamedTuple):
    """A measurement by which a superlative picks the object with the smallest value."""

    values: tuple[float, ...]
    margin: float
    """How much smaller than all others the winner must be to be certain."""


@dataclass(frozen=True)
class Facts:
    """Extensions of all words in one scene."""

    objects: tuple[SceneObject, ...]
    words: dict[str, Extension]
    """Of colours, shapes, sizes, textures and places; a word that fits nothing may be missing."""
    relations: dict[tuple[str, int], Extension]
    """Of what stands in a relation to an object: ``("left of", 2)``."""
    criteria: dict[str, tuple[Criterion, ...]]
    """What a superlative measures; the winner must win by each of them."""

    def superlative(self, word: str, among: Extension) -> Extension:
        """The objects that are, for instance, ``"leftmost"`` of those that something else fits."""
        rivals = [k for k in range(among.possible.bit_length()) if among.possible >> k & 1]
        certain, possible = among.certain if len(rivals) > 1 else 0, 0
        for values, margin in self.criteria[word]:
            best = min((values[k] for k in rivals), default=0.0)
            near = [k for k in rivals if values[k] < best + margin or values[k] == best]
            certain &= _bits(near) if len(near) == 1 else 0
            possible |= _bits(near)
        return Extension(certain, possible)


class _Spread(NamedTuple):
    """First edge, mean and last edge of each object's visible pixels along one axis, unit frame."""

    low: list[float]
    middle: list[float]
    high: list[float]

    @classmethod
    def along(cls, visible: NDArray[np.bool_], summed: int) -> _Spread:
        """Measure ``(N, H, W)`` masks along the axis that remains when one is summed over."""
        counts = visible.sum(axis=summed)
        length = counts.shape[1]
        first = (counts > 0).argmax(axis=1) / length
        last = 1.0 - (counts[:, ::-1] > 0).argmax(axis=1) / length
        mean = counts @ (np.arange(length) + 0.5) / counts.sum(axis=1) / length
        return cls(first.tolist(), mean.tolist(), last.tolist())

    def mirrored(self) -> _Spread:
        """The same with the axis running the other way."""
        return _Spread(*([1.0 - value for value in values] for values in self[::-1]))


def establish(
    objects: Sequence[SceneObject], alone: NDArray[np.bool_], visible: NDArray[np.bool_]
) -> Facts:
    """Measure a scene, from bottom to top.

    ``alone`` has the pixels of each object as if it stood alone, ``visible`` those that no other
    covers, both ``(N, H, W)``.
    """
    areas = visible.sum(axis=(1, 2))
    across, down = _Spread.along(visible, 1), _Spread.along(visible, 2)
    return Facts(
        objects=tuple(objects),
        words=_attributes(objects) | _places(across.middle, down.middle),
        relations=_directions(across, down) | _orders(alone, visible),
        criteria=_criteria(across, down, objects, areas),
    )


def _criteria(
    across: _Spread, down: _Spread, objects: Sequence[SceneObject], areas: NDArray[np.int64]
) -> dict[str, tuple[Criterion, ...]]:
    """Outermost: by the middle and by the outer edge. Size: by the outline and by what is seen."""
    scales = [float(np.log(thing.scale)) for thing in objects]
    seen = np.log(areas).tolist()
    outermost = {
        word: (Criterion(tuple(first), 0.07), Criterion(tuple(second), 0.02))
        for word, first, second in (
            ("leftmost", across.middle, across.low),
            ("rightmost", across.mirrored().middle, across.mirrored().low),
            ("topmost", down.middle, down.low),
            ("bottommost", down.mirrored().middle, down.mirrored().low),
        )
    }
    return {
        **outermost,
        "smallest": (Criterion(tuple(scales), 0.2), Criterion(tuple(seen), 0.2)),
        "largest": (
            Criterion(tuple(-value for value in scales), 0.2),
            Criterion(tuple(-value for value in seen), 0.2),
        ),
    }


def _attributes(objects: Sequence[SceneObject]) -> dict[str, Extension]:
    words = {"object": (1 << len(objects)) - 1}
    for k, thing in enumerate(objects):
        for word in (thing.shape, thing.color, thing.texture, thing.size):
            words[word] = words.get(word, 0) | 1 << k
    return {word: Extension(bits, bits) for word, bits in words.items()}


def _places(x: Sequence[float], y: Sequence[float]) -> dict[str, Extension]:
    from_middle = [max(abs(a - 0.5), abs(b - 0.5)) for a, b in zip(x, y, strict=True)]
    return {
        "on the left": _below(x, 0.36, 0.48),
        "on the right": _below([1.0 - value for value in x], 0.36, 0.48),
        "at the top": _below(y, 0.36, 0.48),
        "at the bottom": _below([1.0 - value for value in y], 0.36, 0.48),
        "in the middle": _below(from_middle, 0.09, 0.2),
    }


def _directions(across: _Spread, down: _Spread) -> dict[tuple[str, int], Extension]:
    """Certain: neither reaches the other's middle, and the way there is not mostly sideways."""
    relations: dict[tuple[str, int], Extension] = {}
    for anchor in range(len(across.middle)):
        for word, along, aside in (
            ("left of", across, down),
            ("right of", across.mirrored(), down),
            ("above", down, across),
            ("below", down.mirrored(), across),
        ):
            ahead = [along.middle[anchor] - value for value in along.middle]
            beside = [abs(aside.middle[anchor] - value) for value in aside.middle]
            certain = (
                k
                for k, distance in enumerate(ahead)
                if distance > max(0.1, beside[k])
                and along.high[k] < along.middle[anchor]
                and along.middle[k] < along.low[anchor]
            )
            possible = (k for k, distance in enumerate(ahead) if distance > -0.03)
            relations[word, anchor] = Extension(_bits(certain), _bits(possible))
    return relations


def _orders(
    alone: NDArray[np.bool_], visible: NDArray[np.bool_]
) -> dict[tuple[str, int], Extension]:
    """Who hides whom: certain from 5 % of the hidden object, possible from the first pixel."""
    count = len(alone)
    hidden = [
        [float((alone[k] & visible[other]).sum() / alone[k].sum()) if other > k else 0.0
         for other in range(count)]
        for k in range(count)
    ]  # fmt: skip
    relations: dict[tuple[str, int], Extension] = {}
    for anchor in range(count):
        behind = [-hidden[k][anchor] for k in range(count)]
        relations["behind", anchor] = _below(behind, -0.05, 0.0)
        relations["in front of", anchor] = _below([-value for value in hidden[anchor]], -0.05, 0.0)
    return relations


def _below(values: Sequence[float], certain: float, possible: float) -> Extension:
    return Extension(
        _bits(k for k, value in enumerate(values) if value < certain),
        _bits(k for k, value in enumerate(values) if value < possible),
    )


def _bits(numbers: Iterable[int]) -> int:
    return sum(1 << k for k in numbers)
