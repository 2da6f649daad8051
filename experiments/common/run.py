"""The loop of all commands that train: evaluate, train, checkpoint, resume, report.

With several ranks all of them call the functions here; the main one writes files.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markdown import Markdown

from agents.base import Agent, EngineAgent
from agents.behavior_cloning import BehaviorCloning
from agents.on_policy import OnPolicyAgent
from agents.policy.adapters import merge_adapter
from agents.policy.finite import DivergedError, require_finite
from agents.policy.hub import push_folder
from agents.policy.model import VLMPolicy
from agents.settings import OnPolicyConfig
from agents.training.checkpoints import (
    DamagedCheckpointError,
    complete_checkpoints,
    latest_checkpoint,
    number_of,
    write_policy,
)
from agents.training.distributed import World
from experiments.common.arguments import RunArguments, TrainingArguments
from experiments.common.command import is_full_disk, opening
from experiments.common.launch import fit_to_adapter, fit_to_deepspeed, launched, termination
from experiments.common.logs import (
    RunLog,
    check_run,
    flatten,
    keep_latest,
    locked,
    progress_bar,
    read_metrics,
    read_object,
    start_run,
    warn,
    write_json,
)
from experiments.common.model_card import write_card
from experiments.common.policies import (
    AnswerLength,
    constrain,
    describe_data,
    longest_answer,
    require_vision,
    say_what_is_asked,
)
from experiments.common.report import (
    Evaluations,
    plot_answers,
    report_text,
    scores_of,
    write_report,
)
from experiments.common.rollouts import RolloutKeeper
from experiments.common.trackers import check_trackers, open_trackers
from experiments.evaluation.loop import Evaluation, evaluate_turns
from seg_env.data.base import not_asked
from seg_env.data.readers.annotated_images import AnnotatedImages
from seg_env.envs.left_out import LeftOut
from seg_env.envs.referring import open_rules
from seg_env.errors import ExplainedError
from seg_env.tasks import TaskMixture

ELAPSED = "time/elapsed"
"""Name of the metric that has the seconds since a run was first started, without its pauses."""


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
            args.configure(config)
            fit_to_deepspeed(config, args.deepspeed, console)
            fit_to_adapter(config, args.lora_rank, console)
            policy = args.open_policy(console)
            envs = args.open_environment(config, world, policy.answer_frame)
            length = args.answer_length(config.max_new_tokens)
            longest = config.max_new_tokens = longest_answer(length, policy, envs.core, console)
            constrain(policy, args.policy, args.grammar, longest, envs.core.answer_frame, console)
        run = Run(args, policy, console, world, length)
        with opening():
            keeper = RolloutKeeper(
                run.folder / "rollouts", args.updates, args.rollouts_every, args.rollouts_kept
            )
            agent = agent_type(policy, envs, config, on_error=args.on_error)
        agent.on_rollout = lambda rollout: keeper.add(agent.update + 1, rollout, world)
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
            DivergedError: A weight of the policy is not finite.
            RunExistsError: The folder holds another run.
            WrongOptionError: The folder's run was started with other settings.
        """
        self.args, self.console, self.world = args, console, world
        self.folder, self.leads = args.output_dir, world.is_main or world.size > 1
        check_trackers(args.track)
        if world.is_main:
            check_run(self.folder, args, resume=args.resume)
        require_finite(policy.model, f"the policy {args.policy or 'that is new'}")
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
        self._learned = False
        self._asked_to_end: Callable[[], int] = int
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
        facts: dict[str, Any] | None = None,
        tasks: TaskMixture | None = None,
    ) -> dict[str, Any]:
        """Evaluate, train, evaluate again, and write the report.

        Args:
            agent: The agent to train.
            title: Title of the report.
            learned_from: The data, for the report.
            save_policy: Writes the finished policy; by default it is written from memory.
            facts: Further entries of ``scores.json``.
            tasks: The tasks that were trained; by default those that are measured.

        Returns:
            What ``scores.json`` holds; nothing in a process that does not lead.

        Raises:
            DivergedError: Training came to numbers that are not finite.
            ExplainedError: The disk is full.
            RunInUseError: Another process is at work in the folder.
            SystemExit: The run was interrupted, or asked to end by a signal.
        """
        self.agent = agent
        alone = locked(self.folder) if self.world.is_main else nullcontext()
        with alone, termination(self.world) as self._asked_to_end, self._ends_in_a_sentence():
            try:
                return self._train(title, learned_from, save_policy, facts or {}, tasks)
            finally:
                if self.log is not None:
                    self.log.close()

    @contextmanager
    def _ends_in_a_sentence(self) -> Iterator[None]:
        """Say what becomes of a run that cannot go on, and what to do."""
        checkpoints = self.folder / "checkpoints"
        try:
            yield
        except KeyboardInterrupt:
            if self._learned and self.world.size == 1:
                self._save_learned()
            self._say_goes_on("interrupted")
            raise SystemExit(130) from None
        except DivergedError as error:
            # A checkpoint is known to be good if a step was made from it.
            good = [
                path
                for path in complete_checkpoints(checkpoints)
                if number_of(path) < self.agent.applied
            ]
            advice = "start again"
            if good:
                policy = good[-1] / "policy" if (good[-1] / "policy").exists() else good[-1]
                advice = f"the last good checkpoint is {good[-1]}: go on with --policy {policy}"
            raise DivergedError(
                f"{error}. Training has stopped in update {self.agent.update + 1}; {advice} in "
                "another --output-dir, with a lower learning rate, and look at rewards and data"
            ) from error
        except Exception as error:
            if not is_full_disk(error):
                raise
            raise ExplainedError(
                f"{self.folder} cannot be written to, the disk or a quota is full ({error}): make "
                f"room, then --resume goes on from {self._latest()}"
            ) from error

    def _say_goes_on(self, what: str) -> None:
        self.console.print(
            f"{what} after update {self.agent.update}; --resume goes on from {self._latest()}",
            soft_wrap=True,
        )

    def _latest(self) -> str:
        """The checkpoint that a resumed run starts from."""
        return str(latest_checkpoint(self.folder / "checkpoints") or "the start")

    def _end_if_asked(self) -> None:
        """End the run if a signal asked for it, before or after its training."""
        if number := self._asked_to_end():
            if self._learned:
                self._save_learned()
            self._say_goes_on("terminated")
            raise SystemExit(128 + number)

    def _save_learned(self) -> None:
        """Keep the last update's weights, which have no checkpoint, for another evaluation."""
        if isinstance(self.agent, EngineAgent):  # trainers of TRL start nothing that has ended
            self.agent.save(self.folder / "checkpoints" / f"update_{self.agent.update:06d}")

    def _train(
        self,
        title: str,
        learned_from: str,
        save_policy: Callable[[Path], None] | None,
        facts: dict[str, Any],
        tasks: TaskMixture | None,
    ) -> dict[str, Any]:
        """See `train`."""
        agent = self.agent
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
        if self.world.is_main:
            write_json(self.folder / "frame.json", asdict(agent.policy.answer_frame))
        before = self._begin()
        self._learn()
        self._learned = True
        after = self.evaluate("after training")
        if self.world.is_main and after:
            _write_evaluations(self.folder / "after.json", after)
        if save_policy is not None:
            save_policy(self.folder / "policy")
        elif self.leads:
            with self.agent.measured_weights():  # of which every process may have a share
                if self.args.merge_adapter:
                    merge_adapter(agent.policy.model)
                write_policy(self.folder / "policy", self.agent.policy, self.world)
        if not self.leads:
            return {}
        agent.gather_left_out()
        scores = (scores_of(before, after) if before else {}) | facts
        scores |= {
            "dataset": self.core.dataset.name,
            "split": self.core.dataset.split,
            "updates": agent.update,
            "seed": self.args.seed,
            "minutes": (time.perf_counter() - self._start) / 60,  # including resumed runs
            "frame": agent.policy.answer_frame.description,
            "max_new_tokens": {"learning": agent.max_new_tokens, "measuring": self.max_new_tokens},
            "not_asked": not_asked(self.core.dataset),
            "left_out": {"measuring": self.left_out.reasons, "learning": agent.left_out.reasons},
        }
        text = report_text(title, scores)
        if self.world.is_main:
            write_json(self.folder / "scores.json", scores)
            size = agent.policy.model.num_parameters() / 1e6
            cloned = isinstance(agent, BehaviorCloning)
            rewards = "" if cloned else " ".join(getattr(self.args, "rewards", ()))
            start = self.args.policy or "new"
            origin = {
                "Policy": f"`{start}`, {size:.2f} M parameters",
                "Frame of the numbers": scores["frame"],
                "Learned from": learned_from,
                "Measured on": describe_data(self.core.dataset),
                "Rewards": f"`{rewards}`" if rewards else "none: answers are demonstrated",
                "Time": f"{scores['minutes']:.1f} minutes",
            }
            write_report(
                self.folder,
                text,
                origin,
                self.core,
                before,
                after,
                most_tokens=self.max_new_tokens,
            )
            write_card(
                self.folder / "policy",
                self.args.push_to_hub or str(self.folder / "policy"),
                start,
                origin,
                scores,
                tasks=tasks or self.core.tasks,
                canvas_size=self.core.canvas_size,
            )
            if self.log is not None and before:
                self.log.show(agent.update, "before_after", self.folder / "before_after.png")
        self.console.print(Markdown(text))
        self.console.print(
            f"report: {self.folder / 'report.md'}  ({scores['minutes']:.1f} minutes)"
        )
        if self.args.push_to_hub and self.world.is_main:
            place = push_folder(self.folder / "policy", self.args.push_to_hub)
            self.console.print(f"the policy is on the hub: {place}", soft_wrap=True)
        return scores

    def _begin(self) -> Evaluations:
        """Measure the policy that training starts from, or go on from the last checkpoint."""
        checkpoints, stored, spent = self.world.broadcast(self._left_behind())
        self._start -= spent
        store = self.folder / "before.json"
        try:
            before = {kind: Evaluation.from_json(value) for kind, value in stored.items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            self.console.print(f"{store} is damaged and is measured again", soft_wrap=True)
            before = {}
        if not before:
            before = self.evaluate("before training")
            if self.world.is_main and before:
                _write_evaluations(store, before)
        resumed = self._load_last(checkpoints)
        if self.world.is_main:
            start = self.agent.update if resumed else -1
            settings = flatten(json.loads((self.folder / "config.json").read_text("utf-8")))
            trackers = open_trackers(self.args.track, self.folder, settings, start)
            self.log = RunLog(self.folder, trackers, start=start)
        if not resumed and (curve := self._curve(0)):
            self._write(0, curve)
        return before

    def _left_behind(self) -> tuple[list[Path], dict[str, Any], float]:
        """What a run to be resumed left: checkpoints, scores before training, and seconds spent.

        Prints what else there is among the checkpoints.
        """
        if not self.args.resume:
            return [], {}, 0.0
        folder, store = self.folder / "checkpoints", self.folder / "before.json"
        checkpoints = complete_checkpoints(folder)
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path not in checkpoints and path.suffix not in (".partial", ".previous", ".damaged"):
                self.console.print(f"{path} is no checkpoint and is left alone", soft_wrap=True)
        stored = read_object(store) if checkpoints and store.exists() else None
        spent = (row.get(ELAPSED, 0.0) for row in read_metrics(self.folder))
        return checkpoints, stored or {}, max(spent, default=0.0)

    def _load_last(self, checkpoints: Sequence[Path]) -> bool:
        """Resume from the last whole checkpoint; returns whether there is one."""
        for path in reversed(checkpoints):
            try:
                self.agent.load(path)
            except (DamagedCheckpointError, FileNotFoundError) as error:
                aside = path.with_name(path.name + ".damaged")
                self.console.print(
                    f"{error}; it is kept as {aside.name}, and what is before it is used",
                    style="yellow",
                    markup=False,
                    soft_wrap=True,
                )
                if self.world.is_main:
                    shutil.rmtree(aside, ignore_errors=True)
                    path.rename(aside)
            else:
                self.console.print(f"resumed after update {self.agent.update}")
                return True
        if checkpoints:
            self.console.print("no checkpoint is whole, so training starts again", style="yellow")
        return False

    def evaluate(self, when: str) -> Evaluations:
        """Greedy and sampled answers to all held-out questions; nothing without any."""
        if not (self.leads and len(self.questions)):
            return {}
        with progress_bar(self.console) as progress:
            task = progress.add_task(f"evaluating {when}", total=2 * len(self.questions), status="")

            def advance(questions: int) -> None:
                progress.advance(task, questions)
                if self.world.size == 1:  # ranks come here at different times
                    self._end_if_asked()

            greedy = self._ask(self.questions, 0.0, 1, advance)
            sampled = self._ask(self.questions, 1.0, self.args.evaluation.answers, advance)
        self._end_if_asked()
        found = {"greedy": greedy[-1], "sampled": sampled[-1]}
        first = {"first": greedy[0], "sampled_first": sampled[0]}
        return found | (first if self.core.turns > 1 else {})

    def _ask(
        self, questions: Any, temperature: float, answers: int, on_batch: Any = None
    ) -> list[Evaluation]:
        with self.agent.measured_weights():
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
        """Train with a progress bar, logging and saving on the way; a signal ends it early."""
        updates, began, before = self.args.updates, time.perf_counter(), self.agent.update
        with progress_bar(self.console) as progress:
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
                terminated = self._asked_to_end()
                due = update % self.args.checkpoint_every == 0 and update < updates
                # Weights from which no step can be made are not worth a checkpoint.
                if (due and not self.agent.skipped) or terminated:
                    folder = self.folder / "checkpoints"
                    self.agent.save(folder / f"update_{update:06d}")
                    if self.world.is_main:
                        keep_latest(folder)
                if terminated:
                    self.console.print(f"terminated after update {update}; --resume goes on there")
                    raise SystemExit(128 + terminated)

            self.agent.learn(updates, on_update)

    def _warn(self, metrics: dict[str, float]) -> None:
        """Say when a step was not applied, and once when over 5 % of the answers are cut off."""
        if not math.isfinite(metrics.get("train/grad_norm", 0.0)):
            self.console.print(
                f"[yellow]update {self.agent.update}: steps whose gradients are not finite were "
                f"not applied[/yellow]"
            )
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
            self.log.write(update, metrics | {ELAPSED: time.perf_counter() - self._start})

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
        if self.log is not None and self.log.trackers:
            picture = self.folder / "answers.png"
            plot_answers(picture, (f"update {update}", self.core, greedy[-1]))
            self.log.show(update, "eval/answers", picture)
        return curve


def _write_evaluations(path: Path, found: Evaluations) -> None:
    """Keep all answers that were measured."""
    write_json(path, {kind: value.to_json() for kind, value in found.items()})


def _status(metrics: dict[str, float]) -> str:
    """How an update went, in at most 25 characters."""
    if "train/loss" in metrics:  # of behaviour cloning
        return f"loss per token {metrics['train/loss']:.3f}"
    return f"reward {metrics['rollout/reward']:.2f} IoU {metrics['rollout/iou']:.2f}"
