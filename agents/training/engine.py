"""From losses to optimizer steps: in one process, or the same on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from agents.training.distributed import World
from agents.training.optim import HybridOptimizer
from agents.training.settings import OptimizerSettings


class Engine:
    """Accumulates gradients of a module and applies them.

    Every rank has the whole module, and gradients are averaged: plain data parallelism.
    """

    def __init__(self, module: nn.Module, settings: OptimizerSettings) -> None:
        """Make the optimizer of a module's parameters; every rank takes rank 0's weights."""
        self.module, self.settings, self.world = module, settings, World.current()
        if self.world.size > 1:
            for tensor in chain(module.parameters(), module.buffers()):
                dist.broadcast(tensor.data, 0)
        self.optimizer = HybridOptimizer(module, settings)

    def forward(self, function: Callable[[], Tensor]) -> Tensor:
        """Call a function that passes through the module.

        Every pass but those inside `gathered_weights` goes through here, and ranks must make the
        same passes in the same order: DeepSpeed may have to gather weights on the way.
        """
        return function()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar loss, a mean over this rank's share."""
        loss.backward()

    def step(self, learning_rate: float) -> float:
        """Apply and clear the gradients; returns their norm before clipping."""
        parameters = [each for each in self.module.parameters() if each.grad is not None]
        if self.world.size > 1:
            for parameter in parameters:
                assert parameter.grad is not None
                dist.all_reduce(parameter.grad.div_(self.world.size))
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm.item()

    @contextmanager
    def gathered_weights(self, *, change: bool = False) -> Iterator[None]:
        """Hold all weights inside the block, to use them at this rank's own pace.

        With ``change`` the block sets weights, the same ones on every rank.
        """
        yield

    def state_dict(self) -> dict[str, Any]:
        """State of the optimizer by the names of parameters: tensors and numbers only.

        Every rank must call this; only the main one gets the whole state.
        """
        return self.optimizer.named_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, of an engine of any kind and of any number of ranks."""
        self.optimizer.load_named_state(state)
