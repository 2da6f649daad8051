"""Descriptions by a vision-language model on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import expanduser

import torch

from agents.policy.families import model_inputs
from agents.policy.model import Precision, VLMPolicy
from seg_env.data.annotate.describing import PROMPT, highlight
from seg_env.data.annotate.stages import Found


class VlmDescriber:
    """Asks any image-text-to-text model of transformers about each object, shown by a red outline.

    Decoding is greedy, so a run that is resumed gives the same descriptions.
    """

    def __init__(
        self,
        model: str,
        *,
        prompt: str = PROMPT,
        batch_size: int = 8,
        longest_side: int = 768,
        max_new_tokens: int = 60,
        precision: Precision = "float32",
        device: str | None = None,
    ) -> None:
        """Load the model.

        Args:
            model: Folder, or id on the hub, such as ``"Qwen/Qwen2.5-VL-7B-Instruct"``.
            prompt: What is asked about an image from `highlight`.
            batch_size: Objects at a time.
            longest_side: Larger images are reduced to it, in pixels.
            max_new_tokens: Longest description.
            precision: See `agents.policy.model.VLMPolicy`.
            device: By default CUDA where there is one.
        """
        self._policy = VLMPolicy.from_pretrained(
            expanduser(model), device=device, precision=precision
        )
        self._policy.model.eval()
        self._prompt, self._batch_size = prompt, batch_size
        self._longest_side, self._max_new_tokens = longest_side, max_new_tokens

    def describe(self, objects: Sequence[Found]) -> list[str]:
        """See `seg_env.data.annotate.stages.Describer`."""
        starts = range(0, len(objects), self._batch_size)
        return [text for n in starts for text in self._ask(objects[n : n + self._batch_size])]

    def _ask(self, objects: Sequence[Found]) -> list[str]:
        policy = self._policy
        images = [highlight(found, self._longest_side) for found in objects]
        inputs = policy.prepare(images, [self._prompt] * len(objects))
        with torch.inference_mode(), policy.autocast():
            tokens = policy.model.generate(
                **model_inputs(inputs), max_new_tokens=self._max_new_tokens, do_sample=False
            )
        completions = tokens[:, inputs["input_ids"].shape[1] :]
        return policy.tokenizer.batch_decode(completions, skip_special_tokens=True)
