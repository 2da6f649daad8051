"""`HybridOptimizer` as an ordinary torch optimizer, for trainers that want one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from agents.training.optim import HybridOptimizer


class JointOptimizer(torch.optim.Optimizer):
    """Steps the parts of a `HybridOptimizer` as one.

    The parameter groups are those of the parts, so a scheduler that sets a learning rate sets
    theirs; the state is one dictionary that all parts share, so a checkpoint holds all of it.
    """

    def __init__(self, hybrid: HybridOptimizer) -> None:
        """Join the parts; they must not be stepped by themselves any more."""
        self.parts = hybrid.optimizers
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Apply the gradients; ``closure`` computes them anew and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Give every part its groups and the common state; loading a state replaces both."""
        start = 0
        for part in self.parts:
            end = start + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[start:end], self.state
            start = end
