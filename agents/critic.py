"""The critic: what reward an answer may still expect, read from the hidden state of every token."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from agents.policy.model import VLMPolicy
from agents.policy.scoring import TokenScores, score
from agents.rollout import Rollout

CriticKind = Literal["shared", "separate"]


class ValueHead(nn.Module):
    """Hidden states to values; every value is 0 at first."""

    def __init__(self, width: int, hidden_width: int = 0, rate: float = 1.0) -> None:
        """Make a linear head, or one with a hidden layer.

        Args:
            width: Of the hidden states, ``D``.
            hidden_width: Units of the hidden layer; 0 for none.
            rate: How many times faster the head learns than what is below it. Adam moves a weight
                by about the learning rate whatever the gradient, so values move by ``rate`` times
                as much if they are multiplied by it.
        """
        super().__init__()
        self.rate = rate
        # Not to be asked of the weights, of which a rank may hold a part only (ZeRO-3).
        self.width = hidden_width or width
        self.layer: nn.Module = nn.Identity()
        if hidden_width:
            self.layer = nn.Sequential(nn.Linear(width, hidden_width), nn.SiLU())
        # A vector and not a (1, D) matrix, which Muon would take for a hidden one.
        self.weight = nn.Parameter(torch.zeros(self.width))
        self.bias = nn.Parameter(torch.zeros(1))

    def features(self, hidden: Tensor) -> Tensor:
        """What values are linear in, ``(..., width of the last layer)`` float32."""
        features: Tensor = self.layer(hidden.float())
        return features

    def forward(self, hidden: Tensor) -> Tensor:
        """``(..., D)`` to ``(...)`` float32."""
        return self.rate * ((self.features(hidden) * self.weight).sum(-1) + self.bias)

    @torch.no_grad()
    def start_from(self, weight: Tensor, bias: Tensor) -> None:
        """Take over what a regression of returns on the features found."""
        self.weight.copy_(weight / self.rate)
        self.bias.copy_(bias / self.rate)


class Critic(nn.Module):
    """A value head on the policy's own hidden states, or on those of a copy of its model.

    Attributes:
        head: The value head.
        model: The copy, None if hidden states are shared with the policy.
    """

    def __init__(
        self, policy: VLMPolicy, kind: CriticKind, hidden_width: int, rate: float, seed: int
    ) -> None:
        """Make a critic for a policy; see `ValueHead`."""
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            width = policy.model.get_input_embeddings().embedding_dim
            self.head = ValueHead(width, hidden_width, rate).to(policy.device)
        self.model = copy.deepcopy(policy.model) if kind == "separate" else None
        self._own: VLMPolicy | None = None
        if self.model is not None:
            self._own = VLMPolicy(self.model, policy.processor, precision=policy.precision)
            self._own.sharing_trial = policy.sharing_trial

    def values(self, scores: TokenScores, part: Rollout, *, detach: bool = False) -> Tensor:
        """What is expected before each token, ``(N, T)`` float32, 0 on padding.

        Args:
            scores: The policy's, with hidden states.
            part: Prompts and answers that were scored.
            detach: Learn the head alone, nothing below it.
        """
        hidden = self.hidden(scores, part)
        return self.head(hidden.detach() if detach else hidden) * part.mask

    def hidden(self, scores: TokenScores, part: Rollout) -> Tensor:
        """The states that values are read from, ``(N, T, D)``; arguments as those of `values`."""
        if self._own is not None:
            scores = score(self._own, part.inputs, part.tokens, part.mask, hidden=True)
        assert scores.hidden is not None, "the policy was scored without hidden=True"
        return scores.hidden


class ActorCritic(nn.Module):
    """What PPO trains: the policy's model, and a critic."""

    def __init__(self, model: nn.Module, critic: Critic) -> None:
        """Put them side by side; neither calls the other."""
        super().__init__()
        self.model, self.critic = model, critic
