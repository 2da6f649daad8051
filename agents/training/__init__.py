"""How weights are updated: engines, optimizers, distributed training, checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from agents.training.optim import Engine
    from agents.training.settings import OptimizerSettings


def make_engine(module: nn.Module, settings: OptimizerSettings) -> Engine:
    """The engine that settings ask for, DeepSpeed's or the plain one; trains a module in place."""
    if settings.deepspeed is None:
        from agents.training.optim import Engine

        return Engine(module, settings)
    from agents.training.deepspeed_engine import DeepSpeedEngine  # takes seconds to import

    return DeepSpeedEngine(module, settings)
