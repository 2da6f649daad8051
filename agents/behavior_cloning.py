"""Behaviour cloning (SFT): learn to write the outlines that were traced from ground truth.

The image is encoded once for all questions about it. Each rank has a contiguous block of a batch's
images.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import partial

import numpy as np
import torch
from torch import Tensor

from agents.base import EngineAgent
from agents.demonstrations import Demonstration, DemonstrationBatch, collate, draw, learned_tokens
from agents.policy.families import answer_positions, next_positions
from agents.policy.model import Prefix, VLMPolicy
from agents.policy.scoring import predict_shared
from agents.policy.soft_targets import SoftTargets
from agents.settings import BehaviorCloningConfig as BehaviorCloningConfig
from agents.training import make_engine
from agents.training.distributed import World
from seg_env.envs.left_out import LeftOut
from seg_env.errors import WrongOptionError


class BehaviorCloning(EngineAgent):
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
        self._targets = SoftTargets(policy.tokenizer, config.soft_targets, policy.device)
        if config.soft_targets and not self._targets:
            raise WrongOptionError(
                f"soft_targets={config.soft_targets}, but no number is one token of this policy's "
                f"tokenizer: set it to 0"
            )
        self.engine = make_engine(policy.model, config)

    def improve(self, updates: int) -> dict[str, float]:
        """Make one optimizer step; its batch depends only on the seed and the update's number.

        Curriculum and schedule span ``updates`` updates.
        """
        config, policy = self.config, self.policy
        policy.model.train()
        learning_rate = config.rate_at(self.update, updates)
        task_weights = config.task_weights(self.update / updates)
        rng = np.random.default_rng([config.seed, self.update])
        # Every rank draws the whole batch and takes its part.
        drawn = draw(self.demonstrations, config.batch_size, task_weights, rng)
        own = drawn[self._share]
        batch = collate(own, policy.tokenizer.pad_token_id, policy.device)
        soft = config.soft_targets and self.update < config.soft_until * updates
        targets = self._targets if soft else None
        loss = self.engine.forward(
            partial(cloning_loss, policy, batch, targets, config.dialogues_per_forward)
        )
        # Ranks have answers of different lengths; the mean is over the tokens of all of them.
        weight = self.world.size * learned_tokens(own) / learned_tokens(drawn)
        self.engine.backward(loss * weight)
        norm = self.step(learning_rate)
        metrics = {"train/loss": (loss * weight).item()}
        return self.world.reduce(metrics) | {
            "train/grad_norm": norm,
            "train/learning_rate": learning_rate,
        }


def cloning_loss(
    policy: VLMPolicy,
    batch: DemonstrationBatch,
    targets: SoftTargets | None = None,
    dialogues_per_forward: int = 0,
) -> Tensor:
    """Mean cross-entropy per answer token, in nats, to the true token or to soft targets.

    Images are encoded once. Dialogues are then read ``dialogues_per_forward`` at a time, sorted by
    length to save padding; 0 reads all of them at once.
    """
    entropy = targets.cross_entropy if targets else torch.nn.functional.cross_entropy
    if policy.model.is_activation_checkpointing:  # such layers neither fill nor read a cache
        return entropy(*_packed_predictions(policy, batch))
    prefix = policy.encode(batch.inputs)
    lengths = batch.mask.sum(1)
    everything = torch.arange(len(lengths), device=policy.device)
    parts: Sequence[Tensor] = [everything]
    if dialogues_per_forward:
        parts = lengths.argsort(stable=True).split(dialogues_per_forward)
    total = lengths.new_zeros((), dtype=torch.float32)
    for part in parts:
        width = int(lengths[part].max())
        logits, tokens = _predictions(policy, prefix, batch.select(part, width))
        total = total + entropy(logits, tokens) * len(tokens)
    return total / batch.learn[:, 1:].sum()


def _predictions(
    policy: VLMPolicy, prefix: Prefix, batch: DemonstrationBatch
) -> tuple[Tensor, Tensor]:
    """Logits ``(M, V)`` for dialogues that follow encoded images, and their ``M`` target tokens."""
    cache, rows, mask = copy(prefix.cache), batch.rows, batch.mask[:, :-1]
    cache.layers = [copy(layer) for layer in cache.layers]
    for layer in cache.layers:  # like the cache's own method, but gradients add up in order
        layer.keys = layer.keys.index_select(0, rows)
        layer.values = layer.values.index_select(0, rows)
    starts = next_positions(prefix.positions)[rows]
    with policy.autocast():
        logits = policy.model(
            input_ids=batch.tokens[:, :-1],
            attention_mask=torch.cat([prefix.mask[rows], mask], dim=1),
            position_ids=answer_positions(prefix.positions, starts, mask.shape[1]),
            past_key_values=cache,
            use_cache=True,
        ).logits
    learn = batch.learn[:, 1:]
    return logits[learn].float(), batch.tokens[:, 1:][learn]


def _packed_predictions(policy: VLMPolicy, batch: DemonstrationBatch) -> tuple[Tensor, Tensor]:
    """Logits and target tokens of rows that hold an image followed by all its dialogues."""
    counts = batch.rows.bincount(minlength=len(batch.inputs["input_ids"]))
    most = int(counts.max())
    first = (counts.cumsum(0) - counts)[batch.rows]  # of the dialogue's image
    places = batch.rows * most + torch.arange(len(batch.rows), device=policy.device) - first
    shape = (len(counts) * most, batch.tokens.shape[1])
    tokens = batch.tokens.new_full(shape, policy.pad_id).index_copy(0, places, batch.tokens)
    learn = batch.learn.new_zeros(shape).index_copy(0, places, batch.learn)
    logits, _ = predict_shared(policy, batch.inputs, tokens, learn, False)
    return logits.float(), tokens[learn]
