"""Settings that all on-policy agents share."""

from __future__ import annotations

from dataclasses import dataclass

from agents.training.distributed import World
from agents.training.muon import MuonPrecision
from agents.training.optim import EPSILON


@dataclass
class OnPolicyConfig:
    """What all on-policy agents need to know. SimpleSeg publishes none of these values for RL."""

    prompts_per_update: int = 32
    """Prompts per rollout, of all ranks together."""
    group_size: int = 8
    """Answers per prompt, G."""
    minibatches: int = 2
    """Optimizer steps per pass over a rollout; groups are never split."""
    epochs: int = 1
    """Passes over a rollout."""
    prompts_per_forward: int = 2
    """Prompts per forward pass of a rank: fewer bound memory, and spare padding since those with
    answers of like length go together; 0 takes its whole minibatch at once."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    warmup: float = 0.03
    """Share of the updates in which the learning rate rises."""
    final_rate: float = 0.05
    """Last learning rate as a share of the peak."""
    muon: bool = True
    """Muon on hidden matrices; False for AdamW everywhere (then divide the rate by three)."""
    muon_precision: MuonPrecision = "auto"
    """What Muon orthogonalises in; auto takes what the hardware multiplies sooner."""
    adam_epsilon: float = EPSILON
    """Added to what AdamW divides gradients by: those far below it make no steps."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    temperature: float = 1.0
    """Sampling temperature; scoring uses the same."""
    max_new_tokens: int = 128
    """Longest answer in tokens; below the longest honest answer, answers are cut and malformed."""
    kl_coefficient: float = 0.0
    """Weight of the KL divergence to the policy training started from; 0 keeps no copy of it."""
    importance_cap: float = 2.0
    """Where the scorer's log-probabilities differ from the sampler's, answers are weighted by their
    ratio, at most by this."""
    deepspeed: str | None = None
    """Train by DeepSpeed: zero1, zero2, zero3 (not with Muon), or the path of a configuration."""
    seed: int = 0
    """Seed of the choice of prompts and of sampling."""

    @property
    def credits_vertices(self) -> bool:
        """Whether vertices are credited with what they earned, and not only whole answers."""
        return False

    def prompts_of(self, world: World) -> slice:
        """Which of an update's prompts a rank asks: a contiguous block.

        Raises:
            ValueError: They cannot be shared out so that minibatches are of the same prompts as in
                a single process, every ``minibatches``-th of all.
        """
        count, parts = self.prompts_per_update, world.size * self.minibatches
        if world.size > 1 and count % parts:
            raise ValueError(
                f"prompts_per_update={count} cannot be shared out among {world.size} processes "
                f"times minibatches={self.minibatches}: make it a multiple of {parts}"
            )
        return world.block(count, "prompts_per_update")

    def rows_of(self, world: World) -> int:
        """How many questions the vector environment of a rank asks: whole groups."""
        share = self.prompts_of(world)
        return (share.stop - share.start) * self.group_size
