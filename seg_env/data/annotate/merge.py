"""Putting shards together: one file of records, one manifest."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from seg_env.data.annotate.plan import (
    MANIFEST,
    PLAN,
    SHARDS,
    is_done,
    leftovers,
    read_plan,
    shard_folder,
    unique,
)
from seg_env.data.annotate.tally import Tally


def merge(output: Path) -> dict[str, Any]:
    """Join the shards that are done into ``<split>.jsonl`` (or ``data/``) and ``manifest.json``.

    What comes out depends on which shards are done and on nothing else, so it does not matter how
    many workers and machines there were, or which of them joins last.

    Args:
        output: Folder of a run.

    Returns:
        The manifest.
    """
    plan = read_plan(output)
    for name in (PLAN, MANIFEST, f"{plan['job']['split']}.jsonl"):
        for old in leftovers(output / name):
            old.unlink(missing_ok=True)
    numbers = [number for number in range(plan["shards"]) if is_done(output, number)]
    tally = Tally()
    for number in numbers:
        path = shard_folder(output, number) / MANIFEST
        tally.add(Tally.from_json(json.loads(path.read_text(encoding="utf-8"))))
    job = plan["job"]
    join = _join_lines if job["container"] == "jsonl" else _link_tables
    join(output, job["split"], numbers)
    manifest = {
        "complete": len(numbers) == plan["shards"],
        "shards": {"done": len(numbers), "of": plan["shards"]},
        **tally.to_json(),
    }
    temporary = unique(output / MANIFEST)
    temporary.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, output / MANIFEST)
    return manifest


def _join_lines(output: Path, split: str, numbers: list[int]) -> None:
    """All lines in the order of shards; paths of pictures start from the folder of the run."""
    path = output / f"{split}.jsonl"
    temporary = unique(path)
    with temporary.open("w", encoding="utf-8") as joined:
        for number in numbers:
            folder = shard_folder(output, number)
            with (folder / path.name).open(encoding="utf-8") as lines:
                for line in lines:
                    record = json.loads(line)
                    record["image"] = f"{SHARDS}/{folder.name}/{record['image']}"
                    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
                    joined.write(text + "\n")
    os.replace(temporary, path)


def _link_tables(output: Path, split: str, numbers: list[int]) -> None:
    """Second names for the tables, under which data sets of the hub are looked for."""
    (output / "data").mkdir(exist_ok=True)
    for number in numbers:
        path = output / "data" / f"{split}-{number:06d}.parquet"
        if not path.exists():
            temporary = unique(path)
            temporary.unlink(missing_ok=True)
            os.link(shard_folder(output, number) / f"{split}.parquet", temporary)
            os.replace(temporary, path)
