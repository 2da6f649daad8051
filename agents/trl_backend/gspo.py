"""GSPO and its relatives on TRL's GRPOTrainer: the same questions, scores and settings, for fleets.

The agent in `agents.gspo` encodes each picture once per group and is faster where it fits (see
``experiments/benchmark.py train``). This one is for what TRL brings along: sampling with vLLM,
weights sharded by FSDP, adapters by PEFT. What differs from `agents.gspo`:

- groups are split when a rollout is shuffled into minibatches; advantages are computed before that;
- log-probabilities are over all tokens, also those that sampling excludes (special tokens);
- importance weights exist under vLLM only, and of whole answers, not length-normalised ones.
"""

from __future__ import annotations

import math
import os
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

from transformers import PrinterCallback

from agents.gspo import CLIPS, GSPOConfig, LossName
from agents.policy.loading import quiet_progress
from agents.policy.model import VLMPolicy
from agents.policy.processing import special_tokens
from agents.training.joint_optimizer import JointOptimizer
from agents.training.optim import HybridOptimizer
from agents.trl_backend.options import TRLOptions
from agents.trl_backend.rows import EnvironmentReward, QuestionRows
from agents.trl_backend.trainer import TrainerAgent
from seg_env.envs.core import ReferringCore
from seg_env.envs.left_out import LeftOut, OnError

HONOURED = {
    *("prompts_per_update", "group_size", "minibatches", "epochs", "prompts_per_forward"),
    *("learning_rate", "warmup", "final_rate", "muon", "weight_decay", "max_grad_norm"),
    *("muon_precision", "adam_epsilon"),
    *("temperature", "max_new_tokens", "kl_coefficient", "importance_cap", "seed"),
    *("loss", "clip_low", "clip_high", "spread_floor"),
}
"""Settings of GSPO that this backend carries out; any other must be left at its default."""

LOSSES: dict[LossName, tuple[str, str]] = {
    "gspo": ("grpo", "sequence"),
    "grpo": ("grpo", "token"),
    "dr_grpo": ("dr_grpo", "token"),
    "dapo": ("dapo", "token"),
}
"""Our losses as ``loss_type`` and ``importance_sampling_level`` of TRL. In its terms a loss type is
how tokens are averaged; "grpo" is the mean over each completion, then over completions."""


