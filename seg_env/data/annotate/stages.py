"""The stages of annotation and what passes between them; each stage can be a class of your own.

A stage is named by a word (``score``) or an import path (``my_pkg.filters:Sharp``), followed by its
arguments as a JSON object where it needs any: ``score{"least": 0.4}``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from importlib import import_module
from itertools import groupby
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from seg_env.geometry.rle import Rle
from seg_env.types import Target

Box = tuple[float, float, float, float]
"""``x0, y0, x1, y1`` in pixels, end exclusive."""


class Reason(StrEnum):
    """Why something in a source did not become an image.

    If an archive is damaged, what comes before the fault is used.
    """

    UNREADABLE = "unreadable picture"
    TOO_MANY_PIXELS = "too many pixels"
    TOO_SMALL = "picture too small"
    NO_IMAGE = "no picture"
    """Text or metadata without an image, as a failed download leaves it."""
    ENCODING = "text not in UTF-8"
    """Its text or record is in neither UTF-8 nor UTF-16; a guess would garble it."""
    TOO_MANY_BYTES = "file too large"
    UNSAFE_NAME = "unsafe name"
    """The name of an archive's member leads out of a folder."""
    NOT_A_FILE = "link or device"
    """In an archive, or a link that leads out of the folder."""
    TRUNCATED = "truncated archive"
    CORRUPT = "corrupt archive"
    BOMB = "archive unpacks too large"
    CORRUPT_TABLE = "corrupt parquet"
    """A parquet file, or one of its row groups."""


@dataclass(frozen=True)
class Shard:
    """A part of a source that one worker annotates: whole, or not at all."""

    name: str
    paths: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class RawImage:
    """An encoded image as it lies in its source, not yet decoded."""

    key: str
    """Its name there. Not to be trusted: never use it as a path, and it may not be unique."""
    data: bytes = field(repr=False)
    text: str = ""
    """What the source says about it, such as the alternative text of a web page."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Where it came from and under which licence."""


@dataclass(frozen=True, eq=False, kw_only=True)
class DecodedImage(RawImage):
    """A decoded image with what its source says about it.

    `data` is the encoded image as it will be written; it decodes to `image` without being turned.
    """

    suffix: str
    """File ending, such as ``".jpg"``."""
    image: NDArray[np.uint8] = field(repr=False)
    """``(H, W, 3) uint8``."""

    @property
    def size(self) -> tuple[int, int]:
        """``(H, W)`` in pixels."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(frozen=True)
class Detection:
    """A box around something, with the detector's score (0 to 1) and label for it."""

    box: Box
    score: float
    label: str = ""


@dataclass(frozen=True, eq=False)
class Segment:
    """A mask at the size of the image, with the segmenter's score for it (0 to 1)."""

    rle: Rle
    score: float = 1.0


@dataclass(frozen=True, eq=False)
class Found:
    """One object on its way through the stages, each of which fills in a field."""

    image: DecodedImage = field(repr=False)
    """The image that it is in."""
    detection: Detection
    segment: Segment | None = None
    expression: str = ""

    @cached_property
    def target(self) -> Target:
        """The mask as a target, whose outline is traced once; ValueError before it has a mask."""
        if self.segment is None:
            raise ValueError(f"{self.detection} has no mask yet: this needs the segmenter's output")
        return Target(self.segment.rle)


def by_image(objects: Iterable[Found]) -> list[tuple[DecodedImage, list[Found]]]:
    """Each image with its objects, which must follow each other."""
    return [(image, list(some)) for image, some in groupby(objects, lambda found: found.image)]


@runtime_checkable
class ImageSource(Protocol):
    """Where images come from."""

    def shards(self) -> list[Shard]:
        """Its parts in a fixed order: the same for every worker and after every restart."""

    def read(self, shard: Shard) -> Iterator[RawImage | Reason]:
        """The images of a part in a fixed order, or the reason for each that is broken.

        Memory does not grow with the size of the part. Bad content never raises; a file that has
        disappeared does.
        """


@runtime_checkable
class Detector(Protocol):
    """Finds objects."""

    def detect(self, images: Sequence[DecodedImage]) -> list[list[Detection]]:
        """Boxes in each of ``B`` images; boxes may reach out of the image."""


