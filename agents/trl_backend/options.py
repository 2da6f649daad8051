"""Options of the TRL backend that our own agents have no counterpart of, and what they need."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

NEEDS = {
    "vllm": ("--trl.use-vllm", 'pip install "vllm>=0.22,<=0.31"', "leave --trl.use-vllm off"),
    "peft": ("--trl.lora-rank", "pip install peft", "use --trl.lora-rank 0"),
}
"""Packages that are not installed with this project: which option needs each, and two ways out."""


@dataclass
class TRLOptions:
    """How TRL's GRPOTrainer samples, what it trains and how it shares out the weights."""

    use_vllm: bool = False
    """Sample with vLLM instead of ``model.generate``."""
    vllm_mode: Literal["colocate", "server"] = "colocate"
    """On the training GPUs, or on servers started by ``trl vllm-serve``."""
    vllm_server_base_url: str | None = None
    """Such as http://node7:8000; by default this machine's port 8000."""
    vllm_gpu_memory_utilization: float = 0.3
    """Colocated: share of each GPU's memory that vLLM takes."""
    vllm_tensor_parallel_size: int = 1
    """Colocated: GPUs that one copy of the model is spread over."""
    vllm_max_model_length: int | None = None
    """Colocated: longest prompt and answer together, in tokens; by default the model's limit."""
    vllm_sleep: bool = False
    """Colocated: give vLLM's memory back while the trainer needs it."""
    lora_rank: int = 0
    """Train low-rank adapters of this rank (PEFT) instead of all weights; 0 for all weights. The
    policy that is saved has them merged."""
    lora_alpha: int = 32
    """Adapters are scaled by this over their rank."""
    lora_dropout: float = 0.0
    """Dropout in front of the adapters."""
    lora_targets: str = "all-linear"
    """Layers that get adapters, all-linear or a regular expression; the output layer never does."""
    fsdp: Literal["off", "full_shard", "shard_grad_op"] = "off"
    """Shard weights, gradients and optimizer over all processes (full_shard), or gather the weights
    once per forward and backward (shard_grad_op)."""
    fsdp_offload: bool = False
    """Keep shards in the processor's memory."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them."""
    rows_per_forward: int = 0
    """Answers per device and forward pass; 0 takes those of ``prompts_per_forward`` prompts."""
    workers: int = 0
    """Processes that load pictures; 0 does it between the steps."""

    def check(self) -> None:
        """Make sure that the options agree and what they need is installed.

        Raises:
            ModuleNotFoundError: It is not; the message names the package and the way out.
            ValueError: They do not agree.
        """
        if self.lora_rank and self.fsdp != "off":
            raise ValueError(
                f"lora_rank={self.lora_rank} with fsdp={self.fsdp!r}: adapters are small, so every "
                "process keeps the model; use --trl.fsdp off, or --trl.lora-rank 0"
            )
        wanted = {"vllm": self.use_vllm, "peft": self.lora_rank > 0}
        for package, needed in wanted.items():
            if needed and find_spec(package) is None:
                option, install, otherwise = NEEDS[package]
                raise ModuleNotFoundError(
                    f"{option} needs the package {package}, which is not installed: "
                    f"{install}, or {otherwise}",
                    name=package,
                )

    def trainer_arguments(self, special: list[str], forbidden: list[int]) -> dict[str, Any]:
        """Arguments of ``GRPOConfig``.

        Args:
            special: Special tokens that no answer may contain, as text.
            forbidden: All tokens that no answer may contain, by their ids. A sampled image
                placeholder would end training: "Image features and image tokens do not match".
        """
        # vLLM takes words and knows no rows beyond the tokenizer; transformers takes ids.
        words = {"bad_words": special} if self.use_vllm else {"suppress_tokens": forbidden}
        fsdp = {
            "fsdp": True,
            "fsdp_config": {
                "reshard_after_forward": self.fsdp == "full_shard",
                "cpu_offload": self.fsdp_offload,
                "activation_checkpointing": self.gradient_checkpointing,
            },
        }
        return {
            "use_vllm": self.use_vllm,
            "vllm_mode": self.vllm_mode,
            "vllm_server_base_url": self.vllm_server_base_url,
            "vllm_gpu_memory_utilization": self.vllm_gpu_memory_utilization,
            "vllm_tensor_parallel_size": self.vllm_tensor_parallel_size,
            "vllm_max_model_length": self.vllm_max_model_length,
            "vllm_enable_sleep_mode": self.vllm_sleep,
            "generation_kwargs": words,
            "activation_checkpointing": self.gradient_checkpointing and self.fsdp == "off",
            "dataloader_num_workers": self.workers,
            **(fsdp if self.fsdp != "off" else {}),
        }

    def adapters(self) -> Any:
        """What PEFT should add to the model, or None."""
        if not self.lora_rank:
            return None
        peft = import_module("peft")  # not installed with this project
        return peft.LoraConfig(
            r=self.lora_rank,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=self.lora_targets,
            exclude_modules=["lm_head"],
        )
