"""Behaviour cloning of large models: supervised fine-tuning (SFT) on TRL's SFTTrainer.

`BehaviorCloning` shares each image among its questions and is faster for what fits one device. This
one has what large models need: gradient checkpointing, mixed precision, and the launchers that TRL
knows (``torchrun``, ``accelerate launch``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from agents.policy.model import VLMPolicy
from agents.settings import SupervisedFineTuningConfig as SupervisedFineTuningConfig
from agents.settings import with_papers_optimizer as with_papers_optimizer
from agents.trl_backend.rows import DemonstrationRows
from agents.trl_backend.trainer import TRAINER_PICKLE, TrainerAgent
from seg_env.data.base import Dataset
from seg_env.envs.left_out import OnError


class SupervisedFineTuning(TrainerAgent):
    """Teaches a policy from a data set through TRL's SFTTrainer."""

    config: SupervisedFineTuningConfig
    metric_names: ClassVar[dict[str, str]] = {
        "loss": "train/loss",
        "grad_norm": "train/grad_norm",
        "learning_rate": "train/learning_rate",
        "mean_token_accuracy": "train/token_accuracy",
        "entropy": "train/entropy",
    }

    def __init__(
        self,
        policy: VLMPolicy,
        dataset: Dataset,
        config: SupervisedFineTuningConfig,
        *,
        max_new_tokens: int = 512,
        on_error: OnError = "skip",
    ) -> None:
        """Set up; see `TrainerAgent`.

        Raises:
            ValueError: A setting has no counterpart in TRL.
        """
        super().__init__(policy, config, max_new_tokens, on_error)
        if config.average:
            raise ValueError(
                f"average={config.average!r} has no counterpart in TRL's SFTTrainer: leave it at 0"
            )
        self.rows = DemonstrationRows(policy, dataset, config, self.left_out)

    def build_trainer(self, updates: int, folder: str | Path) -> Any:
        """An SFTTrainer over the rows; see `TrainerAgent.build_trainer`."""
        from trl import SFTConfig, SFTTrainer

        config = self.config
        arguments = SFTConfig(
            **self.common_arguments(folder),
            max_steps=updates,
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=config.accumulation,
            activation_checkpointing=config.gradient_checkpointing,
            max_length=None,  # cutting a sequence would cut the image's tokens
            completion_only_loss=True,
            train_sampling_strategy="sequential",  # the rows are in random order already
            dataloader_num_workers=config.workers,
            logging_steps=1,
        )
        if config.muon and (arguments.deepspeed_plugin is not None or arguments.fsdp):
            raise ValueError("muon=True needs whole matrices: turn it off under DeepSpeed or FSDP")
        per_update = config.batch_size * config.accumulation * arguments.world_size
        return self.make_trainer(SFTTrainer, self.rows, updates * per_update, args=arguments)

    def save_policy(self, path: str | Path) -> None:
        """Write the policy alone, as a transformers folder; all processes must call this."""
        if self._trainer is None:
            self.policy.save(path)
            return
        self._trainer.save_model(str(path))  # gathers weights that are sharded
        if self._trainer.is_world_process_zero():
            (Path(path) / TRAINER_PICKLE).unlink(missing_ok=True)
