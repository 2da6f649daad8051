"""The stages of annotation, each replaceable by a class of your own.

A stage is named by a word (``score``) or an import path (``my_pkg.filters:Sharp``), followed by its
arguments as a JSON object where it needs any: ``score{"least": 0.4}``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, Literal, Protocol, runtime_checkable

from seg_env.data.annotate.nouns import (
    Detection,
    Found,
    Picture,
    RawPicture,
    Rejected,
    Segment,
    Shard,
)

When = Literal["detector", "segmenter", "describer"]
"""The stage whose results a filter looks at."""


@runtime_checkable
class ImageSource(Protocol):
    """Where pictures come from."""

    def shards(self) -> list[Shard]:
        """Its parts in a fixed order: the same for every worker and after every restart."""
        ...

    def read(self, shard: Shard) -> Iterator[RawPicture | Rejected]:
        """The pictures of a part, one after another in a fixed order; what is broken is reported.

        Memory does not grow with the size of the part. Content never raises; a file that has
        disappeared does.
        """
        ...


@runtime_checkable
class Detector(Protocol):
    """Finds objects."""

    def detect(self, pictures: Sequence[Picture]) -> list[list[Detection]]:
        """Boxes in each of ``B`` pictures; boxes may reach out of the picture."""
        ...


@runtime_checkable
class Segmenter(Protocol):
    """Turns boxes into masks."""

    def segment(
        self, pictures: Sequence[Picture], detections: Sequence[Sequence[Detection]]
    ) -> list[list[Segment | None]]:
        """A mask, or None, for each box of each of ``B`` pictures, of the picture's size."""
        ...


@runtime_checkable
class Describer(Protocol):
    """Says what objects are."""

    def describe(
        self, pictures: Sequence[Picture], objects: Sequence[Sequence[Found]]
    ) -> list[list[str]]:
        """An expression for each object of each of ``B`` pictures; ``""`` where it has none.

        What it returns is cleaned and checked by others: a model's text is data.
        """
        ...


@runtime_checkable
class Filter(Protocol):
    """Decides which objects are good enough."""

    after: When
    """The stage that it follows; cheap stages first, descriptions only of what has passed."""

    def judge(self, picture: Picture, objects: Sequence[Found]) -> list[str | None]:
        """Why each of ``N`` objects of a picture is dropped; None keeps it."""
        ...


SHORT_NAMES = {
    "folder": "seg_env.data.annotate.source_folder:Folder",
    "tar": "seg_env.data.annotate.source_tar:TarShards",
    "parquet": "seg_env.data.annotate.source_parquet:ParquetShards",
    "true_boxes": "seg_env.data.annotate.truth:TrueBoxes",
    "true_masks": "seg_env.data.annotate.truth:TrueMasks",
    "true_expressions": "seg_env.data.annotate.truth:TrueExpressions",
    "jittered_boxes": "seg_env.data.annotate.noise:JitteredBoxes",
    "frayed_masks": "seg_env.data.annotate.noise:FrayedMasks",
    "mixed_up_expressions": "seg_env.data.annotate.noise:MixedUpExpressions",
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
    "wording": "seg_env.data.annotate.filters_text:WordingFilter",
    "distinct": "seg_env.data.annotate.filters_text:Distinct",
}
"""Words that stand for the stages that come with the project."""

DEFAULT_FILTERS = (
    "score",
    "area",
    "mask_score",
    "agreement",
    "duplicates",
    "ceiling",
    "wording",
    "distinct",
)
"""Filters in the order they are asked."""


def load_stage(text: str, kind: type[Any]) -> Any:
    """Build a stage from its name and arguments.

    Args:
        text: See the module.
        kind: The protocol that it must have.

    Raises:
        ValueError: The text is neither a known word nor an import path, its arguments are no JSON
            object or not those of the class, or the class is of another kind.
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
