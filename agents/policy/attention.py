"""Attention that also returns its normalizers, by the fastest kernel a device has.

Two attentions over different keys can be merged where their normalizers (the logarithms of the sums
of a softmax) are known. PyTorch's public attention keeps them to itself; the kernels behind it do
not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_aten = torch.ops.aten
BLOCK = 256
"""Queries whose scores `Kernel` holds at a time where it has no fused kernel."""


@dataclass(frozen=True)
class Kernel:
    """Attention of ``(B, heads, Q, D)`` queries over ``(B, heads, K, D)`` keys and values.

    Fused kernels hold no scores: PyTorch's for CPUs; on CUDA FlashAttention in half precision, and
    the memory-efficient kernel in float32 or with padding. With a bound on scores (Gemma 2),
    in float64 on CUDA, and on other devices attention is computed in blocks of queries.
    """

    scaling: float
    """What scores are multiplied by."""
    softcap: float | None = None
    """Bound of scores, by a tanh."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        bias: Tensor | None = None,
        causal: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Output ``(B, heads, Q, D)`` and float32 normalizers ``(B, heads, Q)``.

        ``bias`` is ``(B, 1, 1, K)``: 0, or a very low number on keys that are padding.
        """
        states = (query, key, value)
        match self._kind(query, value, bias):
            case "cpu":
                output, total = _aten._scaled_dot_product_flash_attention_for_cpu(
                    *states, 0.0, causal, attn_mask=_like(bias, query), scale=self.scaling
                )
            case "flash":
                output, total, *_ = _aten._scaled_dot_product_flash_attention(
                    *states, 0.0, causal, scale=self.scaling
                )
            case "efficient":
                output, total, *_ = _aten._scaled_dot_product_efficient_attention(
                    *states, _spread(bias, query, key), True, 0.0, causal, scale=self.scaling
                )
                total = total[:, :, : query.shape[2]]  # it is padded
            case _:
                blocks = [
                    _softmax(self._scores(rows, key, bias, causal), value)
                    for rows in _blocks(query, causal)
                ]
                output, total = (torch.cat(each, 2) for each in zip(*blocks, strict=True))
        return output, total

    def backward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        gradient: Tensor,
        output: Tensor,
        total: Tensor,
        *,
        bias: Tensor | None = None,
        causal: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries, keys and values, given that of the output.

        Output and normalizers may be those of an attention over more keys than these.
        """
        states = (gradient, query, key, value)
        match self._kind(query, value, bias):
            case "cpu":
                found = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
                    *states,
                    output,
                    total,
                    0.0,
                    causal,
                    attn_mask=_like(bias, query),
                    scale=self.scaling,
                )
            case "flash":
                unused = torch.zeros(2, dtype=torch.uint64, device=query.device)  # no dropout
                lengths = (query.shape[2], key.shape[2])
                found = _aten._scaled_dot_product_flash_attention_backward(
                    *states,
                    output,
                    total.contiguous(),
                    *(None, None, *lengths, 0.0, causal, unused, unused),
                    scale=self.scaling,
                )
            case "efficient":
                room = -total.shape[2] % 32
                total = nn.functional.pad(total, (0, room), value=torch.inf)
                unused = torch.zeros((), dtype=torch.int64, device=query.device)  # no dropout
                found = _aten._scaled_dot_product_efficient_attention_backward(
                    *states,
                    _spread(bias, query, key),
                    output,
                    total,
                    *(unused, unused, 0.0, [True, True, True, False], causal),
                    scale=self.scaling,
                )[:3]
            case _:
                found = self._blockwise_backward(*states, output, total, bias, causal)
        return found

    def _kind(self, query: Tensor, value: Tensor, bias: Tensor | None) -> str:
        width, half = query.shape[-1], query.dtype in (torch.float16, torch.bfloat16)
        if self.softcap is not None or width != value.shape[-1]:
            return "blocks"
        if query.is_cpu:
            return "cpu"
        if not query.is_cuda or width % 8 or not (half or query.dtype == torch.float32):
            return "blocks"
        return "flash" if half and bias is None and width <= 256 else "efficient"

    def _scores(self, query: Tensor, key: Tensor, bias: Tensor | None, causal: bool) -> Tensor:
        scores = widened(query @ key.transpose(2, 3)) * self.scaling
        if self.softcap is not None:
            scores = soft_capped(scores, self.softcap)
        if bias is not None:
            scores = scores + bias
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores[0, 0]).triu(1).bool(), -torch.inf)
        return scores

    def _blockwise_backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        total: Tensor,
        bias: Tensor | None,
        causal: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        of_queries, of_keys, of_values = [], torch.zeros_like(key), torch.zeros_like(value)
        each = (_blocks(rows, causal) for rows in (query, gradient, output, total))
        for rows, change, found, sums in zip(*each, strict=True):
            scores = self._scores(rows, key, bias, causal)
            weights = (scores - sums[..., None]).exp()
            of_values += weights.to(value.dtype).transpose(2, 3) @ change
            # Softmax: d score = weight * (d weight - sum over keys of weight * d weight).
            mean = widened(change * found).sum(-1, keepdim=True)
            slopes = weights * (change @ value.transpose(2, 3) - mean) * self.scaling
            if self.softcap is not None:
                slopes *= 1 - (scores.clamp(min=-self.softcap) / self.softcap) ** 2
            slopes = slopes.to(value.dtype)
            of_queries.append(slopes @ key)
            of_keys += slopes.transpose(2, 3) @ rows
        return torch.cat(of_queries, 2), of_keys, of_values


def widened(values: Tensor) -> Tensor:
    """Half precision as float32, the rest as it is: what a softmax needs."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def soft_capped(scores: Tensor, bound: float) -> Tensor:
    """Scores within ``bound``, by a tanh (Gemma 2)."""
    return bound * (scores / bound).tanh()


def _softmax(scores: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    total = scores.logsumexp(-1)
    return (scores - total[..., None]).exp().to(value.dtype) @ value, total


def _blocks(rows: Tensor, causal: bool) -> Iterator[Tensor]:
    """Some queries at a time; a causal attention is of one answer, and as short."""
    return iter([rows] if causal else rows.split(BLOCK, 2))


def _like(bias: Tensor | None, query: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(query.dtype)


def _spread(bias: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """A view for all queries, its rows aligned as the kernel wants them."""
    if bias is None:
        return None
    aligned = nn.functional.pad(bias.to(query.dtype), (0, -bias.shape[-1] % 16))
    return aligned[..., : bias.shape[-1]].expand(*query.shape[:3], key.shape[2])
