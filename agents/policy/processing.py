"""Questions about images as the inputs of a model, checked prompt by prompt.

Models only compare a batch's totals of image tokens and image features: a prompt with one token too
few beside another with one too many passes, and every image after the first of them lands in the
wrong place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from agents.policy.families import GRIDS, IMAGE_ROWS
from agents.policy.loading import CheckpointError

_SPECIAL: WeakKeyDictionary[Any, tuple[int, dict[int, str]]] = WeakKeyDictionary()
"""Results of `special_tokens`, with the tokenizer's length: to search hundreds of added tokens
would be the slowest part of asking a question."""


def prepare_checked(
    model: Any, processor: Any, images: Sequence[NDArray[np.uint8]], prompts: Sequence[str]
) -> dict[str, Tensor]:
    """Inputs of a model, in which every prompt has as many image tokens as its image has features.

    Raises:
        ImageTokensError: One has not; if the batch does not show which, each is checked alone.
    """
    inputs = prepare_inputs(processor, images, prompts)
    try:
        inputs = number_image_rows(model, inputs)
        check_image_tokens(model, inputs, prompts)
    except ImageTokensError as error:
        if error.row is not None or len(prompts) == 1:
            raise
        for row, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            try:
                prepare_checked(model, processor, [image], [prompt])
            except ImageTokensError as alone:
                raise ImageTokensError(row, alone.tokens, alone.features, prompt) from None
        raise
    return inputs


def prepare_inputs(
    processor: Any, images: Sequence[NDArray[np.uint8]], prompts: Sequence[str]
) -> dict[str, Tensor]:
    """Images and questions as model inputs, padded as the tokenizer is set to."""
    texts = [chat_text(processor, prompt) for prompt in prompts]
    options: dict[str, Any] = {}
    start = getattr(processor.tokenizer, "bos_token", None)
    if start and all(text.startswith(start) for text in texts):
        options["add_special_tokens"] = False  # the chat template has written them already
    if any(len(image) < 5 for image in images):  # their rows would be taken for channels
        options["input_data_format"] = "channels_last"
    # Torch cannot read arrays with negative strides, and warns of read-only ones.
    arrays = [np.require(image, requirements=["C", "W"]) for image in images]
    given: list[Any] = [[image] for image in arrays]
    if type(processor).__name__ == "KimiVLProcessor":  # takes Pillow images, all in one list
        given = [Image.fromarray(image) for image in arrays]
    found = processor(text=texts, images=given, return_tensors="pt", padding=True, **options)
    # PaliGemma's labels are for answers passed with the prompts, and there are none.
    return {key: value for key, value in dict(found).items() if key != "labels"}


def chat_text(processor: Any, prompt: str) -> str:
    """One question about one image in the model's own chat format, with special tokens broken.

    Raises:
        CheckpointError: The processor has no chat format.
    """
    prompt = break_special_tokens(prompt, processor.tokenizer)
    name = type(processor).__name__
    template = getattr(processor, "chat_template", "")  # third-party processors may have none
    if template is None:
        if name != "PaliGemmaProcessor":  # its models know no chat: image first, then the question
            raise CheckpointError(
                f"this {name} has no chat template, so prompts cannot be written; copy "
                "chat_template.jinja from the model that it was made from"
            )
        return f"{processor.image_token}{prompt}"
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    message = [{"role": "user", "content": content}]
    text: str = processor.apply_chat_template(message, add_generation_prompt=True)
    return text


def break_special_tokens(text: str, tokenizer: Any) -> str:
    """Insert a space into everything that reads as a special token of a tokenizer.

    An expression is data from outside, and ``<image>`` in it would ask for a second image.
    """
    for token in special_tokens(tokenizer).values():
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Tokens that are no text, such as the image placeholder, by their ids."""
    size, found = _SPECIAL.get(tokenizer, (0, {}))
    if size != len(tokenizer):  # tokens may be added
        named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        added = tokenizer.added_tokens_decoder.items()
        found = dict(named) | {index: token.content for index, token in added if token.special}
        _SPECIAL[tokenizer] = len(tokenizer), found
    return found


class ImageTokensError(ValueError):
    """A prompt holds another number of image tokens than its image has features.

    ``row`` says which prompt of the batch; where it is None, the numbers are those of the batch.
    """

    def __init__(self, row: int | None, tokens: int, features: int, prompt: str = "") -> None:
        """Note what does not fit; ``prompt`` is quoted where it is known."""
        super().__init__(row, tokens, features, prompt)  # pickle rebuilds it from these
        self.row, self.tokens, self.features, self.prompt = row, tokens, features, prompt

    def __str__(self) -> str:
        found = f"{self.tokens} image tokens, but"
        if self.row is None:
            return f"the prompts hold {found} their images have {self.features} features"
        quoted = f" ({self.prompt[:80]!r})" if self.prompt else ""
        return (
            f"prompt {self.row} of the batch{quoted} holds {found} its image has "
            f"{self.features} features"
        )


def count_image_tokens(model: Any, inputs: dict[str, Tensor]) -> Tensor | None:
    """``(B,)`` image tokens of each prompt; None if the configuration does not name the token."""
    names = ("image_token_id", "image_token_index", "media_placeholder_token_id")
    found = (getattr(model.config, name, None) for name in names)
    token = next((one for one in found if isinstance(one, int)), None)
    return None if token is None else (inputs["input_ids"] == token).sum(-1)


