"""Opening the policy that a command line names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from agents.policy.loading import CheckpointMissingError, open_policy_processor
from agents.policy.model import Precision, VLMPolicy
from agents.training.hardware import computes_in_bfloat16
from experiments.common.answer_length import AnswerLength
from seg_env.frames import AUTO

PrecisionChoice = Literal["auto", "float32", "bfloat16"]

EMBEDDED = "embedded"
"""The policy that reinforcement learning starts from: outlines, boxes and points by expression."""
EMBEDDED_TASKS = "embedded-tasks"
"""The same one taught further, on every task of `seg_env.tasks`."""
SHIPPED = {
    EMBEDDED: Path(__file__).parents[2] / "agents" / "embedded" / "policy",
    EMBEDDED_TASKS: Path(__file__).parents[2] / "agents" / "embedded" / "policy_tasks",
}
"""Folders of the policies that come with the project, by the names that command lines know."""
LONGEST_OUTLINE = 128
"""Tokens that the longest honest outline of an easy scene needs, with some room."""


def answer_length(choice: AnswerLength, name: str) -> AnswerLength:
    """What ``"auto"`` stands for: a number for one of `SHIPPED`, else it has to be measured."""
    return LONGEST_OUTLINE if choice == "auto" and name in SHIPPED else choice


def open_policy(
    name: str,
    precision: PrecisionChoice,
    *,
    frame: str = AUTO,
    console: Console | None = None,
    trust_remote_code: bool = False,
) -> VLMPolicy:
    """Load one of `SHIPPED`, a folder, or a hub id.

    Args:
        name: Which one.
        precision: Of forward and backward passes.
        frame: What its numbers mean, see `seg_env.frames.find_answer_frame`.
        console: Where the frame is told.
        trust_remote_code: Run code that comes with a hub model.

    Raises:
        CheckpointError: It cannot be opened; says in one line what is missing.
        ValueError: There is no such frame.
    """
    if not Path(name).exists() and (name.startswith((".", "/")) or name.count("/") > 1):
        raise CheckpointMissingError(
            f"--policy {name}: no such folder; give one, a hub id, or {' or '.join(SHIPPED)}"
        )
    policy = VLMPolicy.from_pretrained(
        _place(name),
        precision=choose_precision(precision),
        trust_remote_code=trust_remote_code,
        frame=frame,
    )
    if console is not None:
        told = f"{name}: answers in frame {policy.answer_frame.description}"
        console.print(told, highlight=False, markup=False, soft_wrap=True)
    return policy


def open_processor(name: str) -> Any:
    """The processor of one of `SHIPPED`, a folder, or a hub id, without its model."""
    return open_policy_processor(_place(name))


def _place(name: str) -> str | Path:
    """Folder or hub id of a policy."""
    return SHIPPED.get(name, name)


def choose_precision(choice: PrecisionChoice) -> Precision:
    """What ``"auto"`` means here: bfloat16 where the hardware is faster in it, else float32."""
    if choice != "auto":
        return choice
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return "bfloat16" if computes_in_bfloat16(device) else "float32"
