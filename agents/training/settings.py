"""Settings of optimizers and of DeepSpeed, read without importing torch or DeepSpeed.

Settings that follow from other options of commands are suppressed as options.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

MuonPrecision = Literal["auto", "float32", "bfloat16"]
"""Type that matrices are orthogonalised in; auto takes the one the hardware multiplies faster."""


@dataclass
class OptimizerSettings:
    """How an agent's weights are trained."""

    learning_rate: float = 1e-4
    """Peak learning rate."""
    warmup: float = 0.03
    """Share of the updates in which the learning rate rises."""
    final_rate: float = 0.04
    """Last learning rate as a share of the peak."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    average: float = 0.0
    """Decay of an exponential moving average of the weights over updates, such as 0.95; the average
    is what is measured and saved. 0 for none."""
    muon: bool = True
    """Muon on hidden matrices; False for AdamW everywhere (then divide the rate by three)."""
    muon_precision: MuonPrecision = "auto"
    """Type that Muon orthogonalises in; auto takes the one the hardware multiplies faster."""
    adam_epsilon: float = 1e-8
    """Added to AdamW's denominator: gradients far below it make no steps."""
    vision_learning_rate: tyro.conf.Suppress[float | None] = None
    """Peak learning rate of tower and projector; by default that of all."""
    seed: tyro.conf.Suppress[int] = 0
    """Seed of all random choices: samples, their order, what is asked, answers."""
    deepspeed: tyro.conf.Suppress[str | None] = None
    """Train by DeepSpeed: zero1, zero2, zero3 (not with Muon), or the path of a configuration."""

    def rate_at(self, update: int, updates: int) -> float:
        """Learning rate of an update, counted from 0: a linear warm-up, then a cosine."""
        peak, final = self.learning_rate, self.final_rate
        rising = max(1, round(self.warmup * updates))
        if update < rising:
            return peak * (update + 1) / rising
        progress = (update - rising) / max(1, updates - rising)
        return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def _read_file(choice: str) -> dict[str, Any]:
    """A DeepSpeed configuration, ``zero1``, ``zero2``, ``zero3`` or the path of a JSON file.

    Raises:
        ValueError: The file has an optimizer or a scheduler of its own, or is not one of ZeRO.
        FileNotFoundError: There is no such file.
    """
    shipped = Path(__file__).parent / "deepspeed" / f"{choice}.json"
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
    """Stage of ZeRO, 1 to 3, that a configuration asks for."""
    stage: int = _read_file(choice)["zero_optimization"]["stage"]
    return stage


def read_configuration(settings: OptimizerSettings, *, bfloat16: bool) -> dict[str, Any]:
    """The DeepSpeed configuration of settings, completed by what the agent decides.

    ``"auto"`` stands for the agent's value. Gradients are accumulated over whatever parts a batch
    is split into, so DeepSpeed must not count them (``managed_gradient_accumulation``).
    """
    assert settings.deepspeed is not None
    config = _read_file(settings.deepspeed)
    if config.get("gradient_clipping", "auto") == "auto":
        config["gradient_clipping"] = settings.max_grad_norm
    bf16 = config.setdefault("bf16", {})
    if bf16.get("enabled", "auto") == "auto":
        bf16["enabled"] = bfloat16
    config["zero_optimization"].setdefault("overlap_comm", False)
    config.setdefault("zero_force_ds_cpu_optimizer", False)
    config.setdefault("train_micro_batch_size_per_gpu", 1)
    config.setdefault("steps_per_print", 1_000_000_000)
    return config | {"managed_gradient_accumulation": False, "gradient_accumulation_steps": 1}
