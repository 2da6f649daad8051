"""Questions about pictures as the inputs of a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from agents.policy.loading import CheckpointError

ONE_LIST_OF_PICTURES = ("KimiVLProcessor",)
"""Processors that take the pictures of all prompts in one list, and only pictures of Pillow."""
WITHOUT_CHAT = ("PaliGemmaProcessor",)
"""Processors of models that know no chat: the picture comes first, then the question alone."""
FEWEST_ROWS = 5
"""Processors take shorter pictures, (H, W, 3), for ones whose channels come first."""


def prepare_inputs(
    processor: Any, images: Sequence[NDArray[np.uint8]], prompts: Sequence[str]
) -> dict[str, Tensor]:
    """Pictures and questions as model inputs, padded as the tokenizer is set to."""
    texts = [chat_text(processor, prompt) for prompt in prompts]
    options: dict[str, Any] = {}
    start = getattr(processor.tokenizer, "bos_token", None)
    if start and all(text.startswith(start) for text in texts):
        options["add_special_tokens"] = False  # the chat template has written it already
    if any(len(image) < FEWEST_ROWS for image in images):
        options["input_data_format"] = "channels_last"
    # Torch neither reads arrays that run backwards nor likes those that cannot be written to.
    arrays = [np.require(image, requirements=["C", "W"]) for image in images]
    pictures: list[Any] = [[image] for image in arrays]
    if type(processor).__name__ in ONE_LIST_OF_PICTURES:
        pictures = [Image.fromarray(image) for image in arrays]
    found = processor(text=texts, images=pictures, return_tensors="pt", padding=True, **options)
    # PaliGemma's labels belong to answers that were given along, and there are none.
    return {key: value for key, value in dict(found).items() if key != "labels"}


def chat_text(processor: Any, prompt: str) -> str:
    """One question about one picture in the model's own chat format, ready to be answered.

    What reads as a special token in the prompt is broken up, see `harmless`.

    Raises:
        CheckpointError: The processor has no chat format.
    """
    prompt = harmless(prompt, special_tokens(processor.tokenizer).values())
    name = type(processor).__name__
    template = getattr(processor, "chat_template", "")  # processors of other makers need have none
    if template is None:
        if name not in WITHOUT_CHAT:
            raise CheckpointError(
                f"this {name} has no chat template, so prompts cannot be written; copy "
                "chat_template.jinja from the model that it was made from"
            )
        return f"{processor.image_token}{prompt}"
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
