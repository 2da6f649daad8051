"""Low-rank adapters (LoRA, arXiv 2106.09685), trained while the model's own weights stay fixed.

PEFT puts them into the layers in place, so the model remains the transformers model that sampling,
scoring and checkpoints expect. `agents.policy.loading` opens saved ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from agents.policy.loading import (
    ADAPTER_WEIGHTS,
    ANSWER_FRAME,
    FRAME_FILE,
    CheckpointError,
    read_adapter,
    recorded_frame,
)
from seg_env.errors import WrongOptionError

DECODER = "decoder"
"""Stands for all linear layers of the decoder, without tower, projector and output layer."""
ALL_LINEAR = "all-linear"
"""PEFT's own name for all linear layers but the output layer."""
NAME = "default"
"""PEFT's name for an only adapter."""


def has_adapter(model: Any) -> bool:
    """Whether a model is trained through an adapter."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def add_adapter(
    model: Any, rank: int, *, alpha: float = 32, targets: Sequence[str] = (DECODER,), seed: int = 0
) -> None:
    """Give layers an adapter that changes nothing yet, and train nothing else.

    Args:
        model: A model opened from a folder or the hub; the adapter records that name.
        rank: Rank of the matrix added to a layer's.
        alpha: The added matrix is scaled by this divided by the rank.
        targets: `DECODER`, `ALL_LINEAR`, or names of layers, whose last parts are enough.
        seed: Of the initial weights, half of which are random; nothing else draws from it.

    Raises:
        WrongOptionError: PEFT is missing, or it cannot adapt what was named.
    """
    if find_spec("peft") is None:
        raise WrongOptionError("adapters need PEFT: pip install 'simpleseg-rl[lora]'")
    from peft import LoraConfig

    if rank < 1:
        raise WrongOptionError(f"a rank of {rank} is no adapter's: use 1 or more")
    base = str(model.name_or_path)
    if not base:
        raise WrongOptionError(
            "an adapter names the model it belongs to, and this one is in no folder: save it first"
        )
    given: Any = list(targets)
    if given == [ALL_LINEAR]:
        given = ALL_LINEAR
    elif DECODER in given:
        given.remove(DECODER)
        given += linear_layers(model, model.get_decoder())
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=given)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model.add_adapter(config, NAME)
        except ValueError as error:
            raise WrongOptionError(
                f"--lora-targets {' '.join(targets)}: PEFT can adapt no such layers of a "
                f"{model.config.model_type!r} model; name linear layers, such as q_proj v_proj, "
                f"or {DECODER}, or {ALL_LINEAR}"
            ) from error
    config.base_model_name_or_path = str(Path(base).resolve()) if Path(base).exists() else base
    # In float32: steps are too small for the lower precision that the model may have.
    for parameter in adapter_parameters(model).values():
        parameter.data = parameter.data.float()


def linear_layers(model: nn.Module, part: nn.Module) -> list[str]:
    """Names, in a model, of the linear layers of a part of it."""
    inside = set(map(id, part.modules()))
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in inside
    ]


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of an adapter by their names in the model."""
    return {name: each for name, each in model.named_parameters() if ".lora_" in name}


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """Switch off a model's adapter, if it has one, inside the block."""
    if not has_adapter(model):
        yield
        return
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


def save_adapter(model: Any, folder: Path) -> None:
    """Write an adapter as PEFT does, and the frame that the model records.

    PEFT itself would ask the hub, at every checkpoint, whether the model's vocabulary has grown.
    """
    config = model.peft_config[NAME]
    config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(folder))
    weights = {
        f"base_model.model.{name.replace(f'.{NAME}.', '.')}": each.detach().cpu().contiguous()
        for name, each in adapter_parameters(model).items()
    }
    save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    if (frame := recorded_frame(model)) is not None:
        (folder / FRAME_FILE).write_text(json.dumps({ANSWER_FRAME: frame}))


def load_adapter(model: Any, folder: Path) -> None:
    """Load the weights of a saved adapter into one of the same form.

    Raises:
        CheckpointError: It has another form, or cannot be read.
    """
    adapter = read_adapter(folder)
    saved = {
        f"{name}.lora_{letter}.{NAME}.weight": weights
        for name, pair in adapter.layers.items()
        for letter, weights in zip("AB", pair, strict=True)
    }
    own = adapter_parameters(model)
    if {name: each.shape for name, each in own.items()} != {
        name: each.shape for name, each in saved.items()
    }:
        raise CheckpointError(
            f"{folder}: holds an adapter of another rank or of other layers than the one trained"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])
    if adapter.frame is not None:
        setattr(model.config, ANSWER_FRAME, adapter.frame)


def merge_adapter(model: Any) -> None:
    """Merge an adapter into the weights and remove it; from then on the weights are trained."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {
        name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    }
    for name, module in adapted.items():
        module.merge()
        model.set_submodule(name, module.get_base_layer())
    del model.peft_config
    model._hf_peft_config_loaded = False
    model.requires_grad_(True)
