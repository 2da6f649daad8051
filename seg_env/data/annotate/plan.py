"""The folder of a run: what is to be done, what is done, and which part of it is whose."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seg_env.data.annotate.job import Job
from seg_env.data.annotate.nouns import Shard

PLAN = "plan.json"
SHARDS = "shards"
MANIFEST = "manifest.json"
_PART = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


def plan_of(job: Job, shards: Sequence[Shard]) -> dict[str, Any]:
    """What is to be done, as ``plan.json`` has it."""
    return {"job": job.to_json(), "shards": len(shards), "source": fingerprint(shards)}


def record_plan(output: Path, plan: Mapping[str, Any]) -> None:
    """Write down what is to be done, or compare it with what was written down before.

    Workers on several machines may do so at the same time: the first one's plan stays, so record
    one only when its stages could be built. Where the source lies may differ between machines; the
    names and sizes of its files may not.

    Args:
        output: Folder of the run.
        plan: See `plan_of`.

    Raises:
        ValueError: See `check_plan`.
    """
    (output / SHARDS).mkdir(parents=True, exist_ok=True)
    temporary = unique(output / PLAN)
    temporary.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
    try:
        os.link(temporary, output / PLAN)  # unlike a rename, fails where there is one already
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    check_plan(output, plan)


def check_plan(output: Path, plan: Mapping[str, Any]) -> None:
    """Compare what is to be done with what was written down; a folder without a plan takes any.

    Raises:
        ValueError: The folder holds a run of another job, or its source has changed since.
    """
    if not (output / PLAN).exists():
        return
    found = read_plan(output)
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


def read_plan(output: Path) -> dict[str, Any]:
    """The plan of a folder.

    Raises:
        FileNotFoundError: Nothing was annotated into it.
    """
    found: dict[str, Any] = json.loads((output / PLAN).read_text(encoding="utf-8"))
    return found


def fingerprint(shards: Sequence[Shard]) -> str:
    """A digest of the names and sizes of all files of a source, not of where they lie."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(f"{shard.number} {shard.name}\n".encode("utf-8", "surrogateescape"))
        for path in shard.paths:
            line = f"{Path(path).name} {os.path.getsize(path) if os.path.exists(path) else 0}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def parse_part(text: str) -> tuple[int, int]:
    """Read ``"i/n"``: part ``i`` of ``n``, counted from 0.

    Raises:
        ValueError: It is not that, or there is no such part.
    """
    match = _PART.fullmatch(text.strip())
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if part >= parts:
        raise ValueError(f"shard={text!r} is not i/n with i from 0 to n - 1, such as 0/4")
    return part, parts


def part_of(shards: Sequence[Shard], part: tuple[int, int]) -> list[Shard]:
    """The shards of part ``i`` of ``n``: every ``n``-th, so that parts finish together."""
    return list(shards[part[0] :: part[1]])


def shard_folder(output: Path, number: int) -> Path:
    """Where the records of a shard lie once they are complete."""
    return output / SHARDS / f"{number:06d}"


def is_done(output: Path, number: int) -> bool:
    """Whether a shard is complete: its folder gets its name when everything is in it."""
    return shard_folder(output, number).exists()


def unique(path: Path) -> Path:
    """A temporary name beside a path that no other process uses."""
    return path.with_name(f"{path.name}.partial-{socket.gethostname()}-{os.getpid()}")


def leftovers(path: Path) -> list[Path]:
    """Temporary names beside a path that processes of this machine left when they were killed."""
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
    try:  # one that has ended and that nobody has asked after is still listed
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state != "Z"