def count_image_features(model: Any, inputs: dict[str, Tensor]) -> Tensor | None:
    """``(B,)`` features that the model makes of each prompt's image; None for unknown families.

    Read off the shapes of inputs and the model's configuration. Where several rows of
    ``pixel_values`` belong to a prompt and nothing says which, see `number_image_rows`.
    """
    pixels = inputs.get("pixel_values")
    if pixels is None:
        return None
    grids = next((inputs[name] for name in GRIDS if name in inputs), None)
    if grids is not None:
        merged = _merged_patches(model.config)
        return None if merged is None else grids.prod(-1) // merged
    each = _features_per_row(model.config, pixels)
    if each is None:
        return None
    if model.config.model_type == "llava_onevision":
        return _packed_features(model, inputs, each) if pixels.ndim == 5 else None
    if pixels.ndim == 5:  # Idefics': tiles that hold nothing but zeros are padding
        real = torch.stack([tile.any() for row in pixels for tile in row])  # one at a time
        return each * real.view(pixels.shape[:2]).sum(-1).cpu()
    rows = inputs.get(IMAGE_ROWS, torch.ones(len(pixels), dtype=torch.long))
    return each * rows.cpu() if len(rows) == len(inputs["input_ids"]) else None


def number_image_rows(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Record how many rows of ``pixel_values`` belong to each prompt where it is not one.

    Processors concatenate the tiles of all images: the image tokens of a prompt tell which are its
    own.

    Raises:
        ImageTokensError: They do not.
    """
    pixels, tokens = inputs.get("pixel_values"), count_image_tokens(model, inputs)
    if pixels is None or tokens is None or pixels.ndim != 4 or IMAGE_ROWS in inputs:
        return inputs
    each = _features_per_row(model.config, pixels)
    if each is None or len(pixels) == len(tokens):
        return inputs
    rows = tokens // each
    if (rows * each != tokens).any() or (rows == 0).any() or int(rows.sum()) != len(pixels):
        raise ImageTokensError(None, int(tokens.sum()), len(pixels) * each)
    return inputs | {IMAGE_ROWS: rows}


def check_image_tokens(
    model: Any, inputs: dict[str, Tensor], prompts: Sequence[str] | None = None
) -> None:
    """Make sure that every prompt has as many image tokens as its image has features.

    Raises:
        ImageTokensError: One has not; its ``row`` is the first such prompt.
    """
    tokens, features = count_image_tokens(model, inputs), count_image_features(model, inputs)
    if tokens is None or features is None:
        return
    features = features.to(tokens.device)
    wrong = (tokens != features).nonzero()
    if len(wrong):
        row = int(wrong[0])
        prompt = "" if prompts is None else prompts[row]
        raise ImageTokensError(row, int(tokens[row]), int(features[row]), prompt)


def _merged_patches(config: Any) -> int | None:
    """Number of patches merged into one feature, for models that count patches by grids."""
    vision = getattr(config, "vision_config", None)
    side = getattr(vision, "spatial_merge_size", None)
    kernel = getattr(vision, "merge_kernel_size", None)
    if isinstance(side, int):
        return side**2
    return math.prod(kernel) if isinstance(kernel, (list, tuple)) else None


def _features_per_row(config: Any, pixels: Tensor) -> int | None:
    """Features of one row ``(3, H, W)`` of pixels; None for unknown families and towers."""
    count: int | None = None
    match config.model_type:
        case "gemma3":
            count = config.mm_tokens_per_image
        case "idefics3" | "smolvlm":
            count = _patches(config, pixels) // config.scale_factor**2
        case "internvl":  # pixels are shuffled into channels
            count = int(_patches(config, pixels) * config.downsample_ratio**2)
        case "llava" | "llava_onevision":  # the first token may be left out
            added = {"clip_vision_model": 1, "siglip_vision_model": 0}
            kind = config.vision_config.model_type
            if kind in added:
                dropped = config.vision_feature_select_strategy == "default"
                count = _patches(config, pixels) + added[kind] - dropped
        case "paligemma":
            count = _patches(config, pixels)
    return count


def _patches(config: Any, pixels: Tensor) -> int:
    """Patches that the vision tower cuts one row of pixels into."""
    height, width = pixels.shape[-2:]
    patch = config.vision_config.patch_size
    rows, columns = (patch, patch) if isinstance(patch, int) else patch
    return (height // rows) * (width // columns)


def _packed_features(model: Any, inputs: dict[str, Tensor], each: int) -> Tensor:
    """Features of LLaVA-OneVision's images, found by letting the model pack tiles of width 1."""
    sizes = inputs["image_sizes"].cpu()
    side = model.config.vision_config.image_size
    # A base image, and the tiles of the grid that suits the image best.
    pinpoints = model.config.image_grid_pinpoints
    grids = [select_best_resolution(size, pinpoints) for size in sizes.tolist()]
    tiles = [1 + math.ceil(height / side) * math.ceil(width / side) for height, width in grids]
    _, lengths = model.model.pack_image_features(
        [torch.zeros(count, each, 1) for count in tiles],
        sizes,
        image_newline=torch.zeros(1),
        vision_aspect_ratio=getattr(model.config, "vision_aspect_ratio", "anyres_max_9"),
    )
    return lengths
