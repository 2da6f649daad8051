"""Features of images from a frozen tower, computed once per image and kept."""

from __future__ import annotations

import hashlib
import inspect
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from agents.policy.families import IMAGE_ROWS, select_prompts, split_inputs, vision_parameters

FeaturesOfImage = tuple[Tensor, ...]
"""What enters the decoder at the bottom, then what enters it between layers (DeepStack)."""


class ImageFeatures:
    """Keeps what a frozen vision tower and projector make of each image.

    Images are told apart by the bytes the processor made of them, so the same image asked about
    twice, or in another update, is encoded once. The least recently used are dropped.
    """

    def __init__(self, limit: int = 2**30) -> None:
        """Keep at most ``limit`` bytes of features, on the device of the model."""
        self.limit = limit
        self._kept: OrderedDict[bytes, FeaturesOfImage] = OrderedDict()
        self._size = 0
        self._made_by: object = None
        self._stacked = False
        self._inseparable = False

    def __call__(self, model: Any, inputs: dict[str, Tensor], precision: str) -> dict[str, Any]:
        """Model inputs about images: features if the tower is frozen, else what was given.

        Features of one ``precision`` of the forward pass are not used in another.
        """
        _, images = split_inputs(inputs)
        parameters = vision_parameters(model)
        frozen = parameters and not any(parameter.requires_grad for parameter in parameters)
        taken = "mm_encoder_outputs" in inspect.signature(model.forward).parameters
        if not frozen or "pixel_values" not in images or not taken or self._inseparable:
            return images
        made_by = (precision, [parameter._version for parameter in parameters])
        if made_by != self._made_by:  # the tower is another one, as after loading weights
            self._kept.clear()
            self._size, self._made_by = 0, made_by
        keys = _digests(inputs, images)
        missing = {key: row for row, key in enumerate(keys) if key not in self._kept}
        found = {key: self._kept[key] for key in keys if key in self._kept}
        if missing:
            rows = torch.tensor(list(missing.values()), device=inputs["input_ids"].device)
            made = self._encode(model, select_prompts(inputs, rows))
            if made is None:
                self._inseparable = True
                return images
            found |= dict(zip(missing, made, strict=True))
        self._keep(found)
        rest = {key: value for key, value in images.items() if not key.startswith("pixel_")}
        levels = zip(*(found[key] for key in keys), strict=True)
        first, *deeper = (list(level) for level in levels)
        output = BaseModelOutputWithPooling(
            pooler_output=torch.cat(first) if self._stacked else first
        )
        output["deepstack_features"] = deeper
        return rest | {"mm_encoder_outputs": {"image": output}}

    @torch.no_grad()
    def _encode(self, model: Any, inputs: dict[str, Tensor]) -> list[FeaturesOfImage] | None:
        """Run tower and projector; None if features cannot be told apart by prompt."""
        taken = inspect.signature(model.get_image_features).parameters
        images = {key: value for key, value in inputs.items() if key in taken}
        output = model.get_image_features(**images, return_dict=True)
        levels = [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]
        self._stacked = isinstance(output.pooler_output, Tensor)
        if self._stacked:  # a row per image, or several where images are cut into tiles
            rows = inputs.get(IMAGE_ROWS, torch.ones(len(inputs["input_ids"]), dtype=torch.long))
            if any(len(level) != int(rows.sum()) for level in levels):
                return None
            levels = [level.split(rows.tolist()) for level in levels]
        if any(len(level) != len(inputs["input_ids"]) for level in levels):
            return None
        return [tuple(features) for features in zip(*levels, strict=True)]

    def _keep(self, found: dict[bytes, FeaturesOfImage]) -> None:
        """Note that images were used; drop those that were not for the longest time."""
        for key, features in found.items():
            if key not in self._kept:
                self._kept[key] = features
                self._size += _bytes(features)
            self._kept.move_to_end(key)
        while self._size > self.limit:
            self._size -= _bytes(self._kept.popitem(last=False)[1])


def _digests(inputs: dict[str, Tensor], images: dict[str, Tensor]) -> list[bytes]:
    """A digest of each prompt's image, shapes included."""
    digests = []
    for row in range(len(inputs["input_ids"])):
        digest = hashlib.blake2b(digest_size=16)
        chosen = select_prompts(inputs, torch.tensor([row], device=inputs["input_ids"].device))
        for key in sorted(images):
            values = chosen[key].detach().cpu().contiguous()
            digest.update(f"{key} {values.dtype} {tuple(values.shape)}".encode())
            digest.update(values.view(torch.uint8).numpy().data)
        digests.append(digest.digest())
    return digests


def _bytes(features: FeaturesOfImage) -> int:
    return sum(level.numel() * level.element_size() for level in features)
