"""What agents on TRL's trainers share: learning in updates, and checkpoints."""

from __future__ import annotations

import json
import math
import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from transformers import PrinterCallback, TrainerCallback

from agents.base import Agent, UpdateCallback
from agents.policy.finite import DivergedError
from agents.policy.loading import quiet_progress
from agents.policy.model import VLMPolicy
from agents.training.checkpoints import (
    put_in_place,
    read_facts,
    read_weights,
    require_whole,
    write_manifest,
)
from agents.training.distributed import World
from agents.training.optim import BETAS, HybridOptimizer
from seg_env.envs.left_out import LeftOut, OnError

TRAINER_PICKLE = "training_args.bin"
"""A file that trainers write and never read; nothing pickled is kept."""


class TrainerAgent(Agent):
    """Teaches a policy through a trainer of TRL that stops, resumes and reports like our own."""

    metric_names: ClassVar[dict[str, str]]
    """Maps the trainer's names of metrics to ours; those under ``rollout/`` are ours already."""
    steps_per_update = 1
    """Optimizer steps that make one update."""
    trainer_holds_weights = False
    """Whether weights are sharded or adapters, which only the trainer can read."""

    def __init__(
        self, policy: VLMPolicy, config: Any, max_new_tokens: int, on_error: OnError
    ) -> None:
        """Set up; nothing of TRL is imported before `learn`.

        Args:
            policy: Trained in place; its ``precision`` decides about mixed precision.
            config: A dataclass, written into checkpoints.
            max_new_tokens: Longest answer of `act`.
            on_error: Whether samples that cannot be used are replaced, or are an error.
        """
        self.policy, self.config, self.max_new_tokens = policy, config, max_new_tokens
        self.left_out = LeftOut(on_error)
        self.update = 0
        self._checkpoint: Path | None = None  # what to resume from
        self._trainer: Any = None  # of the last `learn`: optimizer and schedule live there

    @abstractmethod
    def build_trainer(self, updates: int, folder: str | Path) -> Any:
        """A trainer for ``updates`` updates that writes to the folder when told to.

        It wraps the model's ``forward``; `learn` undoes that at its end.
        """

    def make_trainer(self, kind: Any, rows: Any, count: int, **arguments: Any) -> Any:
        """A trainer of a class of TRL over the first ``count`` of some rows."""
        from datasets import Dataset as Table  # takes seconds to import

        table = Table.from_dict({"row": range(count)})
        table.set_transform(rows)
        model = self.policy.model
        optimizer = HybridOptimizer(model, self.config) if self.config.muon else None
        return kind(
            model,
            train_dataset=table,
            processing_class=self.policy.processor,
            optimizers=(optimizer, None),
            **arguments,
        )

    def common_arguments(self, folder: str | Path) -> dict[str, Any]:
        """Arguments of any configuration of TRL that follow from the agent's settings."""
        config, on_cpu = self.config, self.policy.device.type == "cpu"
        return {
            "output_dir": str(folder),
            "learning_rate": config.learning_rate,
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": config.final_rate},
            "warmup_steps": config.warmup,
            "weight_decay": config.weight_decay,
            "adam_beta2": BETAS[1],
            "adam_epsilon": config.adam_epsilon,
            "max_grad_norm": config.max_grad_norm,
            "bf16": self.policy.precision == "bfloat16",
            "use_cpu": on_cpu,
            "dataloader_pin_memory": not on_cpu,
            "logging_nan_inf_filter": False,  # it would hide losses that are not finite
            "remove_unused_columns": False,  # the rows' columns appear when they are read
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "seed": config.seed,
        }

    def learn(self, updates: int, on_update: UpdateCallback | None = None) -> None:
        """Train until ``updates`` updates have been made in all; the schedule spans them."""
        if self.update >= updates:
            return
        with TemporaryDirectory() as folder, _restored(self.policy):
            if self._trainer is not None:
                self._checkpoint = Path(folder) / "so_far"
                self.save(self._checkpoint)
            trainer = self._trainer = self.build_trainer(updates, folder)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(_Progress(self, on_update))
            if not (self.trainer_holds_weights or trainer.is_deepspeed_enabled):
                # `load` has read the weights. The trainer would look for them by their names in
                # memory, which for LLaVA and others are not those in the file, and find none.
                trainer._load_from_checkpoint = lambda *checkpoint: None
            # Loader processes have their own copies of the object that counts left-out samples.
            self.left_out.shared = Path(folder) / "left_out.jsonl"
            try:
                trainer.train(resume_from_checkpoint=self._checkpoint and str(self._checkpoint))
            except RuntimeError as error:
                if "probability tensor contains" not in str(error):  # what torch.multinomial says
                    raise
                raise DivergedError(
                    "the policy's probabilities are not finite, so it has no answer: its weights "
                    "are damaged, or training drove them too far"
                ) from None
            self.require_applied()
            self.left_out.collect()
            self.left_out.shared = None
            self.finish(trainer, Path(folder))

    def finish(self, trainer: Any, folder: Path) -> None:
        """Finish after the last update; the folder is removed afterwards."""

    def save(self, path: str | Path) -> None:
        """Write a transformers folder with what `load` needs, whole or not at all.

        ``on_update`` may call this, too. All processes must call it.
        """
        path, trainer = Path(path), self._trainer
        partial = path.with_name(path.name + ".partial")
        if trainer is None:
            shutil.rmtree(partial, ignore_errors=True)
            self.policy.save(partial)
            self._complete(partial, partial, path)
            return
        trainer.args.output_dir = str(partial)
        with quiet_progress():
            trainer._save_checkpoint(trainer.model, trial=None)  # there is no public name for "now"
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            self._complete(partial / f"checkpoint-{trainer.state.global_step}", partial, path)
        trainer.accelerator.wait_for_everyone()

    def _complete(self, written: Path, partial: Path, path: Path) -> None:
        """Complete what was written and put it in its place."""
        self.left_out.collect()
        (written / TRAINER_PICKLE).unlink(missing_ok=True)
        facts = {
            "update": self.update,
            "config": asdict(self.config),
            "left_out": self.left_out.reasons,
        }
        (written / "state.json").write_text(json.dumps(facts, indent=2))
        write_manifest(written)
        put_in_place(written, path)
        shutil.rmtree(partial, ignore_errors=True)

    def load(self, path: str | Path) -> None:
        """Resume from what `save` wrote."""
        path = Path(path)
        require_whole(path)
        facts = read_facts(path)
        if not self.trainer_holds_weights:
            read_weights(path, self.policy)
        self.update = self.applied = facts["update"]
        self.left_out.update(facts.get("left_out", {}))
        self._checkpoint = path if self.update else None
        self._trainer = None


