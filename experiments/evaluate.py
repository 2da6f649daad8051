"""Score answers: those of a policy, or those that any system wrote into a file.

With no arguments the embedded policy answers 512 held-out scenes. The folder ``runs/evaluate`` then
holds ``scores.json``, ``per_sample.parquet`` (``.csv`` without pyarrow), ``report.md``,
``worst.png``, ``best.png`` and ``iou_histogram.png``, and ``answers.jsonl`` with what was answered.
A file of answers has one JSON object a line: {"id": sample id, "text": answer}.

    python experiments/evaluate.py
    python experiments/evaluate.py --env SimpleSeg-RefCOCO-v0 --data-root DATA --policy FOLDER
    python experiments/evaluate.py --predictions answers.jsonl --frame permille
    python experiments/evaluate.py --predictions answers.jsonl --frame guess
    python experiments/evaluate.py --task all
    python experiments/evaluate.py --policy FOLDER --check-vision
    python experiments/evaluate.py --ceiling --epsilon 0 .001 .005 .01 .02
    torchrun --nproc_per_node 8 experiments/evaluate.py --policy FOLDER
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from experiments.common.command import opening, run_command
from experiments.common.logs import write_json
from experiments.common.policies import (
    EMBEDDED,
    AnswerLength,
    PrecisionChoice,
    answer_length,
    compare_on_questions,
    longest_answer,
    open_policy,
)
from experiments.evaluation.answers import Missing, match_answers, read_answers
from experiments.evaluation.reader import GUESS, compare_frames, conclusion, reading_table
from seg_env.envs.core import ReferringCore
from seg_env.envs.left_out import LeftOut, OnError, UnusableSampleError, loading, name_of
from seg_env.envs.referring import open_questions
from seg_env.errors import WrongOptionError
from seg_env.frames import AUTO, ResizeSettings, find_answer_frame
from seg_env.tasks import TASKS, Task
from seg_env.tasks.queries import QueryStyle

if TYPE_CHECKING:
    from agents.policy.model import VLMPolicy
    from experiments.evaluation.scores import AnsweredQuestion

# What draws, scores or opens a policy is imported where it is needed: it takes seconds.

EVERY_TASK = "all"
"""What ``--task`` is given to score each of them."""
FIRST = {
    "What is asked": ("env", "dataset", "data-root", "split", "task", "questions"),
    "Who answers": ("policy", "predictions", "frame"),
    "The evaluation": ("seed", "output-dir", "resume"),
}


@dataclass
class Args:
    """Score the answers of a policy, or of any system."""

    env: str = "SimpleSeg-Scenes-v0"
    """Environment id: what is asked."""
    dataset: str | None = None
    """Another data set than that of the environment, by the name that `open_dataset` knows."""
    data_root: str | None = None
    """Folder of RefCOCO data, by default that of the variable SIMPLESEG_DATA."""
    split: str = "val"
    """Split to ask about."""
    split_by: str | None = None
    """Whose split of RefCOCO data: unc, umd, google, berkeley."""
    task: str | None = None
    """What is given and asked for: text->mask (default), another of seg_env.tasks.TASKS, or ``all``
    for a table of every task."""
    questions: int | None = None
    """The first so many samples, by default 512 scenes, and all of any other data set."""
    difficulty: str | None = None
    """Of scenes: easy (default), medium, hard."""
    negatives: float | None = None
    """Of scenes: share of questions about an object that is not there."""
    image_size: int | None = None
    """Side that images are letterboxed to; by default they keep their sizes."""
    on_error: OnError = "skip"
    """Images that are broken or that the processor refuses: left out and counted, or an error."""
    queries: QueryStyle = field(default_factory=QueryStyle)
    """How the places that questions give are drawn and written."""

    policy: str | None = None
    """Who answers: ``embedded`` (default, taught by expression only), ``embedded-tasks`` (reads
    points, boxes and outlines too), a transformers folder, or a hub id."""
    frame: str = AUTO
    """What the numbers in answers are: auto (what the policy's folder records, else what its family
    writes), unit, permille, pixels, qwen2.5-vl, florence, paligemma, pixel:WxH, or a model type
    such as qwen3_vl; guess reads the answers in every frame, shows what comes of it and stops."""
    temperature: float = 0.0
    """0 for greedy answers."""
    answers: int = 1
    """Answers per question."""
    max_new_tokens: AnswerLength = "auto"
    """Longest answer in tokens; auto: 128 for the shipped policies, and for others measured on
    outlines of the ground truth in their own tokens."""
    batch_size: int = 64
    """Questions at a time."""
    precision: PrecisionChoice = "auto"
    """float32, bfloat16 under autocast, or auto: bfloat16 where the hardware has it."""
    seed: int = 0
    """Seed of sampling and of the bootstrap."""
    resume: bool = False
    """Keep the answers that the folder holds already and ask only for the others."""
    check_vision: bool = False
    """Only show whether the policy sees: how likely true answers are with their image, with another
    one and with a blank one."""
    trust_remote_code: bool = False
    """Run code that comes with a hub model; only for models you have read."""

    predictions: Path | None = None
    """File of answers to score in place of a policy's."""
    min_pixels: int = ResizeSettings.min_pixels
    """For --predictions with --frame qwen2.5-vl: as the processor was set."""
    max_pixels: int = ResizeSettings.max_pixels
    """For --predictions with --frame qwen2.5-vl: as the processor was set."""
    missing: Missing = "error"
    """Questions without an answer in --predictions: an error, empty answers, or skipped."""
    ignore_unknown: bool = False
    """Pass over answers in --predictions to other questions than those asked."""

    empty_union: float = 1.0
    """IoU where answer and target are both empty: 1 as Text4Seg and LISA, 0 as VisionReasoner."""
    details: bool = True
    """Also boundary scores, PoLiS and the ceiling of each sample; some milliseconds an answer."""
    pictures: bool = True
    """Also draw the worst and best answers and the histogram."""
    compare: Path | None = None
    """Folder or per_sample file of another evaluation: paired gains over it."""
    ceiling: bool = False
    """Only measure what the representation allows."""
    epsilon: tuple[float, ...] = (0.0, 0.001, 0.005, 0.01, 0.02)
    """For --ceiling: tolerances of the outline's simplification, as shares of its perimeter."""
    decimals: tuple[int, ...] = (3,)
    """For --ceiling: digits after the point."""
    output_dir: Path = Path("runs/evaluate")
    """Folder for what is written."""

    @property
    def asks_policy(self) -> bool:
        """Whether answers are those of a policy."""
        return self.predictions is None and not self.ceiling

    @property
    def policy_frame(self) -> str:
        """The frame to open a policy with: nothing is assumed while frames are compared."""
        return AUTO if self.frame == GUESS else self.frame

    def environment(self) -> dict[str, Any]:
        """Arguments of the environment that are not left at their defaults."""
        names = ("dataset", "split", "data_root", "split_by", "difficulty", "image_size")
        given = {name: getattr(self, name) for name in (*names, "negatives", "task")}
        given["queries"] = None if self.queries == QueryStyle() else asdict(self.queries)
        return {name: value for name, value in given.items() if value is not None}

    def count(self, core: ReferringCore) -> int:
        """How many questions are asked."""
        available = len(core.dataset)
        if self.questions is not None and not 1 <= self.questions <= available:
            raise WrongOptionError(
                f"--questions {self.questions}: {core.dataset.name} ({core.dataset.split}) has "
                f"{available}; use 1 to {available}"
            )
        endless = core.dataset.name.startswith("scenes")
        return self.questions or (min(512, available) if endless else available)

    def asked(self) -> dict[str, Any]:
        """The settings that decide what a policy answers; JSON-able."""
        names = ("env", "policy", "temperature", "answers", "max_new_tokens", "batch_size")
        named = {name: getattr(self, name) for name in (*names, "precision", "seed")}
        named["frame"] = self.policy_frame
        return {**self.environment(), **named}


