"""Filters that look at descriptions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from seg_env.data.annotate.nouns import Found, Picture
from seg_env.data.annotate.stages import When

MARKUP = re.compile(r"<[^<>\s]{1,60}>|<\|.{0,60}?\|>|\[/?INST\]|```|\{\{|\}\}|\{%", re.IGNORECASE)
"""What reads as a special token or a template: ``<image>``, ``<|im_end|>``, ``[INST]``."""
COORDINATES = re.compile(r"\[\s*[\[\d.]|\d\s*,\s*0?\.\d")
"""What reads as an outline: it would give the answer away within the question."""
ADDRESS = re.compile(r"https?://|www\.|\S@\S+\.\w", re.IGNORECASE)
"""Addresses of pages and mail."""
REFUSAL = re.compile(
    r"\b(?:i(?:'|’)?m sorry|i am sorry|i apologi[sz]e|i can(?:no|')?t|i cannot|i(?:'| a)m unable|"
    r"as an? (?:ai|language model)|unable to (?:see|identify|determine)|not (?:visible|clear)|"
    r"no (?:object|image|red outline)|the user|the outline|outlined)\b",
    re.IGNORECASE,
)
"""What models say in place of a description, or about the outline that they were shown."""


@dataclass(frozen=True)
class WordingFilter:
    """Drops descriptions that are no short phrase about an object."""

    most_words: int = 30
    """Longest expression in words."""
    most_characters: int = 200
    """Longest expression in characters."""
    after: ClassVar[When] = "describer"

    def judge(self, picture: Picture, objects: Sequence[Found]) -> list[str | None]:
        """See `seg_env.data.annotate.stages.Filter`."""
        return [self._reason(found.expression) for found in objects]

    def _reason(self, text: str) -> str | None:
        if len(text) > self.most_characters or len(text.split()) > self.most_words:
            return "description too long"
        if not any(character.isalpha() for character in text):
            return "description without words"
        for reason, pattern in (
            ("markup in description", MARKUP),
            ("coordinates in description", COORDINATES),
            ("address in description", ADDRESS),
            ("refusal", REFUSAL),
        ):
            if pattern.search(text):
                return reason
        return None


@dataclass(frozen=True)
class Distinct:
    """Drops objects that share their description with another object of the picture."""

    after: ClassVar[When] = "describer"

    def judge(self, picture: Picture, objects: Sequence[Found]) -> list[str | None]:
        """See `seg_env.data.annotate.stages.Filter`."""
        counts = Counter(found.expression.casefold() for found in objects)
        return [
            "ambiguous description" if counts[found.expression.casefold()] > 1 else None
            for found in objects
        ]
