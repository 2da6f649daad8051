"""The paper's recipe, from nothing: pre-train on annotated images, fine-tune, reinforce.

    annotate → pre-train → SFT → RL → one report

Scenes stand in for the web, with labels as wrong as models make them; SFT and RL see other scenes,
with the truth. Every stage is one of this project's scripts, in a folder of its own below
``--output-dir``, with a report of its own; the overall report links to them, and has the scores and
commands of the stages, so each can be repeated, or replaced, by hand.

    python experiments/run_pipeline.py
    python experiments/run_pipeline.py --skip annotate pretrain --output-dir runs/without
    python experiments/run_pipeline.py --sft="--updates 1600 --scenes 20000" --rl="--updates 400"
    python experiments/run_pipeline.py --data /data/annotated

Run it again to go on after an interruption: finished stages stay, the one that was cut off goes on
from its last checkpoint to the same numbers. docs/stages.md has results.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

import tyro
from rich.console import Console

from experiments.common.command import run_command
from experiments.common.comparison import SCORES, read_scores, with_interval
from experiments.common.logs import check_command, write_atomically, write_json
from experiments.common.tables import markdown_table, terminal_table
from seg_env.errors import WrongOptionError

Stage = Literal["annotate", "pretrain", "sft", "rl"]
StageOptions = tyro.conf.UseAppendAction[tuple[str, ...]]
STAGES: tuple[Stage, ...] = get_args(Stage)
SCRIPTS = {"annotate": "annotate", "pretrain": "run_bc", "sft": "run_bc", "rl": "run_gspo"}
SCENES = 4000
"""Images to pre-train on, and as many others for fine-tuning."""
CLONING = "--updates 700 --cloning.batch-size 24 --evaluation.every 100 --checkpoint-every 100"
DEFAULTS: dict[Stage, str] = {
    # Seed 1, as the other stages learn from scenes of seed 0; labels as wrong as those of the web.
    "annotate": f"--seed 1 --scenes {SCENES} "
    "--box-jitter 0.1 --mask-fray 2 --wrong-expressions 0.1",
    "pretrain": CLONING,
    "sft": f"{CLONING} --scenes {SCENES}",
    "rl": "--negatives 0 --updates 80 --evaluation.every 20 --checkpoint-every 20",
}
"""Default options of the stages; those of the command line come after them."""
HEADINGS = ("after", "updates", *(f"{title} [95 %]" for title, *_ in SCORES), "minutes")


@dataclass
class Args:
    """The paper's recipe, from nothing: pre-train on annotated images, fine-tune, reinforce."""

    stages: tuple[Stage, ...] = STAGES
    """Stages to run, named in any order."""
    skip: tuple[Stage, ...] = ()
    """Stages to leave out: the next one starts from what was made before."""
    annotate: StageOptions = ()
    """Options of experiments/annotate.py, as one argument: ``--annotate="--scenes 2000"``. As for
    every stage, options given again are added."""
    pretrain: StageOptions = ()
    """Options of experiments/run_bc.py for pre-training, as one argument."""
    sft: StageOptions = ()
    """Options of experiments/run_bc.py for fine-tuning, as one argument."""
    rl: StageOptions = ()
    """Options of experiments/run_gspo.py, as one argument."""
    data: str | None = None
    """Annotated images to pre-train on, a folder of experiments/annotate.py, or a .jsonl or
    .parquet file; nothing is annotated then."""
    policy: str | None = None
    """What the first trained stage starts from: ``embedded``, a transformers folder, a hub id. By
    default what an earlier stage left in the folder, else random weights, or the embedded policy
    where RL is the only stage."""
    difficulty: Literal["easy", "medium", "hard"] = "easy"
    """Of all scenes."""
    split: str = "test"
    """Split of the held-out scenes that every stage is measured on."""
    questions: int = 512
    """Held-out scenes after every stage; the first ones of the split."""
    seed: int = 0
    """Seed of initial weights, batches and sampling; annotated images have one of their own."""
    output_dir: Path = Path("runs/pipeline")
    """Folder of the report, and of a folder for each stage."""


@dataclass(frozen=True)
class Step:
    """One stage with its options."""

    stage: Stage
    words: tuple[str, ...]
    """Options of its script."""
    folder: Path

    @property
    def trains(self) -> bool:
        """Whether it trains a policy."""
        return self.stage != "annotate"

    @property
    def finished(self) -> bool:
        """Whether its report is there, which every script writes last."""
        return (self.folder / "report.md").exists()

    @property
    def script(self) -> Any:
        """Module of its script; importing it takes seconds, which ``--help`` does not need."""
        return import_module(f"experiments.{SCRIPTS[self.stage]}")


def main(args: Args) -> dict[str, Any]:
    """Make the stages that are missing; returns what ``scores.json`` holds."""
    console = Console()
    steps = plan_steps(args)
    parsed = [parse(step) for step in steps]  # a misspelt option is found before the first stage
    for step, settings in zip(steps, parsed, strict=True):
        if step.finished:
            check_command(step.folder, step.words)
            console.print(f"{step.stage}: finished before, {step.folder}")
            continue
        console.rule(f"{step.stage}: {step.folder}")
        write_json(step.folder / "command.json", step.words)
        step.script.main(settings)
    return write_report(args, steps, console)


