"""Warm start: teach a tiny policy from nothing to outline procedural scenes, by behaviour cloning.

The policy that is shipped was made by this script with its defaults (docs/learning.md tells how it
was chosen). It leaves out of the paper's recipe: the mixture of answer sentences and real photos.

    python experiments/run_bc.py --output-dir runs/bc

It also learns from annotated pictures, and goes on from a policy (docs/stages.md):

    python experiments/run_bc.py --data runs/annotate --output-dir runs/web
    python experiments/run_bc.py --policy runs/web/policy --cloning.points-until 0
        --cloning.boxes-until 0 --output-dir runs/sft

With several ranks each of them has its share of the pictures:

    torchrun --nproc_per_node 8 experiments/run_bc.py --deepspeed zero2

Tasks that give a place, and questions about objects that are not there:

    python experiments/run_bc.py --task "text->mask=0.6 point->mask=0.2 bbox->mask=0.2"
        --negatives 0.1

Large policies, on the data of any environment, are taught through TRL's SFTTrainer:

    python experiments/run_bc.py --backend trl --help
    python experiments/run_bc.py --backend trl --policy FOLDER --env SimpleSeg-RefCOCO-v0
"""

from __future__ import annotations

import time
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console

from agents.behavior_cloning import BehaviorCloning, BehaviorCloningConfig
from agents.demonstrations import Demonstration
from agents.embedded.tiny import PLACE_WORDS, TinyConfig, build_model, build_processor
from agents.policy.loading import policy_frame
from agents.policy.model import VLMPolicy
from agents.training.checkpoints import latest_checkpoint, write_policy
from agents.training.distributed import World
from experiments.common.before_training import require_vision
from experiments.common.brief import brief_errors
from experiments.common.cloning_data import (
    Pictures,
    RecordedPictures,
    demonstrate_pictures,
    workers_of,
)
from experiments.common.files import write_json
from experiments.common.launch import (
    TERMINATED,
    Termination,
    command_words,
    fit_to_deepspeed,
    launched,
)
from experiments.common.logs import RunLog, keep_latest, read_metrics, start_run
from experiments.common.policies import SHIPPED, PrecisionChoice, choose_precision, open_policy
from experiments.common.progress import progress_bar
from experiments.common.report import plot_cloning
from experiments.evaluation.loop import open_questions
from experiments.evaluation.together import evaluate_together
from seg_env.data.scenes import Scenes
from seg_env.envs.core import ReferringCore
from seg_env.envs.left_out import LeftOut
from seg_env.frames import AUTO, AnswerFrame
from seg_env.tasks import TEXT_TASKS, query_of
from seg_env.tasks.mixture import TaskMixture
from seg_env.tasks.queries import QueryStyle


@dataclass
class Args:
    """Teach a tiny policy from nothing to outline procedural scenes."""

    updates: int = 1600
    """Optimizer steps."""
    cloning: BehaviorCloningConfig = field(
        default_factory=lambda: BehaviorCloningConfig(final_rate=0.4)
    )
    """Settings of behaviour cloning. The rate ends high: reinforcement learning goes on from here,
    and weights cooled down to the last nuance of the loss forget it at the first steps."""
    model: TinyConfig = field(default_factory=TinyConfig)
    """Shape of the policy."""
    policy: str | None = None
    """What to start from in place of random weights: ``embedded``, ``embedded-tasks``, a
    transformers folder, or a hub id; of the kind of the shipped policies, whose prompts all have
    one length up to the picture's end."""
    frame: str = AUTO
    """What the numbers that the policy writes mean: auto (what the folder of ``--policy`` records,
    else what its family writes; unit for a new one), unit, permille, pixels, qwen2.5-vl, florence,
    paligemma, pixel:WxH, or a model type. It is taught and measured in this frame, and
    records it."""
    vision_check: bool = True
    """Refuse to train a ``--policy`` that images do not reach; not asked of the shipped ones."""
    on_error: Literal["skip", "error"] = "skip"
    """Pictures that are broken or that the processor refuses: left out and counted, or an error."""
    data: str | None = None
    """Annotated pictures to learn from in place of scenes: a folder of experiments/annotate.py, or
    a .jsonl or .parquet file."""
    difficulty: str = "easy"
    """Scenes to learn from and to be measured on: easy, medium, hard."""
    scenes: int = 20_000
    """Training scenes; every object of each is asked about. With --data: most pictures used."""
    negatives: float = 0.0
    """Share of the scenes in which an object is asked for that is not there."""
    task: str | None = None
    """What is asked once the policy knows where things are, in the place of outlines, boxes and
    points by expression: a task, or several with weights."""
    queries: QueryStyle = field(default_factory=QueryStyle)
    """How the places that such questions give are drawn and written."""
    epsilon: float = 0.01
    """Douglas-Peucker tolerance of the outlines taught, as a share of the perimeter."""
    decimals: int = 2
    """Digits of coordinates; a step is 1.3 pixels of a 128-pixel scene."""
    precision: PrecisionChoice = "auto"
    """float32, bfloat16 under autocast, or auto: bfloat16 where the hardware has it."""
    deepspeed: str | None = None
    """Share out what it takes to train among the ranks: zero1, zero2, zero3, or the path of a
    DeepSpeed configuration (JSON). By default every rank has all of it."""
    evaluate_every: int = 250
    """Updates between evaluations on held-out scenes; 0 for none but the last."""
    evaluation_scenes: int = 128
    """Held-out scenes of those evaluations."""
    evaluation_split: str = "val"
    """Split that the held-out scenes are of."""
    evaluation_questions: int = 512
    """Held-out scenes of the last evaluation."""
    checkpoint_every: int = 250
    """Updates between checkpoints; the last two are kept."""
    seed: int = 0
    """Seed of the initial weights and of batches."""
    output_dir: Path = Path("runs/bc")
    """Folder of the run; the policy is written to ``policy/`` in it."""
    resume: bool = False
    """Go on from the last checkpoint in the folder, to the same numbers."""


