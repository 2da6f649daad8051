"""From images to described objects: the stages one after another, and what each one drops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from seg_env.data.annotate.describing import clean_expression
from seg_env.data.annotate.job import Job, Tally
from seg_env.data.annotate.stages import (
    Box,
    DecodedImage,
    Describer,
    Detection,
    Detector,
    Filter,
    Found,
    Segmenter,
    When,
    load_stage,
)

Batch = list[list[Found]]
"""The objects of each image."""


class Annotator:
    """Finds, cuts out, describes and sorts the objects of images."""

    def __init__(self, job: Job) -> None:
        """Load the stages; models are loaded here.

        Raises:
            ValueError: A stage cannot be built, see `seg_env.data.annotate.stages.load_stage`.
        """
        self._detector: Detector = load_stage(job.detector, Detector)
        self._segmenter: Segmenter = load_stage(job.segmenter, Segmenter)
        self._describer: Describer = load_stage(job.describer, Describer)
        self._filters: list[Filter] = [load_stage(text, Filter) for text in job.filters]
        self._most_objects = job.most_objects

    def annotate(self, images: Sequence[DecodedImage], tally: Tally) -> Batch:
        """The objects of ``B`` images that pass all filters, each with mask and expression.

        What is found and why it is dropped is counted.

        Raises:
            ValueError: A stage returned something of the wrong length or size.
        """
        found = self._detect(images, tally)
        found = self._filter("detector", images, found, tally)
        found = self._segment(images, found, tally)
        found = self._filter("segmenter", images, found, tally)
        found = self._describe(images, found, tally)
        return self._filter("describer", images, found, tally)

    def _detect(self, images: Sequence[DecodedImage], tally: Tally) -> Batch:
        with tally.timed("detect"):
            boxes = self._detector.detect(images)
        _check_length("detector", boxes, images)
        batch: Batch = []
        for image, some in zip(images, boxes, strict=True):
            tally.detected += len(some)
            ranked = sorted(some, key=lambda each: -_finite(each.score))
            tally.dropped["too many objects"] += len(ranked[self._most_objects :])
            clipped = [_clip(each, image.size) for each in ranked[: self._most_objects]]
            tally.dropped["no box within the picture"] += clipped.count(None)
            batch.append([Found(each) for each in clipped if each is not None])
        return batch

    def _segment(self, images: Sequence[DecodedImage], found: Batch, tally: Tally) -> Batch:
        with tally.timed("segment"):
            masks = self._segmenter.segment(
                images, [[each.detection for each in some] for some in found]
            )
        _check_length("segmenter", masks, images)
        batch: Batch = []
        for image, some, segments in zip(images, found, masks, strict=True):
            _check_length("segmenter", segments, some)
            kept = []
            for each, segment in zip(some, segments, strict=True):
                if segment is None or not segment.rle.area or not math.isfinite(segment.score):
                    tally.dropped["no mask"] += 1
                elif segment.rle.size != image.size:
                    raise ValueError(
                        f"the segmenter gave a mask of {segment.rle.size} for a image of "
                        f"{image.size} (height, width)"
                    )
                else:
                    kept.append(replace(each, segment=segment))
            batch.append(kept)
        return batch

    def _describe(self, images: Sequence[DecodedImage], found: Batch, tally: Tally) -> Batch:
        with tally.timed("describe"):
            texts = self._describer.describe(images, found)
        _check_length("describer", texts, images)
        batch: Batch = []
        for some, described in zip(found, texts, strict=True):
            _check_length("describer", described, some)
            expressions = [clean_expression(text) for text in described]
            tally.dropped["no description"] += expressions.count("")
            batch.append(
                [
                    replace(each, expression=expression)
                    for each, expression in zip(some, expressions, strict=True)
                    if expression
                ]
            )
        return batch

    def _filter(
        self, after: When, images: Sequence[DecodedImage], found: Batch, tally: Tally
    ) -> Batch:
        with tally.timed("filter"):
            for each in self._filters:
                if each.after == after:
                    found = [
                        _kept(each, image, some, tally)
                        for image, some in zip(images, found, strict=True)
                    ]
        return found


def _kept(judge: Filter, image: DecodedImage, found: list[Found], tally: Tally) -> list[Found]:
    reasons = judge.judge(image, found)
    _check_length(type(judge).__name__, reasons, found)
    tally.dropped.update(reason for reason in reasons if reason is not None)
    return [each for each, reason in zip(found, reasons, strict=True) if reason is None]


def _clip(detection: Detection, size: tuple[int, int]) -> Detection | None:
    """The part of a box within the image; None where nothing is left, or it is no box at all."""
    if not all(map(math.isfinite, (*detection.box, detection.score))):
        return None
    height, width = size
    x0, y0, x1, y1 = map(float, detection.box)
    box: Box = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    return replace(detection, box=box) if box[2] > box[0] and box[3] > box[1] else None


def _finite(score: float) -> float:
    return score if math.isfinite(score) else -math.inf


def _check_length(stage: str, results: Sequence[object], wanted: Sequence[object]) -> None:
    if len(results) != len(wanted):
        raise ValueError(f"the {stage} gave {len(results)} results for {len(wanted)} inputs")
