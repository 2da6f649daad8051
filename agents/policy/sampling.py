"""Sampling groups of answers: the prompt is prefilled once, its cache is forked ``G`` times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from agents.policy.families import (
    answer_positions,
    model_inputs,
    next_positions,
    repeat_prompts,
)
from agents.policy.finite import DivergedError
from agents.policy.shared_prefix import SharedPrefixCache, replace_attention

if TYPE_CHECKING:
    from agents.policy.model import VLMPolicy


@dataclass
class Completions:
    """Sampled answers; ``N = B * G`` rows, the answers to one prompt next to each other."""

    tokens: Tensor
    """``(N, T)`` token ids, padded on the right."""
    mask: Tensor
    """``(N, T)`` int64, 1 for real tokens, the end token included."""
    log_probs: Tensor
    """``(N, T)`` float32 log-probabilities under the sampling policy, 0 on padding."""
    choice_mask: Tensor
    """``(N, T)`` int64, 1 for real tokens that were chosen: more than one was allowed."""

    @property
    def lengths(self) -> Tensor:
        """Tokens per answer, ``(N,)``."""
        return self.mask.sum(-1)


@torch.no_grad()
def sample(
    policy: VLMPolicy,
    inputs: dict[str, Tensor],
    *,
    group_size: int = 1,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    noise: Tensor | None = None,
    greedy_first: bool = False,
    on_token: Callable[[Completions], object] | None = None,
) -> Completions:
    """Draw ``group_size`` answers to each of ``B`` prepared prompts.

    Args:
        policy: What to sample from.
        inputs: What `VLMPolicy.prepare` returned.
        group_size: Answers per prompt.
        max_new_tokens: Longest answer, the end token included; longer ones are cut off.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it.
        noise: ``(B * group_size, max_new_tokens)`` uniform in [0, 1), which picks tokens from the
            cumulative distribution. An answer depends only on its own row and prompt, not on the
            rest of the batch. By default drawn from torch's global generator.
        greedy_first: The first answer to each prompt is greedy, whatever the noise.
        on_token: Called with the answers so far after every token; what it raises ends sampling.

    Returns:
        ``B * group_size`` completions. Their log-probabilities are at the sampling temperature
        (at 1 for greedy answers).

    Raises:
        DivergedError: A log-probability is not finite; there is no answer then.
    """
    rows = len(inputs["input_ids"]) * group_size
    shares = policy.shares_prefix(inputs, max_new_tokens)
    if noise is None and temperature:
        noise = torch.rand(rows, max_new_tokens, device=policy.device)
    with evaluation_mode(policy.model):
        writer = AnswerWriter(policy, rows, max_new_tokens, temperature, noise, on_token)
        if greedy_first:
            writer.greedy[::group_size] = True
        write = write_shared if shares else write_plain
        write(policy, inputs, group_size, writer)
    found = writer.completions()
    if not found.log_probs.isfinite().all():
        raise DivergedError(
            "the policy's log-probabilities are not finite, so it has no answer: its weights are "
            "damaged, or training drove them too far"
        )
    return found


class AnswerWriter:
    """Chooses and keeps tokens of answers; ``rows``, ``(n,)``, are those that have not ended."""

    def __init__(
        self,
        policy: VLMPolicy,
        rows: int,
        room: int,
        temperature: float,
        noise: Tensor | None,
        on_token: Callable[[Completions], object] | None = None,
    ) -> None:
        """Start ``rows`` empty answers of up to ``room`` tokens; the rest is as in `sample`."""
        self.room, self.rows = room, torch.arange(rows, device=policy.device)
        self._policy, self._temperature, self._noise = policy, temperature, noise
        self._on_token = on_token
        self.greedy = torch.zeros_like(self.rows, dtype=torch.bool)
        """``(N,)``, answers that take the likeliest token."""
        self._ends = torch.tensor(policy.end_ids, device=policy.device)
        self._tokens = torch.full((rows, room), policy.pad_id, device=policy.device)
        self._mask = torch.zeros_like(self._tokens)
        self._choice_mask = torch.zeros_like(self._tokens)
        self._log_probs = torch.zeros(rows, room, device=policy.device)
        self._walk = None if policy.constraint is None else policy.constraint.walk(rows)
        self._step = 0

    def write(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Add a token to every answer that has not ended, by the model's ``(n, V)`` logits.

        Returns:
            The tokens ``(n,)``, and which of the ``n`` answers go on ``(n,)``.
        """
        policy, rows, step = self._policy, self.rows, self._step
        allowed, choice_mask = None, torch.ones_like(rows)
        if self._walk is not None:
            allowed = self._walk.allowed(rows) & ~policy.forbidden
            choice_mask = (allowed.sum(-1) > 1).long()
        scores = policy.log_softmax(logits.float(), self._temperature or 1.0, allowed)
        if self._temperature == 0:
            tokens = scores.argmax(-1)
        else:
            assert self._noise is not None
            tokens = invert_distribution(scores.exp(), self._noise[rows, step])
            tokens = torch.where(self.greedy[rows], scores.argmax(-1), tokens)
        self._tokens[rows, step] = tokens
        self._mask[rows, step] = 1
        self._choice_mask[rows, step] = choice_mask
        self._log_probs[rows, step] = scores.gather(-1, tokens[:, None]).squeeze(-1)
        if self._walk is not None:
            self._walk.advance(rows, tokens)
        going = ~torch.isin(tokens, self._ends)
        self._step += 1
        if self._on_token is not None:
            self._on_token(self.completions())
        self.rows = rows[going] if self._step < self.room else rows[:0]
        return tokens, going

    def completions(self) -> Completions:
        """The answers written so far."""
        used = int(self._mask.sum(-1).max())
        kept = (self._tokens, self._mask, self._log_probs, self._choice_mask)
        return Completions(*(values[:, :used] for values in kept))


