"""Optimizers: Muon for hidden matrices with AdamW for the rest, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from agents.training.muon import Muon
from agents.training.optimizer_state import MASTER, OptimizerState, usable_states
from agents.training.settings import EPSILON, MuonPrecision

BETAS = (0.9, 0.95)
"""Of AdamW."""


class HybridOptimizer:
    """Muon on hidden matrices and AdamW on everything else, stepped as one.

    Muon (Jordan 2024; update scale of Moonlight, arXiv 2502.16982, the variant SimpleSeg names)
    orthogonalises the momentum of two-dimensional hidden weights. Embeddings, the output head,
    norms, biases and convolutions have no such structure and stay with AdamW.
    """

    def __init__(
        self,
        model: nn.Module,
        learning_rate: float,
        weight_decay: float = 0.0,
        muon: bool = True,
        *,
        muon_precision: MuonPrecision = "auto",
        adam_epsilon: float = EPSILON,
    ) -> None:
        """Sort the parameters of a model; with ``muon`` False all go to AdamW."""
        hidden, rest = split_parameters(model, muon)
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.optimizers: list[torch.optim.Optimizer] = [
            adamw(rest, learning_rate, weight_decay, adam_epsilon)
        ]
        if hidden:
            self.optimizers.append(Muon(hidden, learning_rate, weight_decay, muon_precision))

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use this rate from the next step on."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate

    def step(self) -> None:
        """Apply the gradients and clear them."""
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> OptimizerState:
        """State of every parameter; those that never had a gradient have none."""
        return {
            self.names[id(parameter)]: dict(state)
            for optimizer in self.optimizers
            for parameter, state in optimizer.state.items()
        }

    def load_state_dict(self, states: OptimizerState) -> None:
        """Go on from a state; a warning names what is of no use, which starts afresh."""
        adamw, *muon = (self._names_of(optimizer) for optimizer in self.optimizers)
        hidden = muon[0] if muon else []
        found = usable_states(states, [*adamw, *hidden], hidden)
        for optimizer in self.optimizers:
            optimizer.state.clear()
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    state = found.get(self.names[id(parameter)], {})
                    moved = {key: state[key].to(parameter.device, copy=True) for key in state}
                    moved.pop(MASTER, None)
                    if moved:
                        optimizer.state[parameter] = moved

    def _names_of(self, optimizer: torch.optim.Optimizer) -> list[str]:
        groups = optimizer.param_groups
        return [self.names[id(each)] for group in groups for each in group["params"]]


def adamw(
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    weight_decay: float,
    epsilon: float = EPSILON,
) -> torch.optim.AdamW:
    """The AdamW that everything but hidden matrices is trained by."""
    return torch.optim.AdamW(
        parameters, learning_rate, BETAS, epsilon, weight_decay=weight_decay, fused=True
    )


def split_parameters(model: nn.Module, muon: bool) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters as (hidden matrices for Muon, all others)."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    excluded = tables | {id(head.weight) for head in _output_heads(model)}
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        matrix = muon and parameter.ndim == 2 and id(parameter) not in excluded
        (hidden if matrix else rest).append(parameter)
    return hidden, rest


def _output_heads(model: nn.Module) -> list[nn.Module]:
    """What makes logits of hidden states, in every language model that there is inside."""
    finders: list[Any] = [getattr(each, "get_output_embeddings", None) for each in model.modules()]
    heads = [find() for find in finders if find is not None]
    return [head for head in heads if head is not None]


def cosine_with_warmup(
    update: int, updates: int, peak: float, *, warmup: float = 0.03, final: float = 0.04
) -> float:
    """Learning rate of update ``update`` of ``updates``.

    Args:
        update: Index from 0.
        updates: Length of the schedule.
        peak: Highest rate.
        warmup: Share of the updates spent rising linearly (SimpleSeg: 0.03).
        final: Last rate as a share of ``peak`` (SimpleSeg: 5e-5 to 2e-6, which is 0.04).
    """
    rising = max(1, round(warmup * updates))
    if update < rising:
        return peak * (update + 1) / rising
    progress = (update - rising) / max(1, updates - rising)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
