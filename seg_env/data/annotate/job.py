"""What one run of the pipeline does, in words that fit into JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from seg_env.data.annotate.stages import DEFAULT_FILTERS

Form = Literal["rings", "rle"]
"""How masks are written as JSON lines: as outlines, or as exact run lengths."""
Container = Literal["jsonl", "parquet"]
"""What records are written into."""


@dataclass(frozen=True)
class Job:
    """Everything that the content of the output depends on.

    Stages are given as text, see `seg_env.data.annotate.stages`.
    """

    source: str
    """Where pictures come from."""
    detector: str
    """Finds boxes."""
    segmenter: str
    """Turns boxes into masks."""
    describer: str
    """Says what objects are."""
    filters: tuple[str, ...] = DEFAULT_FILTERS
    """Decide which objects are good enough, in this order after each stage."""
    split: str = "train"
    """Name of the files of records, and of the split that data sets are opened with."""
    container: Container = "jsonl"
    """JSON lines beside pictures, or parquet with the pictures in it."""
    form: Form = "rings"
    """How JSON lines hold masks; parquet holds run lengths."""
    epsilon: float = 0.001
    """Tolerance of written outlines as a share of the perimeter."""
    decimals: int = 4
    """Digits of written outlines."""
    batch_size: int = 8
    """Pictures that the stages see at a time."""
    most_objects: int = 32
    """Boxes of a picture that are looked at, best scores first."""
    least_side: int = 32
    """Pictures with a shorter side are left out."""
    most_pixels: int = 1 << 25
    """Pictures with more pixels are left out."""

    def __post_init__(self) -> None:
        """Check what can be checked without loading a stage.

        Raises:
            ValueError: Names the field, its value and what is allowed.
        """
        for name, allowed in (("container", get_args(Container)), ("form", get_args(Form))):
            if getattr(self, name) not in allowed:
                given = getattr(self, name)
                raise ValueError(f"{name}={given!r} is unknown; use one of {', '.join(allowed)}")
        if not self.split.isidentifier():
            raise ValueError(f"split={self.split!r} names files: use letters, digits and _")
        for name in ("batch_size", "most_objects", "least_side", "most_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is too small; use 1 or more")
        if not 1 <= self.decimals <= 9 or not 0 <= self.epsilon < 1:
            raise ValueError(
                f"decimals={self.decimals}, epsilon={self.epsilon}: use 1 to 9 digits and a "
                "tolerance from 0 to 1"
            )

    def to_json(self) -> dict[str, Any]:
        """As ``plan.json`` has it."""
        return {**asdict(self), "filters": list(self.filters)}
