"""Decoding constrained to the grammar of outlines, for any tokenizer.

A constrained policy writes nothing that `seg_env.grammar.decode` would find fault with. With a
token budget that holds for every answer: those that would be cut off are closed in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from agents.policy.token_grammar_bounds import UNREACHABLE, Counts, token_bounds, token_distances
from agents.policy.token_grammar_cache import (
    cache_key,
    default_cache_dir,
    load_compiled,
    save_compiled,
)
from agents.policy.token_grammar_compile import (
    NO_EFFECT,
    CompiledGrammar,
    compile_grammar,
)
from agents.policy.token_grammar_texts import TokenTexts, token_texts
from seg_env.frames import UNIT, Frame
from seg_env.grammar.automaton import AnswerRules, GrammarAutomaton

if TYPE_CHECKING:
    from agents.policy.model import VLMPolicy

_CORE = 0
"""Column of the core state; those of `Counts` follow."""
_WALKS, _STEPS = 32, 48
"""Size of the check that tokens together mean what they mean one by one."""


class TokenGrammar:
    """A `TokenConstraint`: answers are outlines, ended by an end token.

    A state is a row of six integers: the core state of the automaton, and `Counts`. End tokens are
    allowed exactly behind a complete answer; behind an end token only end tokens and padding are. A
    token that is not allowed ends the answer, too: states of foreign completions stay defined.

    Where the budget runs out, the tokens that stay allowed are those behind which the answer can be
    finished in time by writing what its ring and its number still lack.

    Attributes:
        automaton: The grammar over characters.
        size: ``V``, rows of the output embedding.
        token_budget: Longest answer in tokens, the end token included, or None.
    """

    def __init__(
        self,
        automaton: GrammarAutomaton,
        compiled: CompiledGrammar,
        *,
        size: int,
        end_ids: Sequence[int],
        pad_id: int | None = None,
        token_budget: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Put compiled tables on a device; see `from_tokenizer` and `for_policy`.

        Raises:
            ValueError: if these tokens cannot write an answer, or none within the budget.
        """
        shortest = int(token_distances(automaton, compiled)[automaton.start, 0]) + 1
        if shortest > UNREACHABLE:
            raise ValueError(
                f"the {len(compiled.tokens)} tokens of the grammar in this vocabulary cannot write "
                "an answer; is every character of '[],.0123456789' representable?"
            )
        if token_budget is not None and token_budget < shortest:
            raise ValueError(
                f"token_budget={token_budget}, but the shortest answer takes {shortest} tokens"
            )
        self.automaton = automaton
        self.size = size
        self.token_budget = token_budget
        self._ended = len(compiled.table)  # one more core state, behind the end token
        self._load_vocabulary(compiled, end_ids, pad_id)
        self.to(device)

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: Any,
        rules: AnswerRules,
        *,
        size: int | None = None,
        end_ids: Sequence[int] | None = None,
        token_budget: int | None = None,
        cache_dir: str | Path | None = None,
        device: torch.device | str = "cpu",
    ) -> TokenGrammar:
        """Compile the rules for a vocabulary, or read what an earlier call compiled.

        Args:
            tokenizer: Any transformers tokenizer that can write the characters of the grammar.
            rules: Which answers are allowed.
            size: Rows of the output embedding; by default the length of the tokenizer.
            end_ids: Tokens that end an answer; by default the tokenizer's one.
            token_budget: Every answer is complete within so many tokens, the end token included.
            cache_dir: Where tables are kept, by default `default_cache_dir`.
            device: Where the tables live.

        Raises:
            ValueError: see the class; or if tokens mean something else together than one by one.
        """
        automaton = GrammarAutomaton(rules)
        folder = default_cache_dir() if cache_dir is None else Path(cache_dir)
        path = folder / f"grammar-{cache_key(tokenizer, rules)}.npz"
        compiled = load_compiled(path, automaton, len(tokenizer))
        texts = None
        if compiled is None:
            texts = token_texts(tokenizer)
            compiled = compile_grammar(automaton, texts)
        grammar = cls(
            automaton,
            compiled,
            size=len(tokenizer) if size is None else size,
            end_ids=[tokenizer.eos_token_id] if end_ids is None else end_ids,
            pad_id=tokenizer.pad_token_id,
            token_budget=token_budget,
            device=device,
        )
        if texts is not None:
            grammar._check_concatenation(tokenizer, texts)
            save_compiled(compiled, path)
        return grammar

    @classmethod
    def for_policy(
        cls,
        policy: VLMPolicy,
        *,
        decimals: int = 3,
        frame: Frame = UNIT,
        token_budget: int | None = None,
        cache_dir: str | Path | None = None,
        **rules: Any,
    ) -> TokenGrammar:
        """The constraint for a policy's vocabulary, on its device.

        Args:
            policy: Whose tokens these are.
            decimals: Most digits after the point.
            frame: Frame of the numbers.
            token_budget: See `from_tokenizer`; the sampler's ``max_new_tokens`` in most cases.
            cache_dir: See `from_tokenizer`.
            **rules: Other fields of `AnswerRules`, such as ``pad`` and ``max_vertices``.
        """
        return cls.from_tokenizer(
            policy.tokenizer,
            AnswerRules(decimals=decimals, frame=frame, **rules),
            size=policy.forbidden.shape[0],
            end_ids=policy.end_ids,
            token_budget=token_budget,
            cache_dir=cache_dir,
            device=policy.device,
        )

    def to(self, device: torch.device | str) -> TokenGrammar:
        """Move the tables."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self

    def start(self, rows: int) -> Tensor:
        """States of empty answers, ``(rows, 6)``."""
        states = torch.zeros(rows, 1 + len(Counts._fields), dtype=torch.long)
        states[:, _CORE] = self.automaton.start
        return states.to(self._table.device)

    def allowed(self, states: Tensor) -> Tensor:
        """Tokens that may come next, ``(rows, V)`` bool."""
        core = states[:, _CORE, None]
        ended = core == self._ended
        mask = torch.zeros(len(states), self.size, dtype=torch.bool, device=states.device)
        mask[:, self._tokens] = self._allowed_text(states)
        mask[:, self._end_ids] = ended | (core == self.automaton.end)
        mask[:, self._pad_ids] |= ended
        return mask

    def advance(self, states: Tensor, tokens: Tensor) -> Tensor:
        """States after one more token of every row, ``(rows, 6)``."""
        core, counts = states[:, _CORE], Counts[Tensor](*states[:, 1:].unbind(1))
        numbers = self._table[core, self._columns[tokens]]
        fits = (states[:, 1:] <= self._bounds[core, self._filled(states), numbers]).all(-1)
        core, before, closes, after, vertices, rings = self._effects[core, numbers].unbind(1)
        core = core.masked_fill(~fits, self._ended)
        ring = torch.where(closes > 0, after, counts.ring + before)
        vertices = counts.vertices + vertices
        new = Counts(ring, vertices, vertices - ring, counts.rings + rings, counts.tokens + 1)
        return torch.stack((core, *new), dim=1)

    def _allowed_text(self, states: Tensor) -> Tensor:
        """Which tokens of the grammar may come next, ``(rows, L)`` bool."""
        core = states[:, _CORE]
        bounds = self._bounds[core, self._filled(states)]  # (rows, M, 5)
        fits = (states[:, None, 1:] <= bounds).all(-1)
        return fits.gather(1, self._table[core, :-1])

    def _filled(self, states: Tensor) -> Tensor:
        """Vertices of the open ring as far as they matter for what is owed, ``(rows,)``."""
        return states[:, 1].clamp(max=self.automaton.rules.min_vertices)

    def _load_vocabulary(
        self, compiled: CompiledGrammar, end_ids: Sequence[int], pad_id: int | None
    ) -> None:
        """Keep the tables as tensors, with a row for ended answers and a column for other words."""
        self._tokens = torch.from_numpy(compiled.tokens)
        self._end_ids = torch.tensor(list(end_ids))
        self._pad_ids = torch.tensor([] if pad_id is None else [pad_id], dtype=torch.long)
        for token in self._tokens[torch.isin(self._tokens, self._end_ids)].tolist():
            raise ValueError(f"token {token} ends an answer, but it also writes part of one")
        self._columns = torch.full((self.size,), len(self._tokens))
        self._columns[self._tokens] = torch.arange(len(self._tokens))
        self._table = pad(torch.from_numpy(compiled.table).long(), (0, 1, 0, 1))  # (S + 1, L + 1)
        effects = torch.from_numpy(compiled.effects).long()  # (S, M, 6)
        self._effects = torch.cat([effects, torch.tensor(NO_EFFECT).expand_as(effects[:1])])
        bounds = token_bounds(self.automaton, compiled, self.token_budget)
        last = (0, 0) * 3 + (0, 1)
        self._bounds = pad(torch.from_numpy(bounds), last, value=-1)  # (S + 1, Q, M, 5)

    def _check_concatenation(self, tokenizer: Any, texts: TokenTexts) -> None:
        """Compare the text of random answers with the texts of their tokens, put together.

        Raises:
            ValueError: if they differ.
        """
        generator = torch.Generator().manual_seed(0)
        states, rows = self.start(_WALKS), [list[int]() for _ in range(_WALKS)]
        for _ in range(_STEPS):
            weights = self._allowed_text(states).float().cpu()
            going = weights.any(1)
            weights[~going] = 1.0
            columns = torch.multinomial(weights, 1, generator=generator).squeeze(1)
            tokens = self._tokens[columns.to(states.device)]
            states = self.advance(states, tokens)
            for row, token, goes in zip(rows, tokens.tolist(), going.tolist(), strict=True):
                row.extend([token] * goes)
        read = tokenizer.batch_decode(rows, skip_special_tokens=True)
        for row, text in zip(rows, read, strict=True):
            parts = [texts.first[row[0]], *(texts.later[token] for token in row[1:])]
            if "".join(parts) != text:
                raise ValueError(f"tokens {row} write {text!r}, but one by one they write {parts}")
