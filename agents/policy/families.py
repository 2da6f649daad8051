"""Differences between families of vision-language models: a table, and what a model itself tells.

Families in the table are tested; others are tried when an agent is built
(`agents.policy.checks.try_sharing`).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import get_layer_types_and_kwargs

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""Inputs with one entry per token of a prompt; all others are about images."""

GRIDS = ("image_grid_thw", "image_grid_hws")
"""Inputs that count the patches of each image by time (Qwen's only), height and width."""
IMAGE_ROWS = "image_rows"
"""Our own input, not passed to models: how many rows of ``pixel_values`` belong to each prompt,
where images are cut into tiles."""

FAMILIES = frozenset(
    {
        *("gemma3", "idefics3", "internvl", "llava", "llava_onevision", "paligemma"),
        *("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "smolvlm"),
    }
)
"""Tested families, as the ``model_type`` of their configuration."""
FIRST_POSITION = {"paligemma": 1}
"""Position of the first token of a prompt where it is not 0."""
ANSWER_TOKEN_TYPE = {"paligemma": 1}
"""``token_type_ids`` of an answer where they are not 0."""


def is_tested(model: Any) -> bool:
    """Whether the model's family is in the table."""
    return model.config.model_type in FAMILIES


def vision_parameters(model: Any) -> list[nn.Parameter]:
    """Parameters of tower and projector: all but those of decoder and output layer."""
    parts = model.get_decoder(), model.get_output_embeddings()
    text = {id(parameter) for part in parts for parameter in part.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in text]


def model_inputs(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs as a model takes them: without our own, with those a processor may have left out.

    Without ``mm_token_type_ids`` Qwen-like models silently number an image's positions as if it
    were text; similar models, such as Kimi's, have no such input.
    """
    inputs = {key: value for key, value in inputs.items() if key != IMAGE_ROWS}
    if (
        "image_grid_thw" in inputs
        and "mm_token_type_ids" not in inputs
        and "mm_token_type_ids" in inspect.signature(model.forward).parameters
    ):
        images = inputs["input_ids"] == model.config.image_token_id
        return inputs | {"mm_token_type_ids": images.int()}
    return inputs


def extend_inputs(model: Any, inputs: dict[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    """Append ``(B, L)`` tokens of answers to inputs of a model with ``(B, P)`` of prompts."""
    token_type = ANSWER_TOKEN_TYPE.get(model.config.model_type, 0)
    added = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "token_type_ids": torch.full_like(tokens, token_type),
        "mm_token_type_ids": torch.zeros_like(tokens),
    }
    return {
        key: torch.cat([value, added[key].to(value.dtype)], 1) if key in added else value
        for key, value in inputs.items()
    }


def token_positions(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Positions of tokens as the model's own ``generate`` finds them, ``(B, P)``.

    They are ``(axes, B, P)`` for models that place an image in time, height and width.
    """
    tokens = inputs["input_ids"]
    positions: Tensor = model._prepare_position_ids_for_generation(tokens, dict(inputs))
    if positions.ndim == 3 and positions.shape[0] == 4:  # the first only marks packed sequences
        positions = positions[1:]
    if positions.ndim == 2:
        positions = positions.expand(len(tokens), -1)
    return positions + FIRST_POSITION.get(model.config.model_type, 0)


def next_positions(positions: Tensor) -> Tensor:
    """``(B,)`` position of the token that follows each prompt, the same on every axis."""
    return positions.movedim(-2, 0).flatten(1).amax(-1) + 1


def answer_positions(positions: Tensor, start: Tensor, length: int) -> Tensor:
    """Positions of ``length`` tokens from ``start`` ``(n,)``, ``(n, length)`` or ``(axes, n, …)``.

    There are as many axes as in the ``positions`` of the prompts.
    """
    rows = start[:, None] + torch.arange(length, device=start.device)
    return rows if positions.ndim == 2 else rows.expand(positions.shape[0], -1, -1)


def obstacle_to_sharing(model: Any, length: int) -> str | None:
    """Why a model's answers cannot share keys and values of their prompt; None if they can.

    ``length`` is that of the longest prompt with the longest answer, in tokens.
    """
    if model.config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if not getattr(model.get_decoder(), "_supports_attention_backend", False):
        return "its attention cannot be exchanged"
    layer_types, settings = get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))
    for layer_type, setting in zip(layer_types, settings, strict=True):
        window = setting.get("sliding_window")
        if window is None and layer_type != "full_attention":
            return f"it has layers of type {layer_type!r}"
        if window is not None and window < length:
            return f"prompt and answer are longer than the {window} tokens its attention sees"
    return None


def select_prompts(inputs: dict[str, Tensor], prompts: Tensor) -> dict[str, Tensor]:
    """Inputs of some prompts, by their indices ``(b,)``; an index may occur repeatedly.

    Patches of all images may follow each other in one tensor, as Qwen's processors have it.

    Raises:
        ValueError: It cannot be told which rows of an input belong to which prompt.
    """
    count = len(inputs["input_ids"])
    return {
        key: value[prompts] if len(value) == count else _select_rows(inputs, key, prompts)
        for key, value in inputs.items()
    }


def repeat_prompts(inputs: dict[str, Tensor], times: int) -> dict[str, Tensor]:
    """Inputs with every prompt repeated, its copies next to each other."""
    tokens = inputs["input_ids"]
    prompts = torch.arange(len(tokens), device=tokens.device)
    return select_prompts(inputs, prompts.repeat_interleave(times))


def _select_rows(inputs: dict[str, Tensor], key: str, prompts: Tensor) -> Tensor:
    """The rows of an input that belong to some prompts, in their order."""
    counted = next((inputs[name] for name in (*GRIDS, IMAGE_ROWS) if name in inputs), None)
    count, total = len(inputs["input_ids"]), len(inputs[key])
    sizes = counted.prod(-1) if counted is not None and counted.ndim > 1 else counted
    if key != "pixel_values" or sizes is None or len(sizes) != count or int(sizes.sum()) != total:
        raise ValueError(
            f"{key!r} has {total} rows for {count} prompts and nothing tells whose they are; "
            "known are inputs with a row per prompt, and pixel_values beside what counts them for "
            "each prompt. Ask one prompt at a time"
        )
    parts = inputs[key].split(sizes.tolist())
    return torch.cat([inputs[key][:0], *(parts[prompt] for prompt in prompts.tolist())])
