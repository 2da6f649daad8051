"""The paper's recipe, from nothing: pre-train on annotated pictures, fine-tune, reinforce.

    annotate → pre-train → SFT → RL → one report

Scenes stand in for the web, with labels as wrong as models make them; SFT and RL see other scenes,
with the truth. Every stage is one of this project's scripts, in a folder of its own below
``--output-dir``; the report has its command, so each can be repeated, or replaced, by hand.

    python experiments/run_pipeline.py
    python experiments/run_pipeline.py --skip annotate pretrain --output-dir runs/without
    python experiments/run_pipeline.py --sft="--updates 1600 --scenes 20000" --rl="--updates 400"
    python experiments/run_pipeline.py --data /data/annotated

Run it again to go on after an interruption: finished stages stay, the one that was cut off goes on
from its last checkpoint to the same numbers. docs/stages.md tells what came of it.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import tyro
from rich.console import Console

from experiments import annotate, run_bc, run_gspo
from experiments.common.command import brief_errors
from experiments.common.logs import write_json
from experiments.pipeline_report import print_scores, write_report
from experiments.pipeline_steps import Stage, Step

STAGES: tuple[Stage, ...] = get_args(Stage)

WEB_NOISE = ("--box-jitter", "0.1", "--mask-fray", "2", "--wrong-expressions", "0.1")
"""How wrong the labels of web pictures are."""
SCENES = "4000"
"""Pictures to pre-train on, and as many others for fine-tuning."""
CLONING = (
    *("--updates", "700", "--cloning.batch-size", "24"),
    *("--evaluation.every", "100", "--checkpoint-every", "100"),
)
DEFAULTS: dict[Stage, tuple[str, ...]] = {
    # Seed 1: scenes of seed 0 are those that the other stages learn from.
    "annotate": ("--scenes", SCENES, "--seed", "1", *WEB_NOISE),
    "pretrain": CLONING,
    "sft": (*CLONING, "--scenes", SCENES),
    "rl": ("--updates", "80", "--evaluation.every", "20", "--checkpoint-every", "20"),
}
"""Options of the stages where the command line has no others."""
# As many updates of points and boxes as the shipped policy had: what is asked for outlines before
# it finds objects stays blind.
BLIND = ("--cloning.points-until", "0.27", "--cloning.boxes-until", "0.46")
"""Curriculum of a policy that starts from nothing."""
SEEING = ("--cloning.points-until", "0", "--cloning.boxes-until", "0")
"""A policy that finds objects already needs none."""


@dataclass
class Args:
    """The paper's recipe, from nothing: pre-train on annotated pictures, fine-tune, reinforce."""

    stages: tuple[Stage, ...] = STAGES
    """What to do, whatever the order it is named in."""
    skip: tuple[Stage, ...] = ()
    """Stages to leave out: the next one starts from what was made before."""
    annotate: str = ""
    """Options of experiments/annotate.py, in one word: ``--annotate="--scenes 2000"``."""
    pretrain: str = ""
    """Options of experiments/run_bc.py for pre-training, in one word."""
    sft: str = ""
    """Options of experiments/run_bc.py for fine-tuning, in one word."""
    rl: str = ""
    """Options of experiments/run_gspo.py, in one word."""
    data: str | None = None
    """Annotated pictures to pre-train on, a folder of experiments/annotate.py, or a .jsonl or
    .parquet file; nothing is annotated then."""
    policy: str | None = None
    """What the first trained stage starts from: ``embedded``, a transformers folder, a hub id. By
    default what an earlier stage left in the folder, and without that random weights, or the
    embedded policy where RL is the only stage."""
    difficulty: Literal["easy", "medium", "hard"] = "easy"
    """Of all scenes."""
    split: str = "test"
    """Split of the held-out scenes that every stage is measured on."""
    questions: int = 512
    """Held-out scenes after every stage; the first ones of the split."""
    seed: int = 0
    """Seed of initial weights, batches and sampling; annotated pictures have one of their own."""
    output_dir: Path = Path("runs/pipeline")
    """Folder of the report, and of a folder for each stage."""


