"""Checkpoints that are whole, absent, or known to be damaged.

All ranks call the functions that write; the main one writes, in a folder that all of them see.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from agents.policy.adapters import has_adapter, load_adapter
from agents.policy.finite import require_finite
from agents.policy.loading import ANSWER_FRAME, recorded_frame
from agents.policy.model import VLMPolicy
from agents.training.distributed import World
from seg_env.errors import ExplainedError

ALONE = World()
MANIFEST = "manifest.json"
"""Size and SHA-256 of every other file of a checkpoint; it is written last."""
NUMBERED = re.compile(r"update_[0-9]{1,18}")
"""Names of checkpoints in a run's folder."""


class DamagedCheckpointError(ExplainedError, ValueError):
    """A checkpoint is not what was written."""


def write_checkpoint(
    path: str | Path,
    policy: VLMPolicy,
    tensors: dict[str, Any],
    facts: dict[str, Any],
    world: World = ALONE,
) -> None:
    """Write a checkpoint folder, whole or not at all; an existing one is replaced.

    The policy's weights must be gathered; ``tensors`` are nested containers of tensors and numbers,
    read without pickled code; ``facts`` are JSON-able.
    """

    def write(folder: Path) -> None:
        policy.save(folder / "policy")
        torch.save(tensors, folder / "state.pt")
        (folder / "state.json").write_text(json.dumps(facts, indent=2))
        write_manifest(folder)

    require_finite(policy.model, f"the policy, which is not written to {path},")
    _write_folder(Path(path), write, world)


def write_policy(path: str | Path, policy: VLMPolicy, world: World = ALONE) -> None:
    """Write a policy's transformers folder, whole or not at all."""
    require_finite(policy.model, f"the policy, which is not written to {path},")
    _write_folder(Path(path), policy.save, world)


def _write_folder(path: Path, write: Callable[[Path], None], world: World) -> None:
    """Let the main rank write a folder under a temporary name and rename it; others wait."""
    if world.is_main:
        partial = path.with_name(path.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        put_in_place(partial, path)
    world.barrier()


def put_in_place(written: Path, path: Path) -> None:
    """Rename a finished folder to ``path``, once it is on the disk; an existing one is removed."""
    # safetensors lets only the owner read; a policy gets the permissions of its folder.
    readable = written.stat().st_mode & 0o666
    for file in _files(written):
        file.chmod(readable)
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    previous = path.with_name(path.name + ".previous")
    shutil.rmtree(previous, ignore_errors=True)
    if path.exists():
        path.rename(previous)
    written.rename(path)
    shutil.rmtree(previous, ignore_errors=True)


def write_manifest(folder: Path) -> None:
    """Record every file of a finished checkpoint."""
    (folder / MANIFEST).write_text(json.dumps(_manifest_of(folder), indent=2))


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _manifest_of(folder: Path, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Size and checksum of the files that exist, by their names in the folder."""
    if names is None:
        names = [file.relative_to(folder).as_posix() for file in _files(folder)]
    found: dict[str, Any] = {}
    for name in names:
        if (file := folder / name).is_file():
            with file.open("rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
            found[name] = {"bytes": file.stat().st_size, "sha256": digest}
    return found


def require_whole(path: Path, world: World = ALONE) -> None:
    """Make sure that a checkpoint is what was written; all ranks call this, the main one reads.

    Checkpoints of earlier versions have no manifest; only their ``state.json`` is checked.

    Raises:
        DamagedCheckpointError: A file is missing or has changed; raised on every rank.
        FileNotFoundError: The folder is not a checkpoint.
    """
    if damage := world.broadcast(_damage_of(path) if world.is_main else ""):
        raise DamagedCheckpointError(f"{path} is damaged: {damage}")


def _damage_of(path: Path) -> str:
    try:
        read_facts(path)
        recorded = json.loads((path / MANIFEST).read_text())
        found = _manifest_of(path, recorded)
        changed = [name for name in recorded if found.get(name) != recorded[name]]
    except FileNotFoundError:  # of an earlier version, or no checkpoint: see `read_facts`
        return ""
    except DamagedCheckpointError:
        return "state.json cannot be read"
    except (ValueError, TypeError, RecursionError):
        return f"{MANIFEST} cannot be read"
    if not changed:
        return ""
    return f"{', '.join(changed)} {'is' if len(changed) == 1 else 'are'} not what was written"


def read_checkpoint(path: str | Path, policy: VLMPolicy) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load weights into ``policy``; returns the checkpoint's tensors (memory-mapped) and facts.

    Damage is not checked for here; see `require_whole`.
    """
    path = Path(path)
    facts = read_facts(path)
    tensors = torch.load(path / "state.pt", map_location="cpu", weights_only=True, mmap=True)
    read_weights(path / "policy", policy)
    return tensors, facts


def read_weights(folder: Path, policy: VLMPolicy) -> None:
    """Load a policy's folder, and the frame that it records, into a policy of the same form."""
    if has_adapter(policy.model):
        load_adapter(policy.model, folder)
        return
    saved = VLMPolicy.from_pretrained(
        folder,
        device="cpu",
        dtype=policy.model.dtype,
        trust_remote_code=policy.trust_remote_code,
    ).model
    policy.model.load_state_dict(saved.state_dict())
    if (recorded := recorded_frame(saved)) is not None:
        setattr(policy.model.config, ANSWER_FRAME, recorded)


def read_facts(path: Path) -> dict[str, Any]:
    """The JSON-able values of a checkpoint.

    Raises:
        FileNotFoundError: The folder is not a whole checkpoint.
        DamagedCheckpointError: ``state.json`` is not what was written.
    """
    if not (path / "state.json").exists():
        raise FileNotFoundError(f"{path} is not a checkpoint: it has no state.json")
    try:
        facts: dict[str, Any] = json.loads((path / "state.json").read_text())
        operator.index(facts["update"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise DamagedCheckpointError(f"{path} is damaged: state.json cannot be read") from None
    return facts


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint of the highest update in a run's folder, or None."""
    return next(reversed(complete_checkpoints(folder)), None)


def complete_checkpoints(folder: str | Path) -> list[Path]:
    """Folders ``update_<number>`` in order, without incomplete ones."""
    whole = [facts.parent for facts in Path(folder).glob("update_*/state.json")]
    return sorted((path for path in whole if NUMBERED.fullmatch(path.name)), key=number_of)


def number_of(path: Path) -> int:
    """The update that a checkpoint was written after."""
    return int(path.name[7:])
