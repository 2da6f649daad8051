"""Attention in which groups of answers share the keys and values of their prompt.

`SharedPrefixCache` decodes ``G`` answers over prompts whose keys and values are stored once: at
every step the queries of a group are stacked, so that the prompt's keys are read once per group.
`PackedGroups` scores rows that hold a prompt once and, after it, all answers to it: ``P + G * T``
tokens instead of ``G * (P + T)``, forward and backward. Results equal ordinary attention.

A transformers decoder looks up its attention by name in a registry. Inside `replace_attention` the
name is ours, and every layer's states go to the object that knows where prompts and answers are.
Nothing passes through model arguments, which families treat differently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, Cache
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from agents.policy.attention import attend, attend_backward, find_kernel

IMPLEMENTATION = "simpleseg_shared_prefix"
_ACTIVE: ContextVar[SharedPrefixCache | PackedGroups] = ContextVar(IMPLEMENTATION)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The registered function; ``softcap`` bounds scores by a tanh (Gemma 2).

    Attention dropout is left out: with it the trained policy would differ from the sampled one.
    """
    for name in ("s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"attention with {name!r} cannot share its prefix")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    active = _ACTIVE.get()
    return active.attend(module, query, key, value, attention_mask, scaling, softcap), None


def _mask(**arguments: Any) -> Tensor | None:
    return _ACTIVE.get().mask(**arguments)


@contextmanager
def replace_attention(model: Any, attention: SharedPrefixCache | PackedGroups) -> Iterator[None]:
    """Let the decoder of a model attend by ``attention`` inside the block.

    Checkpointed layers run again in the backward pass, after the block, with the same attention.
    """
    with _switched(model, attention), _replayed(model, attention):
        yield


@contextmanager
def _switched(model: Any, attention: SharedPrefixCache | PackedGroups) -> Iterator[None]:
    """Exchange the attention, in the configuration of the decoder and in the one masks go by."""
    configs = [model.get_decoder().config, model.config.get_text_config(decoder=True)]
    ordinary = [config._attn_implementation for config in configs]
    token = _ACTIVE.set(attention)
    for config in configs:
        config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        for config, name in zip(configs, ordinary, strict=True):
            config._attn_implementation = name
        _ACTIVE.reset(token)


@contextmanager
def _replayed(model: Any, attention: SharedPrefixCache | PackedGroups) -> Iterator[None]:
    """Make checkpointed layers exchange the attention whenever they run."""

    def checkpoint_with(ordinary: Callable[..., Any]) -> Callable[..., Any]:
        def run(function: Callable[..., Any], *arguments: Any) -> Any:
            def layer(*again: Any) -> Any:
                with _switched(model, attention):
                    return function(*again)

            return ordinary(layer, *arguments)

        return run

    layers = [
        (module, module._gradient_checkpointing_func)
        for module in model.get_decoder().modules()
        if getattr(module, "gradient_checkpointing", False)
        and hasattr(module, "_gradient_checkpointing_func")
    ]
    for module, ordinary in layers:
        module._gradient_checkpointing_func = checkpoint_with(ordinary)
    try:
        yield
    finally:
        for module, ordinary in layers:
            module._gradient_checkpointing_func = ordinary


AttentionInterface.register(IMPLEMENTATION, _attend)
AttentionMaskInterface.register(IMPLEMENTATION, _mask)


class SharedPrefixLayer(DynamicLayer):
    """Keys and values of one layer: those of ``B`` prompts, and of the answers so far."""

    def __init__(self, keys: Tensor, values: Tensor, rows: int, room: int) -> None:
        """Take the prompts' ``(B, kv_heads, P, D)`` states; reserve ``room`` tokens an answer."""
        super().__init__()
        self.prefix_keys = keys.transpose(2, 3).contiguous()  # (B, kv_heads, D, P)
        self.prefix_values = values
        shape = (rows, keys.shape[1], room)
        self.key_store = keys.new_empty(*shape, keys.shape[-1])
        self.value_store = values.new_empty(*shape, values.shape[-1])
        self.length = 0
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append states of one token, ``(n, kv_heads, 1, D)``; return those of the answers."""
        self.key_store[:, :, self.length] = key_states[:, :, 0]
        self.value_store[:, :, self.length] = value_states[:, :, 0]
        self.length += 1
        return self.key_store[:, :, : self.length], self.value_store[:, :, : self.length]

    def get_seq_length(self) -> int:
        """Tokens per row, those of the prompt included."""
        return self.prefix_keys.shape[-1] + self.length


class SharedPrefixCache(Cache):
    """Cache of ``B`` prompts and up to ``B * group_size`` answers that continue them.

    It is the attention of its own decoding steps.
    """

    def __init__(self, prompts: Cache, mask: Tensor, group_size: int, room: int) -> None:
        """Share prompts, prefilled into a cache, among answers of up to ``room`` tokens.

        ``mask`` is ``(B, P)``, 1 where a token of a prompt is real.
        """
        count = len(prompts.layers[0].keys) * group_size
        layers = [SharedPrefixLayer(each.keys, each.values, count, room) for each in prompts.layers]
        super().__init__(layers=layers)
        self.group_size = group_size
        self._spares: dict[torch.Size, Tensor] = {}
        self.slots = torch.arange(count, device=mask.device)
        """Which answer each row of the batch is; row ``b * G + g`` continues prompt ``b``."""
        self.bias = None if mask.all() else padding_bias(mask)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows of the batch."""
        self.slots = self.slots[indices]
        for layer in self.layers:
            assert isinstance(layer, SharedPrefixLayer)
            layer.key_store = self._select(layer.key_store, layer.length, indices)
            layer.value_store = self._select(layer.value_store, layer.length, indices)

    def _select(self, store: Tensor, length: int, indices: Tensor) -> Tensor:
        """Some rows of ``(n, kv_heads, room, D)``, as far as they are filled.

        They are copied into the store that the layer before has just freed; this one is freed for
        the next. Allocating so much memory at almost every token would take longer than copying.
        """
        spare = self._spares.pop(store.shape[1:], None)
        kept = (torch.empty_like(store) if spare is None else spare)[: len(indices)]
        torch.index_select(store[:, :, :length], 0, indices, out=kept[:, :, :length])
        self._spares[store.shape[1:]] = store
        return kept

    def mask(self, **arguments: Any) -> None:
        """No mask: answers see all they have written, and `bias` hides padding of the prompt."""

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
        """Attention of one new token per answer, ``(n, heads, 1, D)`` to ``(n, 1, heads, D)``."""
        layer: Any = self.layers[module.layer_idx]
        count, heads, _, width = query.shape
        kv_heads, own_length = key.shape[1], key.shape[2]
        query = query[:, :, 0] * scaling
        to_prefix = self._stack(query, layer) @ layer.prefix_keys
        to_own = query.view(count, kv_heads, -1, width) @ key.transpose(2, 3)
        if softcap is not None:
            to_prefix, to_own = (_soft_capped(x, softcap) for x in (to_prefix, to_own))
        if self.bias is not None:
            to_prefix = to_prefix + self.bias
        scores = [self._gather(to_prefix), to_own.reshape(count, heads, own_length)]
        weights = torch.cat(scores, -1).softmax(-1, dtype=torch.float32).to(value.dtype)
        before, own = weights.split([weights.shape[-1] - own_length, own_length], dim=-1)
        output = self._gather(self._stack(before, layer) @ layer.prefix_values)
        own_output = own.reshape(count, kv_heads, -1, own_length) @ value
        return (output + own_output.reshape(count, heads, -1))[:, None]

    def _gather(self, grouped: Tensor) -> Tensor:
        """``(B, kv_heads, G * R, X)`` to rows of the batch, ``(n, kv_heads * R, X)``."""
        batch, kv_heads, _, width = grouped.shape
        rows = grouped.view(batch, kv_heads, self.group_size, -1, width).transpose(1, 2)
        rows = rows.reshape(batch * self.group_size, -1, width)
        return rows if len(rows) == len(self.slots) else rows[self.slots]

    def _stack(self, rows: Tensor, layer: SharedPrefixLayer) -> Tensor:
        """``(n, heads, X)`` to ``(B, kv_heads, G * R, X)``; answers that left are zeros."""
        batch, kv_heads = layer.prefix_values.shape[:2]
        if len(rows) != batch * self.group_size:
            spread = rows.new_zeros(batch * self.group_size, *rows.shape[1:])
            spread[self.slots] = rows
            rows = spread
        grouped = rows.view(batch, self.group_size, kv_heads, -1, rows.shape[-1])
        return grouped.transpose(1, 2).reshape(batch, kv_heads, -1, rows.shape[-1])


def padding_bias(mask: Tensor) -> Tensor:
    """``(B, P)`` mask of real tokens to ``(B, 1, 1, P)`` float32 scores, lowest on padding."""
    lowest = torch.finfo(torch.float32).min
    return torch.zeros_like(mask, dtype=torch.float32).masked_fill(mask == 0, lowest)[:, None, None]


class PackedGroups:
    """Where prompts and answers stand in ``(B, P + G * T)`` rows."""

    def __init__(self, prompt_mask: Tensor, group_size: int, length: int) -> None:
        """Describe a batch: ``(B, P)`` mask of prompts, ``group_size`` answers of ``length`` each.

        Padding on the right of answers needs no mask: nothing real comes after it.
        """
        self.prompt_mask = prompt_mask.bool()
        self.group_size, self.length = group_size, length
        # CUDA's fastest kernel takes no bias. The CPU kernel rounds differently without one, so it
        # always gets one: a row must not depend on whether another of its batch is padded.
        unpadded = prompt_mask.is_cuda and bool(self.prompt_mask.all())
        self.bias = None if unpadded else padding_bias(prompt_mask)

    def mask(self, **arguments: Any) -> Tensor | None:
        """The mask within prompts, ``(B, 1, P, P)``, by the rule of the family."""
        prompt = self.prompt_mask.shape[1]
        alone = {"q_length": prompt, "kv_length": prompt, "attention_mask": self.prompt_mask}
        mask = sdpa_mask(**arguments | alone)
        if mask is None:
            return None
        # Padding sees itself: some kernels return NaN for what sees nothing, and NaN spreads.
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
        output = _attention(queries, keys, values, mask, scaling, softcap)
        if self.length:
            asked = query[:, :, prompt:]
            if softcap is None and find_kernel(query, value, self.bias):
                settings = (self.bias, self.group_size, scaling)
                answers = AnswerAttention.apply(asked, key, value, *settings)
            else:
                answers = self._attend_one_by_one(asked, key, value, scaling, softcap)
            output = torch.cat([output, answers], 2)
        return output.transpose(1, 2)

    def _attend_one_by_one(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, softcap: float | None
    ) -> Tensor:
        """Attention of answers if no kernel supports it; holds one answer's scores at a time."""
        prompt, length = self.prompt_mask.shape[1], self.length
        earlier = torch.ones(length, length, dtype=torch.bool, device=key.device).tril()
        before = self.prompt_mask[:, None, None].expand(-1, -1, length, -1)
        mask = torch.cat([before, earlier.expand(len(key), 1, -1, -1)], -1)

        def attend(start: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            own = slice(prompt + start, prompt + start + length)
            keys, values = (
                torch.cat([each[:, :, :prompt], each[:, :, own]], 2) for each in (key, value)
            )
            asked = query[:, :, start : start + length]
            return _attention(asked, keys, values, mask, scaling, softcap)

        outputs: list[Tensor] = [
            checkpoint(attend, start, query, key, value, use_reentrant=False)
            for start in range(0, query.shape[2], length)
        ]
        return torch.cat(outputs, 2)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
) -> Tensor:
    """Ordinary attention, causal where there is no mask, ``(B, heads, Q, D)``."""
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    if softcap is None:
        return nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling
        )
    scores = query @ key.transpose(2, 3)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scaling
    scores = _soft_capped(scores, softcap)
    if mask is None:
        mask = torch.ones_like(scores[0, 0], dtype=torch.bool).tril()
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).to(value.dtype) @ value


