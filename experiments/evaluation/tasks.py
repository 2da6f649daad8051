"""The table of every task: what one policy is worth in each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from rich.console import Console
from rich.table import Table

from experiments.common.logs import write_atomically, write_json
from experiments.evaluation.report import markdown
from seg_env.tasks import Task, form_of
from seg_env.types import Form

mpl.use("Agg")
import matplotlib.pyplot as plt

EVERY_TASK = "all"
"""What ``--task`` is given to score each of them."""

MAIN_SCORES: dict[Form, tuple[str, str]] = {
    "mask": ("gIoU", "giou"),
    "bbox": ("REC accuracy@0.5", "rec_accuracy"),
    "point": ("pointing accuracy", "pointing_accuracy"),
}
"""The score that answers of each form are known by: label and key."""
SECOND_SCORES: dict[Form, tuple[str, str]] = {
    "mask": ("cIoU", "ciou"),
    "bbox": ("box IoU", "box_giou"),
    "point": ("distance, % of the side", "point_distance"),
}
"""Another score that helps to read the first."""
COLORS: dict[Form, str] = {"mask": "#2a9d8f", "bbox": "#457b9d", "point": "#e76f51"}

HEADINGS = ["task", "score", "", "95 % interval", "also", "", "well-formed", "N-acc"]


def write_task_table(
    folder: Path, found: dict[Task, dict[str, Any]], console: Console
) -> dict[str, Any]:
    """Write ``scores.json``, ``tasks.md`` and ``tasks.png``, and print the table.

    Args:
        folder: Where to.
        found: Scores of each task, as ``scores.json`` of a single task holds them.
        console: Where to print.

    Returns:
        What ``scores.json`` holds: what was measured, and the scores by task.
    """
    first = next(iter(found.values()))
    settings = ("source", "env", "dataset", "split", "questions", "decoding", "frame", "seed")
    scores = {name: first[name] for name in settings} | {"tasks": found}
    rows = [_row(task, each) for task, each in found.items()]
    title = f"{first['source']} on {first['dataset']} ({first['split']})"
    text = (
        f"# {title}: every task\n\n{first['questions']} questions each, {first['decoding']}; in "
        f"per cent, with 95 % bootstrap intervals over questions.\n\n"
        f"{markdown(HEADINGS, rows, 'llrllrrr')}\n\n![Scores by task](tasks.png)\n"
    )
    write_json(folder / "scores.json", scores)
    write_atomically(folder / "tasks.md", text)
    draw_tasks(found, title, folder / "tasks.png")
    table = Table(*HEADINGS, title=title)
    table.columns[0].no_wrap = True
    table.columns[0].min_width = max(map(len, found))
    for row in rows:
        table.add_row(*row)
    console.print(table)
    return scores


def _row(task: Task, scores: dict[str, Any]) -> list[str]:
    """One line of the table."""
    form = form_of(task)
    (label, key), (second, second_key) = MAIN_SCORES[form], SECOND_SCORES[form]
    low, high = scores["intervals"][key]
    shares = (scores[second_key], scores["well_formed"], scores["n_acc"])
    also, well_formed, absent = ("" if one is None else f"{100 * one:.1f}" for one in shares)
    interval = f"[{100 * low:.1f}, {100 * high:.1f}]"
    return [task, label, f"{100 * scores[key]:.1f}", interval, second, also, well_formed, absent]


def draw_tasks(found: dict[Task, dict[str, Any]], title: str, path: Path) -> None:
    """Bars of the main score of each task, with intervals."""
    figure, axis = plt.subplots(figsize=(8.0, 0.5 * len(found) + 1.6), layout="constrained")
    for place, (task, scores) in enumerate(reversed(found.items())):
        form = form_of(task)
        label, key = MAIN_SCORES[form]
        value, (low, high) = scores[key], scores["intervals"][key]
        reach = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axis.barh(place, value, color=COLORS[form], xerr=reach, capsize=3, height=0.62)
        axis.text(1.02, place, f"{100 * value:.1f}  {label}", va="center", fontsize=9)
    axis.set_yticks(range(len(found)), list(reversed(found)))
    axis.set(xlim=(0, 1), title=title)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