def main(args: Args) -> dict[str, Any]:
    """Make the stages that are missing; returns what ``scores.json`` holds."""
    console = Console()
    steps = plan_steps(args)
    parsed = [parse(step) for step in steps]  # a misspelt option is found before the first stage
    for step, settings in zip(steps, parsed, strict=True):
        record_command(args.output_dir, step)
        if step.finished:
            console.print(f"{step.stage}: finished before, {step.folder}")
            continue
        console.rule(f"{step.stage}: {step.folder}")
        if isinstance(settings, annotate.Args):
            annotate.main(settings, step.words)
        elif isinstance(settings, run_bc.Args):
            run_bc.main(settings)
        else:
            run_gspo.main(settings)
    scores = write_report(args.output_dir, steps, args.split, args.difficulty, args.seed)
    print_scores(scores, console)
    console.print(f"report: {args.output_dir / 'report.md'}")
    return scores


def plan_steps(args: Args) -> list[Step]:
    """The stages that the arguments ask for, in order, each starting from the one before.

    Raises:
        ValueError: Nothing is asked for, there are no pictures to pre-train on, or there are and
            nothing is pre-trained.
    """
    wanted = [stage for stage in STAGES if stage in args.stages and stage not in args.skip]
    records = args.output_dir / "annotate"
    if args.data is not None:
        if "pretrain" not in wanted:
            raise ValueError(
                f"--data {args.data} is what pre-training learns from, and it is left out; SFT "
                f"takes it by --sft='--data {args.data}'"
            )
        wanted = [stage for stage in wanted if stage != "annotate"]
    elif (
        "pretrain" in wanted and "annotate" not in wanted and not (records / "report.json").exists()
    ):
        raise ValueError(
            f"pre-training without annotating needs pictures: --data FOLDER, or those of {records}"
        )
    if not wanted:
        raise ValueError(
            f"no stage is left of --stages {' '.join(args.stages)} without {' '.join(args.skip)}"
        )
    steps, policy = [], args.policy
    for stage in STAGES:
        folder = args.output_dir / stage
        if stage not in wanted:
            before = Step(stage, (), folder)
            if args.policy is None and before.trains and before.finished:
                policy = str(folder / "policy")
            continue
        given: str = getattr(args, stage)
        words = [*DEFAULTS[stage], *shared_words(args, stage, args.data or str(records), policy)]
        words += [*shlex.split(given), "--output-dir", str(folder)]
        steps.append(Step(stage, tuple(words), folder))
        if stage != "annotate":
            policy = str(folder / "policy")
    return steps


def shared_words(args: Args, stage: Stage, data: str, policy: str | None) -> list[str]:
    """Options of a stage that follow from those of the whole and from the stages before."""
    words = ["--difficulty", args.difficulty]
    if stage == "annotate":
        return words
    words += ["--seed", str(args.seed)]
    words += ["--evaluation.split", args.split]
    words += ["--evaluation.questions", str(args.questions)]
    words += ["--data", data] if stage == "pretrain" else []
    words += ["--policy", policy] if policy is not None else []
    if stage != "rl":
        words += BLIND if policy is None else SEEING
    return words


def parse(step: Step) -> annotate.Args | run_bc.Args | run_gspo.Args:
    """Settings of a stage's script; trained stages go on where they were cut off.

    Raises:
        SystemExit: An option is not one of the script's; it is named on the error output.
    """
    if step.stage == "annotate":
        return tyro.cli(annotate.Args, args=step.words, prog="--annotate")
    if step.stage == "rl":
        settings = tyro.cli(run_gspo.Args, args=step.words, prog="--rl")
        settings.resume = True
        return settings
    cloning = tyro.cli(run_bc.Args, args=step.words, prog=f"--{step.stage}")
    cloning.resume = True
    return cloning


def record_command(folder: Path, step: Step) -> None:
    """Keep the options that a stage was started with.

    Raises:
        ValueError: It was started with others before, and something came of it.
    """
    path = folder / "commands.json"
    known: dict[str, list[str]] = json.loads(path.read_text()) if path.exists() else {}
    before = known.get(step.stage, list(step.words))
    begun = step.folder.exists() and any(step.folder.iterdir())
    if begun and before != list(step.words):
        raise ValueError(
            f"stage {step.stage} of {folder} was started with other options: {shlex.join(before)}, "
            f"now {shlex.join(step.words)}; go on with the same ones, remove {step.folder} to "
            f"start the stage anew, or use another --output-dir"
        )
    write_json(path, known | {step.stage: list(step.words)})


if __name__ == "__main__":
    with brief_errors():
        main(tyro.cli(Args, description=__doc__))