def plan_steps(args: Args) -> list[Step]:
    """The stages that the arguments ask for, in order, each starting from the one before."""
    wanted = {*args.stages} - {*args.skip}
    records = args.output_dir / "annotate"
    annotated = "annotate" in wanted or (records / "report.md").exists()
    if args.data is not None:
        if "pretrain" not in wanted:
            raise WrongOptionError(
                f"--data {args.data} is what pre-training learns from, and it is left out; SFT "
                f"takes it by --sft='--data {args.data}'"
            )
        wanted.discard("annotate")
    elif "pretrain" in wanted and not annotated:
        raise WrongOptionError(
            f"pre-training without annotating needs images: --data FOLDER, or those of {records}"
        )
    if not wanted:
        raise WrongOptionError(
            f"no stage is left of --stages {' '.join(args.stages)} without {' '.join(args.skip)}"
        )
    steps, policy = [], args.policy
    for stage in STAGES:
        step = Step(stage, options_of(args, stage, policy), args.output_dir / stage)
        if stage in wanted:
            steps.append(step)
        if step.trains and (stage in wanted or (args.policy is None and step.finished)):
            policy = str(step.folder / "policy")
    return steps


def options_of(args: Args, stage: Stage, policy: str | None) -> tuple[str, ...]:
    """All options of a stage that starts from ``policy``; those of the command line come last."""
    words = [*DEFAULTS[stage].split(), "--difficulty", args.difficulty]
    if stage != "annotate":
        words += ["--seed", str(args.seed), "--evaluation.split", args.split]
        words += ["--evaluation.questions", str(args.questions)]
        words += ["--policy", policy] if policy is not None else []
    if stage == "pretrain":
        words += ["--data", args.data or str(args.output_dir / "annotate")]
    if stage in ("pretrain", "sft"):
        words += ["--evaluation.dataset", "scenes"]  # all stages are measured on the same
        # A policy that is asked for outlines before it finds objects stays blind. One that starts
        # from nothing sees points and boxes in as many updates as the shipped one did.
        points, boxes = ("0.27", "0.46") if policy is None else ("0", "0")
        words += ["--cloning.points-until", points, "--cloning.boxes-until", boxes]
    given = shlex.split(" ".join(getattr(args, stage)))
    return (*words, *given, "--output-dir", str(args.output_dir / stage))


def parse(step: Step) -> Any:
    """Settings of a stage's script; trained stages go on where they were cut off."""
    settings = tyro.cli(step.script.Args, args=step.words, prog=f"--{step.stage}")
    if step.trains:
        settings.resume = True
    return settings


def write_report(args: Args, steps: Sequence[Step], console: Console) -> dict[str, Any]:
    """Write ``scores.json`` and ``report.md`` of finished stages, and print the table.

    Returns what ``scores.json`` holds: ``stages`` with the scores after each trained one, and the
    first and last of them once more as ``before`` and ``after``.
    """
    stages = {step.stage: read_scores(step.folder) for step in steps if step.trains}
    dataset = f"scenes-{args.difficulty}"
    scores: dict[str, Any] = {"dataset": dataset, "split": args.split, "seed": args.seed}
    parts = [f"# {' → '.join(step.stage for step in steps)}, seed {args.seed}"]
    if stages:
        sides = [{**found["greedy"], "sampled": found["sampled"]} for found in stages.values()]
        scores |= {"before": sides[0], "after": sides[-1]}
        scores["stages"] = {
            stage: {name: found[name] for name in ("greedy", "sampled", "updates", "minutes")}
            for stage, found in stages.items()
        }
        scores["minutes"] = sum(found["minutes"] for found in stages.values())
        rows = [table_row(stage, found) for stage, found in stages.items()]
        measured = f"{sides[-1]['questions']} held-out questions of {dataset} ({args.split})"
        console.print(terminal_table(HEADINGS, rows, title=measured))
        parts += [
            f"{measured}, the same after every stage; intervals: bootstrap over questions.",
            markdown_table(HEADINGS, rows),
        ]
    for step in steps:
        command = f"python experiments/{SCRIPTS[step.stage]}.py {shlex.join(step.words)}"
        parts.append(f"[{step.stage}]({step.stage}/report.md), by hand:\n\n    {command}")
    write_atomically(args.output_dir / "report.md", "\n\n".join(parts) + "\n")
    write_json(args.output_dir / "scores.json", scores)
    console.print(f"report: {args.output_dir / 'report.md'}")
    return scores


def table_row(stage: Stage, found: dict[str, Any]) -> list[str]:
    """What stands under `HEADINGS` for a trained stage; scores in per cent."""
    row = [stage, str(found["updates"])]
    for _, kind, name, _ in SCORES:
        interval = [100 * end for end in found[kind][f"{name}_interval"]]
        row.append(with_interval(100 * found[kind][name], interval))
    return [*row, f"{found['minutes']:.1f}"]


command_line = partial(run_command, Args, main, __doc__, None)
"""Run what the command line, or the words given, ask for."""

if __name__ == "__main__":
    command_line()
