"""From losses to optimizer steps, in one process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agents.optim import HybridOptimizer


@dataclass
class OptimizerSettings:
    """What an optimizer needs to know."""

    learning_rate: float
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    muon: bool = True
    """Muon on hidden matrices; False for AdamW everywhere."""


class Engine:
    """Accumulates gradients of a module and applies them.

    Attributes:
        module: What is trained.
        settings: Of the optimizer.
    """

    def __init__(self, module: nn.Module, settings: OptimizerSettings) -> None:
        """Make the optimizer of a module's trainable parameters."""
        self.module, self.settings = module, settings
        self.optimizer = HybridOptimizer(
            module, settings.learning_rate, settings.weight_decay, settings.muon
        )

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar loss."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, learning_rate: float) -> float:
        """Apply and clear the gradients; returns their norm before it was cut."""
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.max_grad_norm)
        self.optimizer.set_learning_rate(learning_rate)
        self.optimizer.step()
        return norm.item()

    def state_dict(self) -> Any:
        """State of the optimizer, tensors and numbers only."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Inverse of `state_dict`."""
        self.optimizer.load_state_dict(state)
