"""Training that has gone wrong: numbers that are not finite."""

from __future__ import annotations

from torch import nn

from seg_env.errors import ExplainedError


class DivergedError(ExplainedError, ArithmeticError):
    """Weights, gradients or log-probabilities are not finite."""


def require_finite(model: nn.Module, what: str) -> None:
    """Make sure that all weights are finite.

    Raises:
        DivergedError: One is not; ``what`` names the policy.
    """
    for name, weights in model.state_dict().items():
        if not weights.isfinite().all():
            wrong = int((~weights.isfinite()).sum())
            raise DivergedError(
                f"{what} has weights that are not finite: {wrong} of {weights.numel()} in {name}"
            )
