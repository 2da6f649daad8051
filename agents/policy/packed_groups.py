"""Attention over rows that hold a prompt once and, after it, all answers to it.

Scoring ``G`` answers so costs ``P + G * T`` tokens and not ``G * (P + T)``, forward and backward:
keys and values of the prompt are read by all its answers, and its gradient is summed on the way.
Results equal ordinary attention over each prompt with one answer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import sdpa_mask

from agents.policy.fused_answers import FusedAnswerAttention, is_fusable
from agents.policy.shared_prefix import padding_bias


class PackedGroups:
    """Where prompts and answers stand in ``(B, P + G * T)`` rows, see `shared_attention`."""

    def __init__(self, prompt_mask: Tensor, group_size: int, length: int) -> None:
        """Describe a batch.

        Args:
            prompt_mask: ``(B, P)``, 1 where a token of a prompt is real.
            group_size: Answers per prompt, ``G``.
            length: Tokens per answer, ``T``. Padding on the right needs no mask: nothing real
                comes after it.
        """
        self.prompt_mask = prompt_mask.bool()
        self.group_size = group_size
        self.length = length
        self.bias = padding_bias(prompt_mask)

    def mask(self, **arguments: Any) -> Tensor | None:
        """What prompts see of themselves, ``(B, 1, P, P)``, by the rule of the family.

        The rule is a function of indices, so it can be asked about the prompt alone.
        """
        prompt = self.prompt_mask.shape[1]
        alone = {"q_length": prompt, "kv_length": prompt, "attention_mask": self.prompt_mask}
        mask = sdpa_mask(**arguments | alone)
        if mask is None:
            return None
        # Padding sees itself: some kernels make NaN of what sees nothing, and NaN spreads.
        return mask | torch.eye(prompt, dtype=torch.bool, device=mask.device)

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
        softcap: float | None,
    ) -> Tensor:
        """Attention of whole rows, ``(B, heads, P + G * T, D)`` to ``(B, P + G * T, heads, D)``."""
        # Under autocast rotary embeddings leave float32 where values are bfloat16.
        query, key = query.to(value.dtype), key.to(value.dtype)
        prompt = self.prompt_mask.shape[1]
        queries, keys, values = (states[:, :, :prompt] for states in (query, key, value))
        output = _prompt_attention(queries, keys, values, mask, scaling, softcap)
        if self.length:
            arguments = (query[:, :, prompt:], key, value, self.bias, self.group_size, scaling)
            if is_fusable(query, value, softcap):
                answers = FusedAnswerAttention.apply(*arguments)
            else:
                answers = AnswerAttention.apply(*arguments, softcap)
            output = torch.cat([output, answers], 2)
        return output.transpose(1, 2)


def _prompt_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
) -> Tensor:
    """Ordinary attention, causal where there is no mask; ``(B, heads, P, D)``."""
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    if softcap is None:
        return nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling
        )
    scores = _widened(query @ key.transpose(2, 3)) * scaling
    scores = softcap * (scores / softcap).tanh()
    if mask is None:
        mask = torch.ones_like(scores[0, 0], dtype=torch.bool).tril()
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).to(value.dtype) @ value


class AnswerAttention(torch.autograd.Function):
    """Answers attend to their prompt and to themselves.

    Attention weights are not kept for the backward pass but computed again (as in FlashAttention,
    arXiv 2205.14135, section 3.1): kept, they would be most of what an update has in memory.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor,
        group_size: int,
        scaling: float,
        softcap: float | None,
    ) -> Tensor:
        """Attention of ``(B, heads, G * T, D)`` queries over ``(B, kv_heads, P + G * T, D)``."""
        with torch.autocast(query.device.type, enabled=False):
            stacked = _stack(query, key.shape[1], group_size) * scaling
            prompt_keys, own_keys = _split(key, bias, group_size)
            prompt_values, own_values = _split(value, bias, group_size)
            before, own = _scores(stacked, prompt_keys, own_keys, bias, softcap)
            highest = torch.maximum(before.amax(-1, keepdim=True), own.amax(-1, keepdim=True))
            before.sub_(highest).exp_()
            own.sub_(highest).exp_()
            total = before.sum(-1, keepdim=True) + own.sum(-1, keepdim=True)
            output = before.to(value.dtype) @ prompt_values
            output += (_by_answer(own.to(value.dtype), own_values) @ own_values).flatten(2, 3)
            output = (output / total).to(value.dtype)
        ctx.save_for_backward(query, key, value, bias, output, highest + total.log())
        ctx.settings = group_size, scaling, softcap
        return _unstack(output, query, group_size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Gradients of queries, keys and values."""
        query, key, value, bias, output, log_total = ctx.saved_tensors
        group_size, scaling, softcap = ctx.settings
        stacked = _stack(query, key.shape[1], group_size) * scaling
        gradient = _stack(gradients[0], key.shape[1], group_size)
        keys, values = _split(key, bias, group_size), _split(value, bias, group_size)
        scores = _scores(stacked, *keys, bias, softcap)
        # Softmax: d score = weight * (d weight - sum over keys of weight * d weight).
        mean = _widened(gradient.flatten(2, 3) * output).sum(-1, keepdim=True)
        query_gradient = torch.zeros_like(stacked)
        key_gradient, value_gradient = torch.empty_like(key), torch.empty_like(value)
        key_parts = _split(key_gradient, bias, group_size)
        value_parts = _split(value_gradient, bias, group_size)
        for part, score in enumerate(scores):
            slope = None if softcap is None else 1 - (score.clamp(min=-softcap) / softcap) ** 2
            weights = score.sub_(log_total).exp_()
            asked = _like(stacked, values[part])
            given = _like(gradient, values[part])
            value_parts[part].copy_(
                _by_answer(weights.to(value.dtype), values[part]).transpose(-1, -2) @ given
            )
            change = _widened(given @ values[part].transpose(-1, -2)).view_as(weights)
            change.sub_(mean).mul_(weights)
            if slope is not None:
                change.mul_(slope)
            change = _by_answer(change.to(value.dtype), values[part])
            query_gradient += (change @ keys[part]).view_as(stacked)
            key_parts[part].copy_(change.transpose(-1, -2) @ asked)
        query_gradient = _unstack(query_gradient.flatten(2, 3) * scaling, query, group_size)
        return query_gradient, key_gradient, value_gradient, None, None, None, None


def _stack(rows: Tensor, kv_heads: int, group_size: int) -> Tensor:
    """``(B, heads, G * T, D)`` to ``(B, kv_heads, G, R * T, D)``: what shares keys stands together.

    ``R`` heads of queries share one head of keys.
    """
    batch, _, _, width = rows.shape
    answers = rows.reshape(batch, kv_heads, -1, group_size, rows.shape[2] // group_size, width)
    return answers.transpose(2, 3).flatten(3, 4)


def _unstack(stacked: Tensor, like: Tensor, group_size: int) -> Tensor:
    """Inverse of `_stack`, from ``(B, kv_heads, G * R * T, D)``."""
    batch, heads, tokens, _ = like.shape
    repeats = heads // stacked.shape[1]
    shape = (batch, stacked.shape[1], group_size, repeats, tokens // group_size, -1)
    return stacked.reshape(shape).transpose(2, 3).reshape(batch, heads, tokens, -1)


def _widened(values: Tensor) -> Tensor:
    """Half precision as float32, the rest as it is: what a softmax needs."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _split(states: Tensor, bias: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Views of the prompt's ``(B, kv_heads, P, D)`` and the answers' ``(B, kv_heads, G, T, D)``."""
    prompt = bias.shape[-1]
    return states[:, :, :prompt], states[:, :, prompt:].unflatten(2, (group_size, -1))


def _like(stacked: Tensor, states: Tensor) -> Tensor:
    """Queries as they meet keys of a prompt (all together) or of answers (answer by answer)."""
    return stacked if states.ndim == 5 else stacked.flatten(2, 3)


def _by_answer(weights: Tensor, states: Tensor) -> Tensor:
    """``(B, kv_heads, G * R * T, X)``, split by answer if that is how the states are."""
    return weights.unflatten(2, (states.shape[2], -1)) if states.ndim == 5 else weights


def _scores(
    stacked: Tensor, prompt_keys: Tensor, own_keys: Tensor, bias: Tensor, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Scores against the prompt and the answer itself, ``(B, kv_heads, G * R * T, …)``."""
    length = own_keys.shape[3]
    before = _widened(stacked.flatten(2, 3) @ prompt_keys.transpose(2, 3))
    own = _widened(stacked @ own_keys.transpose(3, 4)).unflatten(3, (-1, length))
    if softcap is not None:
        before, own = softcap * (before / softcap).tanh(), softcap * (own / softcap).tanh()
    later = torch.ones(length, length, dtype=torch.bool, device=own.device).triu(1)
    own.masked_fill_(later, -torch.inf)
    return before.add_(bias), own.flatten(2, 4)
