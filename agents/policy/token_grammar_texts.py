"""What every token of a vocabulary adds to the text of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seg_env.grammar.automaton import ALPHABET

_ANCHOR = "["
"""Text in front of a token; some decoders drop a space where the text begins."""


@dataclass(frozen=True)
class TokenTexts:
    """Texts of the tokens that consist of the grammar's characters, by token id."""

    first: dict[int, str]
    """As the first token of an answer; empty for a space that decoding drops there."""
    later: dict[int, str]
    """Behind other tokens; never empty."""


def token_texts(tokenizer: Any) -> TokenTexts:
    """Find out what tokens add to a text, by decoding them as `VLMPolicy.texts` does.

    The written form of a token is not asked, as every kind of tokenizer has its own (``Ġ``, ``▁``,
    ``<0x5B>``). Special tokens add nothing and are left out, as is part of a character.

    Args:
        tokenizer: Any transformers tokenizer.

    Returns:
        The tokens all of whose characters are in the grammar's alphabet.
    """
    anchor = list(tokenizer(_ANCHOR, add_special_tokens=False).input_ids)
    (before,) = _decode(tokenizer, [anchor])
    candidates = _candidates(tokenizer)
    alone = _decode(tokenizer, [[token] for token in candidates])
    behind = _decode(tokenizer, [[*anchor, token] for token in candidates])
    first: dict[int, str] = {}
    later: dict[int, str] = {}
    for token, text, longer in zip(candidates, alone, behind, strict=True):
        if not longer.startswith(before) or len(longer) == len(before):
            continue
        for texts, added in ((first, text), (later, longer[len(before) :])):
            if set(added) <= set(ALPHABET):
                texts[token] = added
    return TokenTexts(first, later)


def _candidates(tokenizer: Any) -> list[int]:
    """Tokens worth decoding properly.

    Of 150,000 tokens few are about numbers. The backend of fast tokenizers decodes ten times faster
    than the tokenizer itself, which may only change spaces afterwards.
    """
    count, backend = len(tokenizer), getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return list(range(count))
    texts = backend.decode_batch([[token] for token in range(count)], skip_special_tokens=True)
    return [token for token, text in enumerate(texts) if set(text) <= set(ALPHABET)]


def _decode(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    texts: list[str] = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return texts
