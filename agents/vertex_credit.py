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

from agents.advantages import against_others
from seg_env.envs.vertex import VertexCredit


class TokenAligner:
    """Finds where in a text the tokens that wrote it end, for any tokenizer.

    Where the texts of single tokens do not add up to the answer (several tokens make one character,
    spaces are cleaned up, …) it is decoded token by token, which is slower and always right.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Start with no texts of tokens."""
        self.tokenizer = tokenizer
        self._pieces: dict[int, str] = {}
        # SentencePiece drops the space in front of a text; behind another token it is seen.
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

    def _piece(self, token: int) -> str:
        """Text that a token adds to what is before it."""
        if token not in self._pieces:
            text = self._decode([*self._anchor, token])
            self._pieces[token] = text[len(self._anchor_text) :]
        return self._pieces[token]

    def _decode_step_by_step(self, tokens: Sequence[int], text: str) -> NDArray[np.int64]:
        """As `text_ends`, from the decoded beginnings of the answer."""
        beginnings = [list(tokens[: count + 1]) for count in range(len(tokens))]
        decoded = self.tokenizer.batch_decode(beginnings, skip_special_tokens=True)
        # An unfinished character is decoded as a replacement: only what stays has been written.
        agreed = [sum(takewhile(bool, map(eq, beginning, text))) for beginning in decoded]
        return np.maximum.accumulate(np.array(agreed, dtype=np.int64))

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text


def completing_tokens(
    aligner: TokenAligner,
    tokens: Tensor,
    mask: Tensor,
    texts: Sequence[str],
    credits: Sequence[VertexCredit],
) -> tuple[Tensor, Tensor]:
    """Answer and token, two ``(K,)`` int64 tensors, that complete each entry of credits.

    A token completes an entry by writing its last character. What is credited to the end of a text
    belongs to the last token, the end token if there is one: writing no more was its choice. Tokens
    and mask are ``(N, T)``, padded on the right; every answer has at least one token.
    """
    rows: list[NDArray[np.int64]] = []
    places: list[NDArray[np.int64]] = []
    lengths = mask.sum(-1).tolist()
    for row, (ids, length) in enumerate(zip(tokens.tolist(), lengths, strict=True)):
        text, ends = texts[row], credits[row].ends
        written = aligner.text_ends(ids[:length], text)
        place = np.searchsorted(written, ends, side="left")
        place[ends >= len(text)] = length - 1
        places.append(place.clip(max=length - 1))
        rows.append(np.full(len(ends), row))
    return torch.from_numpy(np.concatenate(rows)), torch.from_numpy(np.concatenate(places))


def place_credit(
    aligner: TokenAligner,
    tokens: Tensor,
    mask: Tensor,
    texts: Sequence[str],
    credits: Sequence[VertexCredit],
    group_size: int = 1,
) -> Tensor:
    """Rewards of vertices on the tokens that complete them, ``(N, T)`` float32.

    Rows sum to the rewards of the answers. With a ``group_size`` above 1, each vertex earns what it
    did better than the vertices of the same number in the group's other answers; what others earned
    with vertices that an answer lacks is set against its last token.
    """
    rows, places = completing_tokens(aligner, tokens, mask, texts, credits)
    earned = np.concatenate([credit.rewards for credit in credits])
    if group_size == 1:
        return _scatter(mask, rows, places, earned)
    counts = torch.tensor([len(credit.ends) for credit in credits])
    real = torch.arange(int(counts.max())) < counts[:, None]  # (N, K)
    padded = torch.zeros(real.shape, dtype=torch.float64)
    padded[real] = torch.from_numpy(earned)
    relative = against_others(padded, group_size)
    placed = _scatter(mask, rows, places, relative[real].numpy())
    missing = (relative * ~real).sum(-1).to(placed)
    last = mask.sum(-1, keepdim=True) - 1
    return placed.scatter_add(1, last, missing[:, None])


def _scatter(mask: Tensor, rows: Tensor, places: Tensor, values: NDArray[Any]) -> Tensor:
    """Add up values at their places in a ``(N, T)`` float32 tensor, on the device of ``mask``."""
    result = torch.zeros(mask.shape)
    result.index_put_((rows, places), torch.as_tensor(values, dtype=torch.float32), accumulate=True)
    return result.to(mask.device)


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
