"""What every reinforcement-learning experiment does around an agent: evaluate, train, report.

With several ranks all of them call the functions here; the main one writes files.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console

from agents.base import Agent
from agents.training.checkpoints import latest_checkpoint, write_policy
from experiments.common.answer_length import AnswerLength, longest_answer
from experiments.common.before_training import require_vision
from experiments.common.files import write_atomically, write_json
from experiments.common.launch import TERMINATED, Termination
from experiments.common.logs import RunLog, keep_latest, read_metrics, start_run
from experiments.common.policies import SHIPPED
from experiments.common.progress import progress_bar
from experiments.common.report import (
    Evaluations,
    markdown_table,
    plot_before_after,
    plot_learning,
    rich_table,
    scores_of,
)
from experiments.common.report_turns import report_turns
from experiments.evaluation.loop import Evaluation, play_together
from seg_env.envs.left_out import LeftOut, OnError
from seg_env.envs.rules import open_rules

MOST_TRUNCATED = 0.05
"""Share of a rollout's answers that may be cut off without a warning."""


@dataclass
class EvaluationPlan:
    """What is measured on held-out questions."""

    split: str = "val"
    """Split to evaluate on."""
    questions: int = 512
    """Questions before and after; the first ones of the split."""
    answers: int = 4
    """Sampled answers per question, at temperature 1."""
    every: int = 25
    """Updates between the small evaluations of the learning curve; 0 for none."""
    curve_questions: int = 128
    """Questions of the small evaluations, one greedy and one sampled answer each."""


class RunArgs(Protocol):
    """What the loop needs to know of an experiment's arguments."""

    env: str
    updates: int
    policy: str
    vision_check: bool
    on_error: OnError
    evaluation: EvaluationPlan
    checkpoint_every: int
    seed: int
    output_dir: Path
    resume: bool

    def environment(self) -> dict[str, Any]:
        """Arguments of the environment."""


class Run:
    """One run of an agent: its folder, its held-out questions and its progress bar."""

    def __init__(
        self, agent: Agent, args: RunArgs, console: Console, length: AnswerLength | None = None
    ) -> None:
        """Open or resume the run and measure the policy that training starts from.

        Args:
            agent: Who learns.
            args: The command line.
            console: Where progress is shown.
            length: Tokens of the longest answer when the policy is measured, ``"auto"`` to find out
                on the held-out questions; by default the agent's.

        Raises:
            BlindPolicyError: Images do not reach the model.
        """
        self.agent, self.args, self.console = agent, args, console
        self.folder, self.world = args.output_dir, agent.world
        plan, policy = args.evaluation, agent.policy
        held_out = {**args.environment(), "split": plan.split, "frame": policy.answer_frame}
        self.rules = open_rules(args.env, **held_out)
        self.core = self.rules.core
        self.turns = self.rules.turns
        self.left_out = LeftOut(args.on_error)
        self.max_new_tokens = agent.max_new_tokens
        if length is not None:
            self.max_new_tokens = longest_answer(length, policy, self.core, console)
        vision: dict[str, Any] = {}
        if args.vision_check and args.policy not in SHIPPED and not args.resume:
            with agent.whole_weights():
                vision = require_vision(policy, self.core, console)
        # Only now, so that what was refused leaves no folder behind.
        if self.world.is_main:
            start_run(self.folder, args, resume=args.resume)
            if vision:
                write_json(self.folder / "vision.json", vision)
        self.questions = np.arange(min(plan.questions, len(self.core.dataset)))
        checkpoint = latest_checkpoint(self.folder / "checkpoints") if args.resume else None
        checkpoint = self.world.broadcast(checkpoint)
        self.before = self._first_evaluation(checkpoint is None)
        if checkpoint is not None:
            agent.load(checkpoint)
            console.print(f"resumed after update {agent.update}")
        self._warned = False
        self.log: RunLog | None = None
        if self.world.is_main:
            self.log = RunLog(self.folder, start=-1 if checkpoint is None else agent.update)
        if checkpoint is None and plan.every:
            self._write(0, self._curve(0))

    def _first_evaluation(self, fresh: bool) -> Evaluations:
        """Measure the policy that training starts from; kept, since a resumed run needs it too."""
        store = self.folder / "before.json"
        text = store.read_text() if not fresh and store.exists() else None
        if (text := self.world.broadcast(text)) is not None:
            stored = json.loads(text)
            return {kind: Evaluation.from_json(value) for kind, value in stored.items()}
        before = self.evaluate("before training")
        if self.world.is_main:
            write_json(store, {kind: value.to_json() for kind, value in before.items()})
        return before

    def evaluate(self, when: str) -> Evaluations:
        """Greedy and sampled answers to all held-out questions; of several turns the last counts.

        Then ``first`` and ``sampled_first`` are those of the first turn.
        """
        plan = self.args.evaluation
        with progress_bar(self.console) as progress:
            task = progress.add_task(f"evaluating {when}", total=2 * len(self.questions), status="")

            def advance(count: int) -> None:
                progress.advance(task, count)

            greedy = self._ask(self.questions, 0.0, 1, advance)
            sampled = self._ask(self.questions, 1.0, plan.answers, advance)
        found = {"greedy": greedy[-1], "sampled": sampled[-1]}
        first = {"first": greedy[0], "sampled_first": sampled[0]}
        return found | (first if self.turns > 1 else {})

    def _ask(
        self, questions: Any, temperature: float, answers: int, on_batch: Any = None
    ) -> list[Evaluation]:
        return play_together(
            self.agent,
            self.rules,
            questions,
            temperature=temperature,
            answers=answers,
            max_new_tokens=self.max_new_tokens,
            seed=self.args.seed,
            on_batch=on_batch,
            left_out=self.left_out,
        )

    def learn(self) -> None:
        """Train with a progress bar, logging and saving on the way.

        Raises:
            SystemExit: A rank was asked to end (SIGTERM); a checkpoint has been written.
        """
        with progress_bar(self.console) as progress, Termination(self.world) as termination:
            task = progress.add_task(
                "training", total=self.args.updates, completed=self.agent.update, status=""
            )

            def on_update(update: int, metrics: dict[str, float]) -> None:
                self._warn(metrics)
                self._write(update, metrics | self._curve(update))
                progress.update(task, completed=update, status=_status(metrics))
                terminated = termination.agreed()
                due = update % self.args.checkpoint_every == 0 and update < self.args.updates
                if due or terminated:
                    self.checkpoint(update)
                if terminated:
                    self.console.print(f"terminated after update {update}; --resume goes on there")
                    raise SystemExit(TERMINATED)

            self.agent.learn(self.args.updates, on_update)
        if self.log is not None:
            self.log.close()

    def _warn(self, metrics: dict[str, float]) -> None:
        """Say once when many answers of a rollout do not come to their end."""
        share = metrics.get("rollout/truncated", 0.0)
        if share > MOST_TRUNCATED and not self._warned:
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
        """The small evaluation of the learning curve, when one is due."""
        plan = self.args.evaluation
        if not plan.every or update % plan.every:
            return {}
        some = self.questions[: plan.curve_questions]
        greedy, sampled = self._ask(some, 0.0, 1), self._ask(some, 1.0, 1)
        curve = {
            "eval/greedy_giou": float(greedy[-1].iou.mean()),
            "eval/sampled_giou": float(sampled[-1].iou.mean()),
        }
        if self.turns > 1:
            curve["eval/first_giou"] = float(greedy[0].iou.mean())
        return curve

    def checkpoint(self, update: int) -> None:
        """Write a checkpoint and remove the oldest beyond those kept."""
        folder = self.folder / "checkpoints"
        self.agent.save(folder / f"update_{update:06d}")
        if self.world.is_main:
            keep_latest(folder)


