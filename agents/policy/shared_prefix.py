"""Decoding groups of answers over prompts whose keys and values are stored once.

At every step ``G`` answers attend to one prompt: their queries are stacked, so that the prompt's
keys are read once per group and not once per answer. Results equal ordinary attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class SharedPrefixLayer(DynamicLayer):
    """Keys and values of one layer: those of ``B`` prompts, and of the answers so far."""

    def __init__(self, keys: Tensor, values: Tensor, rows: int, room: int) -> None:
        """Take the prompts' ``(B, kv_heads, P, D)`` states; make room for ``rows`` answers."""
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
        """Append states of one token, ``(n, kv_heads, 1, D)``; returns those of the answers."""
        self.key_store[:, :, self.length] = key_states[:, :, 0]
        self.value_store[:, :, self.length] = value_states[:, :, 0]
        self.length += 1
        return self.key_store[:, :, : self.length], self.value_store[:, :, : self.length]

    def get_seq_length(self) -> int:
        """Tokens per row, those of the prompt included."""
        return self.prefix_keys.shape[-1] + self.length


class SharedPrefixCache(Cache):
    """Cache of ``B`` prompts and up to ``B * group_size`` answers that continue them.

    It is the attention of its own decoding steps, see `agents.policy.shared_attention`.
    """

    def __init__(self, prompts: Cache, mask: Tensor, group_size: int, room: int) -> None:
        """Share prompts among answers.

        Args:
            prompts: A cache that prompts were prefilled into.
            mask: ``(B, P)``, 1 where a token of a prompt is real.
            group_size: Answers per prompt.
            room: Tokens of the longest answer.
        """
        count = len(prompts.layers[0].keys) * group_size
        super().__init__(
            layers=[
                SharedPrefixLayer(layer.keys, layer.values, count, room) for layer in prompts.layers
            ]
        )
        self.group_size = group_size
        self._spares: dict[torch.Size, Tensor] = {}
        self.slots = torch.arange(count, device=mask.device)
        """Which answer each row of the batch is; row ``b * G + g`` continues prompt ``b``."""
        self.bias: Tensor | None = None
        """``(B, 1, 1, P)`` minus infinity on padding; None where there is no padding."""
        if not mask.all():
            self.bias = padding_bias(mask)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows of the batch."""
        self.slots = self.slots[indices]
        for layer in self.layers:
            assert isinstance(layer, SharedPrefixLayer)
            layer.key_store = self._select(layer.key_store, layer.length, indices)
            layer.value_store = self._select(layer.value_store, layer.length, indices)

    def _select(self, store: Tensor, length: int, indices: Tensor) -> Tensor:
        """Some rows of ``(n, kv_heads, room, D)``, as far as they are filled.

        They go to the store that the layer before has just left, which takes over this one: to get
        so much memory anew, for every layer at almost every token, takes longer than the copying.
        """
        spare = self._spares.pop(store.shape[1:], None)
        kept = (torch.empty_like(store) if spare is None else spare)[: len(indices)]
        torch.index_select(store[:, :, :length], 0, indices, out=kept[:, :, :length])
        self._spares[store.shape[1:]] = store
        return kept

    def mask(self, **arguments: Any) -> None:
        """Answers see all they have written; what they see of the prompt is known here."""

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
            to_prefix, to_own = (softcap * (x / softcap).tanh() for x in (to_prefix, to_own))
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
