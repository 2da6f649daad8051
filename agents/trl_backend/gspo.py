"""GSPO and its relatives on TRL's GRPOTrainer: the same questions, scores and settings.

`agents.gspo` encodes each image once per group and is faster where it fits (see
``experiments/benchmark.py train``). This one has vLLM to sample, FSDP to shard, and PEFT's
adapters. Differences from `agents.gspo`:

- groups are split when a rollout is shuffled into minibatches; advantages are computed before that;
- log-probabilities are over all tokens, also those that sampling excludes (special tokens);
- importance weights exist under vLLM only, and of whole answers, not length-normalised ones.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from agents.advantages import group_advantages, reward_metrics
from agents.losses import LOSSES
from agents.policy.loading import quiet_progress
from agents.policy.model import VLMPolicy
from agents.policy.processing import special_tokens
from agents.settings import GSPOConfig, LossName, TRLOptions
from agents.trl_backend.rows import QuestionRows
from agents.trl_backend.trainer import TrainerAgent
from seg_env.envs.core import Question, ReferringCore
from seg_env.envs.left_out import OnError

SUPPORTED = {
    *("prompts_per_update", "group_size", "minibatches", "epochs", "prompts_per_forward"),
    *("learning_rate", "warmup", "final_rate", "muon", "weight_decay", "max_grad_norm"),
    *("muon_precision", "adam_epsilon"),
    *("temperature", "max_new_tokens", "kl_coefficient", "importance_cap", "seed"),
    *("loss", "clip_low", "clip_high", "spread_floor"),
}
"""Settings of GSPO that this backend carries out; any other must be left at its default."""

LOSS_TYPES: dict[LossName, tuple[str, str]] = {
    "gspo": ("grpo", "sequence"),
    "grpo": ("grpo", "token"),
    "dr_grpo": ("dr_grpo", "token"),
    "dapo": ("dapo", "token"),
}
"""TRL's ``loss_type`` (how tokens are averaged) and ``importance_sampling_level`` of our losses."""