def train_and_report(
    agent: Agent,
    args: RunArgs,
    *,
    title: str,
    console: Console,
    length: AnswerLength | None = None,
) -> dict[str, Any]:
    """Evaluate, train, evaluate again, and write the report; ``length`` is that of `Run`.

    Returns:
        What ``scores.json`` holds.
    """
    start = time.perf_counter()
    run = Run(agent, args, console, length)
    try:
        run.learn()
    except KeyboardInterrupt:
        console.print(
            f"interrupted after update {agent.update}; --resume goes on from a checkpoint"
        )
        raise SystemExit(130) from None
    after = run.evaluate("after training")
    with agent.whole_weights():
        write_policy(run.folder / "policy", agent.policy, agent.world)
    agent.gather_left_out()
    scores = scores_of(run.before, after) | {
        "dataset": run.core.dataset.name,
        "split": run.core.dataset.split,
        "updates": agent.update,
        "seed": args.seed,
        "minutes": (time.perf_counter() - start) / 60,
        "frame": agent.policy.answer_frame.description,
        "max_new_tokens": {"learning": agent.max_new_tokens, "measuring": run.max_new_tokens},
        "left_out": {"measuring": run.left_out.reasons, "learning": agent.left_out.reasons},
    }
    if agent.world.is_main:
        _write_report(run, after, scores, title)
    console.print(
        rich_table(scores, f"{title} on {run.core.dataset.name} ({args.updates} updates)")
    )
    for line in left_out_lines(scores):
        console.print(f"[yellow]{line}[/yellow]", highlight=False, soft_wrap=True)
    console.print(f"report: {run.folder / 'report.md'}  ({scores['minutes']:.1f} minutes)")
    return scores


def _write_report(run: Run, after: Evaluations, scores: dict[str, Any], title: str) -> None:
    """Scores, pictures and text of a finished run."""
    write_json(run.folder / "scores.json", scores)
    metrics = read_metrics(run.folder)
    plot_learning(metrics, run.folder / "learning_curve.png")
    plot_before_after(
        run.core, run.before["greedy"], after["greedy"], run.folder / "before_after.png"
    )
    turns = report_turns(run.core, after, run.folder) if run.turns > 1 else ""
    write_atomically(run.folder / "report.md", _report(title, scores) + turns)


def _report(title: str, scores: dict[str, Any]) -> str:
    return f"""# {title}: {scores["updates"]} updates, seed {scores["seed"]}

{scores["before"]["questions"]} held-out questions of `{scores["dataset"]}` ({scores["split"]});
sampled answers: {scores["before"]["sampled"]["answers_per_question"]} each, at temperature 1.
An empty union counts as IoU 1. {scores["minutes"]:.1f} minutes.
Frame of the numbers: {scores["frame"]}.
{"".join(line + chr(10) for line in left_out_lines(scores))}
{markdown_table(scores)}

![Learning curve](learning_curve.png)

The target, the answer before and the answer after, on the first held-out questions:

![Before and after](before_after.png)
"""


def left_out_lines(scores: dict[str, Any]) -> list[str]:
    """What could not be asked about, when learning and when measuring."""
    lines = []
    for when, reasons in scores["left_out"].items():
        left_out = LeftOut()
        left_out.update(reasons)
        if left_out:
            lines.append(f"When {when}, {left_out.summary()}.")
    return lines


def _status(metrics: dict[str, float]) -> str:
    if "train/loss" in metrics:  # of behaviour cloning
        return f"loss per token {metrics['train/loss']:.3f}"
    clipped = metrics.get("train/clip_fraction", float("nan"))
    return (
        f"reward {metrics['rollout/reward']:.3f}  IoU {metrics['rollout/iou']:.3f}  "
        f"clipped {clipped:.2f}"
    )
