"""What an evaluation leaves to read: a report, tables and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.common.files import write_atomically
from experiments.evaluation.pictures import (
    Exhibit,
    draw_histogram,
    draw_sheet,
    extremes,
    pick_varied,
)
from experiments.evaluation.published import published_table
from experiments.evaluation.samples import Item
from experiments.evaluation.scores import gain_rows, score_rows
from seg_env.envs.core import ReferringCore
from seg_env.envs.left_out import LeftOut
from seg_env.metrics import Columns
from seg_env.tasks import DEFAULT_TASK, form_of
from seg_env.types import Form, Sample

HISTOGRAM = "![Distribution of the IoU](iou_histogram.png)"
SHEETS = "![Worst answers](worst.png)\n\n![Best answers](best.png)"

SHEET_CANDIDATES = 300
"""How many extreme answers are looked through for different objects."""

FAILURE_MEANINGS = {
    "good": "IoU of at least 0.5, or absence recognised",
    "wrong_object": "another annotated object of the image is overlapped better",
    "wrong_outline": "the object is overlapped, but its outline is bad",
    "no_object": "neither the target nor another known object is overlapped",
    "missed": "the object is there, the answer says that it is not",
    "false_alarm": "the object is not there, the answer outlines something",
    "malformed": "no usable outline could be read",
}


def draw_pictures(
    folder: Path,
    core: ReferringCore,
    items: list[Item],
    columns: Columns,
    scores: dict[str, Any],
) -> None:
    """Write ``worst.png``, ``best.png`` and, for outlines, ``iou_histogram.png``."""
    answers, form = scores["answers_per_question"], form_of(scores["task"])
    dataset = core.dataset
    # Boxes and points have worst and best ones by what fits them.
    fit = {"mask": "iou", "bbox": "box_iou", "point": "inside"}[form]
    columns = columns | {"iou": columns[fit]}
    for name, best in (("worst", False), ("best", True)):
        candidates = extremes(columns, answers, best=best)[:SHEET_CANDIDATES]
        shown = ((row, dataset[items[row // answers].index]) for row in candidates)
        rows = pick_varied((row, sample) for row, sample in shown if _can_be_shown(sample))
        title = f"{name.capitalize()} answers, {scores['dataset']} ({scores['split']})"
        exhibits = [_exhibit(core, items[row // answers], row, columns, form) for row in rows]
        draw_sheet(exhibits, title, folder / f"{name}.png")
    if form == "mask":
        draw_histogram(columns, scores, folder / "iou_histogram.png")


def _can_be_shown(sample: Sample) -> bool:
    """Whether there is an image to draw on; answers in a file are scored without it."""
    try:
        return bool(sample.image.size)
    except (OSError, ValueError):
        return False


def _exhibit(core: ReferringCore, item: Item, row: int, columns: Columns, form: Form) -> Exhibit:
    sample = core.dataset[item.index]
    text = item.answers[row % len(item.answers)].text
    remark = str(columns["failure"][row]).replace("_", " ")
    if columns["issues"][row]:
        remark += f" ({columns['issues'][row].split(',')[0].replace('_', ' ')})"
    if remark.startswith("malformed"):
        remark += f": {text[:40]}"
    (prediction,) = core.scorer.read([text], [sample], forms=[form])
    return Exhibit(sample, prediction, float(columns["iou"][row]), remark)


def write_report(path: Path, scores: dict[str, Any], *, pictures: bool) -> None:
    """Write ``report.md``, with links to the pictures if there are any."""
    outlines = form_of(scores["task"]) == "mask"
    kinds = [
        (kind.replace("_", " "), count, f"{100 * count / scores['samples']:.1f}", meaning)
        for kind, meaning in FAILURE_MEANINGS.items()
        if (count := scores["failures"].get(kind))
    ]
    sections = [
        f"# {scores['source']} on {scores['dataset']} ({scores['split']})",
        "\n".join(f"- {line}" for line in setting_lines(scores)),
        "## Scores\n\nIn per cent unless a unit is given.\n\n"
        + markdown(["", "score", "95 % interval"], score_rows(scores)),
        _published(scores) if scores["task"] == DEFAULT_TASK else "",
        _compared(scores),
        "## What became of the answers\n\n"
        + markdown(["", "answers", "%", ""], kinds, "lrrl")
        + _issues(scores),
        _breakdown(scores) if outlines else "",
        "## Pictures" if pictures else "",
        HISTOGRAM if pictures and outlines else "",
        SHEETS if pictures else "",
    ]
    write_atomically(path, "\n\n".join(section for section in sections if section) + "\n")


def print_scores(console: Console, scores: dict[str, Any]) -> None:
    """Print what matters most."""
    for line in setting_lines(scores):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    table = Table(title=f"{scores['dataset']} ({scores['split']})")
    for heading in ("", "score", "95 % interval"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in score_rows(scores):
        table.add_row(*row)
    console.print(table)
    console.print(
        ", ".join(f"{kind.replace('_', ' ')} {n}" for kind, n in scores["failures"].items()),
        highlight=False,
    )
    if scores.get("compared_with"):
        gains = Table(title=f"gain over {scores['compared_with']}, paired")
        for heading in ("", "gain", "95 % interval"):
            gains.add_column(heading, justify="right" if heading else "left")
        for row in gain_rows(scores["gains"], form_of(scores["task"])):
            gains.add_row(*row)
        console.print(gains)


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


def _published(scores: dict[str, Any]) -> str:
    table = published_table(
        scores["dataset"],
        scores["split"],
        scores["split_by"],
        scores["questions"],
        scores["ciou"],
        scores["rec_accuracy"],
    )
    return f"## Beside published figures\n\n{table}" if table else ""


def _compared(scores: dict[str, Any]) -> str:
    if not scores.get("compared_with"):
        return ""
    table = markdown(
        ["", "gain", "95 % interval"], gain_rows(scores["gains"], form_of(scores["task"]))
    )
    return (
        f"## Gain over `{scores['compared_with']}`\n\nPaired over the same questions; an interval "
        f"without 0 is more than luck of the draw.\n\n{table}"
    )


def _issues(scores: dict[str, Any]) -> str:
    if not scores["issues"]:
        return ""
    rows = [(kind.replace("_", " "), count) for kind, count in scores["issues"].items()]
    table = markdown(["fault of the text", "answers"], rows)
    return f"\n\nAnswers whose text was not well-formed, also where it could be read:\n\n{table}"


def _breakdown(scores: dict[str, Any]) -> str:
    names = {
        "size": "size of the object (small: below 32², medium: below 96² pixels)",
        "ceiling": "IoU of the truth itself, written with ε 0.005 and three decimals",
    }
    parts = ["## gIoU by group"]
    for name, groups in scores["breakdown"].items():
        rows = [
            (
                label,
                group["questions"],
                f"{100 * group['giou']:.1f}",
                "[{:.1f}, {:.1f}]".format(*(100 * end for end in group["interval"])),
            )
            for label, group in groups.items()
        ]
        parts.append(markdown([names[name], "questions", "gIoU", "95 % interval"], rows))
    return "\n\n".join(parts)


def markdown(headings: list[str], rows: Any, alignment: str = "") -> str:
    """A table; ``alignment`` has an l or r for each column, by default one l and the rest r."""
    alignment = alignment or "l" + "r" * (len(headings) - 1)
    rules = ["---" if side == "l" else "---:" for side in alignment]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in [headings, rules, *rows])
