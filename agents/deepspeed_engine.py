"""Optimizer steps by DeepSpeed: what it takes to train is shared out among the ranks.

ZeRO (arXiv 1910.02054) stage 1 shares out the optimizer's state, stage 2 gradients too, stage 3
weights too. Importing this module imports DeepSpeed.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agents.distributed import join_world
from agents.engine import Engine, OptimizerSettings
from agents.optim import adamw
from agents.optimizer_state import MASTER, OptimizerState, usable_states

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
# DeepSpeed calls functions that torch has given other names.
warnings.filterwarnings("ignore", "`torch.distributed.*is deprecated", FutureWarning)

import deepspeed  # noqa: E402  (looks for its accelerator when it is imported)
from deepspeed.utils import (  # noqa: E402
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)

# DeepSpeed would compile this extension, which only inference uses, when ranks first meet: behind a
# lock that a killed process leaves locked for good.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

CONFIGURATIONS = Path(__file__).parent / "deepspeed"
MOMENTS = ("exp_avg", "exp_avg_sq")


class PassThrough(nn.Module):
    """A module whose forward pass is any function of the module inside.

    DeepSpeed watches the forward pass of one module. Ours consists of several: one over prompts,
    one over the answers that continue them, perhaps one of a critic.
    """

    def __init__(self, module: nn.Module) -> None:
        """Wrap what is trained."""
        super().__init__()
        self.module = module

    def forward(self, function: Callable[[], Tensor]) -> Tensor:
        """The value of the function."""
        return function()


class DeepSpeedEngine(Engine):
    """`Engine` on DeepSpeed, with AdamW.

    Muon is not offered: it needs whole matrices, which ZeRO cuts up. DeepSpeed's own clips the norm
    after orthogonalising, where it is that of the matrices' ranks and no gradient's, and scales
    updates by ``sqrt(rows / columns)`` and not to AdamW's size.
    """

    def __init__(self, module: nn.Module, settings: OptimizerSettings, choice: str) -> None:
        """Share out a module's training.

        Args:
            module: Trained in place.
            settings: Of the optimizer; Muon must be off.
            choice: ``"zero1"``, ``"zero2"``, ``"zero3"``, or the path of a DeepSpeed configuration.

        Raises:
            ValueError: Muon is on, or the configuration is not one of ZeRO.
            FileNotFoundError: There is no such configuration.
        """
        if settings.muon:
            raise ValueError(
                "Muon needs whole matrices, which DeepSpeed cuts up: use AdamW (muon=False, on the "
                "command line --gspo.no-muon) at about a third of the learning rate, or leave "
                "--deepspeed out"
            )
        self._parameters = {
            name: each for name, each in module.named_parameters() if each.requires_grad
        }
        dtype = next(iter(self._parameters.values())).dtype
        self._keeps_master = dtype != torch.float32
        config = read_configuration(choice, settings, dtype)
        self.module, self.settings = module, settings
        self.world = join_world(deepspeed=True)
        self._stage: int = config["zero_optimization"]["stage"]
        optimizer = adamw(self._parameters.values(), settings.learning_rate, settings.weight_decay)
        with _local_rank():
            self._engine, *_ = deepspeed.initialize(
                model=PassThrough(module), optimizer=optimizer, config=config
            )
        self._zero = self._engine.optimizer

    def forward(self, function: Callable[[], Tensor]) -> Tensor:
        """See `Engine.forward`."""
        found: Tensor = self._engine(function)
        return found

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar loss, a mean over this rank's share."""
        self._engine.backward(loss)

    def step(self, learning_rate: float) -> float:
        """Apply and clear the gradients; returns their norm before it was cut."""
        for group in self._zero.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    @contextmanager
    def whole_weights(self, *, change: bool = False) -> Iterator[None]:
        """See `Engine.whole_weights`; at stage 3 the weights are fetched from all ranks."""
        if self._stage == 3:
            everything = list(self.module.parameters())
            with deepspeed.zero.GatheredParameters(everything, 0 if change else None):
                self._remove_hooks()
                try:
                    yield
                finally:
                    self._restore_hooks()
        else:
            yield
        if change:
            self._zero.refresh_fp32_params()

    def _remove_hooks(self) -> None:
        """Let passes through the module fetch nothing, as ranks decode different numbers of tokens.

        As in TRL's ``unwrap_model_for_generation``.
        """
        offload = self._zero.parameter_offload
        parameter: Any
        for parameter in self.module.parameters():
            parameter.ds_active_sub_modules.clear()
        for hook in [*offload.forward_hooks, *offload.backward_hooks]:
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []

    def _restore_hooks(self) -> None:
        offload = self._zero.parameter_offload
        offload._register_deepspeed_module(offload.module)

    def state_dict(self) -> OptimizerState:
        """See `Engine.state_dict`: gathered from all ranks to the main one, a parameter at a time.

        There are as many tensors of a parameter's size in main memory of the main rank as AdamW has
        moments.
        """
        step = self._step_count()
        states: OptimizerState = {}
        for name, parameter in self._parameters.items() if step else ():
            found = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
            if self._keeps_master:
                found[MASTER] = safe_get_full_fp32_param(parameter)
            if self.world.is_main:
                states[name] = {key: value.cpu() for key, value in found.items()}
                states[name]["step"] = torch.tensor(float(step))
        return states

    def load_state_dict(self, state: OptimizerState) -> None:
        """See `Engine.load_state_dict`."""
        found = usable_states(state, self._parameters.keys())
        self._make_states(max((int(each["step"]) for each in found.values()), default=0))
        for name, parameter in self._parameters.items():
            saved = found.get(name, {})
            for key in MOMENTS:
                value = saved.get(key, torch.zeros(1).expand(_whole_shape(parameter)))
                safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)
            if self._keeps_master and MASTER in saved:
                safe_set_full_fp32_param(parameter, saved[MASTER].to(parameter.device))

    def _partitions(self) -> list[Tensor]:
        """This rank's shares of the float32 weights, which AdamW steps."""
        if self._stage == 3:
            return list(self._zero.fp32_partitioned_groups_flat)
        return list(self._zero.single_partition_of_fp32_groups)

    def _step_count(self) -> int:
        state = self._zero.optimizer.state.get(self._partitions()[0])
        return int(state["step"]) if state else 0

    def _make_states(self, step: int) -> None:
        """What AdamW makes at its first step, so that there is something to load into."""
        for partition in self._partitions():
            state = self._zero.optimizer.state[partition]
            state["step"] = torch.tensor(float(step), device=partition.device)
            for key in MOMENTS:
                state.setdefault(key, torch.zeros_like(partition))
        if self._stage < 3:
            self._zero._lazy_init_hp_params_optimizer_state()


