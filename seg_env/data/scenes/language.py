"""Referring expressions: words for exactly one object of a scene.

Descriptions are enumerated from simple to complex and evaluated over the objects of the scene. A
description names an object if it certainly fits that one and possibly no other (see
`seg_env.data.scenes.facts`), so borderline cases never decide.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from seg_env.data.scenes.facts import Extension, Facts
from seg_env.data.scenes.layout import (
    COLORS,
    EASY_COLORS,
    EASY_SHAPES,
    TEXTURES,
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

NOUN_SHARE = 0.75
"""How often ``"object"`` is avoided where a noun would do."""
NEAR_MISS_SHARE = 0.75
"""How often an absent object shares its colour or shape with one of the scene."""


class Description(NamedTuple):
    """A noun phrase and the objects it fits."""

    kind: str
    """What sets it apart, a key of `WEIGHTS`."""
    text: str
    """The words without the article."""
    extension: Extension
    """The objects it certainly and possibly fits."""

    def names(self, number: int) -> bool:
        """Whether it means object ``number`` and nothing else."""
        return self.extension == (1 << number, 1 << number)


def vocabulary(difficulty: str) -> tuple[str, ...]:
    """Every word that an expression of the difficulty can contain, in alphabetical order."""
    if difficulty == "easy":
        return tuple(sorted({"the", *EASY_COLORS, *EASY_SHAPES}))
    phrases = ["the small large object", *SHAPES, *COLORS, *TEXTURES, *PLACES, *SUPERLATIVES]
    if difficulty == "hard":
        phrases += [*DIRECTIONS, *ORDERS]
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


def refer(facts: Facts, difficulty: str, rng: np.random.Generator) -> tuple[str, ...] | None:
    """Draw an expression for every object.

    Args:
        facts: What is true in the scene.
        difficulty: ``"easy"`` always gives colour and shape; see `WEIGHTS` for the others.
        rng: Chooses among the descriptions that fit.

    Returns:
        One expression per object, or None if some object has none.
    """
    weights = WEIGHTS[difficulty]
    expressions = []
    for number in range(facts.count):
        options: dict[str, list[str]] = {}
        for kind, text, extension in describe(facts, number, weights):
            if extension == (1 << number, 1 << number) and kind in weights:
                options.setdefault(kind, []).append(text)
        if not options:
            return None
        shares = np.array([weights[kind] for kind in options])
        texts = list(options.values())[rng.choice(len(options), p=shares / shares.sum())]
        proper = [text for text in texts if "object" not in text]
        if proper and rng.random() < NOUN_SHARE:
            texts = proper
        expressions.append(f"the {texts[rng.integers(len(texts))]}")
    return tuple(expressions)


def describe(facts: Facts, number: int, kinds: Container[str]) -> Iterator[Description]:
    """What can be said about object ``number``, from simple to complex.

    Places, superlatives and relations are only added to phrases that need them.

    Args:
        facts: What is true in the scene.
        number: The object.
        kinds: Keys of `WEIGHTS`; what needs others is left out.
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
    for anchor in range(facts.count) if "direction" in kinds else ():
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

    Most of them are near misses, so that neither colour nor shape alone gives the absence away.

    Args:
        objects: What is in the scene.
        difficulty: Decides which colours and shapes there are.
        rng: Chooses among the expressions.
    """
    easy = difficulty == "easy"
    colors, shapes = (EASY_COLORS, EASY_SHAPES) if easy else (COLORS, tuple(SHAPES))
    present = {(thing.color, thing.shape) for thing in objects}
    seen_colors, seen_shapes = ({one[part] for one in present} for part in (0, 1))
    absent = [
        (color, shape) for color in colors for shape in shapes if (color, shape) not in present
    ]
    near = [pair for pair in absent if pair[0] in seen_colors or pair[1] in seen_shapes]
    choices = near if rng.random() < NEAR_MISS_SHARE else absent
    color, shape = choices[rng.integers(len(choices))]
    return f"the {color} {shape}"