def main(args: Args) -> dict[str, Any]:
    """Run the evaluation.

    Returns:
        What ``scores.json`` (or ``ceiling.json``, ``frames.json``, ``vision.json``) holds; nothing
        on other ranks than the main one.
    """
    if args.policy is not None and args.predictions is not None:
        raise WrongOptionError(
            "--policy and --predictions are both given; answers come from one of them"
        )
    if args.task == EVERY_TASK and not (args.asks_policy and args.compare is None):
        raise WrongOptionError(
            f"--task {EVERY_TASK} asks a policy; --predictions, --compare and --ceiling are about "
            f"one task: name it"
        )
    run = run_every_task if args.task == EVERY_TASK else run_task
    if args.asks_policy:
        from experiments.common.launch import launched

        with launched(None) as (_, console):
            return run(args, console)
    # What is in a file is scored by one process.
    return run(args, Console()) if os.environ.get("RANK", "0") == "0" else {}


def run_every_task(args: Args, console: Console) -> dict[str, Any]:
    """Evaluate each task into a folder of its own, and write the table of all."""
    from experiments.evaluation.report import write_task_table

    policy = _open_policy(args, console)
    found: dict[Task, dict[str, Any]] = {}
    for task in TASKS:
        console.print(f"[bold]{task}[/bold]", highlight=False)
        folder = args.output_dir / task.replace("->", "-to-")
        found[task] = run_task(replace(args, task=task, output_dir=folder), console, policy)
    return write_task_table(args.output_dir, found, console) if all(found.values()) else {}


