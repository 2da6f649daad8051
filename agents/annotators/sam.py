"""Segmentation by SAM and SAM 2."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import expanduser
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import AutoConfig, Sam2Model, SamModel

from agents.annotators.loading import load_model
from agents.policy.loading import open_processor
from seg_env.data.annotate.stages import Box, Found, Segment, by_image
from seg_env.geometry.rle import Rle

MEAN, STANDARD_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours; all published SAM 2 models were trained with these."""


class Sam:
    """Cuts out what boxes contain: SAM (arXiv 2304.02643) or SAM 2 (arXiv 2408.00714).

    An image is encoded once for all its boxes. One mask is predicted for each: a box leaves little
    doubt about what is meant.
    """

    def __init__(self, model: str = "facebook/sam-vit-base", device: str | None = None) -> None:
        """Load the model.

        Args:
            model: Folder, or id on the hub, such as ``"facebook/sam2.1-hiera-large"``.
            device: By default CUDA where there is one.
        """
        model = expanduser(model)
        kind = AutoConfig.from_pretrained(model).model_type
        if kind == "sam":
            self._frame: _SamFrame | _Sam2Frame = _SamFrame(open_processor(model))
            self._model = load_model(SamModel, model, device)
        elif kind in ("sam2", "sam2_video"):
            self._model = load_model(Sam2Model, model, device)
            self._frame = _Sam2Frame(self._model.config.prompt_encoder_config.image_size)
        else:
            raise ValueError(f"{model!r} is a {kind!r} model; use one of 'sam' or 'sam2'")

    def segment(self, objects: Sequence[Found]) -> list[Segment | None]:
        """See `seg_env.data.annotate.stages.Segmenter`."""
        segments: list[Segment | None] = []
        for image, some in by_image(objects):
            inputs = self._frame.inputs(image.image, [found.detection.box for found in some])
            names = ("pixel_values", "input_boxes")
            moved = {name: inputs[name].to(self._model.device) for name in names}
            with torch.inference_mode():
                outputs = self._model(**moved, multimask_output=False)
                masks = self._frame.masks(outputs.pred_masks, inputs)  # (boxes, H, W) bool
            scores = outputs.iou_scores[0, :, 0].float().clamp(0, 1).tolist()
            pairs = zip(masks.cpu().numpy(), scores, strict=True)
            segments += [Segment(Rle.from_mask(mask), score) for mask, score in pairs]
        return segments


class _SamFrame:
    """Inputs, and ``(boxes, H, W)`` masks, by SAM's own processor, which pads to a square."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def inputs(self, image: NDArray[np.uint8], boxes: Sequence[Box]) -> dict[str, Tensor]:
        listed = [[list(box) for box in boxes]]
        found: dict[str, Tensor] = dict(
            self._processor(images=[image], input_boxes=listed, return_tensors="pt")
        )
        return found | {"input_boxes": found["input_boxes"].float()}

    def masks(self, logits: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        found: Tensor = self._processor.post_process_masks(list(logits), *sizes)[0][:, 0]
        return found


class _Sam2Frame:
    """The same for SAM 2, which resizes to a square; its own processor needs torchvision."""

    def __init__(self, side: int | Sequence[int]) -> None:
        self._side = side if isinstance(side, int) else side[0]

    def inputs(self, image: NDArray[np.uint8], boxes: Sequence[Box]) -> dict[str, Tensor]:
        height, width = image.shape[:2]
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
        size = (self._side, self._side)
        pixels = interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        pixels = pixels.round().clamp(0, 255) / 255
        mean, deviation = torch.tensor([MEAN, STANDARD_DEVIATION])[..., None, None]
        scale = torch.tensor([self._side / width, self._side / height] * 2)
        return {
            "pixel_values": (pixels - mean) / deviation,
            "input_boxes": torch.tensor([[list(box) for box in boxes]]) * scale,
            "original_sizes": torch.tensor([[height, width]]),
        }

    def masks(self, logits: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        size = inputs["original_sizes"][0].tolist()
        return interpolate(logits[0], size, mode="bilinear", align_corners=False)[:, 0] > 0
