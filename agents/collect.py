"""Collecting rollouts: questions are asked, groups of answers sampled and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.advantages import degenerate_fraction, group_spread
from agents.base import split_observations
from agents.losses import Metrics
from agents.policy import VLMPolicy
from agents.rollout import Rollout
from agents.sampling import sample
from seg_env.envs.vector import ReferringSegmentationVectorEnv


def collect_groups(
    policy: VLMPolicy,
    env: ReferringSegmentationVectorEnv,
    asked: NDArray[np.integer[Any]],
    group_size: int,
    *,
    max_new_tokens: int,
    temperature: float,
    noise: Tensor,
    query_seed: int = 0,
) -> tuple[Rollout, list[str], Metrics]:
    """Ask questions, sample a group of answers to each, and let the environment score them.

    Args:
        policy: Who answers.
        env: Vector environment of ``len(asked) * group_size`` questions.
        asked: ``(B,)`` indices of the samples asked about.
        group_size: Answers per question, ``G``.
        max_new_tokens: Longest answer.
        temperature: Of sampling.
        noise: ``(B * G, max_new_tokens)`` in [0, 1), see `agents.sampling.sample`.
        query_seed: What the tasks asked and the places given are drawn by.

    Returns:
        The rollout, the texts of its answers, and metrics.
    """
    chosen = {"indices": np.repeat(asked, group_size), "query_seed": query_seed}
    observations, _ = env.reset(options=chosen)
    images, prompts = split_observations(observations)
    inputs = policy.prepare(images[::group_size], prompts[::group_size])
    answers = sample(
        policy,
        inputs,
        group_size=group_size,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        noise=noise,
    )
    texts = policy.texts(answers.tokens, answers.mask)
    _, earned, _, _, infos = env.step(texts)
    rollout = Rollout(
        inputs=inputs,
        tokens=answers.tokens,
        mask=answers.mask,
        free=answers.free,
        sampler_log_probs=answers.log_probs,
        old_log_probs=answers.log_probs,
        rewards=torch.as_tensor(earned, dtype=torch.float32, device=policy.device),
    )
    return rollout, texts, _rollout_metrics(rollout, infos)


def _rollout_metrics(rollout: Rollout, infos: Mapping[str, Any]) -> Metrics:
    """What the answers are like and what they earned."""
    spread = group_spread(rollout.rewards, rollout.group_size)
    metrics = {
        "rollout/reward": rollout.rewards.mean().item(),
        "rollout/iou": float(np.mean(infos["iou"])),
        "rollout/valid": float(np.mean(infos["valid"])),
        "rollout/vertices": float(np.mean(infos["num_vertices"])),
        "rollout/tokens": rollout.mask.sum(-1).float().mean().item(),
        "rollout/group_spread": spread.mean().item(),
        "rollout/degenerate_groups": degenerate_fraction(rollout.rewards, rollout.group_size),
    }
    rewards: Sequence[str] = [key for key in infos if key.startswith("reward/")]
    return metrics | {f"rollout/{key}": float(np.mean(infos[key])) for key in rewards}
