"""Behaviour cloning (SFT): learn to write the outlines that were traced from ground truth.

The image is encoded once for all questions about it. Each rank has a contiguous block of a batch's
images.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agents.base import Agent, UpdateCallback
from agents.demonstrations import Demonstration, DemonstrationBatch, draw_batch
from agents.policy.families import select_prompts
from agents.policy.model import VLMPolicy, positions_of
from agents.settings import BehaviorCloningConfig as BehaviorCloningConfig
from agents.training import make_engine
from agents.training.checkpoints import read_checkpoint, write_checkpoint
from agents.training.distributed import World
from seg_env.envs.left_out import LeftOut
from seg_env.tasks import Task


class BehaviorCloning(Agent):
    """Teaches a policy from demonstrations."""

    def __init__(
        self,
        policy: VLMPolicy,
        demonstrations: Sequence[Demonstration],
        config: BehaviorCloningConfig,
        *,
        max_new_tokens: int = 128,
    ) -> None:
        """Set up; the policy is trained in place, on at least ``config.batch_size`` images."""
        self.policy = policy
        self.demonstrations = demonstrations
        self.config = config
        self.max_new_tokens = max_new_tokens
        self.left_out = LeftOut()
        self.world = World.current()
        self._share = self.world.block(config.batch_size, "batch_size")
        self.engine = make_engine(policy.model, config)
        self.update = 0

    def learn(self, updates: int, on_update: UpdateCallback | None = None) -> None:
        """Train until ``updates`` updates have been made; curriculum and schedule span them."""
        config = self.config
        while self.update < updates:
            rate = config.rate_at(self.update, updates)
            metrics = self._step(config.task_weights(self.update / updates), rate)
            self.update += 1
            if on_update is not None:
                on_update(self.update, metrics)

    def _step(self, task_weights: dict[Task, float], learning_rate: float) -> dict[str, float]:
        """One optimizer step; its batch follows from the seed and the number of the update."""
        self.policy.model.train()
        rng = np.random.default_rng([self.config.seed, self.update])
        pad_id = self.policy.tokenizer.pad_token_id
        # Every rank draws all of it and takes its part.
        whole = draw_batch(
            self.demonstrations, self.config.batch_size, task_weights, rng, pad_id
        ).to(self.policy.device)
        batch = images_of(whole, self._share)
        loss = self.engine.forward(partial(cloning_loss, self.policy, batch))
        # Ranks have answers of different lengths; the mean is over the tokens of all of them.
        weight = self.world.size * batch.learn[:, 1:].sum() / whole.learn[:, 1:].sum()
        self.engine.backward(loss * weight)
        norm = self.engine.step(learning_rate)
        if norm > 0 and learning_rate > 0:
            self.policy.mark_trained()
        metrics = {"train/loss": (loss * weight).item()}
        return self.world.reduce(metrics) | {
            "train/grad_norm": norm,
            "train/learning_rate": learning_rate,
        }

    def gathered_weights(self) -> AbstractContextManager[None]:
        """See `Agent.gathered_weights`; all ranks must enter it."""
        return self.engine.gathered_weights()

    def save(self, path: str | Path) -> None:
        """Write policy, optimizer and progress; every rank must call this."""
        facts = {"update": self.update, "config": asdict(self.config)}
        tensors = {"optimizer": self.engine.state_dict()}
        with self.gathered_weights():
            write_checkpoint(path, self.policy, tensors, facts, self.world)

    def load(self, path: str | Path) -> None:
        """Go on from `save` to the same numbers; with another number of ranks, up to rounding."""
        with self.engine.gathered_weights(change=True):
            tensors, facts = read_checkpoint(path, self.policy)
        self.engine.load_state_dict(tensors["optimizer"])
        self.update = facts["update"]


def images_of(batch: DemonstrationBatch, share: slice) -> DemonstrationBatch:
    """The part of a batch that is about some of its images."""
    images = torch.arange(share.start, share.stop, device=batch.rows.device)
    dialogues = (batch.rows >= share.start) & (batch.rows < share.stop)
    return DemonstrationBatch(
        inputs=select_prompts(batch.inputs, images),
        rows=batch.rows[dialogues] - share.start,
        tokens=batch.tokens[dialogues],
        mask=batch.mask[dialogues],
        learn=batch.learn[dialogues],
    )


def cloning_loss(policy: VLMPolicy, batch: DemonstrationBatch) -> Tensor:
    """Mean cross-entropy per answer token, in nats."""
    prefix = policy.encode(batch.inputs)
    for layer in prefix.cache.layers:  # as its own method does, with gradients added up in order
        layer.keys = layer.keys.index_select(0, batch.rows)
        layer.values = layer.values.index_select(0, batch.rows)
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