def run_task(args: Args, console: Console, policy: VLMPolicy | None = None) -> dict[str, Any]:
    """Evaluate one task; ``policy`` is the one that the arguments name, if it is open already."""
    if args.asks_policy:
        policy = policy or _open_policy(args, console)
    with opening():
        if policy is not None:
            frame = policy.answer_frame
        else:
            name = "unit" if args.ceiling and args.policy_frame == AUTO else args.policy_frame
            settings = ResizeSettings(min_pixels=args.min_pixels, max_pixels=args.max_pixels)
            frame = find_answer_frame(name, resize=settings)
        core = open_questions(args.env, **args.environment(), frame=frame)
        if len(core.tasks.tasks) > 1:
            raise WrongOptionError(
                f"--task {args.task}: name one task, or {EVERY_TASK}, to score each alone"
            )
        questions = args.count(core)
        args.output_dir.mkdir(parents=True, exist_ok=True)
        if args.ceiling:
            core.require_outlines("--ceiling")
    if args.ceiling:
        return run_ceiling(args, core, questions, console)
    left_out = LeftOut(args.on_error)
    path = args.predictions
    if policy is None:
        _leave_out_unreadable(core, questions, left_out)
    elif args.check_vision:
        return show_vision(args, core, policy, console)
    else:
        from experiments.evaluation.loop import collect_answers

        length = answer_length(args.max_new_tokens, args.policy or EMBEDDED)
        path = collect_answers(
            policy,
            core,
            args.output_dir,
            asked=args.asked(),
            resume=args.resume,
            questions=questions,
            answers=args.answers,
            temperature=args.temperature,
            max_new_tokens=longest_answer(length, policy, core, console),
            batch_size=args.batch_size,
            seed=args.seed,
            console=console,
            left_out=left_out,
        )
    return {} if path is None else run_answers(args, core, questions, path, left_out, console)


def _open_policy(args: Args, console: Console) -> VLMPolicy:
    with opening():
        return open_policy(
            args.policy or EMBEDDED,
            args.precision,
            frame=args.policy_frame,
            console=console,
            trust_remote_code=args.trust_remote_code,
        )


def show_vision(
    args: Args, core: ReferringCore, policy: VLMPolicy, console: Console
) -> dict[str, Any]:
    """Show whether the policy sees, and write ``vision.json``.

    Raises:
        SystemExit: It does not.
        TooFewImagesError: There are not two questions about different images.
    """
    from agents.training.distributed import World

    report = compare_on_questions(policy, core)
    if World.current().is_main:
        write_json(args.output_dir / "vision.json", report.to_json())
    table = Table(title="True answers, scored with other images")
    for heading in ("image", "nats a token", "largest change of a token"):
        table.add_column(heading, justify="left" if heading == "image" else "right")
    table.add_row("their own", f"{report.own:.4f}", f"{report.rounding:.2g} (rounding)")
    table.add_row("another one", f"{report.other:.4f}", f"{report.change_other:.2g}")
    table.add_row("a blank one", f"{report.blank:.4f}", f"{report.change_blank:.2g}")
    console.print(table)
    console.print(report.sentence, highlight=False, soft_wrap=True)
    if not report.sees:
        raise SystemExit(1)
    return report.to_json()


def _leave_out_unreadable(core: ReferringCore, questions: int, left_out: LeftOut) -> None:
    """Leave out images of which the family that answered makes nothing: they have no frame."""
    for index in range(questions):
        try:
            with loading():
                core.answer_frame.for_image(core.dataset[index].target.size)
        except UnusableSampleError as error:
            left_out.add(name_of(core.dataset, index), error)


def run_answers(
    args: Args,
    core: ReferringCore,
    questions: int,
    path: Path,
    left_out: LeftOut,
    console: Console,
) -> dict[str, Any]:
    """Score the answers in a file, or read them in every frame where ``--frame guess`` is given."""
    from experiments.evaluation.scores import AnsweredQuestion

    names = {index: name_of(core.dataset, index) for index in range(questions)}
    asked = {index: name for index, name in names.items() if name not in left_out.reasons}
    with opening():
        answers = read_answers(path)
        for name in left_out.reasons:
            answers.pop(name, None)
        found = match_answers(
            answers,
            list(asked.values()),
            count=args.answers,
            missing=args.missing,
            # A folder may hold more answers of a policy than are asked for this time.
            ignore_unknown=args.ignore_unknown or args.predictions is None,
        )
        places = list(asked)
        items = [AnsweredQuestion(places[position], given) for position, given in found]
    if args.frame == GUESS:
        return run_guess(args, core, items, console)
    missing = sum(name not in answers for name in asked.values())
    return run_scoring(args, core, items, missing, console, left_out)


