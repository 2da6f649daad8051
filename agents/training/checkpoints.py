"""Checkpoints that are either whole or absent.

All ranks call the functions that write; the main one writes, in a folder that all of them see.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from agents.policy.loading import ANSWER_FRAME, recorded_frame
from agents.policy.model import VLMPolicy
from agents.training.distributed import World

ALONE = World()


def write_checkpoint(
    path: str | Path,
    policy: VLMPolicy,
    tensors: dict[str, Any],
    facts: dict[str, Any],
    world: World = ALONE,
) -> None:
    """Write a checkpoint folder, whole or not at all; one that is there is replaced.

    The policy's weights must be whole; ``tensors`` are nested containers of tensors and numbers,
    read without pickled code; ``facts`` are JSON-able.
    """

    def write(folder: Path) -> None:
        policy.save(folder / "policy")
        torch.save(tensors, folder / "state.pt")
        (folder / "state.json").write_text(json.dumps(facts, indent=2))

    _write_folder(Path(path), write, world)


def write_policy(path: str | Path, policy: VLMPolicy, world: World = ALONE) -> None:
    """Write a policy's transformers folder, whole or not at all."""
    _write_folder(Path(path), policy.save, world)


def _write_folder(path: Path, write: Callable[[Path], None], world: World) -> None:
    """Let the main rank write a folder under a temporary name and rename it; others wait."""
    if world.is_main:
        partial = path.with_name(path.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        # safetensors lets nobody but the owner read; a policy is as open as the folder it is in.
        readable = partial.stat().st_mode & 0o666
        for file in partial.rglob("*"):
            if file.is_file():
                file.chmod(readable)
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        previous = path.with_name(path.name + ".previous")
        shutil.rmtree(previous, ignore_errors=True)
        if path.exists():
            path.rename(previous)
        partial.rename(path)
        shutil.rmtree(previous, ignore_errors=True)
    world.barrier()


def read_checkpoint(path: str | Path, policy: VLMPolicy) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load weights into ``policy``; returns the checkpoint's tensors (memory-mapped) and facts."""
    path = Path(path)
    facts = read_facts(path)
    read_weights(path / "policy", policy)
    tensors = torch.load(path / "state.pt", map_location="cpu", weights_only=True, mmap=True)
    return tensors, facts


def read_weights(folder: Path, policy: VLMPolicy) -> None:
    """Load a policy's folder, and the frame that it records, into a policy of the same form."""
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
    """
    if not (path / "state.json").exists():
        raise FileNotFoundError(f"{path} is not a checkpoint: it has no state.json")
    facts: dict[str, Any] = json.loads((path / "state.json").read_text())
    return facts


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint of the highest update in a run's folder, or None."""
    return next(reversed(complete_checkpoints(folder)), None)


def complete_checkpoints(folder: str | Path) -> list[Path]:
    """Folders ``update_<number>`` in order, without those that were cut off."""
    whole = [facts.parent for facts in Path(folder).glob("update_*/state.json")]
    numbered = [path for path in whole if path.name[7:].isdigit()]
    return sorted(numbered, key=lambda path: int(path.name[7:]))
