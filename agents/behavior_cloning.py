"""Behaviour cloning (SFT): learn to write the outlines that were traced from ground truth.

A plain loop over shared prefixes: the picture is encoded once for all questions about it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agents.demonstrations import Demonstration, DemonstrationBatch, batches
from agents.optim import HybridOptimizer, cosine_with_warmup
from agents.policy import VLMPolicy, positions_of
from seg_env.tasks import Task


@dataclass
class BehaviorCloningConfig:
    """How a policy is taught from demonstrations."""

    updates: int = 3000
    """Optimizer steps."""
    batch_size: int = 48
    """Pictures per step; every object of a picture is asked one question."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    warmup: float = 0.03
    """Share of the updates in which the learning rate rises."""
    final_rate: float = 0.04
    """Last learning rate as a share of the peak."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    muon: bool = True
    """Muon on hidden matrices; False for AdamW everywhere."""
    points_until: float = 0.15
    """Share of the updates in which only centre points are asked."""
    boxes_until: float = 0.25
    """Share of the updates up to which points and boxes are asked; then mostly outlines."""
    outline_share: float = 0.8
    """Share of outlines among the questions after that."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    seed: int = 0
    """Seed of the order of pictures and questions."""

    def task_weights(self, update: int) -> dict[Task, float]:
        """The curriculum: where is it, how large is it, what is its outline."""
        progress = update / self.updates
        if progress < self.points_until:
            return {"text->point": 1.0}
        if progress < self.boxes_until:
            return {"text->point": 0.5, "text->bbox": 0.5}
        rest = (1 - self.outline_share) / 2
        return {"text->mask": self.outline_share, "text->point": rest, "text->bbox": rest}


class BehaviorCloning:
    """Teaches a policy from demonstrations."""

    def __init__(
        self,
        policy: VLMPolicy,
        demonstrations: Sequence[Demonstration],
        config: BehaviorCloningConfig,
    ) -> None:
        self.policy = policy
        self.demonstrations = demonstrations
        self.config = config
        self.optimizer = HybridOptimizer(
            policy.model, config.learning_rate, config.weight_decay, config.muon
        )

    def learn(self, on_update: Callable[[int, dict[str, float]], None] | None = None) -> None:
        """Run all updates; ``on_update(update, metrics)`` is called after each."""
        config = self.config
        self.policy.model.train()
        rng = np.random.default_rng(config.seed)
        stages: dict[tuple[tuple[Task, float], ...], object] = {}
        for update in range(config.updates):
            weights = config.task_weights(update)
            key = tuple(weights.items())
            if key not in stages:
                pad = self.policy.tokenizer.pad_token_id
                stages = {key: batches(self.demonstrations, config.batch_size, weights, rng, pad)}
            batch = next(stages[key])
            rate = cosine_with_warmup(
                update,
                config.updates,
                config.learning_rate,
                warmup=config.warmup,
                final=config.final_rate,
            )
            self.optimizer.set_learning_rate(rate)
            loss = cloning_loss(self.policy, batch)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(
                self.policy.model.parameters(), config.max_grad_norm
            )
            self.optimizer.step()
            if on_update is not None:
                metrics = {"loss": loss.item(), "grad_norm": norm.item(), "learning_rate": rate}
                on_update(update, metrics)


def cloning_loss(policy: VLMPolicy, batch: DemonstrationBatch) -> Tensor:
    """Mean cross-entropy per answer token, in nats."""
    prefix = policy.encode(batch.inputs)
    prefix.cache.batch_select_indices(batch.rows)
    prefix_mask = prefix.mask[batch.rows]
    full_mask = torch.cat([prefix_mask, batch.mask[:, :-1]], dim=1)
    with policy.autocast():
        logits = policy.model(
            input_ids=batch.tokens[:, :-1],
            attention_mask=full_mask,
            position_ids=positions_of(full_mask)[:, prefix_mask.shape[1] :],
            past_key_values=prefix.cache,
            use_cache=True,
        ).logits
    learn = batch.learn[:, 1:]
    return torch.nn.functional.cross_entropy(logits[learn].float(), batch.tokens[:, 1:][learn])