def main(args: Args) -> dict[str, Any]:
    """Run the job; returns what ``scores.json`` holds."""
    start = time.perf_counter()
    with launched(args.deepspeed) as (world, console):
        args.cloning = fit_to_deepspeed(args.cloning, args.deepspeed, console)
        args.cloning.seed = args.seed
        set_tasks(args)
        policy, pictures = build_policy(args, console), open_pictures(args)
        core = held_out(args, policy.answer_frame)
        others = args.policy is not None and args.policy not in SHIPPED
        if args.vision_check and others and not args.resume:
            require_vision(policy, core, console)
        # Only now, so that a wrong option leaves no folder behind that the right one is refused.
        if world.is_main:
            start_run(args.output_dir, args, resume=args.resume)
        console.print(f"{policy.model.num_parameters() / 1e6:.2f} M parameters")
        left_out = LeftOut(args.on_error)
        demonstrations = build_demonstrations(
            args, pictures, world, console, policy.answer_frame, left_out
        )
        agent = BehaviorCloning(policy, demonstrations, args.cloning)
        agent.left_out = left_out
        checkpoint = latest_checkpoint(args.output_dir / "checkpoints") if args.resume else None
        if (checkpoint := world.broadcast(checkpoint)) is not None:
            agent.load(checkpoint)
        train(agent, args, console)
        with agent.whole_weights():
            write_policy(args.output_dir / "policy", policy, world)
        return report(agent, args, console, (time.perf_counter() - start) / 60)


def set_tasks(args: Args) -> None:
    """Let the curriculum end in the tasks asked for, and the tokenizer know their words."""
    if args.task is None:
        return
    tasks = TaskMixture.from_spec(args.task)
    args.cloning.tasks = str(tasks)
    if any(query_of(task) != "text" for task in tasks.tasks):
        words = dict.fromkeys((*args.model.more_words, *PLACE_WORDS))
        args.model = replace(args.model, more_words=tuple(words))


def build_policy(args: Args, console: Console) -> VLMPolicy:
    """The policy to start from; random weights follow from the seed."""
    if args.policy is not None:
        policy = open_policy(args.policy, args.precision, frame=args.frame, console=console)
    else:
        torch.manual_seed(args.seed)
        processor = build_processor(args.model)
        model = build_model(args.model, processor)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        policy = VLMPolicy(
            model,
            processor,
            precision=choose_precision(args.precision),
            answer_frame=policy_frame(args.frame, model, processor, "a new policy"),
        )
    if policy.device.type == "cpu":
        # Its backward is twice as fast at these lengths.
        policy.model.set_attn_implementation("eager")
    return policy


def open_pictures(args: Args) -> Pictures:
    """What there is to learn from.

    Raises:
        ValueError: There are fewer pictures than a batch has.
    """
    pictures: Pictures = Scenes(
        "train",
        args.difficulty,  # type: ignore[arg-type]
        length=args.scenes,
        negatives=args.negatives,
    )
    if args.data is not None:
        pictures = RecordedPictures(args.data, args.scenes)
    check_enough(args, len(pictures))
    return pictures


def check_enough(args: Args, pictures: int) -> None:
    """Refuse to train on fewer pictures than a batch has.

    Raises:
        ValueError: So it is.
    """
    if pictures < args.cloning.batch_size:
        raise ValueError(
            f"{args.data or 'the scenes'} have {pictures} pictures to learn from, fewer than a "
            f"batch of {args.cloning.batch_size}: give more, or a smaller --cloning.batch-size"
        )


def build_demonstrations(
    args: Args,
    pictures: Pictures,
    world: World,
    console: Console,
    frame: AnswerFrame,
    left_out: LeftOut,
) -> list[Demonstration]:
    """Read the pictures and write their questions and answers, on all cores.

    Every rank has all of them, as it does not know which it will be asked for.

    Raises:
        ValueError: Fewer pictures than a batch has show an object.
    """
    found = demonstrate_pictures(
        pictures,
        args.policy,
        args.model,
        tasks=TEXT_TASKS if args.task is None else args.cloning.demonstrated,
        queries=args.queries,
        epsilon=args.epsilon,
        decimals=args.decimals,
        workers=workers_of(world.size),
        console=console,
        frame=frame,
        left_out=left_out,
    )
    check_enough(args, len(found))
    return found


