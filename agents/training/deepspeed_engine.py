"""Optimizer steps by DeepSpeed's ZeRO (arXiv 1910.02054), which shards the training state.

Stage 1 shards the optimizer's state, stage 2 gradients too, stage 3 weights too.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from agents.training.distributed import init_process_group
from agents.training.optim import (
    MASTER,
    Engine,
    OptimizerState,
    PartitionedHybridOptimizer,
    usable_states,
)
from agents.training.settings import OptimizerSettings, read_configuration, zero_stage

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
# DeepSpeed calls functions that torch has renamed.
warnings.filterwarnings("ignore", "`torch.distributed.*is deprecated", FutureWarning)

import deepspeed  # noqa: E402  (looks for its accelerator when it is imported)
from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS  # noqa: E402
from deepspeed.utils import (  # noqa: E402
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)

# DeepSpeed would compile this extension, which only inference uses, when ranks first meet: behind a
# lock that a killed process leaves locked for good.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
# Otherwise it warns of an untested optimizer; test_distributed.py tests it.
ZERO_SUPPORTED_OPTIMIZERS.append(PartitionedHybridOptimizer)

MOMENTS = {False: ("exp_avg", "exp_avg_sq"), True: ("momentum_buffer",)}
"""State besides the step count: of AdamW, and (True) of Muon, which trains hidden matrices."""


class PassThrough(nn.Module):
    """A module whose forward pass is any function of the module inside.

    DeepSpeed watches the forward pass of one module; ours are several.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Callable[[], Tensor]) -> Tensor:
        """Call the function."""
        return function()


class DeepSpeedEngine(Engine):
    """`Engine` on DeepSpeed; stages 1 and 2 with Muon too.

    Muon is ours: DeepSpeed's (0.19.8) clips the norm of orthogonalised matrices, which is the
    square root of their ranks whatever the gradients are, and scales AdamW's gradients down with
    it. Its updates are scaled by ``sqrt(max(1, rows / columns))``, not to the size of AdamW's.
    """

    def __init__(self, module: nn.Module, settings: OptimizerSettings) -> None:
        """Shard the training of a module by the settings' DeepSpeed configuration."""
        assert settings.deepspeed is not None
        self._stage = zero_stage(settings.deepspeed)
        if settings.muon and self._stage == 3:
            raise ValueError(
                "Muon needs whole matrices, of which no rank has even the weights at stage 3 of "
                "ZeRO: use zero1 or zero2, or AdamW (muon=False, on the command line "
                "--gspo.no-muon) at about a third of the learning rate"
            )
        if settings.average and self._stage == 3:
            raise ValueError(
                f"average={settings.average} follows whole weights, which no rank has at stage 3 "
                "of ZeRO: use zero1 or zero2, or set it to 0"
            )
        self._parameters = {
            name: each for name, each in module.named_parameters() if each.requires_grad
        }
        dtype = next(iter(self._parameters.values())).dtype
        self._keeps_master = dtype != torch.float32
        config = read_configuration(settings, bfloat16=dtype == torch.bfloat16)
        self.module, self.settings = module, settings
        self.world = init_process_group(deepspeed=True)
        self.optimizer = PartitionedHybridOptimizer(module, settings)
        self._hidden = self.optimizer.hidden_names
        launched = "LOCAL_RANK" in os.environ
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
        self._engine, *_ = deepspeed.initialize(
            model=PassThrough(module), optimizer=self.optimizer, config=config
        )
        if not launched:  # child processes would take it for a launcher's
            del os.environ["LOCAL_RANK"]
        self._zero = self._engine.optimizer
        if self._hidden:
            self.optimizer.locate(self.world)
        if len(self._zero.param_groups) > 1 and self._stage < 3:
            # DeepSpeed would link states once the first group has been stepped, which leaves the
            # other groups without.
            self._make_states(0)

    def forward(self, function: Callable[[], Tensor]) -> Tensor:
        """See `Engine.forward`."""
        value: Tensor = self._engine(function)
        return value

    def backward(self, loss: Tensor) -> None:
        """See `Engine.backward`."""
        self._engine.backward(loss)

    def step(self, learning_rate: float) -> float:
        """See `Engine.step`; DeepSpeed itself skips gradients that are not finite."""
        for group in self._zero.param_groups:
            group["lr"] = learning_rate * group["rate"]
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    @contextmanager
    def gathered_weights(self, *, change: bool = False) -> Iterator[None]:
        """See `Engine.gathered_weights`; stage 3 gathers them from all ranks."""
        if self._stage == 3:
            everything = list(self.module.parameters())
            with deepspeed.zero.GatheredParameters(everything, 0 if change else None):
                self._remove_hooks()
                try:
                    yield
                finally:
                    offload = self._zero.parameter_offload
                    offload._register_deepspeed_module(offload.module)
        else:
            yield
        if change:
            self._zero.refresh_fp32_params()

    def _remove_hooks(self) -> None:
        """Keep passes from fetching weights, as ranks decode different numbers of tokens."""
        offload = self._zero.parameter_offload
        parameter: Any
        for parameter in self.module.parameters():
            parameter.ds_active_sub_modules.clear()
        for hook in [*offload.forward_hooks, *offload.backward_hooks]:
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []

    def state_dict(self) -> OptimizerState:
        """See `Engine.state_dict`: gathered to the main rank's memory, a parameter at a time."""
        first = self._zero.optimizer.state.get(self._partitions()[0][0])
        step = int(first["step"]) if first else 0
        states: OptimizerState = {}
        for name, parameter in self._parameters.items() if step else ():
            keys = MOMENTS[name in self._hidden]
            found = {key: safe_get_full_optimizer_state(parameter, key) for key in keys}
            if self._keeps_master:
                found[MASTER] = safe_get_full_fp32_param(parameter)
            if self.world.is_main:
                states[name] = {key: value.cpu() for key, value in found.items()}
                states[name]["step"] = torch.tensor(float(step))
        return states

    def load_state_dict(self, state: OptimizerState) -> None:
        """See `Engine.load_state_dict`."""
        found = usable_states(state, self._parameters.keys(), self._hidden)
        self._make_states(max((int(each.get("step", 0)) for each in found.values()), default=0))
        for name, parameter in self._parameters.items():
            saved = found.get(name, {})
            shape = getattr(parameter, "ds_shape", parameter.shape)  # of all ranks' shards
            for key in MOMENTS[name in self._hidden]:
                value = saved.get(key, torch.zeros(1).expand(shape))
                safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)
            if self._keeps_master and MASTER in saved:
                safe_set_full_fp32_param(parameter, saved[MASTER].to(parameter.device))

    def _partitions(self) -> list[tuple[Tensor, tuple[str, ...]]]:
        """This rank's shards of the float32 weights, and what the optimizer keeps of each."""
        if self._stage == 3:
            return [(each, MOMENTS[False]) for each in self._zero.fp32_partitioned_groups_flat]
        shards = self._zero.single_partition_of_fp32_groups
        groups = self._zero.optimizer.param_groups
        return [(one, MOMENTS[of["hidden"]]) for one, of in zip(shards, groups, strict=True)]

    def _make_states(self, step: int) -> None:
        """Create the state that the optimizer would make at its first step, to load into."""
        for partition, keys in self._partitions():
            state = self._zero.optimizer.state[partition]
            state["step"] = torch.tensor(float(step), device=partition.device)
            for key in keys:
                state.setdefault(key, torch.zeros_like(partition))
        if self._stage < 3:
            self._zero._lazy_init_hp_params_optimizer_state()
