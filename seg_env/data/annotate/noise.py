"""Labels made worse on purpose: what web pictures have, on scenes whose truth is known.

Each class wraps another stage. What it does follows from its seed and the picture's name, so a run
that was interrupted goes on with the noise it would have had.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from seg_env.data.annotate.arguments import check_between, check_whole
from seg_env.data.annotate.nouns import Detection, Found, Picture, Segment
from seg_env.data.annotate.stages import Describer, Detector, Segmenter, load_stage
from seg_env.geometry.rle import Rle


class JitteredBoxes:
    """Moves the sides of boxes."""

    def __init__(self, stage: str, sigma: float = 0.05, seed: int = 0) -> None:
        """Wrap a detector.

        Args:
            stage: The detector, see `seg_env.data.annotate.stages`.
            sigma: Standard deviation of each side as a share of the box's width or height,
                0 to 10.
            seed: What the noise depends on, from 0.

        Raises:
            ValueError: A number is out of range, or the stage cannot be built.
        """
        check_between(0, 10, sigma=sigma)
        check_whole(0, seed=seed)
        self._inner: Detector = load_stage(stage, Detector)
        self._sigma, self._seed = sigma, seed

    def detect(self, pictures: Sequence[Picture]) -> list[list[Detection]]:
        """See `seg_env.data.annotate.stages.Detector`."""
        found = self._inner.detect(pictures)
        return [
            [self._moved(detection, rng) for detection in some]
            for rng, some in zip(_rngs(pictures, self._seed, 0), found, strict=True)
        ]

    def _moved(self, detection: Detection, rng: np.random.Generator) -> Detection:
        x0, y0, x1, y1 = detection.box
        scale = self._sigma * np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0])
        left, top, right, bottom = (detection.box + rng.normal(size=4) * scale).tolist()
        box = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
        return Detection(box, detection.score, detection.label)


class FrayedMasks:
    """Lets masks grow or shrink by some pixels."""

    def __init__(self, stage: str, most: int = 2, seed: int = 0) -> None:
        """Wrap a segmenter.

        Args:
            stage: The segmenter.
            most: Pixels, from 0; each mask grows by a whole number drawn from ``[-most, most]``.
            seed: What the noise depends on, from 0.

        Raises:
            ValueError: A number is out of range, or the stage cannot be built.
        """
        check_whole(0, most=most)
        check_whole(0, seed=seed)
        self._inner: Segmenter = load_stage(stage, Segmenter)
        self._most, self._seed = most, seed

    def segment(
        self, pictures: Sequence[Picture], detections: Sequence[Sequence[Detection]]
    ) -> list[list[Segment | None]]:
        """See `seg_env.data.annotate.stages.Segmenter`."""
        found = self._inner.segment(pictures, detections)
        return [
            [self._frayed(segment, rng) for segment in some]
            for rng, some in zip(_rngs(pictures, self._seed, 1), found, strict=True)
        ]

    def _frayed(self, segment: Segment | None, rng: np.random.Generator) -> Segment | None:
        pixels = int(rng.integers(-self._most, self._most + 1))
        if segment is None or pixels == 0:
            return segment
        rank = ImageFilter.MaxFilter if pixels > 0 else ImageFilter.MinFilter
        mask = Image.fromarray(segment.rle.to_mask().astype(np.uint8))
        grown = np.asarray(mask.filter(rank(2 * abs(pixels) + 1))) != 0
        return Segment(Rle.from_mask(grown), segment.score)


class MixedUpExpressions:
    """Gives some objects the description of another one."""

    def __init__(self, stage: str, share: float = 0.1, seed: int = 0) -> None:
        """Wrap a describer.

        Args:
            stage: The describer.
            share: Probability, 0 to 1, that an object is described wrongly: by what was said of
                another object in the pictures that are annotated together.
            seed: What the noise depends on, from 0.

        Raises:
            ValueError: A number is out of range, or the stage cannot be built.
        """
        check_between(0, 1, share=share)
        check_whole(0, seed=seed)
        self._inner: Describer = load_stage(stage, Describer)
        self._share, self._seed = share, seed

    def describe(
        self, pictures: Sequence[Picture], objects: Sequence[Sequence[Found]]
    ) -> list[list[str]]:
        """See `seg_env.data.annotate.stages.Describer`."""
        texts = self._inner.describe(pictures, objects)
        everything = sorted({text for some in texts for text in some})
        return [
            [self._perhaps_wrong(text, everything, rng) for text in some]
            for rng, some in zip(_rngs(pictures, self._seed, 2), texts, strict=True)
        ]

    def _perhaps_wrong(self, text: str, all_texts: Sequence[str], rng: np.random.Generator) -> str:
        wrong, draw = rng.random(2)
        others = [each for each in all_texts if each != text]
        return others[int(draw * len(others))] if wrong < self._share and others else text


def _rngs(pictures: Sequence[Picture], seed: int, stage: int) -> list[np.random.Generator]:
    """One generator for each picture, from its name."""
    return [
        np.random.default_rng([seed, stage, zlib.crc32(p.key.encode("utf-8", "replace"))])
        for p in pictures
    ]
