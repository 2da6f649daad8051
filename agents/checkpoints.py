"""Checkpoints that are either whole or absent."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from agents.policy import VLMPolicy

PARTIAL = ".partial"


def write_checkpoint(
    path: str | Path, policy: VLMPolicy, tensors: dict[str, Any], facts: dict[str, Any]
) -> None:
    """Write a checkpoint folder under a temporary name, then rename it.

    A full disk or a Ctrl-C leaves the last checkpoint as it was.

    Args:
        path: Folder to write; one that is there is replaced.
        policy: Saved as a transformers folder ``policy/``.
        tensors: Nested containers of tensors and numbers (``state.pt``, read without pickled code).
        facts: JSON-able values (``state.json``).
    """
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    policy.save(partial / "policy")
    torch.save(tensors, partial / "state.pt")
    (partial / "state.json").write_text(json.dumps(facts, indent=2))
    for file in partial.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    previous = path.with_name(path.name + ".previous")
    shutil.rmtree(previous, ignore_errors=True)
    if path.exists():
        path.rename(previous)
    partial.rename(path)
    shutil.rmtree(previous, ignore_errors=True)


def read_checkpoint(path: str | Path, policy: VLMPolicy) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load weights into ``policy`` and return the tensors and facts of `write_checkpoint`.

    Raises:
        FileNotFoundError: The folder is not a whole checkpoint.
    """
    path = Path(path)
    if not (path / "state.json").exists():
        raise FileNotFoundError(f"{path} is not a checkpoint: it has no state.json")
    weights = VLMPolicy.from_pretrained(path / "policy", device=str(policy.device))
    policy.model.load_state_dict(weights.model.state_dict())
    tensors = torch.load(path / "state.pt", map_location=policy.device, weights_only=True)
    return tensors, json.loads((path / "state.json").read_text())


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint of the highest update in a run's folder, or None."""
    return next(reversed(whole_checkpoints(folder)), None)


def whole_checkpoints(folder: str | Path) -> list[Path]:
    """Checkpoints ``update_<number>`` of a folder in order, without those that were cut off."""
    names = [path for path in Path(folder).glob("update_*") if path.name[7:].isdigit()]
    whole = [path for path in names if (path / "state.json").exists()]
    return sorted(whole, key=lambda path: int(path.name[7:]))
