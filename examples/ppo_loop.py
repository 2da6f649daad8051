"""A training loop of your own: PPO over `gym.make_vec`, written out, without this project's agents.

    python examples/ppo_loop.py --updates 20

The environment scores answers, the policy samples and scores tokens; what is between them is here.
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import numpy as np
import torch

import seg_env  # noqa: F401  (registers the environments)
from agents.policy.model import VLMPolicy
from agents.policy.sampling import sample
from agents.policy.scoring import score
from experiments.common.policies import SHIPPED


def collect(env, policy, prompts, answers, max_new_tokens, rng):
    """Ask `prompts` questions, `answers` times each, and have the answers scored."""
    asked = rng.integers(len(env.unwrapped.dataset), size=prompts).repeat(answers)
    observations, _ = env.reset(options={"indices": asked})
    # Answers to one question share its image and prompt, which are encoded once.
    images, texts = observations["image"][::answers], observations["prompt"][::answers]
    inputs = policy.prepare(images, texts)
    completions = sample(
        policy, inputs, group_size=answers, max_new_tokens=max_new_tokens, temperature=1.0
    )
    written = policy.texts(completions.tokens, completions.mask)
    _, rewards, _, _, infos = env.step(written)
    return inputs, completions, torch.tensor(rewards, dtype=torch.float32), infos


def advantages_of(rewards, answers):
    """How much better an answer was than the others to its question."""
    groups = rewards.view(-1, answers)
    return (
        (groups - groups.mean(1, keepdim=True)) / groups.std(1, keepdim=True).clamp(min=0.2)
    ).flatten()


def clipped_loss(log_probs, old_log_probs, advantages, mask, clip=0.2):
    """PPO's objective: a ratio per token, clipped where the policy has moved far enough."""
    ratios = (log_probs - old_log_probs).exp()
    bounded = ratios.clamp(1 - clip, 1 + clip)
    gain = torch.minimum(ratios * advantages[:, None], bounded * advantages[:, None])
    return -(gain * mask).sum() / mask.sum()


def select(inputs, rows):
    """The inputs of some prompts."""
    return {name: values[rows] for name, values in inputs.items()}


def train(updates=20, prompts=16, answers=8, epochs=2, rate=3e-5, max_new_tokens=128, seed=0):
    """Train the policy that comes with the project; returns the mean IoU of every rollout."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    policy = VLMPolicy.from_pretrained(SHIPPED["embedded"])
    env = gym.make_vec(
        "SimpleSeg-Scenes-v0",
        num_envs=prompts * answers,
        autoreset_mode="Disabled",
        rewards="mask_iou=1.0 centroid_distance=0.5 format=0.1",
    )
    optimizer = torch.optim.AdamW(policy.model.parameters(), rate, weight_decay=0.0)
    history = []
    for update in range(updates):
        policy.model.eval()
        inputs, completions, rewards, infos = collect(
            env, policy, prompts, answers, max_new_tokens, rng
        )
        advantages = advantages_of(rewards, answers)
        policy.model.train()
        for _ in range(epochs):
            for some in torch.randperm(prompts).split(4):
                rows = (some[:, None] * answers + torch.arange(answers)).flatten()
                scores = score(
                    policy,
                    select(inputs, some),
                    completions.tokens[rows],
                    completions.mask[rows],
                )
                loss = clipped_loss(
                    scores.log_probs,
                    completions.log_probs[rows],
                    advantages[rows],
                    completions.mask[rows],
                )
                loss.backward()
                torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        history.append(float(np.mean(infos["iou"])))
        print(f"update {update + 1}: reward {rewards.mean():.3f}, mask IoU {history[-1]:.3f}")
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    train(**vars(parser.parse_args()))
