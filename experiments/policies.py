"""Opening the policy that a command line names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoProcessor

from agents.policy import Precision, VLMPolicy

PrecisionChoice = Literal["auto", "float32", "bfloat16"]

EMBEDDED = "embedded"
"""Name of the policy that is shipped with the project."""
EMBEDDED_FOLDER = Path(__file__).parent.parent / "agents" / "embedded_policy"
LONGEST_OUTLINE = 128
"""Tokens that the longest honest outline of an easy scene needs, with some room."""


def open_policy(
    name: str, precision: PrecisionChoice, *, trust_remote_code: bool = False
) -> VLMPolicy:
    """Load ``"embedded"``, a folder, or a hub id.

    Raises:
        FileNotFoundError: A path was given and nothing is there.
    """
    if not Path(name).exists() and (name.startswith((".", "/")) or name.count("/") > 1):
        raise FileNotFoundError(f"--policy {name}: no such folder; give one, a hub id, or embedded")
    return VLMPolicy.from_pretrained(
        _place(name),
        precision=choose_precision(precision),
        trust_remote_code=trust_remote_code,
    )


def open_processor(name: str) -> Any:
    """The processor of ``"embedded"``, a folder, or a hub id, without its model."""
    return AutoProcessor.from_pretrained(_place(name), backend="pil")


def _place(name: str) -> str | Path:
    """Folder or hub id of a policy."""
    return EMBEDDED_FOLDER if name == EMBEDDED else name


def choose_precision(choice: PrecisionChoice) -> Precision:
    """What ``"auto"`` means here: bfloat16 where the hardware multiplies in it, else float32.

    A processor without such instructions emulates them, several times slower than float32.
    """
    if choice != "auto":
        return choice
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if torch.cpu.get_capabilities().get("amx_bf16") else "float32"
