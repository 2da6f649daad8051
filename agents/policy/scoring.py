"""Log-probabilities of given answers, with the prompt computed once or once per answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from agents.policy.families import (
    answer_positions,
    extend_inputs,
    is_tested,
    model_inputs,
    next_positions,
    repeat_prompts,
    token_positions,
)
from agents.policy.shared_prefix import PackedGroups, replace_attention

if TYPE_CHECKING:
    from agents.policy.model import VLMPolicy


@dataclass
class TokenScores:
    """The policy's scores of given completions, all ``(N, T)``; padding holds zeros."""

    log_probs: Tensor
    """Float32 log-probability of every token under the policy, at the given temperature."""
    entropies: Tensor
    """Float32 entropy of the distribution each token was drawn from, in nats."""
    choice_mask: Tensor
    """Int64, 1 on real tokens that the policy chose: more than one was allowed."""
    hidden: Tensor | None = None
    """``(N, T, D)`` float32 last hidden state each token was predicted from, if asked for."""


Predictions = tuple[Tensor, Tensor | None]
"""Logits ``(M, V)`` and, if asked for, hidden states ``(M, D)`` that predict the ``M`` real tokens
of ``(N, T)`` answers, row by row."""


def score(
    policy: VLMPolicy,
    inputs: dict[str, Tensor],
    tokens: Tensor,
    mask: Tensor,
    temperature: float = 1.0,
    *,
    hidden: bool = False,
    shared: bool | None = None,
) -> TokenScores:
    """Log-probabilities and entropies of completions.

    Differentiable; gradients flow through the shared prefix and, unless it is frozen, the vision
    tower.

    Args:
        policy: Whose they are.
        inputs: ``B`` prepared prompts.
        tokens: ``(N, T)`` with ``N = B * G``, the completions of a prompt next to each other.
        mask: ``(N, T)``, 1 for real tokens, padded on the right.
        temperature: What logits are divided by.
        hidden: Return the hidden states that tokens were predicted from, too.
        shared: Whether the answers share their prompt; by default they do where the policy's family
            can.
    """
    tokens = tokens.masked_fill(mask == 0, policy.pad_id)
    if shared is None:
        shared = policy.shares_prefix(inputs, tokens.shape[1])
    predict = predict_shared if shared else _predict_plain
    logits, states = predict(policy, inputs, tokens, mask, hidden)
    real = mask.bool()
    allowed, choice_mask = _allowed_tokens(policy, tokens, mask)
    scores = policy.log_softmax(logits.float(), temperature, allowed)
    chosen = scores.gather(-1, tokens[real][:, None]).squeeze(-1)
    with torch.no_grad():
        entropies = -(scores.exp() * scores).sum(-1)

    def place(values: Tensor) -> Tensor:
        whole = values.new_zeros(*mask.shape, *values.shape[1:])
        return whole.masked_scatter(real.view(*mask.shape, *[1] * (values.ndim - 1)), values)

    return TokenScores(
        place(chosen),
        place(entropies),
        choice_mask,
        None if states is None else place(states.float()),
    )


def predict_shared(
    policy: VLMPolicy, inputs: dict[str, Tensor], tokens: Tensor, mask: Tensor, hidden: bool
) -> Predictions:
    """Run rows of one prompt with all its answers; ``mask`` says which tokens are predicted."""
    batch, length = len(inputs["input_ids"]), tokens.shape[1] - 1  # the last is only predicted
    group_size = len(tokens) // batch
    inputs = model_inputs(policy.model, inputs)
    answers = tokens[:, :-1].reshape(batch, group_size * length)
    positions = token_positions(policy.model, inputs)
    starts = next_positions(positions).repeat_interleave(group_size)
    after = answer_positions(positions, starts, length)
    after = after.reshape(*positions.shape[:-1], group_size * length)
    given = extend_inputs(policy.model, inputs, answers)
    given["position_ids"] = torch.cat([positions, after], -1)
    groups = PackedGroups(inputs["attention_mask"], group_size, length)
    with replace_attention(policy.model, groups):
        return _predict(policy, given, mask, hidden)


