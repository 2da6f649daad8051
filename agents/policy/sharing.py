"""Whether a model's answers can share their prompt: seen from its structure, or tried."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from agents.policy.families import is_tested, obstacle_to_sharing
from agents.policy.sampling import AnswerWriter, resting, write_shared
from agents.policy.scoring import score_plain, score_shared

if TYPE_CHECKING:
    from agents.policy.model import VLMPolicy

TOLERANCES = {"exact": 1e-3, "rounded": 0.5}
"""How much log-probabilities may differ between two correct ways to compute them."""


def reason_against_sharing(
    policy: VLMPolicy, inputs: dict[str, Tensor], new_tokens: int
) -> str | None:
    """Why answers cannot share their prompt, or None.

    A family that is in no table is tried once: three tokens, sampled and scored both ways.

    Args:
        policy: The policy; ``policy.trial`` keeps what was found.
        inputs: Prepared prompts.
        new_tokens: Tokens of the longest answer.
    """
    reason = obstacle_to_sharing(policy.model, inputs["input_ids"].shape[1] + new_tokens)
    if reason is not None or is_tested(policy.model):
        return reason
    if policy.trial is None:
        policy.trial = _try(policy, inputs) or ""
    return policy.trial or None


@torch.no_grad()
def _try(policy: VLMPolicy, inputs: dict[str, Tensor]) -> str | None:
    """What goes wrong when prompts are shared by two answers."""
    with resting(policy.model):
        try:
            rows = 2 * len(inputs["input_ids"])
            noise = torch.rand(rows, 3, generator=torch.Generator().manual_seed(0))
            writer = AnswerWriter(policy, rows, 3, 1.0, noise.to(policy.device))
            write_shared(policy, inputs, 2, writer)
            drawn = writer.completions()
            shared = score_shared(policy, inputs, drawn.tokens, drawn.mask, 1.0, False)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a model nobody has tried may fail in any way
            return f"sharing raises {type(error).__name__}: {error}"
        plain = score_plain(policy, inputs, drawn.tokens, drawn.mask, 1.0, False)
    exact = policy.precision == "float32" and policy.model.dtype == torch.float32
    found = torch.stack([drawn.log_probs, shared.log_probs]) - plain.log_probs
    gap = found.abs().max().item()
    if not gap <= TOLERANCES["exact" if exact else "rounded"]:
        return f"log-probabilities come out {gap:.2g} apart"
    return None