class TRLGSPO(TrainerAgent):
    """GSPO, or another of `LOSSES`, through GRPOTrainer.

    One update is one rollout, ``minibatches * epochs`` optimizer steps, as in `agents.gspo`.
    ``prompts_per_update`` counts the prompts of all processes.
    """

    config: GSPOConfig
    metric_names: ClassVar[dict[str, str]] = {
        "loss": "train/policy_loss",
        "grad_norm": "train/grad_norm",
        "learning_rate": "train/learning_rate",
        "entropy": "train/entropy",
        "kl": "train/reference_kl",
        "clip_ratio/region_mean": "train/clip_fraction",
        "sampling/sampling_logp_difference/max": "train/sampler_difference",
        "step_time": "time/step",
    }

    def __init__(
        self,
        policy: VLMPolicy,
        core: ReferringCore,
        config: GSPOConfig,
        options: TRLOptions | None = None,
        *,
        on_error: OnError = "skip",
    ) -> None:
        """Set up; nothing of TRL is imported before `learn`.

        Args:
            policy: Trained in place; its ``precision`` decides about mixed precision.
            core: Questions and scores, as `open_questions` returns them.
            config: Settings of the algorithm; a process takes whole groups.
            options: What only TRL has.
            on_error: Whether samples that cannot be used give way to others, or are an error.

        Raises:
            ModuleNotFoundError: An option needs a package that is not installed.
            ValueError: The settings contradict each other, or are none of `HONOURED`.
        """
        super().__init__(policy, config, config.max_new_tokens)
        self.left_out = LeftOut(on_error)
        self.core, self.options = core, options or TRLOptions()
        self.options.check()
        if config.loss not in LOSSES:
            raise ValueError(
                f"loss={config.loss!r} has no counterpart in TRL's GRPOTrainer: use one of "
                f"{', '.join(LOSSES)}, or agents.gspo"
            )
        if policy.constraint is not None:
            raise ValueError(
                "the policy has a constraint, and TRL would train another policy than the one that "
                "is sampled: set policy.constraint to None, or use agents.gspo"
            )
        for field in fields(config):
            if field.name not in HONOURED and getattr(config, field.name) != field.default:
                raise ValueError(
                    f"{field.name}={getattr(config, field.name)!r} has no counterpart in TRL's "
                    f"GRPOTrainer: leave it at {field.default!r}, or use agents.gspo"
                )
        if config.muon and self.trainer_holds_weights:
            raise ValueError(
                "muon=True needs whole matrices: turn it off (--gspo.no-muon) with FSDP and LoRA, "
                "and use about a third of the learning rate"
            )
        if config.kl_coefficient and not policy.model.config.name_or_path:
            raise ValueError(
                "kl_coefficient needs a policy that was loaded from a folder: TRL loads the "
                "reference from there"
            )

    @property
    def steps_per_update(self) -> int:
        """Optimizer steps that learn from one rollout."""
        return self.config.minibatches * self.config.epochs

    @property
    def trainer_holds_weights(self) -> bool:
        """Whether weights are sharded, or adapters beside them."""
        return self.options.fsdp != "off" or self.options.lora_rank > 0

    def build_trainer(self, updates: int, folder: str | Path) -> Any:
        """A GRPOTrainer over the questions; see `TrainerAgent.build_trainer`.

        Raises:
            ValueError: Prompts and answers do not share out evenly.
        """
        from datasets import Dataset as Table
        from trl import GRPOTrainer  # seconds that only its users should pay

        config = self.config
        arguments = self.trainer_arguments(updates, folder)
        table = Table.from_dict({"row": range(updates * config.prompts_per_update)})
        rows = QuestionRows(
            self.core,
            self.policy.tokenizer,
            self.policy.prepare_on_cpu,
            config.seed,
            self.left_out,
        )
        table.set_transform(rows)
        floor = None if config.loss == "dr_grpo" else config.spread_floor
        trainer = GRPOTrainer(
            self.policy.model,
            reward_funcs=EnvironmentReward(
                self.core, config.group_size, floor, self.policy.end_ids
            ),
            args=arguments,
            train_dataset=table,
            processing_class=self.policy.processor,
            optimizers=(self._muon() if config.muon else None, None),
            peft_config=self.options.adapters(),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def trainer_arguments(self, updates: int, folder: str | Path) -> Any:
        """Our settings as TRL's ``GRPOConfig``.

        Args:
            updates: Length of the schedule.
            folder: Where the trainer may write.

        Raises:
            ValueError: Prompts and answers do not share out evenly, or there is one GPU to shard
                over.
        """
        from trl import GRPOConfig

        config, policy, options = self.config, self.policy, self.options
        on_cpu = policy.device.type == "cpu"
        forbidden = policy.forbidden.nonzero().flatten().tolist()
        special = special_tokens(policy.tokenizer)
        words = [text for index, text in special.items() if index not in policy.end_ids]
        loss_type, level = LOSSES[config.loss]
        low, high = CLIPS[config.loss]
        settings: dict[str, Any] = {
            "output_dir": str(folder),
            "max_steps": updates * self.steps_per_update,
            "num_generations": config.group_size,
            "num_iterations": config.epochs,
            "max_completion_length": config.max_new_tokens,
            "temperature": config.temperature,
            "top_k": 0,
            "loss_type": loss_type,
            "importance_sampling_level": level,
            "scale_rewards": "none",  # the reward function has done it, with the floor
            "epsilon": low if config.clip_low is None else config.clip_low,
            "epsilon_high": high if config.clip_high is None else config.clip_high,
            "beta": config.kl_coefficient,
            "vllm_importance_sampling_mode": "sequence_truncate",
            "vllm_importance_sampling_clip_max": config.importance_cap,
            "learning_rate": config.learning_rate,
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": config.final_rate},
            "warmup_steps": config.warmup,
            "weight_decay": config.weight_decay,
            "adam_beta2": 0.95,
            "adam_epsilon": config.adam_epsilon,
            "max_grad_norm": config.max_grad_norm,
            "bf16": policy.precision == "bfloat16",
            "use_cpu": on_cpu,
            "dataloader_pin_memory": not on_cpu,
            "shuffle_dataset": False,  # the rows are in random order already
            "remove_unused_columns": False,  # the rows' columns appear when they are read
            "save_strategy": "no",
            "logging_steps": self.steps_per_update,
            "report_to": "none",
            "disable_tqdm": True,
            "ddp_timeout": 7200,  # the first process measures the policy while the others wait
            "seed": config.seed,
            **options.trainer_arguments(words, forbidden),
        }
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if options.fsdp != "off" and (on_cpu or world_size == 1):
            raise ValueError(
                f"fsdp={options.fsdp!r} shards over several GPUs, and this is one of {world_size} "
                f"processes on {policy.device.type}: start it by torchrun --nproc_per_node N, or "
                "use --trl.fsdp off"
            )
        return GRPOConfig(**settings, **self.share_out(world_size))

    def share_out(self, world_size: int) -> dict[str, int]:
        """How many answers each process takes at a time.

        Args:
            world_size: Number of processes.

        Returns:
            Arguments of ``GRPOConfig``.

        Raises:
            ValueError: They do not share out evenly.
        """
        config = self.config
        parts = config.minibatches * world_size
        prompts, left = divmod(config.prompts_per_update, parts)
        if left or not prompts:
            raise ValueError(
                f"prompts_per_update={config.prompts_per_update} does not share out over "
                f"minibatches={config.minibatches} on {world_size} processes: use a multiple of "
                f"{parts}"
            )
        rows = self.options.rows_per_forward or config.group_size * math.gcd(
            config.prompts_per_forward, prompts
        )
        steps, left = divmod(prompts * config.group_size, rows)
        if left or not steps:
            raise ValueError(
                f"{rows} answers per forward pass do not share out the {prompts} x "
                f"{config.group_size} answers of a minibatch of one process: set "
                "prompts_per_forward or rows_per_forward to a divisor"
            )
        return {
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": steps,
            "steps_per_generation": steps * config.minibatches,
        }

    def _muon(self) -> JointOptimizer:
        """The optimizer with Muon."""
        config = self.config
        return JointOptimizer(
            HybridOptimizer(
                self.policy.model,
                config.learning_rate,
                config.weight_decay,
                muon_precision=config.muon_precision,
                adam_epsilon=config.adam_epsilon,
            )
        )

    def finish(self, trainer: Any, folder: Path) -> None:
        """Leave a whole policy in memory: merge adapters, or gather what is sharded.

        A policy that was sharded is whole in the first process only.
        """
        if self.options.lora_rank:
            wrapped = trainer.accelerator.unwrap_model(trainer.model)
            self.policy.model = wrapped.merge_and_unload()
        elif self.options.fsdp != "off":
            with quiet_progress():
                trainer.save_model(str(folder))  # all processes take part
            if trainer.is_world_process_zero():
                device = str(self.policy.device)
                self.policy.model = VLMPolicy.from_pretrained(folder, device=device).model
            trainer.accelerator.wait_for_everyone()
