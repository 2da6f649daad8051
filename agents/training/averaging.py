"""An exponential moving average of weights, which is less noisy than the last weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """Follows the trainable weights of a module, in float32.

    After update ``n`` (from 1) the decay is ``min(decay, n / (n + 9))``, so that the initial
    weights are soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Start from the weights that the module has.

        Raises:
            ValueError: The decay is not in (0, 1).
        """
        if not 0 < decay < 1:
            raise ValueError(f"average={decay}, but a decay lies between 0 and 1, as 0.95")
        self.decay, self.updates = decay, 0
        self._weights = {
            name: each for name, each in module.named_parameters() if each.requires_grad
        }
        self._average = {
            name: each.detach().float().clone() for name, each in self._weights.items()
        }

    @torch.no_grad()
    def follow(self) -> None:
        """Move towards the current weights; called once per update."""
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 9))
        for name, weights in self._weights.items():
            self._average[name].lerp_(weights.float(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the module have the average inside the block, and its own weights afterwards."""
        own = {name: each.data for name, each in self._weights.items()}
        for name, each in self._weights.items():
            each.data = self._average[name].to(each.dtype)
        try:
            yield
        finally:
            for name, each in self._weights.items():
                each.data = own[name]

    def state_dict(self) -> dict[str, Any]:
        """The average by the names of parameters, and the number of updates."""
        return {"updates": self.updates, "weights": dict(self._average)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict`."""
        self.updates = int(state["updates"])
        saved: dict[str, Tensor] = state["weights"]
        for name, average in self._average.items():
            average.copy_(saved[name])
