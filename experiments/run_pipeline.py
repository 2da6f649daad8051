"""The paper's recipe, from nothing: pre-train on annotated images, fine-tune, reinforce.

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
from experiments.common.comparison import read_scores
from experiments.common.logs import check_command, read_metrics, write_atomically, write_json
from experiments.common.tables import markdown_table, terminal_table
from seg_env.errors import WrongOptionError

Stage = Literal["annotate", "pretrain", "sft", "rl"]
StageOptions = tyro.conf.UseAppendAction[tuple[str, ...]]
STAGES: tuple[Stage, ...] = get_args(Stage)
TITLES = {"annotate": "annotate", "pretrain": "pre-train", "sft": "SFT", "rl": "RL"}
SCRIPTS = {"annotate": "annotate", "pretrain": "run_bc", "sft": "run_bc", "rl": "run_gspo"}

SCENES = "4000"
"""Images to pre-train on, and as many others for fine-tuning."""
CLONING = (
    *("--updates", "700", "--cloning.batch-size", "24"),
    *("--evaluation.every", "100", "--checkpoint-every", "100"),
)
DEFAULTS: dict[Stage, tuple[str, ...]] = {
    # Seed 1, as the other stages learn from scenes of seed 0; labels as wrong as those of the web.
    "annotate": (
        *("--scenes", SCENES, "--seed", "1"),
        *("--box-jitter", "0.1", "--mask-fray", "2", "--wrong-expressions", "0.1"),
    ),
    "pretrain": CLONING,
    "sft": (*CLONING, "--scenes", SCENES),
    "rl": ("--updates", "80", "--evaluation.every", "20", "--checkpoint-every", "20"),
}
"""Options of the stages where the command line has no others."""
HEADINGS = (
    *("after", "updates", "greedy gIoU [95 %]", "greedy cIoU [95 %]", "sampled gIoU [95 %]"),
    *("well-formed", "minutes"),
)


@dataclass
class Args:
    """The paper's recipe, from nothing: pre-train on annotated images, fine-tune, reinforce."""

    stages: tuple[Stage, ...] = STAGES
    """What to do, whatever the order it is named in."""
    skip: tuple[Stage, ...] = ()
    """Stages to leave out: the next one starts from what was made before."""
    annotate: StageOptions = ()
    """Options of experiments/annotate.py, in one word: ``--annotate="--scenes 2000"``. Given again,
    as those of any stage, they are added."""
    pretrain: StageOptions = ()
    """Options of experiments/run_bc.py for pre-training, in one word."""
    sft: StageOptions = ()
    """Options of experiments/run_bc.py for fine-tuning, in one word."""
    rl: StageOptions = ()
    """Options of experiments/run_gspo.py, in one word."""
    data: str | None = None
    """Annotated images to pre-train on, a folder of experiments/annotate.py, or a .jsonl or
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
        """Whether a policy comes of it."""
        return self.stage != "annotate"

    @property
    def finished(self) -> bool:
        """Whether its last file is there."""
        return (self.folder / ("scores.json" if self.trains else "report.json")).exists()

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
        step.script.main(settings, *([] if step.trains else [step.words]))
    scores = write_report(args, steps, console)
    console.print(f"report: {args.output_dir / 'report.md'}")
    return scores


def plan_steps(args: Args) -> list[Step]:
    """The stages that the arguments ask for, in order, each starting from the one before."""
    wanted = {*args.stages} - {*args.skip}
    records = args.output_dir / "annotate"
    if args.data is not None:
        if "pretrain" not in wanted:
            raise WrongOptionError(
                f"--data {args.data} is what pre-training learns from, and it is left out; SFT "
                f"takes it by --sft='--data {args.data}'"
            )
        wanted.discard("annotate")
    elif (
        "pretrain" in wanted and "annotate" not in wanted and not (records / "report.json").exists()
    ):
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
    words = [*DEFAULTS[stage], "--difficulty", args.difficulty]
    if stage != "annotate":
        words += ["--seed", str(args.seed), "--evaluation.split", args.split]
        words += ["--evaluation.questions", str(args.questions)]
        words += ["--policy", policy] if policy is not None else []
    if stage == "pretrain":
        words += ["--data", args.data or str(args.output_dir / "annotate")]
    if stage in ("pretrain", "sft"):
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
    """Write ``scores.json``, ``report.md``, ``curve.png`` and ``outlines.png`` of finished stages.

    Returns what ``scores.json`` holds: ``stages`` with the scores after each trained one, and the
    first and last of them once more as ``before`` and ``after``.
    """
    names = " → ".join(TITLES[step.stage] for step in steps)
    parts = [f"# {names}, seed {args.seed}"]
    scores: dict[str, Any] = {"dataset": f"scenes-{args.difficulty}", "split": args.split}
    scores["seed"] = args.seed
    trained = [step for step in steps if step.trains]
    if trained:
        read = [read_scores(step.folder) for step in trained]
        stages = {
            step.stage: {name: each[name] for name in ("greedy", "sampled", "updates", "minutes")}
            for step, each in zip(trained, read, strict=True)
        }
        sides = [{**each["greedy"], "sampled": each["sampled"]} for each in read]
        scores |= {"before": sides[0], "after": sides[-1], "stages": stages}
        scores["minutes"] = sum(each["minutes"] for each in read)
        rows = table_rows(stages)
        title = f"{scores['dataset']} ({scores['split']}), seed {scores['seed']}"
        console.print(terminal_table(HEADINGS, rows, title=title))
        parts += [
            f"{sides[-1]['questions']} held-out questions of `{scores['dataset']}` "
            f"({scores['split']}), the same after every stage; sampled answers: "
            f"{sides[-1]['sampled']['answers_per_question']} each, at temperature 1. Intervals: "
            "bootstrap over questions. An empty union counts as IoU 1.",
            markdown_table(HEADINGS, rows),
        ]
    if len(trained) < len(steps):
        parts.append("[What was annotated](annotate/report.md).")
    commands = [f"experiments/{SCRIPTS[step.stage]}.py {shlex.join(step.words)}" for step in steps]
    parts += ["Each stage by hand:", "\n".join(f"    python {command}" for command in commands)]
    if trained:
        draw_stages(args, trained)
        parts += [
            "![Held-out gIoU across the stages](curve.png)",
            "The target, then the greedy answer after each stage, on the first held-out questions:",
            "![Outlines](outlines.png)",
        ]
    write_atomically(args.output_dir / "report.md", "\n\n".join(parts) + "\n")
    write_json(args.output_dir / "scores.json", scores)
    return scores


def table_rows(stages: dict[Stage, Any]) -> list[list[str]]:
    """A row for each trained stage, under `HEADINGS`; scores in per cent."""
    rows = []
    for stage, found in stages.items():
        row = [TITLES[stage], str(found["updates"])]
        for kind, name in (("greedy", "giou"), ("greedy", "ciou"), ("sampled", "giou")):
            score, (low, high) = found[kind][name], found[kind][f"{name}_interval"]
            row.append(f"{100 * score:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        row.append(f"{100 * found['greedy']['well_formed']:.1f}")
        rows.append([*row, f"{found['minutes']:.1f}"])
    return rows


def draw_stages(args: Args, trained: Sequence[Step]) -> None:
    """Held-out gIoU over the updates of all stages, and the first questions answered after each."""
    from experiments.common.policies import open_policy
    from experiments.common.report import plot_answers, plot_curves
    from experiments.evaluation.loop import evaluate
    from seg_env.envs.referring import open_questions

    metrics: list[dict[str, Any]] = []
    asked = []
    for step in trained:
        start = metrics[-1]["update"] if metrics else 0
        metrics += [row | {"update": start + row["update"]} for row in read_metrics(step.folder)]
        policy = open_policy(str(step.folder / "policy"), "auto")
        held_out = {"split": args.split, "difficulty": args.difficulty}
        core = open_questions("SimpleSeg-Scenes-v0", **held_out, frame=policy.answer_frame)
        asked.append((TITLES[step.stage], core, evaluate(policy, core, range(12))))
    title = f"Held-out gIoU: {', then '.join(TITLES[step.stage] for step in trained)}"
    panel = (title, ["eval/greedy_giou", "eval/sampled_giou"])
    plot_curves(metrics, [panel], args.output_dir / "curve.png")
    plot_answers(args.output_dir / "outlines.png", *asked)


command_line = partial(run_command, Args, main, __doc__, None)
"""Run what the command line, or the words given, ask for."""

if __name__ == "__main__":
    command_line()
