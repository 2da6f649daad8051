"""Optimizers: Muon for hidden matrices with AdamW for the rest.

Muon's update is that of ``torch.optim.Muon`` (Jordan 2024), bit for bit in bfloat16, the only type
that one knows: without bfloat16 instructions it takes longer than a small policy's gradients.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from agents.training.hardware import multiplies_bfloat16
from agents.training.settings import MuonPrecision, OptimizerSettings

BETAS = (0.9, 0.95)
"""Of AdamW."""
MOMENTUM = 0.95
"""Of Muon, with Nesterov's look-ahead."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: five rounds bring singular values between 0.7 and 1.2, not to 1."""
ROUNDS = 5
MASTER = "master"
"""Key of the float32 weights that ZeRO keeps beside weights of lower precision."""

OptimizerState = dict[str, dict[str, Tensor]]
"""By the names of parameters: ``step``, ``exp_avg`` and ``exp_avg_sq`` of AdamW, or the
``momentum_buffer`` of Muon, and `MASTER`, all but ``step`` of the parameter's shape."""


class HybridOptimizer(torch.optim.Optimizer):
    """Muon on hidden matrices and AdamW on everything else, stepped as one.

    Muon (update scale of Moonlight, arXiv 2502.16982, the variant SimpleSeg names) orthogonalises
    the momentum of hidden matrices. Embeddings, output heads, norms, biases and convolutions stay
    with AdamW. Both parts share parameter groups and state with this optimizer, so that schedulers
    and checkpoints see all of it.
    """

    def __init__(self, model: nn.Module, settings: OptimizerSettings) -> None:
        """Sort the parameters of a model; without Muon all go to AdamW."""
        hidden, rest = split_parameters(model, settings.muon)
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.hidden = frozenset(self.names[id(parameter)] for parameter in hidden)
        self.parts: list[torch.optim.Optimizer] = [adamw(rest, settings)]
        if hidden:
            rate, decay = settings.learning_rate, settings.weight_decay
            self.parts.append(Muon(hidden, rate, decay, settings.muon_precision))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply the gradients."""
        for part in self.parts:
            part.step()

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

    def named_state(self) -> OptimizerState:
        """State by the names of parameters; those that never had a gradient have none."""
        return {self.names[id(parameter)]: dict(state) for parameter, state in self.state.items()}

    def load_named_state(self, states: OptimizerState) -> None:
        """Go on from a state; warns of what is of no use, which starts afresh."""
        trained = [parameter for group in self.param_groups for parameter in group["params"]]
        found = usable_states(states, [self.names[id(each)] for each in trained], self.hidden)
        self.state.clear()
        for parameter in trained:
            state = found.get(self.names[id(parameter)], {})
            moved = {key: state[key].to(parameter.device, copy=True) for key in state}
            moved.pop(MASTER, None)
            if moved:
                self.state[parameter] = moved


class Muon(torch.optim.Optimizer):
    """Steps matrices by their orthogonalised momentum.

    Updates are ``0.2 sqrt(max(rows, columns))`` times an orthogonal matrix, which is the size of
    AdamW's (arXiv 2502.16982, equation 4).
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        learning_rate: float,
        weight_decay: float = 0.0,
        precision: MuonPrecision = "auto",
    ) -> None:
        """Take parameters of shape ``(rows, columns)``; weight decay is decoupled."""
        super().__init__(matrices, {"lr": learning_rate, "weight_decay": weight_decay})
        self.precision: MuonPrecision = precision

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply the gradients."""
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is None:
                    continue
                state = self.state[weights]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weights.grad)
                momentum = state["momentum_buffer"].lerp_(weights.grad, 1 - MOMENTUM)
                update = weights.grad.lerp(momentum, MOMENTUM)
                weights.mul_(1 - group["lr"] * group["weight_decay"])
                weights.add_(
                    orthogonalize(update, self.precision), alpha=-step_size(update, group["lr"])
                )


def step_size(matrix: Tensor, learning_rate: float) -> float:
    """What an orthogonal matrix of this shape is multiplied by."""
    return learning_rate * 0.2 * math.sqrt(max(matrix.shape))


def orthogonalize(matrix: Tensor, precision: MuonPrecision = "auto") -> Tensor:
    """A matrix ``(rows, columns)`` with its singular values near 1, in the type of a precision."""
    first, third, fifth = COEFFICIENTS
    if precision == "auto":
        precision = "bfloat16" if multiplies_bfloat16(matrix.device) else "float32"
    found = matrix.to({"float32": torch.float32, "bfloat16": torch.bfloat16}[precision])
    tall = len(found) > found.shape[1]
    if tall:
        found = found.T
    found = found / found.norm().clamp(min=1e-7)
    for _ in range(ROUNDS):
        gram = found @ found.T
        change = torch.addmm(gram, gram, gram, beta=third, alpha=fifth)
        found = torch.addmm(found, change, found, beta=first)
    return found.T if tall else found


def adamw(parameters: Iterable[nn.Parameter], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW with our defaults."""
    return torch.optim.AdamW(
        parameters,
        settings.learning_rate,
        BETAS,
        settings.adam_epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def split_parameters(model: nn.Module, muon: bool) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters as (hidden matrices for Muon, all others)."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    finders: list[Any] = [getattr(each, "get_output_embeddings", None) for each in model.modules()]
    heads = [find() for find in finders if find is not None]
    excluded = tables | {id(head.weight) for head in heads if head is not None}
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        matrix = muon and parameter.ndim == 2 and id(parameter) not in excluded
        (hidden if matrix else rest).append(parameter)
    return hidden, rest


def usable_states(
    states: OptimizerState, names: Collection[str], hidden: Collection[str] = ()
) -> OptimizerState:
    """The part of a saved state that an optimizer can go on from; warns of what is lost.

    ``names`` are the trained parameters, ``hidden`` those of them that Muon trains.
    """
    known = {name: state for name, state in states.items() if name in names and state}
    found = {
        name: state
        for name, state in known.items()
        if ("momentum_buffer" in state) == (name in hidden)
    }
    _warn(known.keys() - found.keys(), "were trained by another optimizer (Muon, AdamW) before")
    _warn(states.keys() - names, "are not trained here")
    return found


def _warn(names: Collection[str], why: str) -> None:
    if names:
        warnings.warn(
            f"the optimizer state of {len(names)} parameters in the checkpoint is lost, they {why}:"
            f" {min(names)}{', …' if len(names) > 1 else ''}",
            stacklevel=3,
        )
