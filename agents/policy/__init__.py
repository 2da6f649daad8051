"""The policy: a vision-language model, how its answers are sampled and how they are scored.

- `model`: `VLMPolicy`, any transformers image-text-to-text model.
- `loading`: opening a checkpoint, and the frame that it records.
- `processing`: questions about images as the inputs of a model, and the check that they fit.
- `families`: what differs between families of models.
- `sampling`, `scoring`: `sample` groups of answers, and `score` given ones.
- `shared_prefix`: attention in which a group of answers shares its prompt.
- `constraint`: decoding that allows nothing but outlines.
- `vision_cache`: features of images from a frozen tower.
- `checks`: what is tried on a policy before it is trained.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.policy.model import VLMPolicy
    from agents.policy.sampling import Completions, sample
    from agents.policy.scoring import TokenScores, score

_HOMES = {
    "Completions": "sampling",
    "TokenScores": "scoring",
    "VLMPolicy": "model",
    "sample": "sampling",
    "score": "scoring",
}
__all__ = ["Completions", "TokenScores", "VLMPolicy", "sample", "score"]


def __getattr__(name: str) -> Any:
    """Names are imported when they are asked for: torch and transformers take seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