def _predict_plain(
    policy: VLMPolicy, inputs: dict[str, Tensor], tokens: Tensor, mask: Tensor, hidden: bool
) -> Predictions:
    """Run an ordinary forward pass over rows of one prompt with one answer."""
    inputs = repeat_prompts(inputs, len(tokens) // len(inputs["input_ids"]))
    inputs = model_inputs(policy.model, inputs)
    if policy.model.config.is_encoder_decoder:
        return _predict_decoder(policy, inputs, tokens, mask, hidden)
    given = extend_inputs(policy.model, inputs, tokens[:, :-1])
    prompt = inputs["attention_mask"].shape[1]
    given["attention_mask"][:, prompt:] = mask[:, :-1]
    if "position_ids" in policy.forward_arguments:
        given["position_ids"] = token_positions(policy.model, given)
    return _predict(policy, given, mask, hidden)


def _predict(
    policy: VLMPolicy, inputs: dict[str, Tensor], mask: Tensor, hidden: bool
) -> Predictions:
    """Run rows of a prompt followed by ``G`` answers, all but the last token of each."""
    (rows, width), (count, length) = inputs["input_ids"].shape, mask[:, 1:].shape
    own = mask[:, 1:].reshape(rows, count // rows * length).bool()
    prompt = width - own.shape[1]
    wanted = torch.zeros(rows, width, dtype=torch.bool, device=mask.device)
    wanted[:, prompt - 1] = True
    wanted[:, prompt:] = own
    # Logits of a large vocabulary are the largest tensor of all: compute only those needed.
    keep = {"logits_to_keep": wanted} if is_tested(policy.model) else {}
    with policy.autocast(), _captured_hidden(policy, hidden) as states:
        logits = policy.model(**inputs, **keep, use_cache=False).logits
    found = wanted.flatten().cumsum(0).view(rows, width) - 1  # where each prediction was put
    first = found[:, prompt - 1].repeat_interleave(count // rows)
    source = torch.cat([first[:, None], found[:, prompt:].reshape(count, length)], 1)
    source = source[mask.bool()]

    def pick(states: Tensor) -> Tensor:
        # Several answers start from one row. Indexing would sum its gradient in any order, so with
        # several threads the last bits would differ each time.
        return (states if keep else states[wanted]).index_select(0, source)

    return pick(logits), pick(states[0]) if hidden else None


def _predict_decoder(
    policy: VLMPolicy, inputs: dict[str, Tensor], tokens: Tensor, mask: Tensor, hidden: bool
) -> Predictions:
    """Run an encoder-decoder: its decoder starts from a token of its own, not from the prompt."""
    start = policy.model.generation_config.decoder_start_token_id
    before = torch.cat([torch.full_like(tokens[:, :1], start), tokens[:, :-1]], 1)
    with policy.autocast(), _captured_hidden(policy, hidden) as states:
        logits = policy.model(**inputs, decoder_input_ids=before, use_cache=False).logits
    real = mask.bool()
    return logits[real], states[0][real] if hidden else None


@contextmanager
def _captured_hidden(policy: VLMPolicy, wanted: bool) -> Iterator[list[Tensor]]:
    """Capture the input of the output layer inside the block: the last hidden state."""
    states: list[Tensor] = []
    output_layer = policy.model.get_output_embeddings()
    hook = output_layer.register_forward_pre_hook if wanted else nullcontext
    with hook(lambda _, given: states.append(given[0])):
        yield states


def _allowed_tokens(
    policy: VLMPolicy, tokens: Tensor, mask: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Tokens that the constraint allows at each of the ``M`` real tokens of ``(N, T)`` answers.

    ``(M, V)`` bool, or None without a constraint, and `TokenScores.choice_mask`.
    """
    real, choice_mask = mask.bool(), mask.long().clone()
    if policy.constraint is None:
        return None, choice_mask
    walk = policy.constraint.walk(len(tokens))
    place = real.flatten().cumsum(0).view(mask.shape) - 1
    allowed = torch.empty(int(real.sum()), len(policy.forbidden), dtype=torch.bool).to(mask.device)
    for step in range(mask.shape[1]):
        rows = real[:, step].nonzero().squeeze(-1)
        allowed[place[rows, step]] = walk.allowed(rows) & ~policy.forbidden
        walk.advance(rows, tokens[rows, step])
    choice_mask[real] = (allowed.sum(-1) > 1).long()
    return allowed, choice_mask
