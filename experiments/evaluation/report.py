"""What an evaluation leaves to read: a report, tables and images, of one task or of all."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from rich.console import Console
from rich.table import Column, Table

from experiments.common.logs import write_atomically, write_json
from experiments.evaluation.scores import AnsweredQuestion, interval_text, score_rows
from seg_env.envs.core import ReferringCore
from seg_env.envs.left_out import LeftOut
from seg_env.envs.render import draw_overlay
from seg_env.grammar.answers import read_answer
from seg_env.metrics import Columns, Failure
from seg_env.tasks import Task, form_of
from seg_env.types import Form, Sample

mpl.use("Agg")
import matplotlib.pyplot as plt

GRID = (4, 3)
"""Columns and rows of the sheets."""

FAILURES = {
    Failure.GOOD: ("#2a9d8f", "IoU of at least 0.5, or absence recognised"),
    Failure.WRONG_OBJECT: (
        "#e76f51",
        "another annotated object of the image is overlapped better",
    ),
    Failure.WRONG_OUTLINE: ("#e9c46a", "the object is overlapped, but its outline is bad"),
    Failure.NO_OBJECT: ("#b5507a", "neither the target nor another known object is overlapped"),
    Failure.MISSED: ("#6c757d", "the object is there, the answer says that it is not"),
    Failure.FALSE_ALARM: ("#457b9d", "the object is not there, the answer outlines something"),
    Failure.MALFORMED: ("#22223b", "no usable outline could be read"),
}
"""Colour and meaning of each kind of answer."""

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


def write_report(path: Path, scores: dict[str, Any], *, images: bool) -> None:
    """Write ``report.md``, with links to the images if there are any."""
    form = form_of(scores["task"])
    kinds = [
        (kind.replace("_", " "), count, f"{100 * count / scores['samples']:.1f}", meaning)
        for kind, (_, meaning) in FAILURES.items()
        if (count := scores["failures"].get(kind))
    ]
    issues = [(kind.replace("_", " "), count) for kind, count in scores["issues"].items()]
    sections = [
        f"# {scores['source']} on {scores['dataset']} ({scores['split']})",
        "\n".join(f"- {line}" for line in setting_lines(scores)),
        "## Scores\n\nIn per cent unless a unit is given.\n\n"
        + markdown(["", "score", "95 % interval"], score_rows(scores, scores["intervals"], form)),
        _gains(scores) if scores.get("compared_with") else "",
        "## What became of the answers\n\n" + markdown(["", "answers", "%", ""], kinds, "lrrl"),
        "Answers whose text was not well-formed, also where it could be read:\n\n"
        + markdown(["fault of the text", "answers"], issues)
        if issues
        else "",
        _breakdown(scores) if form == "mask" else "",
        "## Images" if images else "",
        "![Distribution of the IoU](iou_histogram.png)" if images and form == "mask" else "",
        "![Worst answers](worst.png)\n\n![Best answers](best.png)" if images else "",
    ]
    write_atomically(path, "\n\n".join(section for section in sections if section) + "\n")


def _gains(scores: dict[str, Any]) -> str:
    table = markdown(["", "gain", "95 % interval"], _gain_rows(scores))
    return (
        f"## Gain over `{scores['compared_with']}`\n\nPaired over the same questions; an interval "
        f"without 0 is more than luck of the draw.\n\n{table}"
    )


def _gain_rows(scores: dict[str, Any]) -> list[tuple[str, str, str]]:
    gains, intervals = (
        {name: each[part] for name, each in scores["gains"].items()}
        for part in ("gain", "interval")
    )
    return score_rows(gains, intervals, form_of(scores["task"]), "+")


def _breakdown(scores: dict[str, Any]) -> str:
    names = {
        "size": "size of the object (small: below 32², medium: below 96² pixels)",
        "ceiling": "IoU of the truth itself, written with ε 0.005 and three decimals",
    }
    parts = ["## gIoU by group"]
    for name, groups in scores["breakdown"].items():
        rows = []
        for label, group in groups.items():
            interval = interval_text(group["interval"], 100)
            rows.append((label, group["questions"], f"{100 * group['giou']:.1f}", interval))
        parts.append(markdown([names[name], "questions", "gIoU", "95 % interval"], rows))
    return "\n\n".join(parts)


def markdown(headings: list[str], rows: Any, alignment: str = "") -> str:
    """A table; ``alignment`` has an l or r for each column, by default one l and the rest r."""
    alignment = alignment or "l" + "r" * (len(headings) - 1)
    rules = ["---" if side == "l" else "---:" for side in alignment]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in [headings, rules, *rows])


def setting_lines(scores: dict[str, Any]) -> list[str]:
    """What a reader needs to know to get the same numbers."""
    lines = [
        f"environment {scores['env']}, data set {scores['dataset']}, split {scores['split']}"
        + (f" ({scores['split_by']})" if scores["split_by"] else ""),
        f"task {scores['task']}",
        f"{scores['questions']} questions, {scores['answers_per_question']} answer(s) each"
        + (f", {scores['decoding']}" if scores["decoding"] else ""),
        f"frame: {scores['frame']}",
        f"an empty union counts {scores['empty_union']:g}",
        "intervals: bootstrap over questions, 2000 resamples, 95 %",
    ]
    if scores["missing"]:
        treated = "left out" if scores["missing_rule"] == "skip" else "counted as empty answers"
        lines.append(f"{scores['missing']} questions without an answer, {treated}")
    if scores.get("left_out"):
        left_out = LeftOut()
        left_out.update(scores["left_out"])
        lines.append(left_out.summary())
    if scores["dataset"] == "embedded-sample":
        lines.append("the embedded sample stands in for the real data: not a score on RefCOCO")
    return lines


def print_scores(console: Console, scores: dict[str, Any]) -> None:
    """Print what matters most."""
    for line in setting_lines(scores):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    title = f"{scores['dataset']} ({scores['split']})"
    rows = score_rows(scores, scores["intervals"], form_of(scores["task"]))
    console.print(_terminal_table(title, "score", rows))
    console.print(
        ", ".join(f"{kind.replace('_', ' ')} {n}" for kind, n in scores["failures"].items()),
        highlight=False,
    )
    if scores.get("compared_with"):
        title = f"gain over {scores['compared_with']}, paired"
        console.print(_terminal_table(title, "gain", _gain_rows(scores)))


def _terminal_table(title: str, what: str, rows: Iterable[Sequence[str]]) -> Table:
    figures = (Column(heading, justify="right") for heading in (what, "95 % interval"))
    table = Table("", *figures, title=title)
    for row in rows:
        table.add_row(*row)
    return table


def draw_images(
    folder: Path,
    core: ReferringCore,
    items: list[AnsweredQuestion],
    columns: Columns,
    scores: dict[str, Any],
) -> None:
    """Write ``worst.png``, ``best.png`` and, for outlines, ``iou_histogram.png``."""
    answers, form = scores["answers_per_question"], form_of(scores["task"])
    # Boxes and points have worst and best ones by what fits them.
    fit = {"mask": "iou", "bbox": "box_iou", "point": "inside"}[form]
    columns = columns | {"iou": columns[fit]}
    for name, best in (("worst", False), ("best", True)):
        candidates = extremes(columns, answers, best=best)[:300]  # enough to find different objects
        shown = ((row, core.dataset[items[row // answers].index]) for row in candidates)
        rows = pick_varied((row, sample) for row, sample in shown if _has_image(sample))
        title = f"{name.capitalize()} answers, {scores['dataset']} ({scores['split']})"
        _draw_sheet(core, items, rows, columns, title, folder / f"{name}.png")
    if form == "mask":
        draw_histogram(columns, scores, folder / "iou_histogram.png")


def _has_image(sample: Sample) -> bool:
    """Whether there is an image to draw on; answers in a file are scored without it."""
    try:
        return bool(sample.image.size)
    except (OSError, ValueError):
        return False


def extremes(columns: Columns, answers: int, *, best: bool) -> list[int]:
    """Rows of the best or worst answers by IoU, most extreme first: one a question."""
    values = -columns["iou"] if best else columns["iou"]
    chosen = values.reshape(-1, answers).argmin(axis=1)
    rows = np.arange(len(chosen)) * answers + chosen
    found: list[int] = rows[np.argsort(values[rows], kind="stable")].tolist()
    return found


def pick_varied(samples: Iterable[tuple[int, Sample]]) -> list[int]:
    """Rows of the first samples that show different objects; others only fill what is left.

    Several sentences about one object tend to be answered alike, and would fill the sheet.
    """
    count = GRID[0] * GRID[1]
    seen: set[tuple[Any, ...]] = set()
    first: list[int] = []
    rest: list[int] = []
    for row, sample in samples:
        rle = sample.target.rle
        key = (*rle.size, rle.counts.tobytes())
        (rest if key in seen else first).append(row)
        seen.add(key)
        if len(first) == count:
            break
    return (first + rest)[:count]


def _draw_sheet(
    core: ReferringCore,
    items: Sequence[AnsweredQuestion],
    chosen: Sequence[int],
    columns: Columns,
    title: str,
    path: Path,
) -> None:
    """Draw targets (green) and answers (orange) on their images, beside each other."""
    width = min(GRID[0], len(chosen))
    height = -(-len(chosen) // width)
    size = (3.6 * width, 3.5 * height + 0.6)
    figure, axes = plt.subplots(height, width, figsize=size, layout="constrained", squeeze=False)
    figure.suptitle(f"{title}: target green, answer orange", fontsize=13)
    for axis, row in zip(axes.flat, chosen, strict=False):
        item = items[row // len(items[0].answers)]
        sample, text = core.dataset[item.index], item.answers[row % len(item.answers)].text
        prediction = read_answer(text, sample.target.size, core.answer_frame, core.tasks.forms[0])
        axis.imshow(draw_overlay(sample.image, sample.target, prediction, numbered=False))
        remark = str(columns["failure"][row]).replace("_", " ")
        if columns["issues"][row]:
            remark += f" ({columns['issues'][row].split(',')[0].replace('_', ' ')})"
        if remark.startswith("malformed"):
            remark += f": {text[:40]}"
        remark = remark if len(remark) <= 42 else f"{remark[:41]}…"
        expression = textwrap.shorten(_printable(sample.expression), 84, placeholder="…")
        heading = f"{columns['iou'][row]:.2f}  {_printable(remark)}\n"
        axis.set_title(heading + textwrap.fill(f"“{expression}”", 44), fontsize=9, loc="left")
    for axis in axes.flat:
        axis.axis("off")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_histogram(columns: Columns, scores: dict[str, Any], path: Path) -> None:
    """How many answers have which IoU, by what became of them."""
    figure, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    kinds = [kind for kind in FAILURES if (columns["failure"] == kind.value).any()]
    values = [columns["iou"][columns["failure"] == kind.value] for kind in kinds]
    named = zip(kinds, values, strict=True)
    axis.hist(
        values,
        bins=[place / 20 for place in range(21)],
        stacked=True,
        color=[FAILURES[kind][0] for kind in kinds],
        label=[f"{kind.value.replace('_', ' ')} ({len(some)})" for kind, some in named],
    )
    axis.axvline(scores["giou"], color="black", linewidth=1.2, label=f"gIoU {scores['giou']:.3f}")
    if (best := scores.get("representation_ceiling")) is not None:
        label = f"truth at ε .005: {best:.3f}"
        axis.axvline(best, color="black", linewidth=1.2, linestyle=":", label=label)
    axis.set(xlabel="mask IoU", ylabel="answers", xlim=(0, 1))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(frameon=False, loc="best")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _printable(text: str) -> str:
    """A text in one line, without what matplotlib would read as mathematics."""
    return " ".join(text.split()).replace("$", r"\$")


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
        f"# {title}: every task\n\n{first['questions']} questions each, {first['decoding']}; in "
        f"per cent, with 95 % bootstrap intervals over questions.\n\n"
        f"{markdown(TASK_HEADINGS, rows, 'llrllrrr')}\n\n![Scores by task](tasks.png)\n"
    )
    write_json(folder / "scores.json", scores)
    write_atomically(folder / "tasks.md", text)
    draw_tasks(found, title, folder / "tasks.png")
    tasks = Column("task", no_wrap=True, min_width=max(map(len, found)))
    table = Table(tasks, *TASK_HEADINGS[1:], title=title)
    for row in rows:
        table.add_row(*row)
    console.print(table)
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
    figure, axis = plt.subplots(figsize=(8.0, 0.5 * len(found) + 1.6), layout="constrained")
    for place, (task, scores) in enumerate(reversed(found.items())):
        (label, key), _, color = TASK_SCORES[form_of(task)]
        value, (low, high) = scores[key], scores["intervals"][key]
        reach = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axis.barh(place, value, color=color, xerr=reach, capsize=3, height=0.62)
        axis.text(1.02, place, f"{100 * value:.1f}  {label}", va="center", fontsize=9)
    axis.set_yticks(range(len(found)), list(reversed(found)))
    axis.set(xlim=(0, 1), title=title)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
