"""Opening the policy that a command line names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoProcessor

from agents.hardware import computes_in_bfloat16
from agents.policy import Precision, VLMPolicy

PrecisionChoice = Literal["auto", "float32", "bfloat16"]

EMBEDDED = "embedded"
"""The policy that reinforcement learning starts from: outlines, boxes and points by expression."""
EMBEDDED_TASKS = "embedded-tasks"
"""The same one taught further, on every task of `seg_env.tasks`."""
SHIPPED = {
    EMBEDDED: Path(__file__).parent.parent / "agents" / "embedded_policy",
    EMBEDDED_TASKS: Path(__file__).parent.parent / "agents" / "embedded_policy_tasks",
}
"""Folders of the policies that come with the project, by the names that command lines know."""
LONGEST_OUTLINE = 128
"""Tokens that the longest honest outline of an easy scene needs, with some room."""


def open_policy(
    name: str, precision: PrecisionChoice, *, trust_remote_code: bool = False
) -> VLMPolicy:
    """Load one of `SHIPPED`, a folder, or a hub id.

    Raises:
        FileNotFoundError: A path was given and nothing is there.
    """
    if not Path(name).exists() and (name.startswith((".", "/")) or name.count("/") > 1):
        raise FileNotFoundError(
            f"--policy {name}: no such folder; give one, a hub id, or {' or '.join(SHIPPED)}"
        )
    return VLMPolicy.from_pretrained(
        _place(name),
        precision=choose_precision(precision),
        trust_remote_code=trust_remote_code,
    )


def open_processor(name: str) -> Any:
    """The processor of one of `SHIPPED`, a folder, or a hub id, without its model."""
    return AutoProcessor.from_pretrained(_place(name), backend="pil")


def _place(name: str) -> str | Path:
    """Folder or hub id of a policy."""
    return SHIPPED.get(name, name)


def choose_precision(choice: PrecisionChoice) -> Precision:
    """What ``"auto"`` means here: bfloat16 where the hardware is faster in it, else float32."""
    if choice != "auto":
        return choice
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return "bfloat16" if computes_in_bfloat16(device) else "float32"
