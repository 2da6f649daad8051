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

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import tyro
from rich.console import Console

from experiments.common.command import run_command
from experiments.common.comparison import markdown_table, read_scores, terminal_table
from experiments.common.logs import read_metrics, write_atomically, write_json
from seg_env.errors import WrongOptionError
from seg_env.types import Prediction

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
        record_command(args.output_dir, step)
        if step.finished:
            console.print(f"{step.stage}: finished before, {step.folder}")
            continue
        console.rule(f"{step.stage}: {step.folder}")
        if step.trains:
            step.script.main(settings)
        else:
            step.script.main(settings, step.words)
    scores = write_report(args, steps)
    if "stages" in scores:
        title = f"{scores['dataset']} ({scores['split']}), seed {scores['seed']}"
        console.print(terminal_table(table_cells(scores), title))
    console.print(f"report: {args.output_dir / 'report.md'}")
    return scores


def plan_steps(args: Args) -> list[Step]:
    """The stages that the arguments ask for, in order, each starting from the one before."""
    wanted = [stage for stage in STAGES if stage in args.stages and stage not in args.skip]
    records = args.output_dir / "annotate"
    if args.data is not None:
        if "pretrain" not in wanted:
            raise WrongOptionError(
                f"--data {args.data} is what pre-training learns from, and it is left out; SFT "
                f"takes it by --sft='--data {args.data}'"
            )
        wanted = [stage for stage in wanted if stage != "annotate"]
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
        folder = args.output_dir / stage
        if stage not in wanted:
            before = Step(stage, (), folder)
            if args.policy is None and before.trains and before.finished:
                policy = str(folder / "policy")
            continue
        words = [*DEFAULTS[stage], *shared_words(args, stage, args.data or str(records), policy)]
        words += [*shlex.split(" ".join(getattr(args, stage))), "--output-dir", str(folder)]
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
        # A policy that is asked for outlines before it finds objects stays blind. One that starts
        # from nothing sees points and boxes in as many updates as the shipped one did.
        points, boxes = ("0.27", "0.46") if policy is None else ("0", "0")
        words += ["--cloning.points-until", points, "--cloning.boxes-until", boxes]
    return words


def parse(step: Step) -> Any:
    """Settings of a stage's script; trained stages go on where they were cut off."""
    settings = tyro.cli(step.script.Args, args=step.words, prog=f"--{step.stage}")
    if step.trains:
        settings.resume = True
    return settings


def record_command(folder: Path, step: Step) -> None:
    """Keep a stage's options; refuse others than those that it was begun with."""
    path = folder / "commands.json"
    known: dict[str, list[str]] = json.loads(path.read_text()) if path.exists() else {}
    before = known.get(step.stage, list(step.words))
    begun = step.folder.exists() and any(step.folder.iterdir())
    if begun and before != list(step.words):
        raise WrongOptionError(
            f"stage {step.stage} of {folder} was started with other options: {shlex.join(before)}, "
            f"now {shlex.join(step.words)}; go on with the same ones, remove {step.folder} to "
            f"start the stage anew, or use another --output-dir"
        )
    write_json(path, known | {step.stage: list(step.words)})


# The report.

DRAWN = 12
"""Questions whose answers are drawn."""


def write_report(args: Args, steps: Sequence[Step]) -> dict[str, Any]:
    """Write ``scores.json``, ``report.md``, ``curve.png`` and ``outlines.png`` of finished stages.

    Returns what ``scores.json`` holds: ``stages`` with the scores after each trained one, and the
    first and last of them once more as ``before`` and ``after``.
    """
    folder, kept = args.output_dir, ("greedy", "sampled", "updates", "minutes")
    scores: dict[str, Any] = {"dataset": f"scenes-{args.difficulty}", "split": args.split}
    scores["seed"] = args.seed
    read = {str(step.stage): read_scores(step.folder) for step in steps if step.trains}
    stages = {stage: {name: found[name] for name in kept} for stage, found in read.items()}
    if stages:
        found = list(stages.values())
        scores |= {
            "before": {**found[0]["greedy"], "sampled": found[0]["sampled"]},
            "after": {**found[-1]["greedy"], "sampled": found[-1]["sampled"]},
            "stages": stages,
            "minutes": sum(each["minutes"] for each in found),
        }
        plot_curve(stages, folder)
        draw_outlines(list(stages), folder, args.split, args.difficulty)
    write_atomically(folder / "report.md", markdown(scores, steps))
    write_json(folder / "scores.json", scores)
    return scores


