"""Configurations of DeepSpeed, read without importing it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from agents.training.engine import OptimizerSettings

CONFIGURATIONS = Path(__file__).parent / "deepspeed"


def read_file(choice: str) -> dict[str, Any]:
    """A DeepSpeed configuration as it is written.

    Args:
        choice: ``"zero1"``, ``"zero2"``, ``"zero3"``, or the path of a JSON file.

    Raises:
        ValueError: The file has an optimizer or a scheduler of its own, or is not one of ZeRO.
        FileNotFoundError: There is no such file.
    """
    shipped = CONFIGURATIONS / f"{choice}.json"
    path = shipped if shipped.exists() else Path(choice)
    if not path.is_file():
        raise FileNotFoundError(
            f"--deepspeed {choice}: no such file; give zero1, zero2, zero3, or the path of a "
            "DeepSpeed configuration (JSON)"
        )
    config: dict[str, Any] = json.loads(path.read_text())
    if found := {"optimizer", "scheduler"} & config.keys():
        raise ValueError(f"{path} sets {', '.join(found)}, which is the agent's: remove it")
    zero = config.get("zero_optimization", {})
    if zero.get("stage") not in (1, 2, 3):
        raise ValueError(
            f"{path} has zero_optimization.stage {zero.get('stage')}: use 1, 2 or 3, or leave "
            "--deepspeed out for plain data parallelism"
        )
    return config


def zero_stage(choice: str) -> int:
    """Stage of ZeRO, 1 to 3, that a configuration asks for; see `read_file`."""
    stage: int = read_file(choice)["zero_optimization"]["stage"]
    return stage


def read_configuration(
    choice: str, settings: OptimizerSettings, dtype: torch.dtype
) -> dict[str, Any]:
    """A DeepSpeed configuration, completed by what the agent decides.

    ``"auto"`` stands for the agent's value. Gradients are accumulated over whatever parts a batch
    is split into, so DeepSpeed must not count them (``managed_gradient_accumulation``).

    Args:
        choice: ``"zero1"``, ``"zero2"``, ``"zero3"``, or the path of a JSON file.
        settings: Of the optimizer.
        dtype: Of the weights.

    Raises:
        ValueError: The file has an optimizer or a scheduler of its own, or is not one of ZeRO.
        FileNotFoundError: There is no such file.
    """
    config = read_file(choice)
    if config.get("gradient_clipping", "auto") == "auto":
        config["gradient_clipping"] = settings.max_grad_norm
    bf16 = config.setdefault("bf16", {})
    if bf16.get("enabled", "auto") == "auto":
        bf16["enabled"] = dtype == torch.bfloat16
    config["zero_optimization"].setdefault("overlap_comm", False)
    config.setdefault("zero_force_ds_cpu_optimizer", False)
    config.setdefault("train_micro_batch_size_per_gpu", 1)
    config.setdefault("steps_per_print", 1_000_000_000)
    return config | {"managed_gradient_accumulation": False, "gradient_accumulation_steps": 1}
