"""How an object is shown and asked about, and how text from outside is cleaned."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from seg_env.data.annotate.stages import Found

PROMPT = (
    "One object in this picture has a red outline. Write a short phrase, of at most 15 words, that "
    "refers to this object and to no other object in the picture: what it is, its look, its place. "
    "Write the phrase only, and do not mention the outline."
)
"""What a model is asked about an image from `highlight`."""
LONGEST = 300
"""Most characters that are kept of a text from outside."""


@dataclass(frozen=True)
class LabelDescriber:
    """Takes the detector's phrase as description; costs nothing and says little."""

    template: str = "the {label}"

    def describe(self, objects: Sequence[Found]) -> list[str]:
        """See `seg_env.data.annotate.stages.Describer`."""
        labels = [found.detection.label for found in objects]
        return [label and self.template.replace("{label}", label) for label in labels]


def highlight(found: Found, longest_side: int = 768) -> NDArray[np.uint8]:
    """A copy of an object's image, at most ``longest_side`` pixels long, with a red outline."""
    height, width = found.image.size
    scale = min(1.0, longest_side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    drawn = Image.fromarray(found.image.image).resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(drawn)
    thick = max(2, round(max(size) / 200))
    for ring in found.target.outline():
        points = [(float(x), float(y)) for x, y in ring * size]
        pen.line([*points, points[0]], fill=(255, 0, 0), width=thick, joint="curve")
    return np.asarray(drawn).copy()


def clean_text(text: str, longest: int = LONGEST) -> str:
    """One line of the visible characters of any text, in Unicode's composed form.

    Only the first 10,000 characters are looked at. What exceeds ``longest`` characters is cut off,
    at a space where there is one.
    """
    # Control characters, formatting such as marks of the writing direction, lone surrogates,
    # private and unassigned characters, separators of lines.
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    visible = (
        " " if character.isspace() else character
        for character in text[:10_000]
        if character.isspace() or unicodedata.category(character) not in hidden
    )
    line = " ".join(unicodedata.normalize("NFC", "".join(visible)).split())
    if len(line) <= longest:
        return line
    cut = line[: longest + 1].rpartition(" ")[0]
    return cut or line[:longest]


def clean_expression(text: str) -> str:
    """A description as an expression: `clean_text` without outer quotes or a final full stop."""
    quotes = "\"'`“”‘’«»„ "
    # Filters must see that a text is too long: half a sentence is no expression.
    line = clean_text(text, 2 * LONGEST)
    line = re.sub(r"^(?:answer|description|expression)\s*:\s*", "", line, flags=re.IGNORECASE)
    line = line.strip(quotes)
    return line[:-1].strip(quotes) if line.endswith(".") and not line.endswith("..") else line
