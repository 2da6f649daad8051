"""The one loop around all that train: evaluate, train, checkpoint, resume, report.

With several ranks all of them call the functions here; the main one writes files.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from agents.base import Agent
from agents.behavior_cloning import BehaviorCloning
from agents.on_policy import OnPolicyAgent
from agents.policy.model import VLMPolicy
from agents.settings import OnPolicyConfig
from agents.training.checkpoints import latest_checkpoint, write_policy
from agents.training.distributed import World
from experiments.common.arguments import RunArguments, TrainingArguments
from experiments.common.command import opening, typed_command
from experiments.common.launch import TERMINATED, fit_to_deepspeed, launched, termination
from experiments.common.logs import (
    RunLog,
    clock,
    keep_latest,
    progress_bar,
    read_metrics,
    start_run,
    write_atomically,
    write_json,
)
from experiments.common.policies import (
    SHIPPED,
    AnswerLength,
    constrain,
    longest_answer,
    require_vision,
)
from experiments.common.report import (
    CRITIC_PANELS,
    HEADINGS,
    LEARNING_PANELS,
    Evaluations,
    plot_answers,
    plot_curves,
    report_turns,
    scores_of,
    table_rows,
)
from experiments.common.tables import markdown_table, terminal_table
from experiments.evaluation.loop import Evaluation, evaluate_turns
from seg_env.envs.left_out import LeftOut
from seg_env.envs.referring import open_rules

PACKAGES = ("simpleseg-rl", "torch", "transformers", "trl", "deepspeed", "gymnasium", "numpy")
"""Installed packages that decide about the numbers, whose versions reports name."""


def train_on_policy(
    args: TrainingArguments, name: str, agent_type: Callable[..., OnPolicyAgent], title: str
) -> dict[str, Any]:
    """Open what the command line names, train an on-policy agent on it, and report.

    ``name`` is that of the agent's settings among the arguments. Returns the scores.
    """
    with launched(args.deepspeed) as (world, console):
        with opening():
            config: OnPolicyConfig = getattr(args, name)
            config.seed = args.seed
            fit_to_deepspeed(config, args.deepspeed, console)
            policy = args.open_policy(console)
            envs = args.open_environment(config, world, policy.answer_frame)
            length = args.answer_length(config.max_new_tokens)
            longest = longest_answer(length, policy, envs.core, console)
            config.max_new_tokens = longest
            frame = envs.core.answer_frame
            constrain(policy, args.policy, args.grammar, longest, frame, console)
        run = Run(args, policy, console, world, length)
        with opening():
            agent = agent_type(policy, envs, config, on_error=args.on_error)
        return run.train(agent, title, learned_from=f"{envs.core.dataset.name} ({args.split})")


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
        """Open the held-out questions and make sure that the policy sees.

        Args:
            args: The command line.
            policy: The one that training starts from.
            console: Where progress is shown.
            world: The ranks that measure and save together, or a process of TRL's by itself, of
                which only the first one measures and saves.
            length: Most tokens of measured answers; ``"auto"`` measures the held-out questions.

        Raises:
            BlindPolicyError: Images do not reach the model.
        """
        self.args, self.console, self.world = args, console, world
        self.folder, self.leads = args.output_dir, world.is_main or world.size > 1
        held_out = {"split": args.evaluation.split, "frame": policy.answer_frame}
        with opening():
            self.core = open_rules(args.env, **args.environment() | held_out)
        self.questions = np.arange(min(args.evaluation.questions, len(self.core.dataset)))
        self.left_out = LeftOut(args.on_error)
        self.log: RunLog | None = None
        self.max_new_tokens = 0
        self._vision: dict[str, Any] = {}
        self._warned = self._claimed = False
        self._start = time.perf_counter()
        if self.leads:
            self.max_new_tokens = longest_answer(length, policy, self.core, console)
            shipped = args.policy is None or args.policy in SHIPPED
            if args.vision_check and not shipped and not args.resume:
                self._vision = require_vision(policy, self.core, console)

    def claim_folder(self) -> None:
        """Make the folder of the run, or find it as it was left; `train` does so at the latest.

        Call it once all options are known to be right: a refused run must not leave a folder that
        the next try finds taken.
        """
        if self._claimed or not self.world.is_main:
            return
        self._claimed = True
        start_run(self.folder, self.args, resume=self.args.resume)
        if self._vision:
            write_json(self.folder / "vision.json", self._vision)

    def train(
        self,
        agent: Agent,
        title: str,
        *,
        learned_from: str,
        save_policy: Callable[[Path], None] | None = None,
        more_scores: Callable[[], dict[str, Any]] = dict,
    ) -> dict[str, Any]:
        """Evaluate, train, evaluate again, and write the report.

        Args:
            agent: Who learns.
            title: Of the report.
            learned_from: The data, for the report.
            save_policy: Writes the finished policy; by default it is written from memory.
            more_scores: Measures what else ``scores.json`` holds.

        Returns:
            What ``scores.json`` holds; nothing in a process that does not lead.
        """
        self.agent = agent
        self.claim_folder()
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
            **more_scores(),
        }
        if self.world.is_main:
            self._write_report(before, after, scores, title, learned_from)
        self._tell(scores, title)
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
                        f"{curve['eval/greedy_giou']:.3f} (greedy); {clock(elapsed)} elapsed, "
                        f"{clock(left)} left",
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
            self.console.print(
                f"[yellow]{share:.0%} of the answers of a rollout were cut off at "
                f"{self.agent.max_new_tokens} tokens; such answers earn little, whatever they "
                f"outline. If honest answers are longer, give a larger --max-new-tokens[/yellow]",
                highlight=False,
                soft_wrap=True,
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

    def _write_report(
        self,
        before: Evaluations,
        after: Evaluations,
        scores: dict[str, Any],
        title: str,
        learned_from: str,
    ) -> None:
        """Scores, curves, images and text of a finished run."""
        write_json(self.folder / "scores.json", scores)
        metrics = read_metrics(self.folder)
        plot_curves(metrics, LEARNING_PANELS, self.folder / "learning_curve.png")
        text = f"# {title}: {scores['updates']} updates, seed {scores['seed']}\n"
        if before:
            text += _measured(scores)
        text += "\n![Learning curve](learning_curve.png)\n"
        if before:
            plot_answers(
                self.folder / "before_after.png",
                ("before", self.core, before["greedy"]),
                ("after", self.core, after["greedy"]),
            )
            text += (
                "\nThe target, the answer before and the answer after, on the first held-out "
                "questions:\n\n![Before and after](before_after.png)\n"
            )
        if before and self.core.turns > 1:
            text += report_turns(self.core, after, self.folder)
        if any("train/value_loss" in row for row in metrics):
            plot_curves(metrics, CRITIC_PANELS, self.folder / "training_curves.png")
            text += (
                "\nThe critic (what it foresees of the rewards), the distance to the policy that "
                "sampled and to the one\nthat training started from, and what is clipped:\n\n"
                "![Training curves](training_curves.png)\n"
            )
        text += self._origin(scores, learned_from)
        write_atomically(self.folder / "report.md", text)

    def _origin(self, scores: dict[str, Any], learned_from: str) -> str:
        """The part of the report that says how the run was made."""
        cloned = isinstance(self.agent, BehaviorCloning)
        rewards = () if cloned else getattr(self.args, "rewards", ())
        versions = []
        for name in PACKAGES:
            with suppress(PackageNotFoundError):
                versions.append(f"{name} {version(name)}")
        lines = {
            "Command": f"`{typed_command()}`",
            "Policy": f"`{self.args.policy or 'new'}`, "
            f"{self.agent.policy.model.num_parameters() / 1e6:.2f} M parameters",
            "Frame of the numbers": scores["frame"],
            "Learned from": learned_from,
            "Measured on": f"{scores['dataset']} ({scores['split']})",
            "Rewards": f"`{' '.join(rewards)}`" if rewards else "none: answers are demonstrated",
            "Versions": ", ".join([f"Python {platform.python_version()}", *versions]),
            "Time": f"{scores['minutes']:.1f} minutes",
        }
        rows = "".join(f"- {name}: {value}\n" for name, value in lines.items())
        return "\nHow this was made:\n\n" + rows

    def _tell(self, scores: dict[str, Any], title: str) -> None:
        """Print what came of the run."""
        if "after" in scores:
            name = f"{title} on {self.core.dataset.name} ({self.args.updates} updates)"
            self.console.print(terminal_table(HEADINGS, table_rows(scores), title=name))
        for line in _left_out_lines(scores):
            self.console.print(f"[yellow]{line}[/yellow]", highlight=False, soft_wrap=True)
        self.console.print(
            f"report: {self.folder / 'report.md'}  ({scores['minutes']:.1f} minutes)"
        )


def _measured(scores: dict[str, Any]) -> str:
    """The part of the report that has the scores."""
    lines = [
        "",
        f"{scores['before']['questions']} held-out questions of `{scores['dataset']}` "
        f"({scores['split']});",
        f"sampled answers: {scores['before']['sampled']['answers_per_question']} each, at "
        "temperature 1.",
        "An empty union counts as IoU 1.",
        *_left_out_lines(scores),
        "",
        markdown_table(HEADINGS, table_rows(scores)),
    ]
    if "tasks" in scores:
        lines += ["", "How well answers fit what every task asks for, after training:", ""]
    for task, found in scores.get("tasks", {}).items():
        low, high = found["interval"]
        lines.append(f"- {task}: {100 * found['score']:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
    return "\n".join(lines) + "\n"


def _left_out_lines(scores: dict[str, Any]) -> list[str]:
    """What could not be asked about, when learning and when measuring."""
    lines = []
    for when, reasons in scores["left_out"].items():
        left_out = LeftOut()
        left_out.update(reasons)
        if left_out:
            lines.append(f"When {when}, {left_out.summary()}.")
    return lines


def _status(metrics: dict[str, float]) -> str:
    """How an update went, in at most 25 letters."""
    if "train/loss" in metrics:  # of behaviour cloning
        return f"loss per token {metrics['train/loss']:.3f}"
    return f"reward {metrics['rollout/reward']:.2f} IoU {metrics['rollout/iou']:.2f}"