@runtime_checkable
class Segmenter(Protocol):
    """Turns boxes into masks."""

    def segment(self, objects: Sequence[Found]) -> list[Segment | None]:
        """A mask of the image's size, or None, for the box of each of ``N`` objects.

        Objects of one image follow each other, see `by_image`.
        """


@runtime_checkable
class Describer(Protocol):
    """Says what objects are."""

    def describe(self, objects: Sequence[Found]) -> list[str]:
        """An expression for each of ``N`` objects; ``""`` for one that has none.

        It may be any text: the pipeline cleans and checks it.
        """


When = Literal["detector", "segmenter", "describer"]
"""The stage whose results a filter looks at."""


@runtime_checkable
class Filter(Protocol):
    """Decides which objects are good enough."""

    after: When

    def judge(self, image: DecodedImage, objects: Sequence[Found]) -> list[str | None]:
        """Why each of ``N`` objects of an image is dropped; None keeps it."""


SHORT_NAMES = {
    **dict.fromkeys(("files", "folder", "tar", "parquet"), "seg_env.data.annotate.sources:Files"),
    **dict.fromkeys(
        ("true_boxes", "true_masks", "true_expressions"), "seg_env.data.annotate.truth:Truth"
    ),
    "jittered_boxes": "seg_env.data.annotate.truth:JitteredBoxes",
    "frayed_masks": "seg_env.data.annotate.truth:FrayedMasks",
    "mixed_up_expressions": "seg_env.data.annotate.truth:MixedUpExpressions",
    "grounding_dino": "agents.annotators.grounding_dino:GroundingDino",
    "sam": "agents.annotators.sam:Sam",
    "vlm": "agents.annotators.vlm:VlmDescriber",
    "endpoint": "seg_env.data.annotate.endpoint:EndpointDescriber",
    "label": "seg_env.data.annotate.describing:LabelDescriber",
    "score": "seg_env.data.annotate.filters:Score",
    "area": "seg_env.data.annotate.filters:Area",
    "mask_score": "seg_env.data.annotate.filters:MaskScore",
    "agreement": "seg_env.data.annotate.filters:Agreement",
    "duplicates": "seg_env.data.annotate.filters:Duplicates",
    "ceiling": "seg_env.data.annotate.filters:Ceiling",
    "wording": "seg_env.data.annotate.filters:WordingFilter",
    "distinct": "seg_env.data.annotate.filters:Distinct",
}
"""Words for the stages that come with the project."""

DEFAULT_FILTERS = (
    "score", "area", "mask_score", "agreement", "duplicates", "ceiling", "wording", "distinct",
)  # fmt: skip
"""Filters in the order in which they are applied."""


def load_stage(text: str, kind: type[Any]) -> Any:
    """Build a stage from its name and arguments, as described at the top of this module.

    Raises:
        ValueError: The text is neither a known word nor an import path, its arguments are no JSON
            object or not those of the class, or the class does not follow the protocol ``kind``.
    """
    name, brace, rest = text.strip().partition("{")
    path = SHORT_NAMES.get(name.strip(), name.strip())
    module_name, colon, class_name = path.partition(":")
    if not (colon and module_name and class_name.isidentifier()):
        raise ValueError(
            f"{name!r} names no stage; use one of {', '.join(SHORT_NAMES)}, or an import path such "
            "as my_pkg.stages:MyClass"
        )
    try:
        arguments = json.loads(brace + rest) if brace else {}
        made = getattr(import_module(module_name), class_name)(**arguments)
    except ImportError as error:
        raise ValueError(f"the stage {name!r} cannot be imported: {error}") from error
    except (AttributeError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"the stage {text!r} cannot be built: {error}; arguments are a JSON object, such as "
            '{"least": 0.4}'
        ) from error
    if not isinstance(made, kind):
        raise ValueError(f"{name!r} is no {kind.__name__}; see seg_env.data.annotate.stages")
    return made


def check_whole(least: int, **values: Any) -> None:
    """Raise ValueError unless all arguments are whole numbers of at least ``least``."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r}; use a whole number from {least}")


def check_between(least: float, most: float, **values: Any) -> None:
    """Raise ValueError unless all arguments are numbers in the range."""
    for name, value in values.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (is_number and least <= value <= most):
            raise ValueError(f"{name}={value!r}; use a number from {least:g} to {most:g}")