def read_configuration(
    choice: str, settings: OptimizerSettings, dtype: torch.dtype
) -> dict[str, Any]:
    """A DeepSpeed configuration, completed by what the agent decides.

    ``"auto"`` stands for the agent's value. Gradients are accumulated over whatever parts a batch
    is split into, so DeepSpeed must not count them (``managed_gradient_accumulation``).

    Args:
        choice: ``"zero1"``, ``"zero2"``, ``"zero3"``, or the path of a JSON file.
        settings: Of the optimizer.
        dtype: Of the weights.

    Raises:
        ValueError: The file has an optimizer or a scheduler of its own, or is not one of ZeRO.
        FileNotFoundError: There is no such file.
    """
    shipped = CONFIGURATIONS / f"{choice}.json"
    path = shipped if shipped.exists() else Path(choice)
    if not path.is_file():
        raise FileNotFoundError(
            f"--deepspeed {choice}: no such file; give zero1, zero2, zero3, or the path of a "
            "DeepSpeed configuration (JSON)"
        )
    config: dict[str, Any] = json.loads(path.read_text())
    if found := {"optimizer", "scheduler"} & config.keys():
        raise ValueError(f"{path} sets {', '.join(found)}, which is the agent's: remove it")
    zero = config.get("zero_optimization", {})
    if zero.get("stage") not in (1, 2, 3):
        raise ValueError(
            f"{path} has zero_optimization.stage {zero.get('stage')}: use 1, 2 or 3, or leave "
            "--deepspeed out for plain data parallelism"
        )
    if config.get("gradient_clipping", "auto") == "auto":
        config["gradient_clipping"] = settings.max_grad_norm
    bf16 = config.setdefault("bf16", {})
    if bf16.get("enabled", "auto") == "auto":
        bf16["enabled"] = dtype == torch.bfloat16
    zero.setdefault("overlap_comm", False)
    config.setdefault("zero_force_ds_cpu_optimizer", False)
    config.setdefault("train_micro_batch_size_per_gpu", 1)
    config.setdefault("steps_per_print", 1_000_000_000)
    return config | {"managed_gradient_accumulation": False, "gradient_accumulation_steps": 1}


def _whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Shape of a parameter of which this rank may hold a part only."""
    return getattr(parameter, "ds_shape", parameter.shape)


@contextmanager
def _local_rank() -> Iterator[None]:
    """Tell DeepSpeed its device by the variable that it insists on, also without a launcher.

    Afterwards it is gone again: processes started by this one would take it for a launcher's.
    """
    if "LOCAL_RANK" in os.environ:
        yield
        return
    os.environ["LOCAL_RANK"] = "0"
    try:
        yield
    finally:
        del os.environ["LOCAL_RANK"]
