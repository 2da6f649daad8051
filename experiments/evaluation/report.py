"""The report of an evaluation, with tables and images, for one task or for all."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.markdown import Markdown

from experiments.common.logs import write_atomically, write_json
from experiments.common.tables import markdown_table
from experiments.evaluation.answers import Answered
from experiments.evaluation.scores import interval_text, score_rows
from seg_env.envs.core import ReferringCore
from seg_env.envs.left_out import LeftOut, UnusableSampleError, loading
from seg_env.geometry.drawing import draw_overlay
from seg_env.grammar.answers import read_answer
from seg_env.metrics import Columns, Failure
from seg_env.tasks import Task, form_of
from seg_env.types import Form, Sample, counted

GRID = (4, 3)
"""Columns and rows of the sheets."""

FAILURES = {
    Failure.GOOD: "IoU of at least 0.5, or absence recognised",
    Failure.WRONG_OBJECT: "another annotated object of the image is overlapped better",
    Failure.WRONG_OUTLINE: "the object is overlapped, but its outline is bad",
    Failure.NO_OBJECT: "neither the target nor another known object is overlapped",
    Failure.MISSED: "the object is there, the answer says that it is not",
    Failure.FALSE_ALARM: "the object is not there, the answer outlines something",
    Failure.MALFORMED: "no usable outline could be read",
}
"""What each kind of answer means."""

TASK_SCORES: dict[Form, tuple[tuple[str, str], tuple[str, str], str]] = {
    "mask": (("gIoU", "giou"), ("cIoU", "ciou"), "#2a9d8f"),
    "bbox": (("REC accuracy@0.5", "rec_accuracy"), ("box IoU", "box_giou"), "#457b9d"),
    "point": (
        ("pointing accuracy", "pointing_accuracy"),
        ("distance, % of the side", "point_distance"),
        "#e76f51",
    ),
}
"""By form, the score that answers are known by, one that helps to read it, and a colour."""
TASK_HEADINGS = ["task", "score", "", "95 % interval", "also", "", "well-formed", "N-acc"]


def report_text(scores: dict[str, Any]) -> str:
    """What ``report.md`` says above the images, and what is printed."""
    form = form_of(scores["task"])
    kinds = [
        (kind.replace("_", " "), count, f"{100 * count / scores['samples']:.1f}", meaning)
        for kind, meaning in FAILURES.items()
        if (count := scores["failures"].get(kind))
    ]
    measured = score_rows(scores, scores["intervals"], form)
    issues = [(kind.replace("_", " "), count) for kind, count in scores["issues"].items()]
    sections = [
        f"# {scores['source']} on {scores['dataset']} ({scores['split']})",
        "\n".join(f"- {line}" for line in _setting_lines(scores)),
        "## Scores\n\nIn per cent unless a unit is given.",
        markdown_table(["", "score", "95 % interval"], measured),
    ]
    if scores.get("compared_with"):
        gains, intervals = (
            {name: each[part] for name, each in scores["gains"].items()}
            for part in ("gain", "interval")
        )
        sections += [
            f"## Gain over `{scores['compared_with']}`\n\nPaired over the same questions; an "
            "interval without 0 is more than luck of the draw.",
            markdown_table(
                ["", "gain", "95 % interval"], score_rows(gains, intervals, form, sign="+")
            ),
        ]
    sections += [
        "## What became of the answers",
        markdown_table(["", "answers", "%", ""], kinds, "lrrl"),
    ]
    if issues:
        sections += [
            "Answers whose text was not well-formed, also where it could be read:",
            markdown_table(["fault of the text", "answers"], issues),
        ]
    if form == "mask":
        sections += ["## gIoU by group", *_breakdown(scores)]
    return "\n\n".join(sections) + "\n"


def _breakdown(scores: dict[str, Any]) -> Iterator[str]:
    names = {
        "size": "size of the object (small: below 32², medium: below 96² pixels)",
        "ceiling": "IoU of the truth itself, written with ε 0.005 and three decimals",
    }
    for name, groups in scores["breakdown"].items():
        rows = []
        for label, group in groups.items():
            interval = interval_text(group["interval"], 100)
            rows.append((label, group["questions"], f"{100 * group['giou']:.1f}", interval))
        yield markdown_table([names[name], "questions", "gIoU", "95 % interval"], rows)


def _setting_lines(scores: dict[str, Any]) -> list[str]:
    """What a reader needs to know to get the same numbers."""
    lines = [
        f"environment {scores['env']}, data set {scores['dataset']}, split {scores['split']}"
        + (f" ({scores['split_by']})" if scores["split_by"] else ""),
        f"task {scores['task']}",
        f"{counted(scores['questions'], 'question')}, "
        f"{counted(scores['answers_per_question'], 'answer')} each"
        + (f", {scores['decoding']}" if scores["decoding"] else ""),
        f"frame: {scores['frame']}",
        f"an empty union counts {scores['empty_union']:g}",
        "intervals: bootstrap over questions, 2000 resamples, 95 %",
    ]
    if form_of(scores["task"]) != "point":
        lines.append(true_boxes(scores))
    if scores["missing"]:
        treated = "left out" if scores["missing_rule"] == "skip" else "counted as empty answers"
        lines.append(f"{counted(scores['missing'], 'question')} without an answer, {treated}")
    if scores.get("left_out"):
        left_out = LeftOut()
        left_out.update(scores["left_out"])
        lines.append(left_out.summary())
    lines += [f"{count} {reason}" for reason, count in scores.get("not_asked", {}).items()]
    if scores["dataset"] == "embedded-sample":
        lines.append("the embedded sample stands in for the real data: not a score on RefCOCO")
    return lines


def true_boxes(scores: dict[str, Any]) -> str:
    """Which boxes answers were compared with."""
    annotated, mask = (scores["true_boxes"][kind] for kind in ("annotated", "mask"))
    if not annotated or not mask:
        return f"true boxes: {'as annotated' if annotated else 'around the masks'}"
    questions = counted(annotated, "question")
    return f"true boxes: as annotated for {questions}, around the masks for {mask}"


def draw_images(
    folder: Path,
    core: ReferringCore,
    answered: Answered,
    columns: Columns,
    scores: dict[str, Any],
) -> str:
    """Draw ``worst.png`` and ``best.png``, as far as there are images that can be read.

    Returns:
        The part of the report that shows them, empty if there is nothing to draw on.
    """
    # Boxes and points are ranked by the score that fits their form.
    fit = {"mask": "iou", "bbox": "box_iou", "point": "inside"}[form_of(scores["task"])]
    columns = columns | {"iou": columns[fit]}
    shown = []
    for name, sign in (("worst", 1), ("best", -1)):
        title = f"{name.capitalize()} answers"
        if rows := _pick(core, answered, sign * columns["iou"]):
            whole_title = f"{title}, {scores['dataset']} ({scores['split']})"
            _draw_sheet(core, answered, rows, columns, whole_title, folder / f"{name}.png")
            shown.append(f"![{title}]({name}.png)")
    return "\n\n".join(["\n## Images", *shown]) + "\n" if shown else ""


def _pick(core: ReferringCore, answered: Answered, values: NDArray[np.float64]) -> list[int]:
    """Rows with the lowest values, one for each object: sentences about one are answered alike."""
    values, indices = values.reshape(len(answered), -1), list(answered)
    chosen: dict[tuple[Any, ...], int] = {}
    for place in np.argsort(values.min(axis=1), kind="stable")[:300].tolist():
        sample = core.dataset[indices[place]]
        row = place * values.shape[1] + int(values[place].argmin())
        if _has_image(sample):
            chosen.setdefault((*sample.target.size, sample.target.rle.counts.tobytes()), row)
        if len(chosen) == GRID[0] * GRID[1]:
            break
    return list(chosen.values())


def _has_image(sample: Sample) -> bool:
    """Whether there is an image to draw on: answers in a file are scored without it, too."""
    try:
        with loading():
            return bool(sample.image.size)
    except UnusableSampleError:
        return False


def _draw_sheet(
    core: ReferringCore,
    answered: Answered,
    chosen: Sequence[int],
    columns: Columns,
    title: str,
    path: Path,
) -> None:
    """Draw targets (green) and answers (orange) on their images, beside each other."""
    texts = [(index, answer.text) for index, given in answered.items() for answer in given]
    width = min(GRID[0], len(chosen))
    height = -(-len(chosen) // width)
    figure = Figure(figsize=(3.6 * width, 3.5 * height + 0.6), layout="constrained")
    axes = figure.subplots(height, width, squeeze=False)
    figure.suptitle(f"{title}: target green, answer orange", fontsize=13, parse_math=False)
    for axis, row in zip(axes.flat, chosen, strict=False):
        index, text = texts[row]
        sample = core.dataset[index]
        prediction = read_answer(text, sample.target.size, core.answer_frame, core.tasks.forms[0])
        axis.imshow(draw_overlay(sample.image, sample.target, prediction))
        remark = str(columns["failure"][row])
        if columns["issues"][row]:
            remark += f" ({columns['issues'][row].split(',')[0]})"
        remark = remark.replace("_", " ")
        if remark.startswith("malformed"):
            remark += f": {text[:40]}"
        remark = textwrap.shorten(remark, 42, placeholder="…")
        expression = textwrap.shorten(sample.expression, 84, placeholder="…")
        lines = f"{columns['iou'][row]:.2f}  {remark}\n" + textwrap.fill(f"“{expression}”", 44)
        axis.set_title(lines, fontsize=9, loc="left", parse_math=False)
    for axis in axes.flat:
        axis.axis("off")
    figure.savefig(path, dpi=100)


def write_task_table(
    folder: Path, found: dict[Task, dict[str, Any]], console: Console
) -> dict[str, Any]:
    """Write ``scores.json``, ``tasks.md`` and ``tasks.png``, and print the table.

    ``found`` has the scores of each task, as ``scores.json`` of a single task holds them.

    Returns:
        What ``scores.json`` holds: what was measured, and the scores by task.
    """
    first = next(iter(found.values()))
    settings = ("source", "env", "dataset", "split", "questions", "decoding", "frame", "seed")
    scores = {name: first[name] for name in settings} | {"tasks": found}
    rows = [_task_row(task, each) for task, each in found.items()]
    title = f"{first['source']} on {first['dataset']} ({first['split']})"
    text = (
        f"# {title}: every task\n\n{counted(first['questions'], 'question')} each, "
        f"{first['decoding']}; in per cent, with 95 % bootstrap intervals over questions; "
        f"{true_boxes(first)}.\n\n"
        f"{markdown_table(TASK_HEADINGS, rows, 'llrll')}\n"
    )
    write_json(folder / "scores.json", scores)
    write_atomically(folder / "tasks.md", f"{text}\n![Scores by task](tasks.png)\n")
    draw_tasks(found, title, folder / "tasks.png")
    console.print(Markdown(text))
    return scores


def _task_row(task: Task, scores: dict[str, Any]) -> list[str]:
    """One line of the table."""
    (label, key), (second, second_key), _ = TASK_SCORES[form_of(task)]
    interval = interval_text(scores["intervals"][key], 100)
    shares = (scores[second_key], scores["well_formed"], scores["n_acc"])
    also, well_formed, absent = ("" if one is None else f"{100 * one:.1f}" for one in shares)
    return [task, label, f"{100 * scores[key]:.1f}", interval, second, also, well_formed, absent]


def draw_tasks(found: dict[Task, dict[str, Any]], title: str, path: Path) -> None:
    """Bars of the main score of each task, with intervals."""
    figure = Figure(figsize=(8.0, 0.5 * len(found) + 1.6), layout="constrained")
    axis = figure.subplots()
    for place, (task, scores) in enumerate(reversed(found.items())):
        (label, key), _, color = TASK_SCORES[form_of(task)]
        value, (low, high) = scores[key], scores["intervals"][key]
        reach = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axis.barh(place, value, color=color, xerr=reach, capsize=3, height=0.62)
        axis.text(1.02, place, f"{100 * value:.1f}  {label}", va="center", fontsize=9)
    axis.set_yticks(range(len(found)), list(reversed(found)))
    axis.set(xlim=(0, 1))
    axis.set_title(title, parse_math=False)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
