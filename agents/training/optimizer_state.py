"""What optimizers of different kinds make of each other's state, parameter by parameter."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping

from torch import Tensor

OptimizerState = dict[str, dict[str, Tensor]]
"""By the names of parameters: ``step``, ``exp_avg`` and ``exp_avg_sq`` of AdamW, or the
``momentum_buffer`` of Muon, and `MASTER`, all but ``step`` of the parameter's shape."""
MASTER = "master"
"""Key of the float32 weights that ZeRO keeps beside weights of lower precision."""


def usable_states(
    states: OptimizerState, names: Collection[str], hidden: Collection[str] = ()
) -> OptimizerState:
    """The part of a saved state that an optimizer can go on from; warns of what is lost.

    Args:
        states: What was saved.
        names: Parameters that the optimizer trains.
        hidden: Those of them that it trains by Muon.
    """
    known = {name: state for name, state in states.items() if name in names and state}
    found = {name: state for name, state in known.items() if _is_muons(state) == (name in hidden)}
    _warn(known.keys() - found.keys(), "were trained by another optimizer (Muon, AdamW) before")
    _warn(states.keys() - names, "are not trained here")
    return found


def _is_muons(state: Mapping[str, Tensor]) -> bool:
    return "momentum_buffer" in state


def _warn(names: Collection[str], why: str) -> None:
    if names:
        warnings.warn(
            f"the optimizer state of {len(names)} parameters in the checkpoint is lost, they {why}:"
            f" {min(names)}{', …' if len(names) > 1 else ''}",
            stacklevel=3,
        )
