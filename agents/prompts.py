"""Questions about pictures as the inputs of a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

ONE_LIST_OF_PICTURES = ("KimiVLProcessor",)
"""Processors that take the pictures of all prompts in one list, and only pictures of Pillow."""


def prepare_inputs(
    processor: Any, images: Sequence[NDArray[np.uint8]], prompts: Sequence[str]
) -> dict[str, Tensor]:
    """Pictures and questions as model inputs, padded as the tokenizer is set to."""
    texts = [chat_text(processor, prompt) for prompt in prompts]
    pictures: list[Any] = [[image] for image in images]
    if type(processor).__name__ in ONE_LIST_OF_PICTURES:
        pictures = [Image.fromarray(image) for image in images]
    return dict(processor(text=texts, images=pictures, return_tensors="pt", padding=True))


def chat_text(processor: Any, prompt: str) -> str:
    """One question about one picture in the model's own chat format, ready to be answered.

    What reads as a special token in the prompt is broken up, see `harmless`.
    """
    prompt = harmless(prompt, special_tokens(processor.tokenizer).values())
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    message = [{"role": "user", "content": content}]
    text: str = processor.apply_chat_template(message, add_generation_prompt=True)
    return text


def harmless(text: str, special: Iterable[str]) -> str:
    """Break up what reads as a special token by a space.

    An expression is data from outside, and ``<image>`` in it would ask for a second picture.
    """
    for token in special:
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Tokens that are no text, such as the image placeholder, by their ids."""
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    added = tokenizer.added_tokens_decoder.items()
    return dict(named) | {index: token.content for index, token in added if token.special}
