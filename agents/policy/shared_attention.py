"""Exchanging the attention of a decoder for one in which groups of answers share their prompt.

A transformers decoder takes its attention by name from a registry. Inside `exchanged` the name is
ours, and queries, keys and values of every layer go to the object that knows where prompts and
answers stand. Nothing has to pass through the arguments of models, which families treat unequally.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

IMPLEMENTATION = "simpleseg_shared_prefix"


class SharedAttention(Protocol):
    """Knows which tokens are a prompt's, and which answers continue it."""

    def mask(self, **arguments: Any) -> Tensor | None:
        """What `attend` is given as mask, from the arguments of transformers' mask functions."""
        ...

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
        softcap: float | None,
    ) -> Tensor:
        """Attention of one layer, ``(n, heads, L, D)`` to ``(n, L, heads, D)``.

        ``softcap`` bounds scores by a tanh (Gemma 2).
        """
        ...


_ACTIVE: ContextVar[SharedAttention] = ContextVar(IMPLEMENTATION)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The registered function; attention dropout is left out on purpose.

    Dropout would make the policy that is trained another one than the policy that was sampled.
    """
    for name in ("s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"attention with {name!r} cannot share its prefix")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    active = _ACTIVE.get()
    return active.attend(module, query, key, value, attention_mask, scaling, softcap), None


def _mask(**arguments: Any) -> Tensor | None:
    return _ACTIVE.get().mask(**arguments)


@contextmanager
def exchanged(model: Any, attention: SharedAttention) -> Iterator[None]:
    """Let the decoder of a model attend by ``attention`` inside the block.

    Layers that are checkpointed run again in the backward pass, after the block: they are given the
    same attention then.
    """
    with _switched(model, attention), _replayed(model, attention):
        yield


@contextmanager
def _switched(model: Any, attention: SharedAttention) -> Iterator[None]:
    """Exchange the attention, in the configuration of the decoder and in the one masks go by."""
    configs = [model.get_decoder().config, model.config.get_text_config(decoder=True)]
    ordinary = [config._attn_implementation for config in configs]
    token = _ACTIVE.set(attention)
    for config in configs:
        config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        for config, name in zip(configs, ordinary, strict=True):
            config._attn_implementation = name
        _ACTIVE.reset(token)


@contextmanager
def _replayed(model: Any, attention: SharedAttention) -> Iterator[None]:
    """Make checkpointed layers exchange the attention whenever they run."""

    def checkpoint_with(ordinary: Callable[..., Any]) -> Callable[..., Any]:
        def run(function: Callable[..., Any], *arguments: Any) -> Any:
            def layer(*again: Any) -> Any:
                with _switched(model, attention):
                    return function(*again)

            return ordinary(layer, *arguments)

        return run

    layers = [
        (module, module._gradient_checkpointing_func)
        for module in model.get_decoder().modules()
        if getattr(module, "gradient_checkpointing", False)
        and hasattr(module, "_gradient_checkpointing_func")
    ]
    for module, ordinary in layers:
        module._gradient_checkpointing_func = checkpoint_with(ordinary)
    try:
        yield
    finally:
        for module, ordinary in layers:
            module._gradient_checkpointing_func = ordinary


AttentionInterface.register(IMPLEMENTATION, _attend)
AttentionMaskInterface.register(IMPLEMENTATION, _mask)
