"""Descriptions by a vision-language model on this machine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from agents.annotators.loading import local_or_id
from agents.policy.families import model_inputs
from agents.policy.model import Precision, VLMPolicy
from seg_env.data.annotate.describing import PROMPT, highlight
from seg_env.data.annotate.stages import DecodedImage, Found


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
            local_or_id(model), device=device, precision=precision
        )
        self._policy.model.eval()
        self._prompt, self._batch_size = prompt, batch_size
        self._longest_side, self._max_new_tokens = longest_side, max_new_tokens

    def describe(
        self, images: Sequence[DecodedImage], objects: Sequence[Sequence[Found]]
    ) -> list[list[str]]:
        """See `seg_env.data.annotate.stages.Describer`."""
        pairs = [
            (image, found) for image, some in zip(images, objects, strict=True) for found in some
        ]
        texts: list[str] = []
        for start in range(0, len(pairs), self._batch_size):
            texts += self._ask(pairs[start : start + self._batch_size])
        flat = iter(texts)
        return [[next(flat) for _ in some] for some in objects]

    def _ask(self, pairs: Sequence[tuple[DecodedImage, Found]]) -> list[str]:
        policy = self._policy
        images = [highlight(*pair, self._longest_side) for pair in pairs]
        inputs = policy.prepare(images, [self._prompt] * len(pairs))
        with torch.inference_mode(), policy.autocast():
            tokens = policy.model.generate(
                **model_inputs(inputs), max_new_tokens=self._max_new_tokens, do_sample=False
            )
        completions = tokens[:, inputs["input_ids"].shape[1] :]
        return policy.tokenizer.batch_decode(completions, skip_special_tokens=True)
