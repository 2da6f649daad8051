"""Keeping a policy at a chosen distance from the one it started from."""

from __future__ import annotations

MOST = 0.2
"""Largest relative error that is reacted to."""


def steer_coefficient(coefficient: float, found: float, target: float, share: float) -> float:
    """Weight of a KL penalty, adapted to the divergence found (arXiv 1909.08593, section 2.2).

    ``beta * (1 + share * clip(found / target - 1, -0.2, 0.2))``: too far away, and the penalty
    grows; too near, and it shrinks. Ziegler et al. use a share of 0.1 per batch.

    Args:
        coefficient: ``beta`` so far.
        found: Divergence of this rollout.
        target: Divergence that is wanted, in the same unit, above 0.
        share: Size of this rollout relative to the horizon of the controller.

    Raises:
        ValueError: The target is not positive.
    """
    if target <= 0:
        raise ValueError(f"target_kl={target}, but a divergence is above 0")
    error = min(max(found / target - 1, -MOST), MOST)
    return coefficient * (1 + share * error)