def run_guess(
    args: Args, core: ReferringCore, items: list[AnsweredQuestion], console: Console
) -> dict[str, Any]:
    """Read the first answers in every frame, show what comes of it, and write ``frames.json``."""
    some = items[:256]
    samples = [core.dataset[item.index] for item in some]
    texts = [item.answers[0].text for item in some]
    readings = compare_frames(core.answer_frame, texts, samples, core.tasks.forms[0])
    found = {
        "answers": len(some),
        "frames": [reading.to_json() for reading in readings],
        "conclusion": conclusion(readings),
    }
    write_json(args.output_dir / "frames.json", found)
    console.print(reading_table(readings))
    console.print(found["conclusion"], highlight=False, markup=False, soft_wrap=True)
    if args.predictions is None:
        path = args.output_dir / "answers.jsonl"
        told = f"the answers stay as they are: --predictions {path} --frame NAME scores them"
        console.print(told, highlight=False, markup=False, soft_wrap=True)
    return found


def run_scoring(
    args: Args,
    core: ReferringCore,
    items: list[AnsweredQuestion],
    missing: int,
    console: Console,
    left_out: LeftOut,
) -> dict[str, Any]:
    """Measure the answers, write everything, print what matters most."""
    from experiments.evaluation.report import draw_images, print_scores, write_report
    from experiments.evaluation.scores import (
        gains,
        load_samples,
        measure_answers,
        save_samples,
        score,
    )

    columns = measure_answers(
        core,
        items,
        details=args.details and core.tasks.forms == ("mask",),
        empty_union=args.empty_union,
        console=console,
    )
    decoding = "greedy" if args.temperature == 0 else f"temperature {args.temperature:g}"
    scores: dict[str, Any] = {
        "source": str(args.predictions or f"policy {args.policy or 'embedded'}"),
        "env": args.env,
        "task": str(core.tasks),
        "dataset": core.dataset.name,
        "split": core.dataset.split,
        "split_by": getattr(core.dataset, "split_by", ""),
        "questions": len(items),
        "missing": missing,
        "missing_rule": args.missing,
        "answers_per_question": args.answers,
        "decoding": decoding if args.asks_policy else "",
        "frame": core.answer_frame.description,
        "seed": args.seed,
        "left_out": left_out.reasons,
    }
    scores |= score(columns, args.answers, args.empty_union, args.seed)
    if args.compare is not None:
        with opening():
            other = load_samples(args.compare)
        scores["compared_with"] = str(args.compare)
        scores["gains"] = gains(other, columns, args.answers, args.empty_union, args.seed)
    folder = args.output_dir
    samples = save_samples(folder, columns)
    write_json(folder / "scores.json", scores)
    if args.pictures:
        draw_images(folder, core, items, columns, scores)
    write_report(folder / "report.md", scores, images=args.pictures)
    print_scores(console, scores)
    if samples.suffix == ".csv":
        console.print(f"{samples}: pyarrow, of the extra [hub], would make it a parquet file")
    console.print(f"report: {folder / 'report.md'}", highlight=False)
    return scores


def run_ceiling(
    args: Args, core: ReferringCore, questions: int, console: Console
) -> dict[str, Any]:
    """Measure what the representation allows, print it, and write ``ceiling.json``."""
    from experiments.evaluation.ceiling import ceiling_table, measure_ceilings

    numbers_are_whole = core.answer_frame.widest().integer
    decimals = args.decimals[:1] if numbers_are_whole else args.decimals
    rows = measure_ceilings(
        core, questions, args.epsilon, decimals, empty_union=args.empty_union, console=console
    )
    found = {
        "env": args.env,
        "dataset": core.dataset.name,
        "split": core.dataset.split,
        "questions": questions,
        "frame": core.answer_frame.description,
        "empty_union": args.empty_union,
        "ceilings": rows,
    }
    write_json(args.output_dir / "ceiling.json", found)
    title = f"Best scores that text allows: {found['dataset']} ({found['split']}), {questions}"
    console.print(ceiling_table(rows, f"{title} questions", decimals=not numbers_are_whole))
    console.print(
        f"frame: {core.answer_frame.description}; an empty union counts {args.empty_union:g}",
        highlight=False,
    )
    return found


def command_line(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what the command line, or ``words``, ask for."""
    return run_command(Args, main, __doc__, FIRST, words)


if __name__ == "__main__":
    command_line()
