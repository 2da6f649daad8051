"""What describers have in common: how an object is shown to a model, and what is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from seg_env.data.annotate.nouns import Found, Picture

PROMPT = (
    "One object in this picture has a red outline. Write a short phrase, of at most 15 words, that "
    "refers to this object and to no other object in the picture: what it is, its look, its place. "
    "Write the phrase only, and do not mention the outline."
)
"""What a model is asked about a picture from `highlight`."""
RED = (255, 0, 0)


@dataclass(frozen=True)
class LabelDescriber:
    """Takes the detector's phrase as description; costs nothing and says little."""

    template: str = "the {label}"
    """How the phrase is worded."""

    def describe(
        self, pictures: Sequence[Picture], objects: Sequence[Sequence[Found]]
    ) -> list[list[str]]:
        """See `seg_env.data.annotate.stages.Describer`."""
        return [
            [
                self.template.replace("{label}", found.detection.label)
                if found.detection.label
                else ""
                for found in some
            ]
            for some in objects
        ]


def highlight(picture: Picture, found: Found, longest_side: int = 768) -> NDArray[np.uint8]:
    """The picture with a red outline around an object.

    Args:
        picture: The picture; not changed.
        found: The object, with its mask.
        longest_side: Larger pictures are reduced to it, in pixels.

    Returns:
        ``(H', W', 3) uint8`` with the proportions of the picture.
    """
    height, width = picture.size
    scale = min(1.0, longest_side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    drawn = Image.fromarray(picture.image).resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(drawn)
    thick = max(2, round(max(size) / 200))
    for ring in found.target.outline():
        points = [(float(x), float(y)) for x, y in ring * size]
        pen.line([*points, points[0]], fill=RED, width=thick, joint="curve")
    return np.asarray(drawn).copy()
