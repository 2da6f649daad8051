"""Referring expressions: words for exactly one object of a scene, and what they mean.

A description has two extensions, sets of objects written as bits of an integer: those that it
*certainly* fits and those that it *possibly* fits ("left of" is certain well to the left and
possible already slightly to the left). Descriptions are enumerated from simple to complex. A
description names an object if it certainly fits that one and possibly no other, so borderline cases
never decide.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seg_env.data.scenes.layout import (
    COLORS,
    EASY_COLORS,
    EASY_SHAPES,
    Difficulty,
    SceneObject,
)
from seg_env.data.scenes.shapes import SHAPES

SUPERLATIVES = ("leftmost", "rightmost", "topmost", "bottommost", "largest", "smallest")
PLACES = ("on the left", "on the right", "at the top", "at the bottom", "in the middle")
DIRECTIONS = ("left of", "right of", "above", "below")
ORDERS = ("behind", "in front of")

WEIGHTS: dict[str, dict[str, float]] = {
    "easy": {"color": 1.0},
    "medium": {"shape": 1.0, "object": 0.5, "color": 2.0, "texture": 1.5, "size": 2.0}
    | {"place": 2.5, "superlative": 2.5},
    "hard": {"shape": 1.0, "object": 0.5, "color": 1.0, "texture": 1.0, "size": 1.0}
    | {"place": 1.0, "superlative": 1.5, "direction": 5.0, "order": 6.0},
}
"""How often each kind of description is chosen among those that fit, by difficulty."""


class Extension(NamedTuple):
    """The objects that a description fits; bit ``k`` stands for object ``k``."""

    certain: int
    possible: int
    """Includes the certain ones."""

    def both(self, other: Extension) -> Extension:
        """The objects that two descriptions fit together."""
        return Extension(self.certain & other.certain, self.possible & other.possible)


class Description(NamedTuple):
    """A noun phrase and the objects it fits."""

    kind: str
    """The kind of words that set the object apart, a key of `WEIGHTS`."""
    text: str
    """Without the article."""
    extension: Extension

    def names(self, number: int) -> bool:
        """Whether it means object ``number`` and nothing else."""
        return self.extension == (1 << number, 1 << number)


def refer(facts: Facts, difficulty: str, rng: np.random.Generator) -> tuple[str, ...] | None:
    """Draw an expression for every object; None if some object has none."""
    weights = WEIGHTS[difficulty]
    expressions = []
    for number in range(len(facts.objects)):
        options: dict[str, list[str]] = {}
        for it in describe(facts, number, weights):
            if it.names(number) and it.kind in weights:
                options.setdefault(it.kind, []).append(it.text)
        if not options:
            return None
        shares = np.array([weights[kind] for kind in options])
        texts = list(options.values())[rng.choice(len(options), p=shares / shares.sum())]
        nouns = [text for text in texts if "object" not in text]
        if nouns and rng.random() < 0.75:
            texts = nouns
        expressions.append(f"the {texts[rng.integers(len(texts))]}")
    return tuple(expressions)


def describe(facts: Facts, number: int, kinds: Container[str]) -> Iterator[Description]:
    """What can be said about object ``number``, from simple to complex.

    Places, superlatives and relations, if their keys of `WEIGHTS` are among ``kinds``, are only
    added to phrases that need them.
    """
    phrases = list(_phrases(facts, number))
    yield from phrases
    ambiguous = [it for it in phrases if it.kind != "texture" and not it.names(number)]
    ambiguous.append(Description("object", "object", facts.words["object"]))
    for phrase in ambiguous:
        for word in SUPERLATIVES if "superlative" in kinds else ():
            extension = facts.superlative(word, phrase.extension)
            yield Description("superlative", f"{word} {phrase.text}", extension)
        for place in PLACES if "place" in kinds else ():
            extension = phrase.extension.both(facts.words[place])
            yield Description("place", f"{phrase.text} {place}", extension)
    for anchor in range(len(facts.objects)) if "direction" in kinds else ():
        if anchor != number:
            yield from _related(facts, ambiguous, anchor)


def _phrases(facts: Facts, number: int) -> Iterator[Description]:
    """Combinations of size, colour, texture and shape that fit an object."""
    thing = facts.objects[number]
    sizes = ("",) if thing.size == "medium" else ("", thing.size)
    textures = ("",) if thing.texture == "plain" else ("", thing.texture)
    nouns = (
        ("shape", (thing.shape,)),
        ("object", (thing.color, "object")),
        ("color", (thing.color, thing.shape)),
    )
    for size, texture, (kind, noun) in itertools.product(sizes, textures, nouns):
        words = [word for word in (size, texture, *noun) if word]
        extension = facts.words["object"]
        for word in words:
            extension = extension.both(facts.words[word])
        kind = "size" if size else "texture" if texture else kind
        yield Description(kind, " ".join(words), extension)


def _related(facts: Facts, phrases: list[Description], anchor: int) -> Iterator[Description]:
    """Phrases completed by a relation to an object that can be named in a simple way."""
    names = [it.text for it in _phrases(facts, anchor) if it.names(anchor)]
    for name in names[:2]:
        for relation in DIRECTIONS + ORDERS:
            related = facts.relations[relation, anchor]
            kind = "direction" if relation in DIRECTIONS else "order"
            for phrase in phrases:
                text = f"{phrase.text} {relation} the {name}"
                yield Description(kind, text, phrase.extension.both(related))


def describe_absent(
    objects: Sequence[SceneObject], difficulty: Difficulty, rng: np.random.Generator
) -> str:
    """Words for a colour and a shape that no object of the scene has together.

    Three of four share colour or shape with an object of the scene, so that neither alone gives the
    absence away.
    """
    easy = difficulty == "easy"
    colors, shapes = (EASY_COLORS, EASY_SHAPES) if easy else (COLORS, tuple(SHAPES))
    present = {(thing.color, thing.shape) for thing in objects}
    seen_colors, seen_shapes = ({one[part] for one in present} for part in (0, 1))
    absent = [
        (color, shape) for color in colors for shape in shapes if (color, shape) not in present
    ]
    near = [pair for pair in absent if pair[0] in seen_colors or pair[1] in seen_shapes]
    choices = near if rng.random() < 0.75 else absent
    color, shape = choices[rng.integers(len(choices))]
    return f"the {color} {shape}"


@dataclass(frozen=True)
class Facts:
    """Extensions of all words in one scene."""

    objects: tuple[SceneObject, ...]
    words: dict[str, Extension]
    """Of colours, shapes, sizes, textures and places; a word that fits nothing may be missing."""
    relations: dict[tuple[str, int], Extension]
    """Of relations to an object, by relation and object: ``("left of", 2)``."""
    criteria: dict[str, tuple[tuple[list[float], float], ...]]
    """What a superlative measures: the winner must have the smallest value in each list, and to be
    certain, the smallest by a margin."""

    def superlative(self, word: str, among: Extension) -> Extension:
        """The objects that are, for instance, ``"leftmost"`` among those of an extension."""
        rivals = [k for k in range(among.possible.bit_length()) if among.possible >> k & 1]
        certain, possible = among.certain if len(rivals) > 1 else 0, 0
        for values, margin in self.criteria[word]:
            best = min((values[k] for k in rivals), default=0.0)
            near = sum(1 << k for k in rivals if values[k] < best + margin or values[k] == best)
            certain &= near if near.bit_count() == 1 else 0
            possible |= near
        return Extension(certain, possible)


def establish(
    objects: Sequence[SceneObject], alone: NDArray[np.bool_], visible: NDArray[np.bool_]
) -> Facts:
    """Measure a scene, from bottom to top.

    ``alone`` has the pixels of each object as if it stood alone, ``visible`` those that no other
    covers, both ``(N, H, W)``.
    """
    words, relations = _attributes(objects), _orders(alone, visible)
    scales = np.log([thing.scale for thing in objects])
    seen = np.log(visible.sum(axis=(1, 2)))
    # Size: by the outline and by what is seen. Outermost: by the middle and by the outer edge.
    criteria: dict[str, tuple[tuple[list[float], float], ...]] = {
        "smallest": ((scales.tolist(), 0.2), (seen.tolist(), 0.2)),
        "largest": (((-scales).tolist(), 0.2), ((-seen).tolist(), 0.2)),
    }
    right, down = _spread(visible, 1), _spread(visible, 2)
    left, up = (1.0 - spread[::-1] for spread in (right, down))  # the axis runs the other way
    along, across = (right, left, down, up), (down, down, right, right)  # in the words' order
    for (low, middle, high), (_, beside, _), place, superlative, direction in zip(
        along, across, PLACES, SUPERLATIVES, DIRECTIONS, strict=False
    ):
        words[place] = _below(middle, 0.36, 0.48)
        criteria[superlative] = ((middle.tolist(), 0.07), (low.tolist(), 0.02))
        for anchor in range(len(objects)):
            # Certain: neither reaches the other's middle, and the offset is not mostly sideways.
            ahead = middle[anchor] - middle
            certain = ahead > np.maximum(0.1, abs(beside[anchor] - beside))
            certain &= (high < middle[anchor]) & (middle < low[anchor])
            relations[direction, anchor] = Extension(_bits(certain), _bits(ahead > -0.03))
    from_middle = np.maximum(abs(right[1] - 0.5), abs(down[1] - 0.5))
    words["in the middle"] = _below(from_middle, 0.09, 0.2)
    return Facts(tuple(objects), words, relations, criteria)


def _spread(visible: NDArray[np.bool_], summed: int) -> NDArray[np.float64]:
    """First edge, mean and last edge of each object along one axis, ``(3, N)`` in the unit frame.

    The axis is the one that remains of ``(N, H, W)`` masks when the axis ``summed`` is summed over.
    """
    counts = visible.sum(axis=summed)
    length = counts.shape[1]
    first = (counts > 0).argmax(axis=1) / length
    last = 1.0 - (counts[:, ::-1] > 0).argmax(axis=1) / length
    mean = counts @ (np.arange(length) + 0.5) / counts.sum(axis=1) / length
    return np.array([first, mean, last])


def _attributes(objects: Sequence[SceneObject]) -> dict[str, Extension]:
    words = {"object": (1 << len(objects)) - 1}
    for k, thing in enumerate(objects):
        for word in (thing.shape, thing.color, thing.texture, thing.size):
            words[word] = words.get(word, 0) | 1 << k
    return {word: Extension(bits, bits) for word, bits in words.items()}


def _orders(
    alone: NDArray[np.bool_], visible: NDArray[np.bool_]
) -> dict[tuple[str, int], Extension]:
    """Who hides whom: certain from 5 % of the hidden object, possible from the first pixel."""
    relations: dict[tuple[str, int], Extension] = {}
    hidden = np.zeros((len(alone), len(alone)))  # share of an object that another one hides
    for k, other in itertools.combinations(range(len(alone)), 2):
        hidden[k, other] = (alone[k] & visible[other]).sum() / alone[k].sum()
    for anchor in range(len(alone)):
        relations["behind", anchor] = _below(-hidden[:, anchor], -0.05, 0.0)
        relations["in front of", anchor] = _below(-hidden[anchor], -0.05, 0.0)
    return relations


def _below(values: NDArray[np.float64], certain: float, possible: float) -> Extension:
    return Extension(_bits(values < certain), _bits(values < possible))


def _bits(fits: Iterable[bool] | NDArray[np.bool_]) -> int:
    return sum(1 << k for k, fit in enumerate(fits) if fit)
