"""Decoding constrained to the grammar of outlines, by xgrammar's token masks.

The constrained policy is the model's distribution renormalised over the allowed tokens, when
sampling and when scoring. It writes nothing that `seg_env.grammar.decode` would find fault with,
and every answer is complete within a budget of tokens: as that runs out, only tokens after which
the answer can still be finished in time stay allowed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
import xgrammar
from torch import Tensor

from seg_env.frames import UNIT, Frame
from seg_env.grammar import grammar_ebnf

UNREACHABLE = 1 << 40
"""Number of tokens to the end of an answer if it cannot be reached."""


class OutlineConstraint:
    """A rule about which token may come next: answers are outlines, ended by an end token.

    End tokens are allowed only after a complete answer; after an end token, only end tokens and
    padding are. A token that is not allowed also ends the answer, so any completion can be scored.
    At the last vertex that a ring may have, xgrammar 0.2.8 excludes tokens that both end the ring
    and begin another one; the two are then written as separate tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        token_budget: int,
        decimals: int = 3,
        frame: Frame = UNIT,
        pad: bool = False,
        max_vertices: int | None = None,
        size: int | None = None,
        end_ids: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Compile the grammar that `seg_env.grammar.grammar_ebnf` writes for a vocabulary.

        Args:
            tokenizer: Any transformers tokenizer that can write the characters of the grammar.
            token_budget: The sampler's ``max_new_tokens``, the end token included.
            decimals: As in `grammar_ebnf`, like the next three.
            frame: Frame of the numbers.
            pad: Every number has all decimals.
            max_vertices: Most vertices of a ring.
            size: Rows of the output embedding, ``V``; by default the length of the tokenizer.
            end_ids: Tokens that end an answer; by default the tokenizer's end token.
            device: Device of the masks.

        Raises:
            ValueError: These tokens cannot write an answer, or none within the budget, or they
                decode differently together than one by one.
        """
        grammar = grammar_ebnf(decimals, frame, pad=pad, spaces=False, max_vertices=max_vertices)
        self.size = len(tokenizer) if size is None else size
        self.token_budget, self.device = token_budget, torch.device(device)
        end_ids = [tokenizer.eos_token_id] if end_ids is None else list(end_ids)
        vocabulary = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=self.size, stop_token_ids=end_ids
        )
        if vocabulary.add_prefix_space:  # decoding drops it where a text begins
            grammar = grammar.replace("root ::=", 'root ::= " "?', 1)
        self.compiled = xgrammar.GrammarCompiler(vocabulary).compile_grammar(grammar)
        self.ends = frozenset(end_ids)
        pad_id = tokenizer.pad_token_id
        self.behind_end = torch.zeros(self.size, dtype=torch.bool, device=device)
        self.behind_end[end_ids if pad_id is None else [*end_ids, pad_id]] = True
        special = {*vocabulary.special_token_ids, *end_ids}
        self._texts = [
            "" if token in special else text.decode("latin-1")
            for token, text in enumerate(vocabulary.decoded_vocab)
        ]
        usable = (text and set(text) <= set("[],.0123456789 ") for text in self._texts)
        self._tokens = torch.tensor(
            [token for token, used in enumerate(usable) if used or token in self.ends]
        )
        padded = pad and not frame.integer
        self._closings = self._find_closings(f"{0:.{decimals}f}" if padded else "0")
        self._counts_vertices = max_vertices is not None
        self._needed: dict[tuple[int, int, str], tuple[Tensor, Tensor]] = {}
        self._check_texts(tokenizer)

    @classmethod
    def for_policy(cls, policy: Any, **settings: Any) -> OutlineConstraint:
        """The constraint for a `VLMPolicy`'s vocabulary, on its device."""
        return cls(
            policy.tokenizer,
            size=policy.forbidden.shape[0],
            end_ids=policy.end_ids,
            device=policy.device,
            **settings,
        )

    def walk(self, rows: int) -> OutlineWalk:
        """Start ``rows`` empty answers."""
        return OutlineWalk(self, rows)

    def unpack(self, bits: Tensor) -> Tensor:
        """Masks of tokens, ``(n, V)`` bool on the device, from xgrammar's ``(n, V / 32)`` int32."""
        # Of 150,000 tokens a thousand can write part of an outline.
        words = bits[:, self._tokens // 32] >> (self._tokens % 32)
        found = (words & 1).bool().to(self.device)
        mask = torch.zeros(len(bits), self.size, dtype=torch.bool, device=self.device)
        mask[:, self._tokens.to(self.device)] = found
        return mask

    def leave_room(self, matcher: Any, tokens: Sequence[int], allowed: Tensor) -> None:
        """Remove allowed tokens ``(V,)`` that leave too little room to finish an answer.

        ``matcher`` is xgrammar's matcher of the answer, ``tokens`` are its tokens so far.
        """
        room = self.token_budget - len(tokens) - 1
        if room > self._closings[-1][1]:
            return
        key = self._position("".join(map(self._texts.__getitem__, tokens)))
        if key not in self._needed:
            candidates = allowed.nonzero().squeeze(-1)
            needed = [self._tokens_behind(matcher.fork(), token) for token in candidates.tolist()]
            self._needed[key] = candidates, torch.tensor(needed, device=allowed.device)
        candidates, counts = self._needed[key]
        allowed[candidates[counts > room]] = False

    def _position(self, text: str) -> tuple[int, int, str]:
        """The state that decides how an answer may continue.

        That is how deep brackets are nested, how many vertices the open ring has, and what follows
        its last complete vertex, in which only the whole part of the last number matters.
        """
        ring = text[max(text.rfind("[["), 0) :]
        ring, vertices = re.subn(r"\[[\d.]+,[\d.]+\]", "v", ring)
        rest = re.sub(r"[\d.]+,", "0,", ring[max(ring.rfind("v"), 0) :])
        rest = re.sub(r"\.\d+", lambda digits: "." + "0" * (len(digits[0]) - 1), rest)
        depth = text.count("[") - text.count("]")
        return depth, vertices if self._counts_vertices else min(vertices, 3), rest

    def _tokens_behind(self, matcher: Any, token: int) -> int:
        """Number of tokens that an answer needs after a token, the end token included."""
        if token in self.ends:
            return 0
        matcher.accept_token(token)
        if matcher.is_completed():
            return 1
        for text, count in self._closings:
            if matcher.accept_string(text):
                if matcher.is_completed():
                    return count + 1
                matcher.rollback(1)
        return UNREACHABLE

    def _find_closings(self, zero: str) -> list[tuple[str, int]]:
        """Texts that finish an answer, with their fewest tokens; every state has one of them.

        They are the ends of the shortest outline; ``zero`` is the shortest number.
        """
        vertex = f"[{zero},{zero}]"
        outline = f"[[{vertex},{vertex},{vertex}]]"
        texts = ["[]", *(outline[start:] for start in range(len(outline)))]
        pieces = {text for text in self._texts if text and set(text) <= set("[],.0")}
        counts = {text: _least_tokens(text, pieces) for text in texts}
        shortest = counts["[]"] + 1
        if max(counts.values()) >= UNREACHABLE:
            raise ValueError(
                "the tokens of this vocabulary cannot write an answer; is every character of "
                "'[],.0123456789' representable?"
            )
        if self.token_budget < shortest:
            raise ValueError(
                f"token_budget={self.token_budget}, but the shortest answer takes {shortest} tokens"
            )
        return sorted(counts.items(), key=lambda closing: closing[1])

    def _check_texts(self, tokenizer: Any) -> None:
        """Compare what random answers are decoded to with the texts of their tokens."""
        generator = torch.Generator().manual_seed(0)
        walk, everyone = self.walk(32), torch.arange(32)
        for _ in range(48):
            allowed = walk.allowed(everyone).cpu()[:, self._tokens].float()
            allowed[allowed.sum(-1) == 0] = 1.0  # it has ended, and takes no more
            columns = torch.multinomial(allowed, 1, generator=generator).squeeze(-1)
            walk.advance(everyone, self._tokens[columns])
        for row in walk.tokens:
            text = tokenizer.decode(row, skip_special_tokens=True)
            parts = [self._texts[token] for token in row]
            if "".join(parts).lstrip(" ") != text.lstrip(" "):
                raise ValueError(f"tokens {row} write {text!r}, but one by one they write {parts}")


def _least_tokens(text: str, pieces: set[str]) -> int:
    """The smallest number of pieces that make up the text."""
    longest = max(map(len, pieces), default=0)
    counts = [0]
    for end in range(1, len(text) + 1):
        starts = range(max(0, end - longest), end)
        found = (counts[start] + 1 for start in starts if text[start:end] in pieces)
        counts.append(min(found, default=UNREACHABLE))
    return counts[-1]


class OutlineWalk:
    """Answers in progress under an `OutlineConstraint`."""

    def __init__(self, constraint: OutlineConstraint, rows: int) -> None:
        """Start ``rows`` empty answers; ``tokens`` are their tokens."""
        self._constraint = constraint
        self._matchers = [xgrammar.GrammarMatcher(constraint.compiled) for _ in range(rows)]
        self.tokens: list[list[int]] = [[] for _ in range(rows)]
        self._going = [True] * rows
        self._batch = xgrammar.BatchGrammarMatcher()

    def allowed(self, rows: Tensor) -> Tensor:
        """Tokens that may come next in some answers, ``(n,) -> (n, V)`` bool, at least one each."""
        constraint = self._constraint
        numbers = rows.tolist()
        places = [place for place, row in enumerate(numbers) if self._going[row]]
        bits = torch.zeros(len(numbers), -(-constraint.size // 32), dtype=torch.int32)
        if places:
            matchers = [self._matchers[numbers[place]] for place in places]
            self._batch.batch_fill_next_token_bitmask(matchers, bits, places)
        allowed = constraint.unpack(bits)
        for place, row in enumerate(numbers):
            if self._going[row]:
                constraint.leave_room(self._matchers[row], self.tokens[row], allowed[place])
            else:
                allowed[place] = constraint.behind_end
        return allowed

    def advance(self, rows: Tensor, tokens: Tensor) -> None:
        """Add one token, ``(n,)``, to each of some answers, ``(n,)``."""
        given = zip(rows.tolist(), tokens.tolist(), strict=True)
        pairs = [(row, token) for row, token in given if self._going[row]]
        if not pairs:
            return
        matchers = [self._matchers[row] for row, _ in pairs]
        accepted = self._batch.batch_accept_token(matchers, [token for _, token in pairs])
        for (row, token), known in zip(pairs, accepted, strict=True):
            self.tokens[row].append(token)
            self._going[row] = known and token not in self._constraint.ends
