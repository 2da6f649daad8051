"""Sampling groups of answers: the prompt is prefilled once, its cache is forked ``G`` times."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.policy import VLMPolicy, positions_of
from agents.shared_prefix import SharedPrefixCache, shared_prefix_decoding


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
    def free(self) -> Tensor:
        """``(N, T)``, 1 on tokens that the policy had a choice of."""
        return self.mask

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
    cache = SharedPrefixCache(prefix.cache, group_size, max_new_tokens)
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
        with policy.autocast(), shared_prefix_decoding(policy.model):
            output = policy.model(
                input_ids=chosen[:, None],
                attention_mask=prefix_mask,
                position_ids=positions,
                past_key_values=cache,
                shared_prefix=cache,
                use_cache=True,
            )
        logits = output.logits[:, -1].float()
    used = int(mask.sum(-1).max())
    return Completions(tokens[:, :used], mask[:, :used], log_probs[:, :used])


def _choose(log_probs: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """One token per row, ``(N,)``."""
    if temperature == 0:
        return log_probs.argmax(-1)
    return torch.multinomial(log_probs.exp(), 1, generator=generator).squeeze(-1)
