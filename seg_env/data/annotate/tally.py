"""Counts of an annotation, which add up over shards, workers and machines."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

BINS: dict[str, tuple[float, ...]] = {
    "area": (0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1),
    "score": (0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
    "outline_iou": (0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1),
    "vertices": (0, 5, 10, 20, 40, 80, 160, 320, 10**9),
    "words": (0, 2, 3, 4, 5, 6, 8, 12, 20, 10**9),
}
"""Edges of the bins of each histogram; a value on an edge belongs to the bin above it."""


@dataclass
class Tally:
    """What became of pictures and objects."""

    read: int = 0
    """Pictures that were decoded."""
    annotated: int = 0
    """Pictures with at least one record."""
    rejected: Counter[str] = field(default_factory=Counter)
    """What did not become a picture, by `seg_env.data.annotate.nouns.Reason`."""
    detected: int = 0
    """Boxes that the detector gave."""
    written: int = 0
    """Objects that became records."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Objects that did not, by reason; with ``written`` they add up to ``detected``."""
    histograms: dict[str, list[int]] = field(
        default_factory=lambda: {name: [0] * (len(edges) - 1) for name, edges in BINS.items()}
    )
    """Of the records: counts in the bins of `BINS`."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time spent in each stage, summed over workers."""

    def observe(self, name: str, value: float) -> None:
        """Count a value in a histogram; values beyond the edges go into the outermost bins."""
        edges, counts = BINS[name], self.histograms[name]
        place = sum(value >= edge for edge in edges) - 1
        counts[min(max(place, 0), len(counts) - 1)] += 1

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    def add(self, other: Tally) -> None:
        """Add the counts of another one."""
        self.read += other.read
        self.annotated += other.annotated
        self.detected += other.detected
        self.written += other.written
        self.rejected.update(other.rejected)
        self.dropped.update(other.dropped)
        for name, counts in other.histograms.items():
            self.histograms[name] = [
                a + b for a, b in zip(self.histograms[name], counts, strict=True)
            ]
        for name, spent in other.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + spent

    def to_json(self) -> dict[str, Any]:
        """As manifests have it."""
        return {
            "pictures": {
                "read": self.read,
                "annotated": self.annotated,
                "rejected": _sorted(self.rejected),
            },
            "objects": {
                "detected": self.detected,
                "written": self.written,
                "dropped": _sorted(self.dropped),
            },
            "histograms": self.histograms,
            "seconds": {name: round(value, 3) for name, value in sorted(self.seconds.items())},
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Tally:
        """Read what `to_json` wrote.

        Raises:
            KeyError: Something is missing: it was written by another version.
        """
        pictures, objects = value["pictures"], value["objects"]
        return cls(
            read=pictures["read"],
            annotated=pictures["annotated"],
            rejected=Counter(pictures["rejected"]),
            detected=objects["detected"],
            written=objects["written"],
            dropped=Counter(objects["dropped"]),
            histograms={name: list(counts) for name, counts in value["histograms"].items()},
            seconds=dict(value["seconds"]),
        )


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return {str(reason): counts[reason] for reason in sorted(counts) if counts[reason]}
