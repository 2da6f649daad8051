"""What differs between families of vision-language models."""

from __future__ import annotations

from torch import Tensor


def select_prompts(inputs: dict[str, Tensor], prompts: Tensor) -> dict[str, Tensor]:
    """Rows of some prompts, by their indices ``(b,)``."""
    return {key: value[prompts] for key, value in inputs.items()}
