"""What a run is to do, the folder that says so, and the counts of what came of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from seg_env.data.annotate.stages import DEFAULT_FILTERS, Shard

PLAN = "plan.json"
SHARDS = "shards"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Job:
    """Everything that the content of the output depends on.

    Stages are given as text, see `seg_env.data.annotate.stages`.
    """

    source: str
    detector: str
    segmenter: str
    describer: str
    filters: tuple[str, ...] = DEFAULT_FILTERS
    split: str = "train"
    """Names the files of records."""
    container: Literal["jsonl", "parquet"] = "jsonl"
    """JSON lines beside images, or parquet with the images in it."""
    form: Literal["rings", "rle"] = "rings"
    """How JSON lines hold masks: as outlines, or exactly, as parquet always does."""
    epsilon: float = 0.001
    """Tolerance of written outlines as a share of the perimeter."""
    decimals: int = 4
    batch_size: int = 8
    """Images that the stages see at a time."""
    most_objects: int = 32
    """Boxes of an image that are looked at, best scores first."""
    least_side: int = 32
    """Images with a shorter side are left out, as those with more than `most_pixels`."""
    most_pixels: int = 1 << 25

    def __post_init__(self) -> None:
        """Raise ValueError for what can be seen to be wrong without loading a stage."""
        for name, allowed in (("container", ("jsonl", "parquet")), ("form", ("rings", "rle"))):
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


def build_plan(job: Job, shards: Sequence[Shard]) -> dict[str, Any]:
    """The content of ``plan.json``, with a digest of the names and sizes of all files."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(f"{shard.number} {shard.name}\n".encode("utf-8", "surrogateescape"))
        for path in shard.paths:
            line = f"{Path(path).name} {os.path.getsize(path) if os.path.exists(path) else 0}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
    settings = {**asdict(job), "filters": list(job.filters)}
    return {"job": settings, "shards": len(shards), "source": digest.hexdigest()}


def record_plan(output: Path, plan: Mapping[str, Any]) -> None:
    """Write ``plan.json``, or compare with the one that is there.

    Workers on several machines may do so at the same time: the first one's plan stays, so record
    one only when its stages could be built.

    Raises:
        ValueError: See `check_plan`.
    """
    (output / SHARDS).mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(output / PLAN)
    temporary.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
    try:
        os.link(temporary, output / PLAN)  # unlike a rename, fails where there is one already
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    check_plan(output, plan)


def check_plan(output: Path, plan: Mapping[str, Any]) -> None:
    """Compare a plan with the one of the folder, if there is one.

    Where the source lies may differ between machines; the names and sizes of its files may not.

    Raises:
        ValueError: The folder holds a run of another job, or its source has changed since.
    """
    if not (output / PLAN).exists():
        return
    found = json.loads((output / PLAN).read_text(encoding="utf-8"))
    wanted = {key: value for key, value in plan["job"].items() if key != "source"}
    changed = [key for key, value in wanted.items() if found["job"].get(key) != value]
    if changed:
        raise ValueError(
            f"{output} was started with other values of {', '.join(changed)}: go on with the same "
            "ones, or write into another folder"
        )
    if (found["shards"], found["source"]) != (plan["shards"], plan["source"]):
        raise ValueError(
            f"the source of {output} has changed since it was started (files were added, removed "
            "or rewritten): write into another folder, or restore the files"
        )


def parse_part(text: str) -> tuple[int, int]:
    """Read ``"i/n"``, part ``i`` of ``n`` counted from 0; ValueError if it is not that."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text.strip())
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if part >= parts:
        raise ValueError(f"shard={text!r} is not i/n with i from 0 to n - 1, such as 0/4")
    return part, parts


def part_of(shards: Sequence[Shard], part: tuple[int, int]) -> list[Shard]:
    """The shards of part ``i`` of ``n``: every ``n``-th, so that parts finish together."""
    return list(shards[part[0] :: part[1]])


def shard_folder(output: Path, number: int) -> Path:
    """Where the records of a shard lie; it gets this name when everything is in it."""
    return output / SHARDS / f"{number:06d}"


def temporary_path(path: Path) -> Path:
    """A temporary name beside a path that no other process uses."""
    return path.with_name(f"{path.name}.partial-{socket.gethostname()}-{os.getpid()}")


def stale_paths(path: Path) -> list[Path]:
    """What processes of this machine left beside a path when they were killed."""
    found = []
    for place in path.parent.glob(f"{path.name}.partial-{socket.gethostname()}-*"):
        number = place.name.rpartition("-")[2]
        if number.isdigit() and (int(number) == os.getpid() or not _is_alive(int(number))):
            found.append(place)
    return found


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    try:  # one that has ended is listed until its parent asks after it
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state != "Z"


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