class _Progress(TrainerCallback):
    """Tells an agent and its caller about every update."""

    def __init__(self, agent: TrainerAgent, on_update: UpdateCallback | None) -> None:
        self.agent = agent
        self.on_update = on_update

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **others: object
    ) -> None:
        """Skip a step whose gradients are not finite, on all processes alike."""
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        if not gradients:  # DeepSpeed has them, and has made the step already
            return
        shards = [each.to_local() if hasattr(each, "to_local") else each for each in gradients]
        wrong = any(not bool(each.isfinite().all()) for each in shards)
        if wrong := World.current().any(wrong):
            model.zero_grad(set_to_none=True)  # optimizers pass over weights without a gradient
        self.agent.note_step(math.nan if wrong else 0.0)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float], **others: object
    ) -> None:
        """Called after every update, and once more at the end, without a loss."""
        if "loss" not in logs:
            return
        agent = self.agent
        norm = float(logs.get("grad_norm", 0.0))
        if not (math.isfinite(norm) or agent.skipped):
            raise DivergedError(
                f"the gradients of update {agent.update + 1} have norm {norm}, and were applied"
            )
        agent.update = state.global_step // agent.steps_per_update
        if norm and logs.get("learning_rate"):
            agent.policy.mark_trained()
        if self.on_update is None:
            return
        agent.policy.model.eval()  # answers are asked for; the trainer sets it back
        names = agent.metric_names
        metrics = {
            names.get(name, name): value
            for name, value in logs.items()
            if value is not None and (name in names or name.startswith("rollout/"))
        }
        self.on_update(agent.update, metrics)


@contextmanager
def _restored(policy: VLMPolicy) -> Iterator[None]:
    """Undo what trainers leave on a model: a wrapped forward, checkpointing, training mode."""
    forward: Callable[..., Any] | None = vars(policy.model).get("forward")
    try:
        yield
    finally:
        model = policy.model
        for name in ("forward", "_original_forward"):
            vars(model).pop(name, None)
        if forward is not None:
            model.forward = forward
        model.activation_checkpointing_disable()
        model.eval()
