"""The settings of a run, and the folder that records them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from seg_env.data.annotate.stages import DEFAULT_FILTERS, Shard, check_between, check_whole

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
    """Most boxes of an image that are used, best scores first."""

    def __post_init__(self) -> None:
        """Raise ValueError for what can be seen to be wrong without loading a stage."""
        for name, allowed in (("container", ("jsonl", "parquet")), ("form", ("rings", "rle"))):
            if (given := getattr(self, name)) not in allowed:
                raise ValueError(f"{name}={given!r} is unknown; use one of {', '.join(allowed)}")
        if not self.split.isidentifier():
            raise ValueError(f"split={self.split!r} names files: use letters, digits and _")
        check_whole(1, batch_size=self.batch_size, most_objects=self.most_objects)
        check_between(1, 9, decimals=self.decimals)
        check_between(0, 1, epsilon=self.epsilon)


def build_plan(job: Job, shards: Sequence[Shard]) -> dict[str, Any]:
    """The content of ``plan.json``, with a digest of the names and sizes of all files."""
    digest = hashlib.sha256()
    for number, shard in enumerate(shards):
        digest.update(f"{number} {shard.name}\n".encode("utf-8", "surrogateescape"))
        for path in shard.paths:
            line = f"{Path(path).name} {os.path.getsize(path) if os.path.exists(path) else 0}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
    settings = {**asdict(job), "filters": list(job.filters)}
    return {"job": settings, "shards": len(shards), "source": digest.hexdigest()}


def record_plan(output: Path, plan: Mapping[str, Any]) -> None:
    """Write ``plan.json``, or compare with an existing one.

    Workers on several machines may do so at the same time, and the first plan stays: so record one
    only after its stages have been built.

    Raises:
        ValueError: See `check_plan`.
    """
    (output / SHARDS).mkdir(parents=True, exist_ok=True)
    if not (output / PLAN).exists():
        unfinished = partial_path(output / PLAN)
        unfinished.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
        with suppress(FileExistsError):
            os.link(unfinished, output / PLAN)  # unlike a rename, fails where there is one already
        unfinished.unlink()
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


def shard_folder(output: Path, number: int) -> Path:
    """The folder of a shard's records; it gets this name once it is complete."""
    return output / SHARDS / f"{number:06d}"


def partial_path(path: Path) -> Path:
    """A name beside a path, used by no other process, for writing what is not complete yet."""
    return path.with_name(f"{path.name}.partial-{uuid4().hex}")
