"""The critic: the reward still to come, predicted from the hidden state of every token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from agents.policy.model import VLMPolicy
from agents.policy.scoring import TokenScores, score
from agents.rollout import Rollout
from agents.settings import CriticKind


class ValueHead(nn.Module):
    """A linear map from hidden states ``(..., D)`` to values; every value is 0 at first."""

    def __init__(self, width: int, rate: float = 1.0) -> None:
        """Make a head for hidden states of a width.

        It learns ``rate`` times faster than the layers below it: values are multiplied by ``rate``,
        since Adam moves weights by the learning rate whatever the gradient.
        """
        super().__init__()
        self.rate = rate
        # A vector, not a (1, D) matrix: Muon would take that for a hidden matrix.
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor) -> Tensor:
        """``(..., D)`` to ``(...)`` float32."""
        return self.rate * ((hidden.float() * self.weight).sum(-1) + self.bias)

    @torch.no_grad()
    def start_from(self, weight: Tensor, bias: Tensor) -> None:
        """Start from the result of a regression of returns on the hidden states."""
        self.weight.copy_(weight / self.rate)
        self.bias.copy_(bias / self.rate)


class Critic(nn.Module):
    """A value head on the policy's own hidden states, or on those of a copy of its model.

    Attributes:
        model: The copy; None if hidden states are shared with the policy.
    """

    def __init__(self, policy: VLMPolicy, kind: CriticKind, rate: float) -> None:
        super().__init__()
        width = policy.model.get_input_embeddings().embedding_dim
        self.head = ValueHead(width, rate).to(policy.device)
        self._own = policy.copy() if kind == "separate" else None
        self.model = None
        if self._own is not None:
            self._own.constraint = None  # of no use to hidden states
            self.model = self._own.model

    def values(self, scores: TokenScores, part: Rollout, *, detach: bool = False) -> Tensor:
        """Expected reward before each token, ``(N, T)`` float32, 0 on padding.

        The policy's ``scores`` of the part must have hidden states; ``detach`` trains the head
        alone.
        """
        hidden = self.hidden(scores, part)
        return self.head(hidden.detach() if detach else hidden) * part.mask

    def hidden(self, scores: TokenScores, part: Rollout) -> Tensor:
        """The states that values are read from, ``(N, T, D)``."""
        if self._own is not None:
            scores = score(self._own, part.inputs, part.tokens, part.mask, hidden=True)
        assert scores.hidden is not None, "the policy was scored without hidden=True"
        return scores.hidden


def regression_sums(features: Tensor, targets: Tensor) -> Tensor:
    """The sums that `ridge_regression` needs of features ``(M, D)`` and targets ``(M,)``.

    ``(D + 2, D + 2)`` float64; the sums of parts, or of processes, add up to those of the whole.
    """
    targets = targets[:, None]
    rows = torch.cat([features, torch.ones_like(targets), targets], dim=1).double()
    return rows.T @ rows


def ridge_regression(sums: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Least-squares ``w`` ``(D,)`` and ``b`` ``()`` of ``y = x w + b``, float64.

    ``w`` is penalised by ``ridge`` times the mean variance of the features, ``b`` is not.
    """
    width = len(sums) - 2
    means = sums[width] / sums[width, width].clamp(min=1)
    centred = sums - torch.outer(sums[width], means)
    variances = centred[:width, :width]
    floor = ridge * variances.diagonal().mean() + torch.finfo(torch.float32).eps
    damped = variances + floor * torch.eye(width, dtype=sums.dtype, device=sums.device)
    weights = torch.linalg.solve(damped, centred[:width, width + 1])
    return weights, means[width + 1] - means[:width] @ weights
