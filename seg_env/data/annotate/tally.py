"""What became of images and objects: the one place that counts."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
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
    """What became of images and objects; counts add up over shards, workers and machines."""

    read: int = 0
    annotated: int = 0
    """Images with at least one record."""
    rejected: Counter[str] = field(default_factory=Counter)
    """What did not become an image, by `seg_env.data.annotate.stages.Reason`."""
    detected: int = 0
    written: int = 0
    """Objects that became records."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Objects that did not, by reason; with ``written`` they add up to ``detected``."""
    histograms: dict[str, list[int]] = field(
        default_factory=lambda: {name: [0] * (len(edges) - 1) for name, edges in BINS.items()}
    )
    """Of the records: counts in the bins of `BINS`."""
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Time spent in each stage, summed over workers."""

    def observe(self, name: str, value: float) -> None:
        """Count a value in a histogram; values beyond the edges go into the outermost bins."""
        counts = self.histograms[name]
        place = bisect_right(BINS[name], value) - 1
        counts[min(max(place, 0), len(counts) - 1)] += 1

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def add(self, manifest: Mapping[str, Any]) -> None:
        """Add the counts of a manifest, see `to_json`."""
        images, objects = manifest["pictures"], manifest["objects"]
        self.read += images["read"]
        self.annotated += images["annotated"]
        self.rejected.update(images["rejected"])
        self.detected += objects["detected"]
        self.written += objects["written"]
        self.dropped.update(objects["dropped"])
        for name, spent in manifest["seconds"].items():
            self.seconds[name] += spent
        for name, counts in manifest["histograms"].items():
            pairs = zip(self.histograms[name], counts, strict=True)
            self.histograms[name] = [ours + theirs for ours, theirs in pairs]

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


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return {str(reason): counts[reason] for reason in sorted(counts) if counts[reason]}
