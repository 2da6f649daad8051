"""Behaviour cloning (SFT): learn to write the outlines that were traced from ground truth.

A plain loop over shared prefixes: the picture is encoded once for all questions about it. With
several ranks (`agents.training.distributed`) each of them has a contiguous block of a
batch's pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agents.base import Agent, UpdateCallback
from agents.demonstrations import Demonstration, DemonstrationBatch, draw_batch
from agents.policy.families import select_prompts
from agents.policy.model import VLMPolicy, positions_of
from agents.training.checkpoints import read_checkpoint, write_checkpoint
from agents.training.distributed import World
from agents.training.engine import OptimizerSettings, make_engine
from agents.training.muon import MuonPrecision
from agents.training.optim import EPSILON, cosine_with_warmup
from seg_env.envs.left_out import LeftOut
from seg_env.tasks import TASKS, Task, TaskMixture


@dataclass
class BehaviorCloningConfig:
    """How a policy is taught from demonstrations."""

    batch_size: int = 24
    """Pictures per step, of all ranks together; every object of a picture is asked one question."""
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
    muon_precision: MuonPrecision = "auto"
    """What Muon orthogonalises in; auto takes what the hardware multiplies sooner."""
    adam_epsilon: float = EPSILON
    """Added to what AdamW divides gradients by: those far below it make no steps."""
    points_until: float = 0.12
    """Share of the updates in which only centre points are asked."""
    boxes_until: float = 0.2
    """Share of the updates up to which points and boxes are asked; then mostly outlines."""
    outline_share: float = 0.8
    """Share of outlines among the questions after that."""
    tasks: str | None = None
    """What is asked after that in place of outlines, boxes and points by expression, as in
    ``"text->mask=0.7 point->mask=0.3"``; every task that is asked needs its demonstrations."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    deepspeed: str | None = None
    """Train by DeepSpeed: zero1, zero2, zero3 (not with Muon), or the path of a configuration."""
    seed: int = 0
    """Seed of the order of pictures and questions."""

    @property
    def demonstrated(self) -> tuple[Task, ...]:
        """Every task that is asked at some time, in the order of `TASKS`."""
        progresses = (0.0, self.points_until, self.boxes_until)
        asked = {task for progress in progresses for task in self.task_weights(progress)}
        return tuple(task for task in TASKS if task in asked)

    def task_weights(self, progress: float) -> dict[Task, float]:
        """The curriculum, by the share of updates made: where, how large, what outline."""
        if progress < self.points_until:
            return {"text->point": 1.0}
        if progress < self.boxes_until:
            return {"text->point": 0.5, "text->bbox": 0.5}
        if self.tasks is not None:
            return dict(TaskMixture.from_spec(self.tasks).weights)
        rest = (1 - self.outline_share) / 2
        return {"text->mask": self.outline_share, "text->point": rest, "text->bbox": rest}


class BehaviorCloning(Agent):
    """Teaches a policy from demonstrations.

    Attributes:
        world: The processes that train together.
        engine: Makes the optimizer steps.
        update: Updates made so far.
    """

    def __init__(
        self,
        policy: VLMPolicy,
        demonstrations: Sequence[Demonstration],
        config: BehaviorCloningConfig,
        *,
        max_new_tokens: int = 128,
    ) -> None:
        """Set up.

        Args:
            policy: Trained in place.
            demonstrations: At least ``config.batch_size`` pictures.
            config: How to teach.
            max_new_tokens: Longest answer of `act`.

        Raises:
            ValueError: A batch cannot be shared out evenly among the ranks.
        """
        self.policy = policy
        self.demonstrations = demonstrations
        self.config = config
        self.max_new_tokens = max_new_tokens
        self.left_out = LeftOut()
        self.world = World.current()
        self._share = self.world.block(config.batch_size, "batch_size")
        settings = OptimizerSettings(
            config.learning_rate,
            config.weight_decay,
            config.max_grad_norm,
            config.muon,
            config.muon_precision,
            config.adam_epsilon,
        )
        self.engine = make_engine(policy.model, settings, config.deepspeed)
        self.update = 0

    def learn(self, updates: int, on_update: UpdateCallback | None = None) -> None:
        """Train until ``updates`` updates have been made; curriculum and schedule span them."""
        config = self.config
        while self.update < updates:
            rate = cosine_with_warmup(
                self.update,
                updates,
                config.learning_rate,
                warmup=config.warmup,
                final=config.final_rate,
            )
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
        batch = pictures_of(whole, self._share)
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

    def whole_weights(self) -> AbstractContextManager[None]:
        """See `Agent.whole_weights`; all ranks must enter it."""
        return self.engine.whole_weights()

    def save(self, path: str | Path) -> None:
        """Write policy, optimizer and progress; see `write_checkpoint`. Every rank must call it."""
        facts = {"update": self.update, "config": asdict(self.config)}
        tensors = {"optimizer": self.engine.state_dict()}
        with self.whole_weights():
            write_checkpoint(path, self.policy, tensors, facts, self.world)

    def load(self, path: str | Path) -> None:
        """Go on from `save` to the same numbers as if nothing had happened.

        With another number of ranks they are the same up to rounding.
        """
        with self.engine.whole_weights(change=True):
            tensors, facts = read_checkpoint(path, self.policy)
        self.engine.load_state_dict(tensors["optimizer"])
        self.update = facts["update"]


def pictures_of(batch: DemonstrationBatch, share: slice) -> DemonstrationBatch:
    """The part of a batch that is about some of its pictures."""
    pictures = torch.arange(share.start, share.stop, device=batch.rows.device)
    dialogues = (batch.rows >= share.start) & (batch.rows < share.stop)
    return DemonstrationBatch(
        inputs=select_prompts(batch.inputs, pictures),
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
