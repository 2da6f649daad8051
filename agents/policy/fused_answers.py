"""`AnswerAttention` by PyTorch's fused kernel for CPUs: the same values, sooner.

Prompt and answer are attended to separately and merged by their normalizers; in the backward pass
each part is given output and normalizer of the whole, which makes its gradients those of the whole
(as ring attention does between devices, arXiv 2310.01889, section 3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def is_fusable(query: Tensor, value: Tensor, softcap: float | None) -> bool:
    """Whether the kernel can do it."""
    return query.is_cpu and softcap is None and query.shape[-1] == value.shape[-1]


class FusedAnswerAttention(torch.autograd.Function):
    """Answers attend to their prompt and to themselves."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor,
        group_size: int,
        scaling: float,
    ) -> Tensor:
        """Attention of ``(B, heads, G * T, D)`` queries over ``(B, kv_heads, P + G * T, D)``."""
        parts = _Parts(query, key, value, bias, group_size, scaling)
        before, before_total = parts.attend_prompt()
        own, own_total = parts.attend_own()
        total = torch.logaddexp(before_total, own_total)  # (B, heads, G * T)
        output = before * (before_total - total).exp()[..., None]
        output += own * (own_total - total).exp()[..., None]
        output = output.to(value.dtype)
        ctx.save_for_backward(query, key, value, bias, output, total)
        ctx.settings = group_size, scaling
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Gradients of queries, keys and values."""
        query, key, value, bias, output, total = ctx.saved_tensors
        parts = _Parts(query, key, value, bias, *ctx.settings)
        whole = (gradients[0], output, total)
        before, own = parts.prompt_gradients(*whole), parts.own_gradients(*whole)
        keys, values = (torch.cat(pair, 2) for pair in zip(before[1:], own[1:], strict=True))
        return before[0].add_(own[0]), keys, values, None, None, None


class _Parts:
    """One attention as two calls of the kernel; ``R`` heads of queries share one of keys."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor,
        group_size: int,
        scaling: float,
    ) -> None:
        prompt = bias.shape[-1]
        self.query, self.group_size = query, group_size
        self.kv_heads, self.repeats = key.shape[1], query.shape[1] // key.shape[1]
        self.prompt = (self._stack(query), key[:, :, :prompt], value[:, :, :prompt])
        own = (self._repeat(states[:, :, prompt:]) for states in (key, value))
        self.own = tuple(self._by_answer(states) for states in (query, *own))
        self.prompt_options = {"scale": scaling, "attn_mask": bias.to(query.dtype)}
        self.own_options = {"scale": scaling}

    def attend_prompt(self) -> tuple[Tensor, Tensor]:
        """Output ``(B, heads, G * T, D)`` and log-normalizer ``(B, heads, G * T)``."""
        output, total = _forward(*self.prompt, 0.0, False, **self.prompt_options)
        return output.reshape(self.query.shape), total.reshape(self.query.shape[:3])

    def attend_own(self) -> tuple[Tensor, Tensor]:
        """The same, of answers to themselves."""
        output, total = _forward(*self.own, 0.0, True, **self.own_options)
        return self._by_prompt(output), self._by_prompt(total)

    def prompt_gradients(self, gradient: Tensor, output: Tensor, total: Tensor) -> list[Tensor]:
        """Gradients of queries, and of keys and values of the prompt."""
        whole = [self._stack(states) for states in (gradient, output, total)]
        found = _backward(whole[0], *self.prompt, *whole[1:], 0.0, False, **self.prompt_options)
        return [found[0].reshape(self.query.shape), *found[1:]]

    def own_gradients(self, gradient: Tensor, output: Tensor, total: Tensor) -> list[Tensor]:
        """Gradients of queries, and of keys and values of the answers."""
        whole = [self._by_answer(states) for states in (gradient, output, total)]
        found = _backward(whole[0], *self.own, *whole[1:], 0.0, True, **self.own_options)
        queries, keys, values = (self._by_prompt(states) for states in found)
        return [queries, self._sum(keys), self._sum(values)]

    def _stack(self, rows: Tensor) -> Tensor:
        """``(B, heads, G * T, …)`` to ``(B, kv_heads, R * G * T, …)``: no order among answers."""
        return rows.reshape(len(rows), self.kv_heads, -1, *rows.shape[3:])

    def _by_answer(self, states: Tensor) -> Tensor:
        """``(B, heads, G * T, …)`` to ``(B * G, heads, T, …)``."""
        return states.unflatten(2, (self.group_size, -1)).transpose(1, 2).flatten(0, 1)

    def _by_prompt(self, states: Tensor) -> Tensor:
        """Inverse of `_by_answer`."""
        return states.unflatten(0, (-1, self.group_size)).transpose(1, 2).flatten(2, 3)

    def _repeat(self, states: Tensor) -> Tensor:
        return states.repeat_interleave(self.repeats, 1) if self.repeats > 1 else states

    def _sum(self, states: Tensor) -> Tensor:
        """Gradient of `_repeat`."""
        return states.unflatten(1, (self.kv_heads, self.repeats)).sum(2)
