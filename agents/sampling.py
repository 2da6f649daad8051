"""Sampling groups of answers: the prompt is prefilled once, its cache is forked ``G`` times."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from agents.policy import Prefix, VLMPolicy, positions_of


@dataclass
class Completions:
    """Sampled answers; ``N = B * G`` rows, the answers to one prompt next to each other."""

    tokens: Tensor
    """``(N, T)`` token ids, padded on the right."""
    mask: Tensor
    """``(N, T)`` int64, 1 for real tokens, the end token included."""
    log_probs: Tensor
    """``(N, T)`` float32 log-probabilities under the sampling policy, 0 on padding."""

    @property
    def lengths(self) -> Tensor:
        """Tokens per answer, ``(N,)``."""
        return self.mask.sum(-1)


class ForkedLayer(DynamicLayer):
    """One layer's keys and values for ``N`` rows, written into memory taken in advance.

    `DynamicLayer` concatenates at every token, which copies the whole prefix each time; here a token
    is written in place and attention reads a view.
    """

    def __init__(self, keys: Tensor, values: Tensor, group_size: int, room: int) -> None:
        super().__init__()
        self.length = keys.shape[-2]
        self.key_store = _fork(keys, group_size, room)
        self.value_store = _fork(values, group_size, room)
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append ``(N, heads, t, head_dim)`` states; returns everything so far."""
        end = self.length + key_states.shape[-2]
        self.key_store[:, :, self.length : end] = key_states
        self.value_store[:, :, self.length : end] = value_states
        self.length = end
        return self.key_store[:, :, :end], self.value_store[:, :, :end]

    def get_seq_length(self) -> int:
        """Tokens stored per row."""
        return self.length

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows."""
        self.key_store, self.value_store = self.key_store[indices], self.value_store[indices]


def _fork(states: Tensor, group_size: int, room: int) -> Tensor:
    """``(B, heads, P, D)`` to ``(B * group_size, heads, P + room, D)``, the tail unset."""
    rows, heads, length, width = states.shape
    store = states.new_empty(rows * group_size, heads, length + room, width)
    store[:, :, :length] = states.repeat_interleave(group_size, dim=0)
    return store


@torch.no_grad()
def sample(
    policy: VLMPolicy,
    inputs: dict[str, Tensor],
    *,
    group_size: int = 1,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Completions:
    """Draw ``group_size`` answers to each of ``B`` prepared prompts.

    Args:
        policy: What to sample from.
        inputs: What `VLMPolicy.prepare` returned.
        group_size: Answers per prompt.
        max_new_tokens: Longest answer, the end token included; longer ones are cut off.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it.
        generator: Source of randomness, on the policy's device.

    Returns:
        ``B * group_size`` completions. Their log-probabilities are at the sampling temperature
        (at 1 for greedy answers).
    """
    prefix = policy.encode(inputs)
    logits = prefix.next_logits.repeat_interleave(group_size, dim=0)
    prefix_mask = prefix.mask.repeat_interleave(group_size, dim=0)
    cache = Cache(layers=_forked_layers(prefix, group_size, max_new_tokens))
    count, ends = logits.shape[0], torch.tensor(policy.end_ids, device=logits.device)
    pad = policy.tokenizer.pad_token_id
    tokens = torch.full((count, max_new_tokens), pad, device=logits.device)
    mask = torch.zeros_like(tokens)
    log_probs = torch.zeros(count, max_new_tokens, device=logits.device)
    rows = torch.arange(count, device=logits.device)  # rows of the batch still being written
    positions = positions_of(prefix_mask)[:, -1:]
    for step in range(max_new_tokens):
        scores = policy.log_softmax(logits, temperature or 1.0)
        chosen = _choose(scores, temperature, generator)
        tokens[rows, step] = chosen
        mask[rows, step] = 1
        log_probs[rows, step] = scores.gather(-1, chosen[:, None]).squeeze(-1)
        going = ~torch.isin(chosen, ends)
        if step + 1 == max_new_tokens or not going.any():
            break
        if not going.all():  # finished answers leave the batch
            keep = going.nonzero().squeeze(-1)
            rows, chosen = rows[keep], chosen[keep]
            positions, prefix_mask = positions[keep], prefix_mask[keep]
            cache.batch_select_indices(keep)
        positions = positions + 1
        prefix_mask = torch.cat([prefix_mask, prefix_mask.new_ones(len(rows), 1)], dim=1)
        with policy.autocast():
            output = policy.model(
                input_ids=chosen[:, None],
                attention_mask=prefix_mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
        logits = output.logits[:, -1].float()
    used = int(mask.sum(-1).max())
    return Completions(tokens[:, :used], mask[:, :used], log_probs[:, :used])


def _forked_layers(prefix: Prefix, group_size: int, room: int) -> list[ForkedLayer]:
    return [ForkedLayer(layer.keys, layer.values, group_size, room) for layer in prefix.cache.layers]


def _choose(
    log_probs: Tensor, temperature: float, generator: torch.Generator | None
) -> Tensor:
    """One token per row, ``(N,)``."""
    if temperature == 0:
        return log_probs.argmax(-1)
    return torch.multinomial(log_probs.exp(), 1, generator=generator).squeeze(-1)
