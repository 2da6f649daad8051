"""Counts of what became of images and objects."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

BINS: dict[str, tuple[float, ...]] = {
    "area": (0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1),
    "score": (0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
    "outline_iou": (0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1),
    "vertices": (0, 5, 10, 20, 40, 80, 160, 320, 10**9),
    "words": (0, 2, 3, 4, 5, 6, 8, 12, 20, 10**9),
}
"""Edges of the bins of each histogram; a value on an edge belongs to the bin above it."""


class Tally:
    """What became of images and objects; counts add up over shards, workers and machines."""

    def __init__(self) -> None:
        self.images = Counter(read=0, annotated=0)  # annotated: with at least one record
        self.rejected: Counter[str] = Counter()  # files by `stages.Reason`
        self.objects = Counter(detected=0, written=0)
        self.dropped: Counter[str] = Counter()  # objects by reason; dropped + written = detected
        self.histograms = {name: [0] * (len(edges) - 1) for name, edges in BINS.items()}
        self.seconds: defaultdict[str, float] = defaultdict(float)  # by stage, over all workers

    def observe(self, name: str, value: float) -> None:
        """Count a value in a histogram; values beyond the edges go into the outermost bins."""
        self.histograms[name][bisect_right(BINS[name][1:-1], value)] += 1

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
        images, objects = dict(manifest["pictures"]), dict(manifest["objects"])
        self.rejected.update(images.pop("rejected"))
        self.dropped.update(objects.pop("dropped"))
        self.images.update(images)
        self.objects.update(objects)
        for name, spent in manifest["seconds"].items():
            self.seconds[name] += spent
        for name, counts in manifest["histograms"].items():
            self.histograms[name] = list(map(sum, zip(self.histograms[name], counts, strict=True)))

    def to_json(self) -> dict[str, Any]:
        """The counts in the form of manifests."""
        return {
            "pictures": {**self.images, "rejected": _sorted(self.rejected)},
            "objects": {**self.objects, "dropped": _sorted(self.dropped)},
            "histograms": self.histograms,
            "seconds": {name: round(value, 3) for name, value in sorted(self.seconds.items())},
        }


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return {str(reason): counts[reason] for reason in sorted(counts) if counts[reason]}
