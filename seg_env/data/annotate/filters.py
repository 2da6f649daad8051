"""Filters that look at boxes, masks and outlines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from seg_env.data.annotate.nouns import Box, Found, Picture
from seg_env.data.annotate.stages import When
from seg_env.geometry.overlap import iou_batch
from seg_env.geometry.rle import Rle
from seg_env.grammar import decode, encode


@dataclass(frozen=True)
class Score:
    """Drops boxes that the detector is not sure of."""

    least: float = 0.3
    """Lowest score that is kept."""
    after: ClassVar[When] = "detector"

    def judge(self, picture: Picture, objects: Sequence[Found]) -> list[str | None]:
        """See `seg_env.data.annotate.stages.Filter`."""
        return [
            None if found.detection.score >= self.least else "low detection score"
            for found in objects
        ]


@dataclass(frozen=True)
class Area:
    """Drops objects that are too small to outline, and those that are the whole picture."""

    least: float = 0.002
    """Smallest share of the picture."""
    most: float = 0.9
    """Largest share of the picture."""
    least_pixels: int = 64
    """Fewest pixels."""
    after: ClassVar[When] = "segmenter"

    def judge(self, picture: Picture, objects: Sequence[Found]) -> list[str | None]:
        """See `seg_env.data.annotate.stages.Filter`."""
        pixels = math.prod(picture.size)
        fewest = max(self.least * pixels, self.least_pixels)
        return [
            "too small" if area < fewest else "too large" if area > self.most * pixels else None
            for area in (found.target.area for found in objects)
        ]


@dataclass(frozen=True)
class MaskScore:
    """Drops masks that the segmenter itself thinks little of (SAM predicts their IoU)."""

    least: float = 0.7
    """Lowest score that is kept."""
    after: ClassVar[When] = "segmenter"

    def judge(self, picture: Picture, objects: Sequence[Found]) -> list[str | None]:
        """See `seg_env.data.annotate.stages.Filter`."""
        scores = [found.segment.score if found.segment else 0.0 for found in objects]
        return [None if score >= self.least else "low mask score" for score in scores]


@dataclass(frozen=True)
class Agreement:
    """Drops masks that leave the box they were made from, or fill a corner of it."""

    least: float = 0.5
    """Lowest IoU of the mask's bounding box with the detector's box."""
    after: ClassVar[When] = "segmenter"

    def judge(self, picture: Picture, objects: Sequence[Found]) -> list[str | None]:
        """See `seg_env.data.annotate.stages.Filter`."""
        return [
            None
            if box_iou(found.target.rle.bbox, found.detection.box) >= self.least
            else "mask beside its box"
            for found in objects
        ]


@dataclass(frozen=True)
class Duplicates:
    """Of masks that cover the same pixels, keeps the one with the best detection score."""

    most: float = 0.8
    """Highest mask IoU that two objects of a picture may have."""
    after: ClassVar[When] = "segmenter"

    def judge(self, picture: Picture, objects: Sequence[Found]) -> list[str | None]:
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
class Ceiling:
    """Drops objects that text cannot say well.

    The mask is outlined as answers are taught, written, read and filled: what is left of its IoU is
    the best score that a policy could get for it. Masks in tatters and hair-thin ones fail.
    """

    least: float = 0.85
    """Lowest IoU of the written outline with the mask."""
    epsilon: float = 0.005
    """Tolerance of the outline, see `seg_env.types.Target.outline`."""
    decimals: int = 3
    """Digits written."""
    most_vertices: int = 400
    """Longest outline."""
    after: ClassVar[When] = "segmenter"

    def judge(self, picture: Picture, objects: Sequence[Found]) -> list[str | None]:
        """See `seg_env.data.annotate.stages.Filter`."""
        return [self._reason(found) for found in objects]

    def _reason(self, found: Found) -> str | None:
        rings = decode(encode(found.target.outline(self.epsilon), self.decimals)).rings
        if sum(map(len, rings)) > self.most_vertices:
            return "too many vertices"
        reached = iou_batch([rings], found.target.rle)[0]
        return None if reached >= self.least else "below representation ceiling"


def box_iou(one: Box, two: Box) -> float:
    """IoU of two boxes, 0 where both are empty."""
    x0, y0 = np.maximum(one[:2], two[:2])
    x1, y1 = np.minimum(one[2:], two[2:])
    shared = max(x1 - x0, 0.0) * max(y1 - y0, 0.0)
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)) - shared
    return float(shared / area) if area > 0 else 0.0


def mask_iou(one: Rle, two: Rle) -> float:
    """IoU of two masks of one size, 0 where both are empty."""
    if not _overlap(one.bbox, two.bbox):
        return 0.0
    union = Rle.union_of([one, two]).area
    return (one.area + two.area - union) / union


def _overlap(one: Box, two: Box) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]
