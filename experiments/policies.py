"""Opening the policy that a command line names."""

from __future__ import annotations

from pathlib import Path

import torch

from agents.policy import Precision, VLMPolicy

EMBEDDED = "embedded"
"""Name of the policy that is shipped with the project."""
EMBEDDED_FOLDER = Path(__file__).parent.parent / "agents" / "embedded_policy"
LONGEST_OUTLINE = 128
"""Tokens that the longest honest outline of an easy scene needs, with some room."""


def open_policy(name: str, precision: Precision, *, trust_remote_code: bool = False) -> VLMPolicy:
    """Load ``"embedded"``, a folder, or a hub id.

    Raises:
        FileNotFoundError: A path was given and nothing is there.
    """
    if name == EMBEDDED:
        return VLMPolicy.from_pretrained(EMBEDDED_FOLDER, precision=precision)
    if not Path(name).exists() and (name.startswith((".", "/")) or name.count("/") > 1):
        raise FileNotFoundError(f"--policy {name}: no such folder; give one, a hub id, or embedded")
    return VLMPolicy.from_pretrained(name, precision=precision, trust_remote_code=trust_remote_code)


def seed_everything(seed: int) -> None:
    """Seed torch; everything else in the project takes its seed as an argument."""
    torch.manual_seed(seed)