def table_cells(scores: dict[str, Any]) -> list[list[str]]:
    """Titles, and a row for each trained stage; scores in per cent."""
    cells = [["after", "updates", "greedy gIoU [95 %]", "greedy cIoU [95 %]"]]
    cells[0] += ["sampled gIoU [95 %]", "well-formed", "minutes"]
    for stage, found in scores["stages"].items():
        row = [TITLES[stage], str(found["updates"])]
        for kind, name in (("greedy", "giou"), ("greedy", "ciou"), ("sampled", "giou")):
            score, (low, high) = found[kind][name], found[kind][f"{name}_interval"]
            row.append(f"{100 * score:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        row.append(f"{100 * found['greedy']['well_formed']:.1f}")
        cells.append([*row, f"{found['minutes']:.1f}"])
    return cells


def markdown(scores: dict[str, Any], steps: Sequence[Step]) -> str:
    """The report as text."""
    names = " → ".join(TITLES[step.stage] for step in steps)
    parts = [f"# {names}, seed {scores['seed']}"]
    if "stages" in scores:
        after = scores["after"]
        parts += [
            f"{after['questions']} held-out questions of `{scores['dataset']}` "
            f"({scores['split']}), the same after every stage; sampled answers: "
            f"{after['sampled']['answers_per_question']} each, at temperature 1. Intervals: "
            "bootstrap over questions. An empty union counts as IoU 1.",
            markdown_table(table_cells(scores)),
        ]
    parts += [_records(step) for step in steps if not step.trains]
    commands = [f"experiments/{SCRIPTS[step.stage]}.py {shlex.join(step.words)}" for step in steps]
    parts += ["Each stage by hand:", "\n".join(f"    python {command}" for command in commands)]
    if "stages" in scores:
        parts += [
            "![Held-out gIoU across the stages](curve.png)",
            "The target, then the greedy answer after each stage, on the first held-out questions:",
            "![Outlines](outlines.png)",
        ]
    return "\n\n".join(parts) + "\n"


def _records(step: Step) -> str:
    """What was annotated, and how right it is where the truth is known."""
    report = json.loads((step.folder / "report.json").read_text())
    text = (
        f"Annotated: {report['pictures']['annotated']} images with "
        f"{report['objects']['written']} records ([report](annotate/report.md))"
    )
    if truth := report.get("truth", {}).get("records"):
        found = report["truth"]
        text += (
            f"; of {truth} compared with the truth, mask IoU {found['mask_iou']:.3f} on average, "
            f"{found['right_expressions']:.1%} of expressions right"
        )
    return text + "."


def plot_curve(stages: dict[str, Any], folder: Path) -> None:
    """Held-out gIoU over the updates of each stage; stages are drawn equally wide."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
    for kind, color in (("greedy", "tab:orange"), ("sampled", "tab:blue")):
        name = f"eval/{kind}_giou"
        for number, (stage, found) in enumerate(stages.items()):
            rows = [row for row in read_metrics(folder / stage) if name in row]
            places = [number + row["update"] / found["updates"] for row in rows]
            axis.plot(places, [row[name] for row in rows], ".-", color=color)
            label = None if number else f"{kind}; diamonds: all questions"
            axis.plot(number + 1, found[kind]["giou"], "D", color=color, label=label)
    for number in range(1, len(stages)):
        axis.axvline(number, color="gray", linewidth=0.8)
    axis.set_xticks(
        [number + 0.5 for number in range(len(stages))],
        [f"{TITLES[stage]}\n{found['updates']} updates" for stage, found in stages.items()],
    )
    axis.set(ylabel="gIoU on held-out scenes", xlim=(0, len(stages) + 0.05))
    axis.grid(alpha=0.3, axis="y")
    axis.legend(frameon=False)
    figure.savefig(folder / "curve.png", dpi=110)
    plt.close(figure)


def draw_outlines(stages: Sequence[str], folder: Path, split: str, difficulty: str) -> None:
    """Target and greedy answer after each stage, on the first questions, unselected."""
    import matplotlib.pyplot as plt

    from experiments.common.policies import open_policy
    from experiments.common.report import draw_answers
    from experiments.evaluation.loop import evaluate
    from seg_env.envs.referring import open_questions

    asked = []
    for stage in stages:
        policy = open_policy(str(folder / stage / "policy"), "auto")
        held_out = {"split": split, "difficulty": difficulty, "frame": policy.answer_frame}
        core = open_questions("SimpleSeg-Scenes-v0", **held_out)
        asked.append((TITLES[stage], core, evaluate(policy, core, np.arange(DRAWN))))
    size = (4.2 * (1 + len(stages)), 2.4 * (DRAWN // 2))
    figure, axes = plt.subplots(DRAWN // 2, 2, figsize=size, layout="constrained")
    for number, axis in enumerate(axes.flat):
        answers: list[Prediction] = []
        scored = []
        for title, core, found in asked:
            question = core.ask(number)
            answers += core.read(found.texts[number], [question])
            scored.append(f"{title} {found.iou[number, 0]:.2f}")
        axis.imshow(draw_answers(question, answers))
        text = f"{question.sample.expression}: target · {' · '.join(scored)}"
        axis.set_title(text, fontsize=9)
        axis.axis("off")
    figure.savefig(folder / "outlines.png", dpi=80)
    plt.close(figure)


def command_line(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what the command line, or ``words``, ask for."""
    return run_command(Args, main, __doc__, None, words)


if __name__ == "__main__":
    command_line()
