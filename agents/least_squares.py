"""Linear regression over more samples than fit memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class RidgeRegression:
    """``y = x w + b`` with the least squared error, from sums over samples.

    ``w`` is held small by ``ridge`` times the mean variance of the features; ``b`` is free.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        """Start without samples of ``width`` features."""
        # One matrix of sums over (x, 1, y): all that is to be added up over processes.
        self.sums = torch.zeros(width + 2, width + 2, dtype=torch.float64, device=device)

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Take ``(M, D)`` features with ``(M,)`` targets into account."""
        targets = targets[:, None]
        rows = torch.cat([features, torch.ones_like(targets), targets], dim=1).double()
        self.sums += rows.T @ rows

    def solve(
        self, ridge: float, reduce: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Weights ``(D,)`` and bias ``()``, float64.

        Args:
            ridge: Above 0; 0.1 adds a tenth of the mean variance of a feature to each of them.
            reduce: Adds up over processes.
        """
        sums = self.sums if reduce is None else reduce(self.sums)
        width = len(sums) - 2
        means = sums[width] / sums[width, width].clamp(min=1)
        centred = sums - torch.outer(sums[width], means)
        variances = centred[:width, :width]
        floor = ridge * variances.diagonal().mean() + torch.finfo(torch.float32).eps
        damped = variances + floor * torch.eye(width, dtype=sums.dtype, device=sums.device)
        weights = torch.linalg.solve(damped, centred[:width, width + 1])
        return weights, means[width + 1] - means[:width] @ weights
