"""Attention that also returns its normalizers, by CPU and CUDA kernels that never store all scores.

Two attentions over different keys can be merged if their normalizers (the logarithms of the sums of
a softmax) are known. PyTorch's public attention does not return them; the kernels behind it do. On
CUDA this is FlashAttention in half precision, and the memory-efficient kernel in float32 or with
padding.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

KernelName = Literal["cpu", "flash", "efficient"]
_aten = torch.ops.aten


def find_kernel(query: Tensor, value: Tensor, bias: Tensor | None) -> KernelName | None:
    """The kernel for these ``(B, heads, …, D)`` states, if there is one."""
    width, half = query.shape[-1], query.dtype in (torch.float16, torch.bfloat16)
    if width != value.shape[-1]:
        return None
    if query.is_cpu:
        return "cpu"
    if not query.is_cuda or width % 8 or not (half or query.dtype == torch.float32):
        return None
    return "flash" if half and bias is None and width <= 256 else "efficient"


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    bias: Tensor | None = None,
    causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """Output ``(B, heads, Q, D)`` and float32 normalizers ``(B, heads, Q)``.

    ``bias`` is ``(B, 1, 1, K)``: 0, or a very low number on keys that are padding.
    """
    states = (query, key, value)
    match find_kernel(query, value, bias):
        case "cpu":
            output, total = _aten._scaled_dot_product_flash_attention_for_cpu(
                *states, 0.0, causal, attn_mask=_like(bias, query), scale=scaling
            )
        case "flash":
            output, total, *_ = _aten._scaled_dot_product_flash_attention(
                *states, 0.0, causal, scale=scaling
            )
        case _:
            output, total, *_ = _aten._scaled_dot_product_efficient_attention(
                *states, _spread(bias, query, key), True, 0.0, causal, scale=scaling
            )
            total = total[:, :, : query.shape[2]]  # it is padded
    return output, total


def attend_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    total: Tensor,
    *,
    scaling: float,
    bias: Tensor | None = None,
    causal: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, given that of the output.

    Output and normalizers may be those of an attention over more keys than these.
    """
    states = (gradient, query, key, value)
    match find_kernel(query, value, bias):
        case "cpu":
            mask = _like(bias, query)
            found = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *states, output, total, 0.0, causal, attn_mask=mask, scale=scaling
            )
        case "flash":
            unused = torch.zeros(2, dtype=torch.uint64, device=query.device)  # no dropout
            lengths = (None, None, query.shape[2], key.shape[2])
            found = _aten._scaled_dot_product_flash_attention_backward(
                *states,
                output,
                total.contiguous(),
                *(*lengths, 0.0, causal, unused, unused),
                scale=scaling,
            )
        case _:
            padded = nn.functional.pad(total, (0, -total.shape[2] % 32), value=torch.inf)
            unused = torch.zeros((), dtype=torch.int64, device=query.device)  # no dropout
            found = _aten._scaled_dot_product_efficient_attention_backward(
                *states,
                _spread(bias, query, key),
                output,
                padded,
                *(unused, unused, 0.0, [True, True, True, False], causal),
                scale=scaling,
            )[:3]
    return found


def _like(bias: Tensor | None, query: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(query.dtype)


def _spread(bias: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """A view for all queries, its rows aligned as the kernel wants them."""
    if bias is None:
        return None
    aligned = nn.functional.pad(bias.to(query.dtype), (0, -bias.shape[-1] % 16))
    return aligned[..., : bias.shape[-1]].expand(*query.shape[:3], key.shape[2])
