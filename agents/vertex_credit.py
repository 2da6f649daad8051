"""From characters of an answer to its tokens: which token completed which vertex.

One token may hold the end of a vertex and the start of the next; a vertex may take six.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from operator import eq
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from agents.advantages import against_others
from seg_env.envs.vertex import VertexCredit


class TokenAligner:
    """Finds where in a text the tokens that wrote it end, for any tokenizer.

    Where the texts of single tokens do not add up to the answer (several tokens make one character,
    spaces are cleaned up, …) it is decoded token by token, which is slower but always right.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._pieces: dict[int, str] = {}
        # SentencePiece drops the space in front of a text, but not after another token.
        self._anchor: list[int] = tokenizer.encode("]", add_special_tokens=False)
        self._anchor_text = self._decode(self._anchor)

    def text_ends(self, tokens: Sequence[int], text: str) -> NDArray[np.int64]:
        """Number of characters of an answer written up to each of its tokens, ``(T,)``."""
        pieces = [self._piece(token) for token in tokens]
        joined = "".join(pieces)
        if not joined.endswith(text) or joined[: len(joined) - len(text)].strip():
            return self._decode_step_by_step(tokens, text)
        ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        return (ends - (len(joined) - len(text))).clip(min=0)

    def completing_tokens(
        self, tokens: Sequence[int], text: str, ends: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Which tokens of an answer complete its parts, which end after ``(K,)`` characters.

        A token completes a part by writing its last character. A part that ends with the text
        belongs to the last token, the end token if there is one: stopping there was its choice.
        """
        places = np.searchsorted(self.text_ends(tokens, text), ends, side="left")
        places[ends >= len(text)] = len(tokens) - 1
        return places.clip(max=len(tokens) - 1)

    def _piece(self, token: int) -> str:
        """Text that a token adds to what is before it."""
        if token not in self._pieces:
            text = self._decode([*self._anchor, token])
            self._pieces[token] = text[len(self._anchor_text) :]
        return self._pieces[token]

    def _decode_step_by_step(self, tokens: Sequence[int], text: str) -> NDArray[np.int64]:
        """As `text_ends`, from the decoded prefixes of the answer."""
        beginnings = [list(tokens[: count + 1]) for count in range(len(tokens))]
        decoded = self.tokenizer.batch_decode(beginnings, skip_special_tokens=True)
        # Unfinished characters decode to placeholders: only text that stays has been written.
        agreed = [sum(takewhile(bool, map(eq, beginning, text))) for beginning in decoded]
        return np.maximum.accumulate(np.array(agreed, dtype=np.int64))

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text


def place_credit(
    aligner: TokenAligner,
    tokens: Tensor,
    mask: Tensor,
    texts: Sequence[str],
    credits: Sequence[VertexCredit],
    group_size: int = 1,
) -> Tensor:
    """Rewards of vertices on the tokens that complete them, ``(N, T)`` float32.

    Tokens and mask are ``(N, T)``, padded on the right; every answer has at least one token. Rows
    sum to the rewards of the answers. With a ``group_size`` above 1, each vertex earns its reward
    minus the mean of the vertices of the same number in the group's other answers; for vertices
    that an answer lacks, that mean is subtracted at its last token.
    """
    earned = [torch.from_numpy(credit.rewards) for credit in credits]
    relative = against_others(pad_sequence(earned, batch_first=True), group_size)
    placed = torch.zeros(mask.shape)
    lengths = mask.sum(-1).tolist()
    answers = zip(tokens.tolist(), lengths, texts, credits, strict=True)
    for row, (ids, length, text, credit) in enumerate(answers):
        places = torch.from_numpy(aligner.completing_tokens(ids[:length], text, credit.ends))
        own, missing = relative[row, : len(places)], relative[row, len(places) :]
        placed[row].index_add_(0, places, own.float())
        placed[row, length - 1] += missing.sum().float()
    return placed.to(mask.device)


def credits_of(env: Any, texts: Sequence[str]) -> list[VertexCredit]:
    """What each vertex of the answers to a vector environment's questions earned."""
    environment = env.unwrapped
    if not hasattr(environment, "vertex_credit"):
        raise TypeError(
            f"{type(environment).__name__} has no vertex_credit(texts): credit whole answers, or "
            f"use an environment of seg_env"
        )
    found: list[VertexCredit] = environment.vertex_credit(texts)
    return found
