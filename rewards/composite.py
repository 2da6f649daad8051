"""A weighted sum of rewards, written as a short text: ``"mask_iou=1.0 format=0.1"``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from rewards.base import Reward
from rewards.registry import make_reward
from seg_env.errors import ExplainedError
from seg_env.types import Prediction, Target

DEFAULT_REWARDS = "mask_iou=1.0 centroid_distance=0.5 format=0.1"
"""The paper's three rewards, of environments and training alike. It publishes no weights; these are
ours."""

LARGEST = 1e6
"""Rewards beyond it, of either sign, are refused: their squares do not fit training's numbers."""

Weight: TypeAlias = float | Literal["gate"]
"""Factor of a reward in the sum, or ``"gate"``: the sum is multiplied by the reward."""

RewardSpec: TypeAlias = "str | Mapping[str, object] | Sequence[object] | RewardSum"
"""What `RewardSum.from_spec` reads."""


class RewardValueError(ExplainedError, ValueError):
    """A reward returned values that nothing can be learned from."""


class Term(NamedTuple):
    """A reward in a sum."""

    reward: Reward
    weight: Weight
    """0 makes a metric, which is reported and not counted."""


@dataclass(frozen=True, eq=False)
class RewardScores:
    """Scores of ``N`` answers."""

    total: NDArray[np.float64]
    """``(N,)`` weighted sum, multiplied by the gates."""
    terms: dict[str, NDArray[np.float64]]
    """``(N,)`` unweighted values of every reward by name, metrics and gates included."""


class RewardSum:
    """Rewards with weights; calls each once for a whole batch and checks what it returns."""

    def __init__(self, spec: str | Mapping[str, object] | Sequence[object]) -> None:
        """Read a specification.

        Args:
            spec: One of

                - a string of ``name=weight`` terms separated by spaces, where a name is a
                  registered one or an import path:
                  ``"mask_iou=1.0 my_pkg.rewards:Compactness=0.2"``;
                - a mapping from such names to weights, ``{"mask_iou": 1.0, "format": "gate"}``;
                - a sequence of ``"name=weight"`` strings or of pairs ``(name or Reward, weight)``.

                A weight of 0 makes a metric that is reported and not counted. The weight ``gate``
                multiplies the sum of the others by that reward, which must stay in ``[0, 1]``.

        Raises:
            ValueError: A term is malformed, a name unknown or given twice, a weight not finite.
            TypeError: A name leads to something that is not a reward.
        """
        self.terms: dict[str, Term] = {}
        """Terms by reward name, in the order given."""
        for key, weight in _pairs(spec):
            reward = make_reward(key) if isinstance(key, str) else key
            if reward.name in self.terms:
                raise ValueError(f"reward {reward.name!r} is named twice; name each reward once")
            self.terms[reward.name] = Term(reward, _weight(reward.name, weight))
        if not self.terms:
            raise ValueError(
                f"no reward is named; expected name=weight terms such as {DEFAULT_REWARDS!r}"
            )

    @classmethod
    def from_spec(cls, spec: RewardSpec) -> RewardSum:
        """A sum as it is, or that of a specification."""
        return spec if isinstance(spec, RewardSum) else cls(spec)

    def __repr__(self) -> str:
        """The names and weights."""
        inside = " ".join(f"{name}={term.weight}" for name, term in self.terms.items())
        return f"RewardSum({inside!r})"

    def score(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> RewardScores:
        """Score ``N`` answers; what a reward raises propagates.

        Raises:
            RewardValueError: A reward returns something other than ``N`` finite real numbers, a
                gate leaves ``[0, 1]``, or a value or the sum is beyond `LARGEST`.
            ValueError: There are not as many targets.
        """
        if len(predictions) != len(targets):
            raise ValueError(
                f"{len(predictions)} predictions for {len(targets)} targets; "
                f"pass one target for each prediction"
            )
        total = np.zeros(len(predictions), dtype=np.float64)
        gate = np.ones(len(predictions), dtype=np.float64)
        values: dict[str, NDArray[np.float64]] = {}
        for name, (reward, weight) in self.terms.items():
            scores = _checked(name, reward(predictions, targets), len(predictions))
            values[name] = scores
            if weight != "gate":
                total += weight * scores
            elif ((scores >= 0) & (scores <= 1)).all():
                gate *= scores
            else:
                raise RewardValueError(
                    f"reward {name!r} is used as a gate and returned {scores.min()} to "
                    f"{scores.max()}; a gate stays in [0, 1], give it a weight instead"
                )
        total *= gate
        if (np.abs(total) > LARGEST).any():
            raise RewardValueError(
                f"the rewards add up to {total[np.abs(total).argmax()]:.6g}, beyond {LARGEST:g}: "
                f"give smaller weights in {self!r}"
            )
        return RewardScores(total, values)


def _pairs(spec: object) -> Iterator[tuple[str | Reward, Any]]:
    """The terms of a specification: what names the reward, and its weight."""
    if isinstance(spec, str | Mapping):
        spec = [spec] if isinstance(spec, str) else list(spec.items())
    if not isinstance(spec, Sequence):
        raise ValueError(
            f"rewards given as {type(spec).__name__}; expected a string such as "
            f"{DEFAULT_REWARDS!r}, a mapping, a sequence or a RewardSum"
        )
    for item in spec:
        match item:
            case str():
                # On a command line several terms may arrive as one quoted argument.
                for term in item.split():
                    name, _, weight = term.rpartition("=")
                    if not name:
                        raise ValueError(
                            f"reward term {term!r} is malformed; expected name=weight, "
                            f"package.module:Class=weight or name=gate, separated by spaces, as in "
                            f"{DEFAULT_REWARDS!r}"
                        )
                    yield name, weight
            case (str() | Reward() as key, weight):
                yield key, weight
            case _:
                raise ValueError(
                    f"reward term {item!r} is malformed; expected 'name=weight' or (name or "
                    f"Reward, weight)"
                )


def _weight(name: str, weight: object) -> Weight:
    if weight == "gate":
        return "gate"
    try:
        weight = number = float(cast("str", weight))
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"reward {name!r} has weight {weight!r}; a weight is a finite number or 'gate'"
        )
    return number


def _checked(name: str, returned: object, count: int) -> NDArray[np.float64]:
    """A copy of a reward's answer as ``(count,) float64``, or an error that names the reward."""
    expected = f"expected ({count},) finite real numbers"
    try:
        values = np.asarray(returned)
    except ValueError as error:
        raise RewardValueError(f"reward {name!r}: {expected}, got {returned!r:.80}") from error
    if values.dtype.kind not in "fiub":
        raise RewardValueError(
            f"reward {name!r}: {expected}, got {returned!r:.80} of {values.dtype}"
        )
    if values.shape != (count,):
        raise RewardValueError(f"reward {name!r}: {expected}, got an array of shape {values.shape}")
    values = values.astype(np.float64)
    wrong = np.flatnonzero(~(np.abs(values) <= LARGEST))
    if len(wrong):
        raise RewardValueError(
            f"reward {name!r}: {expected} of at most {LARGEST:g}, got {values[wrong[0]]} for "
            f"prediction {wrong[0]} ({len(wrong)} such values)"
        )
    return values
