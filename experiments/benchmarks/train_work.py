"""What the legs of the training benchmark have to do: policy, questions and settings, all alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from agents.embedded.tiny import TinyConfig, build_model, build_processor
from agents.gspo import GSPOConfig
from agents.policy.model import Precision, VLMPolicy
from seg_env.data.scenes import Scenes
from seg_env.tasks import question
from seg_env.types import Sample

SHAPES = {
    "small": TinyConfig(vision_width=32, vision_layers=1, width=32, layers=2, heads=2),
    "embedded": TinyConfig(),
    "30m": TinyConfig(
        patch_size=14,
        vision_width=384,
        vision_layers=6,
        width=512,
        layers=6,
        heads=8,
        initializer_range=0.02,
    ),
    "2b": TinyConfig(
        patch_size=14,
        vision_width=1024,
        vision_layers=24,
        width=2048,
        layers=28,
        heads=16,
        initializer_range=0.02,
    ),
}
"""Policies of LLaVA form with random weights: 60 thousand, 1.3, 32 and 1,800 million parameters."""


@dataclass(frozen=True)
class Work:
    """What all legs of one comparison have to do."""

    shape: str
    """One of `SHAPES`."""
    prompt_tokens: int
    """The picture has as many of these as a square can have; the question comes on top."""
    new_tokens: int
    """Tokens of every answer."""
    group_size: int
    """Answers per question."""
    prompts: int
    """Questions per update."""
    precision: Precision
    """Of forward and backward."""
    attention: str
    """Kernel of ordinary attention."""
    device: str
    """Where the policy is."""
    seed: int
    """Seed of the weights and of sampling."""

    def model_config(self) -> TinyConfig:
        """The shape with pictures of the wanted number of tokens."""
        shape = SHAPES[self.shape]
        return replace(shape, image_size=int(self.prompt_tokens**0.5) * shape.patch_size)

    def settings(self) -> GSPOConfig:
        """Settings of one step per rollout."""
        return GSPOConfig(
            prompts_per_update=self.prompts,
            group_size=self.group_size,
            minibatches=1,
            muon=False,
            learning_rate=1e-6,
            max_new_tokens=self.new_tokens,
            seed=self.seed,
        )


class Pool:
    """Scenes whose questions have equally many tokens, so that no prompt is padded."""

    name, split = "scenes-pool", "train"

    def __init__(self, processor: Any, size: int, count: int = 16) -> None:
        """Choose ``count`` of the first scenes with pictures of ``size`` pixels."""
        scenes = Scenes("train", size=max(size, 32))
        found = [scenes[index] for index in range(8 * count)]
        lengths = [len(processor.tokenizer.encode(question(s, "text->mask"))) for s in found]
        usual = Counter(lengths).most_common(1)[0][0]
        pairs = zip(found, lengths, strict=True)
        self._samples = [sample for sample, length in pairs if length == usual][:count]

    def __len__(self) -> int:
        """Number of scenes."""
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        """One of them."""
        return self._samples[index]

    def __iter__(self) -> Iterator[Sample]:
        """All of them."""
        return iter(self._samples)


def make_policy(work: Work) -> VLMPolicy:
    """A policy with random weights that never ends an answer before its last token."""
    config = work.model_config()
    processor = build_processor(config)
    torch.manual_seed(work.seed)
    model = build_model(config, processor).to(work.device)
    model.set_attn_implementation(work.attention)
    policy = VLMPolicy(model, processor, precision=work.precision)
    policy.forbidden[policy.end_ids] = True
    return policy
