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
from agents.checkpoints import latest_checkpoint, write_policy
from experiments.evaluation import Evaluation
from experiments.files import write_atomically, write_json
from experiments.launch import TERMINATED, Termination
from experiments.progress import progress_bar
from experiments.questions import open_rules
from experiments.reporting import (
    Evaluations,
    markdown_table,
    plot_before_after,
    plot_learning,
    rich_table,
    scores_of,
)
from experiments.reporting_turns import report_turns
from experiments.runs import RunLog, keep_latest, read_metrics, start_run
from experiments.together import play_together


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
    evaluation: EvaluationPlan
    checkpoint_every: int
    seed: int
    output_dir: Path
    resume: bool

    def environment(self) -> dict[str, Any]:
        """Arguments of the environment."""


class Run:
    """One run of an agent: its folder, its held-out questions and its progress bar."""

    def __init__(self, agent: Agent, args: RunArgs, console: Console) -> None:
        """Open or resume the run and measure the policy that training starts from."""
        self.agent, self.args, self.console = agent, args, console
        self.folder, self.world = args.output_dir, agent.world
        if self.world.is_main:
            start_run(self.folder, args, resume=args.resume)
        plan = args.evaluation
        self.rules = open_rules(args.env, **{**args.environment(), "split": plan.split})
        self.core = self.rules.core
        self.turns = self.rules.turns
        self.questions = np.arange(min(plan.questions, len(self.core.dataset)))
        checkpoint = latest_checkpoint(self.folder / "checkpoints") if args.resume else None
        checkpoint = self.world.broadcast(checkpoint)
        self.before = self._first_evaluation(checkpoint is None)
        if checkpoint is not None:
            agent.load(checkpoint)
            console.print(f"resumed after update {agent.update}")
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
                progress.advance(task, count * self.world.size)

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
            max_new_tokens=self.agent.max_new_tokens,
            seed=self.args.seed,
            on_batch=on_batch,
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
    agent: Agent, args: RunArgs, *, title: str, console: Console
) -> dict[str, Any]:
    """Evaluate, train, evaluate again, and write the report.

    Returns:
        What ``scores.json`` holds.
    """
    start = time.perf_counter()
    run = Run(agent, args, console)
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
    scores = scores_of(run.before, after) | {
        "dataset": run.core.dataset.name,
        "split": run.core.dataset.split,
        "updates": agent.update,
        "seed": args.seed,
        "minutes": (time.perf_counter() - start) / 60,
    }
    if agent.world.is_main:
        _write_report(run, after, scores, title)
    console.print(
        rich_table(scores, f"{title} on {run.core.dataset.name} ({args.updates} updates)")
    )
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

{markdown_table(scores)}

![Learning curve](learning_curve.png)

The target, the answer before and the answer after, on the first held-out questions:

![Before and after](before_after.png)
"""


def _status(metrics: dict[str, float]) -> str:
    if "train/loss" in metrics:  # of behaviour cloning
        return f"loss per token {metrics['train/loss']:.3f}"
    clipped = metrics.get("train/clip_fraction", float("nan"))
    return (
        f"reward {metrics['rollout/reward']:.3f}  IoU {metrics['rollout/iou']:.3f}  "
        f"clipped {clipped:.2f}"
    )
