"""Descriptions by a vision-language model on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from os.path import expanduser

import torch

from agents.policy.families import model_inputs
from agents.policy.model import Precision, VLMPolicy
from seg_env.data.annotate.describing import PROMPT, highlight
from seg_env.data.annotate.stages import Found


@dataclass(eq=False)
class VlmDescriber:
    """Asks any image-text-to-text model of transformers about each object, shown by a red outline.

    Decoding is greedy, so a run that is resumed gives the same descriptions.
    """

    model: str
    """Folder, or id on the hub, such as ``"Qwen/Qwen2.5-VL-7B-Instruct"``."""
    _: KW_ONLY
    prompt: str = PROMPT
    """What is asked about an image from `highlight`."""
    batch_size: int = 8
    """Objects at a time."""
    longest_side: int = 768
    """Larger images are reduced to it, in pixels."""
    max_new_tokens: int = 60
    """Longest description."""
    precision: Precision = "float32"
    """See `agents.policy.model.VLMPolicy`."""
    device: str | None = None
    """By default CUDA where there is one."""

    def __post_init__(self) -> None:
        """Load the model."""
        self._policy = VLMPolicy.from_pretrained(
            expanduser(self.model), device=self.device, precision=self.precision
        )
        self._policy.model.eval()

    def describe(self, objects: Sequence[Found]) -> list[str]:
        """See `seg_env.data.annotate.stages.Describer`."""
        policy = self._policy
        texts: list[str] = []
        for start in range(0, len(objects), self.batch_size):
            some = objects[start : start + self.batch_size]
            images = [highlight(found, self.longest_side) for found in some]
            inputs = policy.prepare(images, [self.prompt] * len(some))
            with torch.inference_mode(), policy.autocast():
                tokens = policy.model.generate(
                    **model_inputs(policy.model, inputs),
                    max_new_tokens=self.max_new_tokens,
                    do_sample=False,
                )
            completions = tokens[:, inputs["input_ids"].shape[1] :]
            texts += policy.tokenizer.batch_decode(completions, skip_special_tokens=True)
        return texts
