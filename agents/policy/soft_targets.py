"""Soft targets for numbers: nearly right ones get part of the probability."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

NUMBER = re.compile(r"([^0-9]*)(0\.)?([0-9]{2,3})")
"""A token that ends in a whole number or fraction of two or three digits."""


class SoftTargets:
    """Cross-entropy to a normal distribution around the true number, over tokens of its kind.

    Tokens are of one kind if they have the same characters before numbers of the same form; a token
    without others of its kind has a hard target. Soft and hard targets have the same mean, except
    at the first and last numbers of a kind.
    """

    def __init__(self, tokenizer: Any, deviation: float, device: torch.device | str) -> None:
        """Find the numbers in a vocabulary; ``deviation`` is in steps of their last digit."""
        kinds: dict[tuple[str, str, int], list[tuple[int, int]]] = {}
        for text, token in tokenizer.get_vocab().items() if deviation else ():
            if found := NUMBER.fullmatch(text):
                before, point, digits = found.groups(default="")
                kind = before, point, len(digits)
                kinds.setdefault(kind, []).append((int(digits), token))
        self._deviation = deviation
        self._kinds: list[tuple[Tensor, Tensor]] = []
        """Tokens of each kind ``(K,)`` in the order of their numbers, and targets ``(K, K)``."""
        self._kind = torch.full((len(tokenizer),), -1, device=device)
        self._place = torch.zeros(len(tokenizer), dtype=torch.long, device=device)
        for members in kinds.values():
            if len(members) < 2:
                continue
            values, tokens = torch.tensor(sorted(members), device=device).unbind(1)
            distances = (values[:, None] - values) / deviation
            self._kind[tokens] = len(self._kinds)
            self._place[tokens] = torch.arange(len(tokens), device=device)
            self._kinds.append((tokens, (-0.5 * distances.square()).softmax(1)))

    def __bool__(self) -> bool:
        """Whether there is any number that is one token."""
        return bool(self._kinds)

    def cross_entropy(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Mean over ``(M, V)`` logits, given the true tokens ``(M,)``, in nats."""
        log_probs = torch.log_softmax(logits, -1)
        kinds = self._kind[tokens]
        plain = kinds < 0
        # In float64 the order in which threads add up does not show after rounding.
        total = -log_probs[plain].gather(1, tokens[plain][:, None]).double().sum()
        for kind, (members, targets) in enumerate(self._kinds):
            chosen = kinds == kind
            wanted = targets[self._place[tokens[chosen]]]
            total = total - (log_probs[chosen][:, members] * wanted).double().sum()
        return (total / len(tokens)).float()
