"""What sampling and scoring need to know of a rule about which token may come next."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class TokenConstraint(Protocol):
    """A rule over sequences of tokens, for batches of answers.

    The constrained policy is the model's distribution renormalised over the allowed tokens. It is
    the same policy when sampling and when scoring, because both replay the same states.

    What a state means is the constraint's own business: rows of ``K`` integers that are selected,
    repeated and concatenated like any other tensor of the batch.
    """

    def start(self, rows: int) -> Tensor:
        """States before the first token of ``rows`` answers, ``(rows, K)`` int64."""

    def allowed(self, states: Tensor) -> Tensor:
        """Tokens that may come next, ``(rows, K) -> (rows, V)`` bool, at least one in every row.

        ``V`` is the number of rows of the output embedding.
        """

    def advance(self, states: Tensor, tokens: Tensor) -> Tensor:
        """States after one more token of each answer, ``(rows, K), (rows,) -> (rows, K)``."""