def _soft_capped(scores: Tensor, bound: float) -> Tensor:
    return bound * (scores / bound).tanh()


class AnswerAttention(torch.autograd.Function):
    """Answers attend to their prompt and to themselves; no matrix of all scores is ever held.

    Prompt and answers are attended to separately and merged by their normalizers; in the backward
    pass each part is given output and normalizer of the whole, which makes its gradients those of
    the whole (as ring attention does between devices, arXiv 2310.01889, section 3).
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        group_size: int,
        scaling: float,
    ) -> Tensor:
        """Attention of ``(B, heads, G * T, D)`` queries over ``(B, kv_heads, P + G * T, D)``."""
        parts = _Parts(query, key, value, group_size)
        with torch.autocast(query.device.type, enabled=False):
            before, before_total = attend(*parts.prompt, scaling=scaling, bias=bias)
            before, before_total = (
                before.reshape(query.shape),
                before_total.reshape(query.shape[:3]),
            )
            own, own_total = map(parts.by_prompt, attend(*parts.own, scaling=scaling, causal=True))
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
        group_size, scaling = ctx.settings
        parts = _Parts(query, key, value, group_size)
        whole = (gradients[0], output, total)
        with torch.autocast(query.device.type, enabled=False):
            gradient, *result = map(parts.stack, whole)
            before, *prompt_states = attend_backward(
                gradient, *parts.prompt, *result, scaling=scaling, bias=bias
            )
            gradient, *result = map(parts.by_answer, whole)
            found = attend_backward(gradient, *parts.own, *result, scaling=scaling, causal=True)
            own, *repeated = map(parts.by_prompt, found)
            heads = (parts.kv_heads, parts.repeats)
            own_states = [states.unflatten(1, heads).sum(2) for states in repeated]
        keys, values = (torch.cat(pair, 2) for pair in zip(prompt_states, own_states, strict=True))
        return before.reshape(query.shape).add_(own), keys, values, None, None, None


class _Parts:
    """One attention as two calls of a kernel; ``R`` heads of queries share one of keys."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, group_size: int) -> None:
        """Cut ``(B, kv_heads, P + G * T, D)`` states after the prompt."""
        prompt = key.shape[2] - query.shape[2]
        self.group_size = group_size
        self.kv_heads, self.repeats = key.shape[1], query.shape[1] // key.shape[1]
        self.prompt = (self.stack(query), key[:, :, :prompt], value[:, :, :prompt])
        own = [key[:, :, prompt:], value[:, :, prompt:]]
        if self.repeats > 1:
            own = [states.repeat_interleave(self.repeats, 1) for states in own]
        self.own = tuple(self.by_answer(states) for states in (query, *own))

    def stack(self, rows: Tensor) -> Tensor:
        """``(B, heads, G * T, …)`` to ``(B, kv_heads, R * G * T, …)``: no order among answers."""
        return rows.reshape(len(rows), self.kv_heads, -1, *rows.shape[3:])

    def by_answer(self, states: Tensor) -> Tensor:
        """``(B, heads, G * T, …)`` to ``(B * G, heads, T, …)``."""
        return states.unflatten(2, (self.group_size, -1)).transpose(1, 2).flatten(0, 1)

    def by_prompt(self, states: Tensor) -> Tensor:
        """Inverse of `by_answer`."""
        return states.unflatten(0, (-1, self.group_size)).transpose(1, 2).flatten(2, 3)