def invert_distribution(probabilities: Tensor, noise: Tensor) -> Tensor:
    """The token of each row at which its cumulative probabilities exceed the noise, ``(n,)``.

    Noise ``(n,)`` that is uniform in [0, 1) draws from the distribution ``(n, V)``, whose rows need
    not sum to 1 exactly. A token of probability 0 is never taken.
    """
    # In float64: over a vocabulary of 150,000 tokens float32 sums lose the rare ones.
    cumulated = probabilities.double().cumsum(-1)
    wanted = noise.double()[:, None] * cumulated[:, -1:]
    found = torch.searchsorted(cumulated, wanted, right=True)
    # Rounding may raise the product to the sum itself; then take the last token that adds to it.
    last = (cumulated < cumulated[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum(found, last).squeeze(-1)


def write_shared(
    policy: VLMPolicy, inputs: dict[str, Tensor], group_size: int, writer: AnswerWriter
) -> None:
    """Prefill every prompt once and decode its answers together."""
    prefix = policy.encode(inputs)
    logits = prefix.next_logits.repeat_interleave(group_size, dim=0)
    cache = SharedPrefixCache(prefix.cache, prefix.mask, group_size, writer.room)
    starts = next_positions(prefix.positions).repeat_interleave(group_size)
    # Autocast drops its copies of the weights after its block: not one block per token.
    with policy.autocast(), replace_attention(policy.model, cache):
        while True:
            tokens, going = writer.write(logits)
            if not len(writer.rows):
                return
            if not going.all():  # finished answers leave the batch
                keep = going.nonzero().squeeze(-1)
                tokens, starts = tokens[keep], starts[keep]
                cache.batch_select_indices(keep)
            output = policy.model(
                input_ids=tokens[:, None],
                position_ids=answer_positions(prefix.positions, starts, 1),
                past_key_values=cache,
                use_cache=True,
            )
            logits = output.logits[:, -1]
            starts = starts + 1


def write_plain(
    policy: VLMPolicy, inputs: dict[str, Tensor], group_size: int, writer: AnswerWriter
) -> None:
    """Decode by the model's own ``generate``, which knows the cache of every family."""

    def choose(input_ids: Tensor, scores: Tensor) -> Tensor:
        """Leave the writer's token as the only one that ``generate`` can take."""
        rows = writer.rows
        chosen = torch.full((len(scores), 1), policy.pad_id, device=scores.device)
        chosen[rows, 0], _ = writer.write(scores[rows])
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)

    inputs = model_inputs(policy.model, repeat_prompts(inputs, group_size))
    processors = LogitsProcessorList([choose])
    with policy.autocast(), _neutral_generation(policy):
        policy.model.generate(**inputs, max_new_tokens=writer.room, logits_processor=processors)


@contextmanager
def _neutral_generation(policy: VLMPolicy) -> Iterator[None]:
    """Disable repetition penalties and the like, which models bring along, inside the block."""
    model: Any = policy.model
    ordinary = model.generation_config
    model.generation_config = GenerationConfig(
        eos_token_id=policy.end_ids,
        pad_token_id=policy.pad_id,
        bos_token_id=ordinary.bos_token_id,
        decoder_start_token_id=ordinary.decoder_start_token_id,
    )
    try:
        yield
    finally:
        model.generation_config = ordinary


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards each part of the model is as it was.

    In training mode layers with gradient checkpointing would neither fill nor read a cache.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
