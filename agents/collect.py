"""Collecting rollouts: questions are asked, groups of answers sampled and scored, turn by turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.advantages import degenerate_fraction, group_std
from agents.losses import Metrics
from agents.policy.model import VLMPolicy
from agents.policy.sampling import sample
from agents.rollout import Rollout
from seg_env.envs.vector import ReferringSegmentationVectorEnv


def answer_groups(
    policy: VLMPolicy,
    env: ReferringSegmentationVectorEnv,
    inputs: dict[str, Tensor],
    group_size: int,
    *,
    max_new_tokens: int,
    temperature: float,
    noise: Tensor,
) -> tuple[Rollout, list[str], NDArray[np.bool_], Metrics]:
    """Sample a group of answers to each of ``B`` prompts, and let the environment score them.

    Args:
        policy: Who answers.
        env: Vector environment of ``N = B * group_size`` open episodes.
        inputs: ``B`` prepared prompts.
        group_size: Answers per prompt, ``G``.
        max_new_tokens: Longest answer.
        temperature: Of sampling.
        noise: ``(N, max_new_tokens)`` in [0, 1), see `agents.policy.sampling.sample`.

    Returns:
        The rollout, the texts of its answers, which episodes have ended ``(N,)``, and metrics.
    """
    answers = sample(
        policy,
        inputs,
        group_size=group_size,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        noise=noise,
    )
    texts = policy.texts(answers.tokens, answers.mask)
    _, earned, terminated, truncated, infos = env.step(texts)
    rollout = Rollout(
        inputs=inputs,
        tokens=answers.tokens,
        mask=answers.mask,
        free=answers.free,
        sampler_log_probs=answers.log_probs,
        old_log_probs=answers.log_probs,
        rewards=torch.as_tensor(earned, dtype=torch.float32, device=policy.device),
    )
    metrics = _rollout_metrics(rollout, infos)
    ends = torch.tensor(policy.end_ids, device=policy.device)
    ended = (torch.isin(rollout.tokens, ends) & rollout.mask.bool()).any(-1)
    metrics["truncated"] = 1 - ended.float().mean().item()
    return rollout, texts, terminated | truncated, metrics


def choose_sources(
    ended: NDArray[np.bool_], group_size: int, draws: NDArray[np.floating[Any]]
) -> NDArray[np.int64]:
    """Which episode each group goes on from: one of its own that has not ended.

    All answers of a group's next turn start from one state, so that they can be compared with each
    other and their prompt is computed once. A group whose episodes have all ended takes up one of
    another group.

    Args:
        ended: ``(N,)``, which episodes have ended; not all of them.
        group_size: Episodes per group, ``G``, next to each other.
        draws: ``(N / G,)`` in [0, 1), one choice per group.

    Returns:
        ``(N,)`` episodes, the same ``G`` times.
    """
    everywhere = np.flatnonzero(~ended)
    chosen = []
    for group, draw in enumerate(draws):
        own = everywhere[everywhere // group_size == group]
        candidates = own if len(own) else everywhere
        chosen.append(candidates[int(draw * len(candidates))])
    return np.repeat(np.array(chosen, dtype=np.int64), group_size)


def _rollout_metrics(rollout: Rollout, infos: Mapping[str, Any]) -> Metrics:
    """What the answers are like and what they earned."""
    spread = group_std(rollout.rewards, rollout.group_size)
    metrics = {
        "reward": rollout.rewards.mean().item(),
        "iou": float(np.mean(infos["iou"])),
        "valid": float(np.mean(infos["valid"])),
        "vertices": float(np.mean(infos["num_vertices"])),
        "tokens": rollout.mask.sum(-1).float().mean().item(),
        "group_spread": spread.mean().item(),
        "degenerate_groups": degenerate_fraction(rollout.rewards, rollout.group_size),
    }
    rewards: Sequence[str] = [key for key in infos if key.startswith("reward/")]
    return metrics | {key: float(np.mean(infos[key])) for key in rewards}