def train(agent: BehaviorCloning, args: Args, console: Console) -> None:
    """Train with a progress bar, measuring and saving on the way.

    Raises:
        SystemExit: A rank was asked to end (SIGTERM); a checkpoint has been written.
    """
    log = RunLog(args.output_dir, start=agent.update) if agent.world.is_main else None
    core = held_out(args, agent.policy.answer_frame)
    with progress_bar(console) as progress, Termination(agent.world) as termination:
        task = progress.add_task("cloning", total=args.updates, completed=agent.update, status="")

        def on_update(update: int, metrics: dict[str, float]) -> None:
            if args.evaluate_every and update % args.evaluate_every == 0:
                found = evaluate_together(agent, core, np.arange(args.evaluation_scenes))
                metrics["eval/greedy_giou"] = float(found.iou.mean())
                metrics["eval/well_formed"] = float(found.valid.mean())
                greedy = metrics["eval/greedy_giou"]
                console.print(
                    f"update {update}: loss {metrics['train/loss']:.3f}, gIoU {greedy:.3f}"
                )
            if log is not None:
                log.write(update, metrics)
            progress.update(
                task, completed=update, status=f"loss per token {metrics['train/loss']:.3f}"
            )
            terminated = termination.agreed()
            if terminated or update % args.checkpoint_every == 0:
                save(agent, args.output_dir / "checkpoints")
            if terminated:
                console.print(f"terminated after update {update}; --resume goes on there")
                raise SystemExit(TERMINATED)

        agent.learn(args.updates, on_update)
    if log is not None:
        log.close()


def held_out(args: Args, frame: AnswerFrame) -> ReferringCore:
    """The questions that the policy is measured on."""
    return open_questions(
        "SimpleSeg-Scenes-v0",
        split=args.evaluation_split,
        difficulty=args.difficulty,
        frame=frame,
    )


def save(agent: BehaviorCloning, folder: Path) -> None:
    """Write a checkpoint and remove the oldest beyond those kept."""
    agent.save(folder / f"update_{agent.update:06d}")
    if agent.world.is_main:
        keep_latest(folder)


def report(agent: BehaviorCloning, args: Args, console: Console, minutes: float) -> dict[str, Any]:
    """Measure the finished policy on held-out scenes and write scores and curve."""
    frame = agent.policy.answer_frame
    core = held_out(args, frame)
    questions = np.arange(args.evaluation_questions)
    scores: dict[str, Any] = {
        "greedy": evaluate_together(agent, core, questions).summary(),
        "sampled": evaluate_together(agent, core, questions, temperature=1.0, answers=4).summary(),
        "updates": args.updates,
        "seed": args.seed,
        "minutes": minutes,
        "frame": frame.description,
        "left_out": agent.left_out.reasons,
    }
    if agent.left_out:
        console.print(f"[yellow]{agent.left_out.summary()}[/yellow]", soft_wrap=True)
    if args.task is not None:
        scores["tasks"] = {
            task: evaluate_together(agent, _questions(args, task, frame), questions).fit_score()
            for task in TaskMixture.from_spec(args.task).tasks
        }
    if agent.world.is_main:
        write_json(args.output_dir / "scores.json", scores)
        plot_cloning(read_metrics(args.output_dir), args.output_dir / "learning_curve.png")
    for kind in ("greedy", "sampled"):
        found = scores[kind]
        console.print(
            f"{kind}: gIoU {found['giou']:.3f} {found['giou_interval']}, "
            f"well-formed {found['well_formed']:.3f}"
        )
    for task, found in scores.get("tasks", {}).items():
        console.print(f"{task}: {found['score']:.3f} {found['interval']}", highlight=False)
    console.print(f"{minutes:.1f} minutes, policy in {args.output_dir / 'policy'}")
    return scores


def _questions(args: Args, task: str, frame: AnswerFrame) -> ReferringCore:
    """Held-out questions of one task."""
    return open_questions(
        "SimpleSeg-Scenes-v0",
        split=args.evaluation_split,
        difficulty=args.difficulty,
        negatives=args.negatives,
        task=task,
        queries=asdict(args.queries),
        frame=frame,
    )


def command_line(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the backend that the command line names, with the rest of its words.

    Args:
        words: What is read instead of the command line.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--backend", choices=("plain", "trl"), default="plain")
    chosen, rest = parser.parse_known_args(command_words(words))
    if chosen.backend == "trl":
        from experiments import run_bc_trl

        return run_bc_trl.main(tyro.cli(run_bc_trl.Args, args=rest, description=run_bc_trl.__doc__))
    return main(tyro.cli(Args, args=rest, description=__doc__))


if __name__ == "__main__":
    with brief_errors():
        command_line()