class TRLGSPO(TrainerAgent):
    """GSPO, or another of `LOSS_TYPES`, through GRPOTrainer.

    One update is one rollout, ``minibatches * epochs`` optimizer steps.
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
        """Set up; a process takes whole groups. ``options`` are what only TRL has.

        Raises:
            ModuleNotFoundError: An option needs a package that is not installed.
            ValueError: The settings contradict each other, or are not in `SUPPORTED`.
        """
        super().__init__(policy, config, config.max_new_tokens, on_error)
        self.core, self.options = core, options or TRLOptions()
        self.options.check()
        self.steps_per_update = config.minibatches * config.epochs
        self.trainer_holds_weights = self.options.fsdp != "off" or self.options.lora_rank > 0
        if config.loss not in LOSS_TYPES:
            raise ValueError(
                f"loss={config.loss!r} has no counterpart in TRL's GRPOTrainer: use one of "
                f"{', '.join(LOSS_TYPES)}, or agents.gspo"
            )
        if policy.constraint is not None:
            raise ValueError(
                "the policy has a constraint, and TRL would train another policy than the one that "
                "is sampled: set policy.constraint to None, or use agents.gspo"
            )
        for field in fields(config):
            if field.name not in SUPPORTED and getattr(config, field.name) != field.default:
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

    def build_trainer(self, updates: int, folder: str | Path) -> Any:
        """A GRPOTrainer over the questions; see `TrainerAgent.build_trainer`."""
        from trl import GRPOTrainer

        return self.make_trainer(
            GRPOTrainer,
            QuestionRows(self.policy, self.core, self.config.seed, self.left_out),
            updates * self.config.prompts_per_update,
            args=self.trainer_arguments(updates, folder),
            reward_funcs=self.advantage,
            peft_config=self._adapters(),
        )

    def trainer_arguments(self, updates: int, folder: str | Path) -> Any:
        """Our settings as TRL's ``GRPOConfig``; see `build_trainer`."""
        from trl import GRPOConfig

        config, policy, options = self.config, self.policy, self.options
        loss_type, level = LOSS_TYPES[config.loss]
        low, high = LOSSES[config.loss].clips_of(config)
        special = special_tokens(policy.tokenizer)
        words = [text for index, text in special.items() if index not in policy.end_ids]
        settings = self.common_arguments(folder) | {
            "max_steps": updates * self.steps_per_update,
            "num_generations": config.group_size,
            "num_iterations": config.epochs,
            "max_completion_length": config.max_new_tokens,
            "temperature": config.temperature,
            "top_k": 0,
            "loss_type": loss_type,
            "importance_sampling_level": level,
            "scale_rewards": "none",  # the reward function has done it, with the floor
            "epsilon": low,
            "epsilon_high": high,
            "beta": config.kl_coefficient,
            "vllm_importance_sampling_mode": "sequence_truncate",
            "vllm_importance_sampling_clip_max": config.importance_cap,
            "shuffle_dataset": False,  # the rows are in random order already
            "logging_steps": self.steps_per_update,
            "ddp_timeout": 7200,  # the first process measures the policy while the others wait
        }
        settings |= arguments_of(options, words, policy.forbidden.nonzero().flatten().tolist())
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if options.fsdp != "off" and (policy.device.type == "cpu" or world_size == 1):
            raise ValueError(
                f"fsdp={options.fsdp!r} shards over several GPUs, and this is one of {world_size} "
                f"processes on {policy.device.type}: start it by torchrun --nproc_per_node N, or "
                "use --trl.fsdp off"
            )
        return GRPOConfig(**settings, **self.share_out(world_size))

    def share_out(self, world_size: int) -> dict[str, int]:
        """How many answers each process takes at a time, as arguments of ``GRPOConfig``."""
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

    def advantage(
        self,
        *,
        completions: Sequence[Sequence[Mapping[str, str]]],
        completion_ids: Sequence[Sequence[int]],
        question: Sequence[Question],
        log_metric: Callable[[str, float], None],
        **others: object,
    ) -> list[float]:
        """TRL's reward function: the environment scores ``N`` answers in whole groups.

        It returns finished advantages, with our floor, which GRPOTrainer has no setting for. Told
        not to scale rewards, GRPOTrainer only subtracts the mean of each group, which is 0 already.
        The rewards themselves are logged under the names that our own agents use.
        """
        size = self.config.group_size
        groups = [question[i : i + size] for i in range(0, len(question), size)]
        if len(question) % size or any(one is not group[0] for group in groups for one in group):
            raise ValueError(
                f"{len(question)} answers do not come in whole groups of {size}: "
                "advantages are relative to the other answers to the same question"
            )
        scores = self.core.score([answer[0]["content"] for answer in completions], question)
        rewards = torch.tensor(scores.total, dtype=torch.float32)
        ends = set(self.policy.end_ids)
        metrics = reward_metrics(rewards, size) | {
            "iou": scores.iou.mean(),
            "valid": np.mean([prediction.valid for prediction in scores.predictions]),
            "vertices": np.mean([sum(map(len, p.rings)) for p in scores.predictions]),
            "tokens": np.mean([len(tokens) for tokens in completion_ids]),
            "truncated": np.mean([ends.isdisjoint(tokens[-1:]) for tokens in completion_ids]),
            **{f"reward/{name}": values.mean() for name, values in scores.terms.items()},
        }
        for name, value in metrics.items():
            log_metric(f"rollout/{name}", float(value))
        return group_advantages(rewards, size, self.config.advantage_floor).tolist()

    def _adapters(self) -> Any:
        options = self.options
        if not options.lora_rank:
            return None
        peft = import_module("peft")  # not installed with this project
        return peft.LoraConfig(
            r=options.lora_rank,
            lora_alpha=options.lora_alpha,
            lora_dropout=options.lora_dropout,
            target_modules=options.lora_targets,
            exclude_modules=["lm_head"],
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


def arguments_of(options: TRLOptions, special: list[str], forbidden: list[int]) -> dict[str, Any]:
    """Options as arguments of ``GRPOConfig``; those about vLLM have the same names there.

    Args:
        options: What only TRL has.
        special: Special tokens that no answer may contain, as text.
        forbidden: All tokens that no answer may contain, by their ids. A sampled image placeholder
            would end training: "Image features and image tokens do not match".
    """
    vllm = {name: value for name, value in vars(options).items() if "vllm" in name}
    sleep = vllm.pop("vllm_sleep")
    settings = vllm | {
        "vllm_enable_sleep_mode": sleep,
        # vLLM takes words and knows no rows beyond the tokenizer; transformers takes ids.
        "generation_kwargs": (
            {"bad_words": special} if options.use_vllm else {"suppress_tokens": forbidden}
        ),
        "activation_checkpointing": options.gradient_checkpointing and options.fsdp == "off",
        "dataloader_num_workers": options.workers,
    }
    if options.fsdp != "off":
        settings["fsdp"] = True
        settings["fsdp_config"] = {
            "reshard_after_forward": options.fsdp == "full_shard",
            "cpu_offload": options.fsdp_offload,
            "activation_checkpointing": options.gradient_checkpointing,
        }
    return settings
