"""Filters: what is wrong with boxes, masks, outlines and descriptions.

Each returns its reasons for dropping objects; reports count them.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from seg_env.data.annotate.stages import DecodedImage, Found, When
from seg_env.geometry.overlap import iou_batch
from seg_env.geometry.rle import Rle
from seg_env.grammar import decode, encode
from seg_env.metrics.scores import iou_of_boxes


class _ObjectFilter(ABC):
    """A filter that looks at each object on its own, once it has a mask."""

    after: ClassVar[When] = "segmenter"

    def judge(self, image: DecodedImage, objects: Sequence[Found]) -> list[str | None]:
        """See `seg_env.data.annotate.stages.Filter`."""
        return [self._reason(found) for found in objects]

    @abstractmethod
    def _reason(self, found: Found) -> str | None:
        """Why an object is dropped; None keeps it."""


@dataclass(frozen=True)
class Score(_ObjectFilter):
    """Drops boxes that the detector is not sure of."""

    least: float = 0.3
    after: ClassVar[When] = "detector"

    def _reason(self, found: Found) -> str | None:
        return None if found.detection.score >= self.least else "low detection score"


@dataclass(frozen=True)
class Area(_ObjectFilter):
    """Drops objects that are too small to outline, and those that are the whole image."""

    least: float = 0.002
    """Share of the image, like `most`."""
    most: float = 0.9
    least_pixels: int = 64

    def _reason(self, found: Found) -> str | None:
        area, pixels = found.target.area, math.prod(found.image.size)
        if area < max(self.least * pixels, self.least_pixels):
            return "too small"
        return "too large" if area > self.most * pixels else None


@dataclass(frozen=True)
class MaskScore(_ObjectFilter):
    """Drops masks to which the segmenter itself gives a low score (SAM predicts their IoU)."""

    least: float = 0.7

    def _reason(self, found: Found) -> str | None:
        score = found.segment.score if found.segment else 0.0
        return None if score >= self.least else "low mask score"


@dataclass(frozen=True)
class Agreement(_ObjectFilter):
    """Drops masks that reach out of the box they were made from, or fill only a corner of it."""

    least: float = 0.5
    """Lowest IoU of the mask's bounding box with the detector's box."""

    def _reason(self, found: Found) -> str | None:
        overlap = iou_of_boxes([found.target.rle.bbox], [found.detection.box], 0.0)
        return None if overlap[0] >= self.least else "mask beside its box"


@dataclass(frozen=True)
class Duplicates:
    """Of masks that cover the same pixels, keeps the one with the best detection score."""

    most: float = 0.8
    """Mask IoU that two objects of an image may have."""
    after: ClassVar[When] = "segmenter"

    def judge(self, image: DecodedImage, objects: Sequence[Found]) -> list[str | None]:
        """See `seg_env.data.annotate.stages.Filter`."""
        reasons: list[str | None] = [None] * len(objects)
        kept: list[Rle] = []
        for place in sorted(range(len(objects)), key=lambda n: -objects[n].detection.score):
            rle = objects[place].target.rle
            if any(mask_iou(rle, other) > self.most for other in kept):
                reasons[place] = "duplicate"
            else:
                kept.append(rle)
        return reasons


@dataclass(frozen=True)
class Ceiling(_ObjectFilter):
    """Drops masks that a written outline cannot express, such as hair-thin ones.

    The IoU of the mask with its own outline, written and read, is the best score that a policy
    could get for it.
    """

    least: float = 0.85
    epsilon: float = 0.005
    """Tolerance of the outline, see `seg_env.types.Target.outline`."""
    decimals: int = 3
    most_vertices: int = 400

    def _reason(self, found: Found) -> str | None:
        rings = decode(encode(found.target.outline(self.epsilon), self.decimals)).rings
        if sum(map(len, rings)) > self.most_vertices:
            return "too many vertices"
        reached = iou_batch([rings], found.target.rle)[0]
        return None if reached >= self.least else "below representation ceiling"


_NO_DESCRIPTION = {
    # What reads as a special token or a template: <image>, <|im_end|>, [INST].
    "markup in description": re.compile(
        r"<[^<>\s]{1,60}>|<\|.{0,60}?\|>|\[/?INST\]|```|\{\{|\}\}|\{%", re.IGNORECASE
    ),
    # An outline would give the answer away within the question.
    "coordinates in description": re.compile(r"\[\s*[\[\d.]|\d\s*,\s*0?\.\d"),
    "address in description": re.compile(r"https?://|www\.|\S@\S+\.\w", re.IGNORECASE),
    # What models say instead of a description, or about the outline that they were shown.
    "refusal": re.compile(
        r"\b(?:i(?:'|’)?m sorry|i am sorry|i apologi[sz]e|i can(?:no|')?t|i cannot|"
        r"i(?:'| a)m unable|as an? (?:ai|language model)|unable to (?:see|identify|determine)|"
        r"not (?:visible|clear)|no (?:object|image|red outline)|the user|the outline|outlined)\b",
        re.IGNORECASE,
    ),
}
"""Patterns of text that is not about an object, by reason."""


@dataclass(frozen=True)
class WordingFilter(_ObjectFilter):
    """Drops descriptions that are not a short phrase about an object."""

    most_words: int = 30
    most_characters: int = 200
    after: ClassVar[When] = "describer"

    def _reason(self, found: Found) -> str | None:
        text = found.expression
        if len(text) > self.most_characters or len(text.split()) > self.most_words:
            return "description too long"
        if not any(character.isalpha() for character in text):
            return "description without words"
        matching = (reason for reason, each in _NO_DESCRIPTION.items() if each.search(text))
        return next(matching, None)


@dataclass(frozen=True)
class Distinct:
    """Drops objects that share their description with another object of the image."""

    after: ClassVar[When] = "describer"

    def judge(self, image: DecodedImage, objects: Sequence[Found]) -> list[str | None]:
        """See `seg_env.data.annotate.stages.Filter`."""
        texts = [found.expression.casefold() for found in objects]
        counts = Counter(texts)
        return ["ambiguous description" if counts[text] > 1 else None for text in texts]


def mask_iou(one: Rle, two: Rle) -> float:
    """IoU of two masks of one size, 0 where both are empty."""
    a, b = one.bbox, two.bbox
    if not (a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]):
        return 0.0
    union = Rle.union_of([one, two]).area
    return (one.area + two.area - union) / union
