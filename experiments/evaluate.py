"""Score answers: those of a policy, or those that any system wrote into a file.

With no arguments the embedded policy answers 512 held-out scenes. The folder ``runs/evaluate`` then
holds ``scores.json``, ``per_sample.parquet`` (``.csv`` without pyarrow), ``report.md``,
``worst.png``, ``best.png`` and ``iou_histogram.png``, and ``answers.jsonl`` with what was answered.

    python experiments/evaluate.py
    python experiments/evaluate.py --env SimpleSeg-RefCOCO-v0 --data-root DATA --split testA
        --policy FOLDER --frame auto
    python experiments/evaluate.py --env SimpleSeg-RefCOCO-v0 --data-root DATA --split testA
        --predictions answers.jsonl --frame permille

A file of answers has one JSON object a line: {"id": sample id, "text": answer}; no model is loaded.
Other tasks, and a table of all of them in ``tasks.md``, ``tasks.png`` and ``scores.json``:

    python experiments/evaluate.py --task "point->mask"
    python experiments/evaluate.py --task all

Which frame answers seem to be written in, and whether images reach a model at all, is shown by

    python experiments/evaluate.py --predictions answers.jsonl --frame guess
    python experiments/evaluate.py --policy FOLDER --check-vision

What the representation itself allows is printed by

    python experiments/evaluate.py --ceiling --epsilon 0 .001 .005 .01 .02
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import tyro
from rich.console import Console

from experiments.common.brief import brief_errors
from experiments.common.files import write_json
from experiments.common.progress import progress_bar
from experiments.evaluation.answers import match_answers, read_answers
from experiments.evaluation.ceiling import ceiling_table, measure_ceilings
from experiments.evaluation.options import Args
from experiments.evaluation.reader import GUESS, compare_frames, conclusion, reading_table
from experiments.evaluation.report import draw_pictures, print_scores, write_report
from experiments.evaluation.samples import Item, load_samples, measure_answers, save_samples
from experiments.evaluation.scores import gains, score
from experiments.evaluation.tasks import EVERY_TASK, write_task_table
from seg_env.envs.core import ReferringCore
from seg_env.envs.left_out import LeftOut, UnusableSampleError, loading, name_of
from seg_env.envs.rules import open_questions
from seg_env.frames import AUTO, AnswerFrame, ResizeSettings, find_answer_frame
from seg_env.tasks import TASKS, Task

GUESSED = 256
"""Answers that are read in every frame, the first ones."""


def main(args: Args) -> dict[str, Any]:
    """Run the evaluation; returns what ``scores.json`` (or ``ceiling.json``) holds."""
    if args.policy is not None and args.predictions is not None:
        raise ValueError("--policy and --predictions are both given; answers come from one of them")
    console = Console()
    return run_every_task(args, console) if args.task == EVERY_TASK else run_task(args, console)


def run_every_task(args: Args, console: Console) -> dict[str, Any]:
    """Evaluate each task into a folder of its own, and write the table of all."""
    if args.predictions is not None or args.compare is not None or args.ceiling:
        raise ValueError(
            f"--task {EVERY_TASK} asks a policy; --predictions, --compare and --ceiling are about "
            f"one task: name it"
        )
    from experiments.evaluation.policy import open_answerer

    policy = open_answerer(args, console)
    found: dict[Task, dict[str, Any]] = {}
    for task in TASKS:
        console.print(f"[bold]{task}[/bold]", highlight=False)
        folder = args.output_dir / task.replace("->", "-to-")
        found[task] = run_task(replace(args, task=task, output_dir=folder), console, policy)
    return write_task_table(args.output_dir, found, console)


def run_task(args: Args, console: Console, policy: Any = None) -> dict[str, Any]:
    """Evaluate one task; ``policy`` is the one that the arguments name, if it is open already."""
    frame: AnswerFrame | None = None
    asks_policy = args.predictions is None and not args.ceiling
    if not asks_policy:
        frame = frame_of_file(args, "unit" if args.ceiling else AUTO)
    elif policy is None:
        # This imports torch, which scoring a file of answers does without.
        from experiments.evaluation.policy import open_answerer

        policy = open_answerer(args, console)
    core = open_questions(args.env, **args.environment(), frame=frame or policy.answer_frame)
    if len(core.tasks.tasks) > 1:
        raise ValueError(f"--task {args.task}: name one task, or {EVERY_TASK}, to score each alone")
    questions = args.count(core)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if args.ceiling:
        core.require_outlines("--ceiling")
        return run_ceiling(args, core, questions, console)
    unusable = LeftOut(args.on_error)
    if args.predictions is not None:
        path = args.predictions
        leave_out_unreadable(core, questions, unusable)
    else:
        from experiments.evaluation.policy import answer, show_vision

        if args.check_vision:
            return show_vision(args, core, policy, console)
        path, unusable = answer(args, core, questions, console, policy)
    left_out = unusable.reasons
    names = [name_of(core.dataset, index) for index in range(questions)]
    answers = {key: given for key, given in read_answers(path).items() if key not in left_out}
    asked = {index: name for index, name in enumerate(names) if name not in left_out}
    found = match_answers(
        answers,
        list(asked.values()),
        count=args.answers,
        missing=args.missing,
        # A folder may hold more answers of a policy than are asked for this time.
        ignore_unknown=args.ignore_unknown or args.predictions is None,
    )
    places = list(asked)
    items = [Item(places[position], given) for position, given in found]
    if args.frame == GUESS:
        return run_guess(args, core, items, console)
    missing = sum(name not in answers for name in asked.values())
    return run_scoring(args, core, items, missing, console, left_out)


def leave_out_unreadable(core: ReferringCore, questions: int, left_out: LeftOut) -> None:
    """Leave out images of which the family that answered makes nothing: they have no frame."""
    for index in range(questions):
        try:
            with loading():
                core.answer_frame.for_image(core.dataset[index].target.size)
        except UnusableSampleError as error:
            left_out.add(name_of(core.dataset, index), error)


def frame_of_file(args: Args, default: str) -> AnswerFrame:
    """The frame of answers that come without their model; ``default`` stands for ``auto``."""
    settings = ResizeSettings(min_pixels=args.min_pixels, max_pixels=args.max_pixels)
    name = args.policy_frame
    return find_answer_frame(default if name == AUTO else name, resize=settings)


def run_guess(
    args: Args, core: ReferringCore, items: list[Item], console: Console
) -> dict[str, Any]:
    """Read the answers in every frame, show what comes of it, and write ``frames.json``."""
    some = items[:GUESSED]
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
    items: list[Item],
    missing: int,
    console: Console,
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """Measure the answers, write everything, print what matters most."""
    with _progress(console, "scoring", len(items)) as advance:
        columns = measure_answers(
            core,
            items,
            details=args.details and core.tasks.forms == ("mask",),
            empty_union=args.empty_union,
            warn=lambda advice: console.print(f"[yellow]{advice}[/yellow]", highlight=False),
            on_chunk=lambda count, giou: advance(count, f"gIoU {giou:.3f}"),
        )
    scores = _settings(args, core, items, missing) | {"left_out": dict(left_out)}
    scores |= score(columns, args.answers, args.empty_union, args.seed)
    if args.compare is not None:
        other = load_samples(args.compare)
        scores["compared_with"] = str(args.compare)
        scores["gains"] = gains(other, columns, args.answers, args.empty_union, args.seed)
    folder = args.output_dir
    samples = save_samples(folder, columns)
    write_json(folder / "scores.json", scores)
    if args.pictures:
        draw_pictures(folder, core, items, columns, scores)
    write_report(folder / "report.md", scores, pictures=args.pictures)
    print_scores(console, scores)
    if samples.suffix == ".csv":
        console.print(f"{samples}: pyarrow, of the extra [hub], would make it a parquet file")
    console.print(f"report: {folder / 'report.md'}", highlight=False)
    return scores


def _settings(args: Args, core: ReferringCore, items: list[Item], missing: int) -> dict[str, Any]:
    """What was measured, and how."""
    decoding = "greedy" if args.temperature == 0 else f"temperature {args.temperature:g}"
    from_file = args.predictions is not None
    return {
        "source": str(args.predictions) if from_file else f"policy {args.policy or 'embedded'}",
        "env": args.env,
        "task": str(core.tasks),
        "dataset": core.dataset.name,
        "split": core.dataset.split,
        "split_by": getattr(core.dataset, "split_by", ""),
        "questions": len(items),
        "missing": missing,
        "missing_rule": args.missing,
        "answers_per_question": args.answers,
        "decoding": "" if from_file else decoding,
        "frame": core.answer_frame.description,
        "seed": args.seed,
    }


def run_ceiling(
    args: Args, core: ReferringCore, questions: int, console: Console
) -> dict[str, Any]:
    """Measure what the representation allows, print it, and write ``ceiling.json``."""
    numbers_are_whole = core.answer_frame.widest().integer
    with _progress(console, "outlining", questions) as advance:
        rows = measure_ceilings(
            core,
            questions,
            args.epsilon,
            args.decimals[:1] if numbers_are_whole else args.decimals,
            empty_union=args.empty_union,
            on_question=lambda: advance(1, ""),
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


@contextmanager
def _progress(
    console: Console, description: str, total: int
) -> Iterator[Callable[[int, str], None]]:
    """A progress bar; yields what moves it on."""
    with progress_bar(console) as progress:
        task = progress.add_task(description, total=total, status="")
        yield lambda count, status: progress.update(task, advance=count, status=status)


if __name__ == "__main__":
    with brief_errors():
        main(tyro.cli(Args, description=__doc__))
