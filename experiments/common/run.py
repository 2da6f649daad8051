"""The one loop around all that train: evaluate, train, checkpoint, resume, report.

With several ranks all of them call the functions here; the main one writes files.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markdown import Markdown

from agents.base import Agent
from agents.behavior_cloning import BehaviorCloning
from agents.on_policy import OnPolicyAgent
from agents.policy.model import VLMPolicy
from agents.settings import OnPolicyConfig
from agents.training.checkpoints import latest_checkpoint, write_policy
from agents.training.distributed import World
from experiments.common.arguments import RunArguments, TrainingArguments
from experiments.common.command import opening
from experiments.common.launch import TERMINATED, fit_to_deepspeed, launched, termination
from experiments.common.logs import (
    RunLog,
    check_run,
    keep_latest,
    progress_bar,
    start_run,
    warn,
    write_json,
)
from experiments.common.policies import (
    AnswerLength,
    constrain,
    describe_data,
    longest_answer,
    require_vision,
    say_what_is_asked,
)
from experiments.common.report import Evaluations, report_text, scores_of, write_report
from experiments.evaluation.loop import Evaluation, evaluate_turns
from seg_env.data.readers.annotated_images import AnnotatedImages
from seg_env.envs.left_out import LeftOut
from seg_env.envs.referring import open_rules


def train_on_policy(
    args: TrainingArguments,
    config: OnPolicyConfig,
    agent_type: Callable[..., OnPolicyAgent],
    title: str,
) -> dict[str, Any]:
    """Open what the command line names, train an on-policy agent on it, and report.

    ``config`` are the agent's settings among the arguments. Returns the scores.
    """
    with launched(args.deepspeed) as (world, console):
        with opening():
            config.seed = args.seed
            fit_to_deepspeed(config, args.deepspeed, console)
            policy = args.open_policy(console)
            envs = args.open_environment(config, world, policy.answer_frame)
            length = args.answer_length(config.max_new_tokens)
            longest = config.max_new_tokens = longest_answer(length, policy, envs.core, console)
            constrain(policy, args.policy, args.grammar, longest, envs.core.answer_frame, console)
        run = Run(args, policy, console, world, length)
        with opening():
            agent = agent_type(policy, envs, config, on_error=args.on_error)
        return run.train(agent, title, learned_from=describe_data(envs.core.dataset))


class Run:
    """One run and its folder: open it, build the agent, then call `train`."""

    def __init__(
        self,
        args: RunArguments,
        policy: VLMPolicy,
        console: Console,
        world: World,
        length: AnswerLength,
    ) -> None:
        """Open the held-out questions; make sure that the folder is free and the policy sees.

        Nothing is written yet: a refused run must not leave a folder that the next try finds taken.

        Args:
            args: The command line.
            policy: The one that training starts from.
            console: Where progress is shown.
            world: The ranks that measure and save together, or a process of TRL's by itself, of
                which only the first one measures and saves.
            length: Most tokens of measured answers; ``"auto"`` measures the held-out questions.

        Raises:
            BlindPolicyError: Images do not reach the model.
            RunExistsError: The folder holds another run.
            WrongOptionError: The folder's run was started with other settings.
        """
        self.args, self.console, self.world = args, console, world
        self.folder, self.leads = args.output_dir, world.is_main or world.size > 1
        if world.is_main:
            check_run(self.folder, args, resume=args.resume)
        with opening():
            self.core = open_rules(args.env, **args.held_out(), frame=policy.answer_frame)
        if world.is_main:
            say_what_is_asked(args.policy or "", self.core.dataset, console)
        self.questions = np.arange(min(args.evaluation.questions, len(self.core.dataset)))
        self.left_out = LeftOut(args.on_error)
        self.log: RunLog | None = None
        self.max_new_tokens = 0
        self._vision: dict[str, Any] = {}
        self._warned = False
        self._start = time.perf_counter()
        if self.leads:
            self.max_new_tokens = longest_answer(length, policy, self.core, console)
            if args.vision_check and not args.is_shipped and not args.resume:
                self._vision = require_vision(policy, self.core, console)

    def train(
        self,
        agent: Agent,
        title: str,
        *,
        learned_from: str,
        save_policy: Callable[[Path], None] | None = None,
    ) -> dict[str, Any]:
        """Evaluate, train, evaluate again, and write the report.

        Args:
            agent: Who learns.
            title: Of the report.
            learned_from: The data, for the report.
            save_policy: Writes the finished policy; by default it is written from memory.

        Returns:
            What ``scores.json`` holds; nothing in a process that does not lead.
        """
        self.agent = agent
        if self.world.is_main:
            start_run(self.folder, self.args, resume=self.args.resume)
            if self.args.is_parted and isinstance(self.core.dataset, AnnotatedImages):
                images = sorted(self.core.dataset.image_names())
                write_json(self.folder / "held_out.json", {"images": images})
                self.console.print(
                    f"held out of {self.args.dataset}: {len(images)} images with "
                    f"{len(self.core.dataset)} questions, named in {self.folder / 'held_out.json'}",
                    highlight=False,
                    markup=False,
                    soft_wrap=True,
                )
        if self.world.is_main and self._vision:
            write_json(self.folder / "vision.json", self._vision)
        before = self._begin()
        try:
            self._learn()
        except KeyboardInterrupt:
            self.console.print(
                f"interrupted after update {agent.update}; --resume goes on from a checkpoint"
            )
            raise SystemExit(130) from None
        after = self.evaluate("after training")
        if save_policy is not None:
            save_policy(self.folder / "policy")
        elif self.leads:
            with self.agent.gathered_weights():  # of which every process may have a share
                write_policy(self.folder / "policy", self.agent.policy, self.world)
        if not self.leads:
            return {}
        agent.gather_left_out()
        scores = (scores_of(before, after) if before else {}) | {
            "dataset": self.core.dataset.name,
            "split": self.core.dataset.split,
            "updates": agent.update,
            "seed": self.args.seed,
            "minutes": (time.perf_counter() - self._start) / 60,
            "frame": agent.policy.answer_frame.description,
            "max_new_tokens": {"learning": agent.max_new_tokens, "measuring": self.max_new_tokens},
            "left_out": {"measuring": self.left_out.reasons, "learning": agent.left_out.reasons},
        }
        text = report_text(title, scores)
        if self.world.is_main:
            write_json(self.folder / "scores.json", scores)
            size = agent.policy.model.num_parameters() / 1e6
            cloned = isinstance(agent, BehaviorCloning)
            rewards = "" if cloned else " ".join(getattr(self.args, "rewards", ()))
            origin = {
                "Policy": f"`{self.args.policy or 'new'}`, {size:.2f} M parameters",
                "Frame of the numbers": scores["frame"],
                "Learned from": learned_from,
                "Measured on": describe_data(self.core.dataset),
                "Rewards": f"`{rewards}`" if rewards else "none: answers are demonstrated",
                "Time": f"{scores['minutes']:.1f} minutes",
            }
            write_report(self.folder, text, origin, self.core, before, after)
        self.console.print(Markdown(text))
        self.console.print(
            f"report: {self.folder / 'report.md'}  ({scores['minutes']:.1f} minutes)"
        )
        return scores

    def _begin(self) -> Evaluations:
        """Measure the policy that training starts from, or go on from the last checkpoint."""
        checkpoint = latest_checkpoint(self.folder / "checkpoints") if self.args.resume else None
        checkpoint = self.world.broadcast(checkpoint)
        store = self.folder / "before.json"
        text = store.read_text() if checkpoint is not None and store.exists() else None
        if (text := self.world.broadcast(text)) is not None:
            stored = json.loads(text)
            before = {kind: Evaluation.from_json(value) for kind, value in stored.items()}
        else:
            before = self.evaluate("before training")
            if self.world.is_main and before:
                write_json(store, {kind: value.to_json() for kind, value in before.items()})
        if checkpoint is not None:
            self.agent.load(checkpoint)
            self.console.print(f"resumed after update {self.agent.update}")
        if self.world.is_main:
            self.log = RunLog(self.folder, start=-1 if checkpoint is None else self.agent.update)
        if checkpoint is None and (curve := self._curve(0)):
            self._write(0, curve)
        return before

    def evaluate(self, when: str) -> Evaluations:
        """Greedy and sampled answers to all held-out questions; nothing without any."""
        if not (self.leads and len(self.questions)):
            return {}
        with progress_bar(self.console) as progress:
            task = progress.add_task(f"evaluating {when}", total=2 * len(self.questions), status="")
            advance = partial(progress.advance, task)
            greedy = self._ask(self.questions, 0.0, 1, advance)
            sampled = self._ask(self.questions, 1.0, self.args.evaluation.answers, advance)
        found = {"greedy": greedy[-1], "sampled": sampled[-1]}
        first = {"first": greedy[0], "sampled_first": sampled[0]}
        return found | (first if self.core.turns > 1 else {})

    def _ask(
        self, questions: Any, temperature: float, answers: int, on_batch: Any = None
    ) -> list[Evaluation]:
        with self.agent.gathered_weights():
            return evaluate_turns(
                self.agent.policy,
                self.core,
                questions,
                temperature=temperature,
                answers=answers,
                max_new_tokens=self.max_new_tokens,
                seed=self.args.seed,
                on_batch=on_batch,
                left_out=self.left_out,
                world=self.agent.world,
            )

    def _learn(self) -> None:
        """Train with a progress bar, logging and saving on the way; SIGTERM ends it early."""
        updates, began, before = self.args.updates, time.perf_counter(), self.agent.update
        with progress_bar(self.console) as progress, termination(self.world) as asked_to_end:
            task = progress.add_task("training", total=updates, completed=before, status="")

            def on_update(update: int, metrics: dict[str, float]) -> None:
                self._warn(metrics)
                curve = self._curve(update)
                self._write(update, metrics | curve)
                progress.update(task, completed=update, status=_status(metrics))
                if curve:
                    elapsed = time.perf_counter() - began
                    left = elapsed / (update - before) * (updates - update)
                    self.console.print(
                        f"update {update} of {updates}: held-out gIoU "
                        f"{curve['eval/greedy_giou']:.3f} (greedy); "
                        f"{timedelta(seconds=round(elapsed))} elapsed, "
                        f"{timedelta(seconds=round(left))} left",
                        highlight=False,
                    )
                terminated = asked_to_end()
                due = update % self.args.checkpoint_every == 0 and update < updates
                if due or terminated:
                    folder = self.folder / "checkpoints"
                    self.agent.save(folder / f"update_{update:06d}")
                    if self.world.is_main:
                        keep_latest(folder)
                if terminated:
                    self.console.print(f"terminated after update {update}; --resume goes on there")
                    raise SystemExit(TERMINATED)

            self.agent.learn(updates, on_update)
        if self.log is not None:
            self.log.close()

    def _warn(self, metrics: dict[str, float]) -> None:
        """Say once when over 5 % of the answers of a rollout are cut off."""
        share = metrics.get("rollout/truncated", 0.0)
        if share > 0.05 and not self._warned:
            self._warned = True
            warn(
                self.console,
                f"{share:.0%} of the answers of a rollout were cut off at "
                f"{self.agent.max_new_tokens} tokens; such answers earn little, whatever they "
                f"outline. If honest answers are longer, give a larger --max-new-tokens",
            )

    def _write(self, update: int, metrics: dict[str, float]) -> None:
        if self.log is not None:
            self.log.write(update, metrics)

    def _curve(self, update: int) -> dict[str, float]:
        """The small evaluation of the learning curve, where one is due."""
        plan = self.args.evaluation
        some = self.questions[: plan.curve_questions]
        if not (self.leads and len(some) and plan.every) or update % plan.every:
            return {}
        greedy, sampled = self._ask(some, 0.0, 1), self._ask(some, 1.0, 1)
        curve = {
            "eval/greedy_giou": float(greedy[-1].iou.mean()),
            "eval/sampled_giou": float(sampled[-1].iou.mean()),
            "eval/well_formed": float(greedy[-1].valid.mean()),
        }
        if self.core.turns > 1:
            curve["eval/first_giou"] = float(greedy[0].iou.mean())
        return curve


def _status(metrics: dict[str, float]) -> str:
    """How an update went, in at most 25 letters."""
    if "train/loss" in metrics:  # of behaviour cloning
        return f"loss per token {metrics['train/loss']:.3f}"
    return f"reward {metrics['rollout/reward']:.2f} IoU {metrics['rollout/iou']:.2f}"
