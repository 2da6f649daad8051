"""Muon: momentum, orthogonalised, as the step of a hidden matrix.

The update is that of ``torch.optim.Muon`` (Jordan 2024), bit for bit where it is computed in
bfloat16. That one knows no other type, and a processor without bfloat16 instructions is then busier
with a small policy's optimizer than with its gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from agents.training.hardware import multiplies_bfloat16
from agents.training.settings import MuonPrecision

MOMENTUM = 0.95
"""Of Muon, with Nesterov's look ahead."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration, chosen for its slope at zero: five rounds bring singular values between
0.7 and 1.2, not to 1."""
ROUNDS = 5
SMALLEST_NORM = 1e-7
"""A matrix is divided by its norm, but by no less."""


class Muon(torch.optim.Optimizer):
    """Steps hidden matrices by their orthogonalised momentum.

    Updates are ``0.2 sqrt(max(rows, columns))`` times an orthogonal matrix, which is the size of
    AdamW's (arXiv 2502.16982, equation 4).

    Attributes:
        precision: What matrices are orthogonalised in.
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
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply the gradients; ``closure`` computes them anew and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
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
        return loss


def step_size(matrix: Tensor, learning_rate: float) -> float:
    """What an orthogonal matrix of this shape is multiplied by."""
    return learning_rate * 0.2 * math.sqrt(max(matrix.shape))


def orthogonalize(matrix: Tensor, precision: MuonPrecision = "auto") -> Tensor:
    """A matrix with all its singular values near 1, ``(rows, columns)``.

    Args:
        matrix: ``(rows, columns)``.
        precision: What is computed in, and the type of the result.
    """
    first, third, fifth = COEFFICIENTS
    found = matrix.to(chosen_type(precision, matrix.device))
    tall = len(found) > found.shape[1]
    if tall:
        found = found.T
    found = found / found.norm().clamp(min=SMALLEST_NORM)
    for _ in range(ROUNDS):
        gram = found @ found.T
        change = torch.addmm(gram, gram, gram, beta=third, alpha=fifth)
        found = torch.addmm(found, change, found, beta=first)
    return found.T if tall else found


def chosen_type(precision: MuonPrecision, device: torch.device) -> torch.dtype:
    """The type that a precision stands for on a device."""
    if precision == "auto":
        precision = "bfloat16" if multiplies_bfloat16(device) else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
