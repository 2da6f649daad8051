"""What the representation allows: outlines of the truth itself, written as text and scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.common.logs import progress_bar
from experiments.common.tables import terminal_table
from experiments.evaluation.answers import Answered, AnswerRecord
from experiments.evaluation.scores import measure_answers
from seg_env.envs.core import ReferringCore
from seg_env.grammar import encode
from seg_env.metrics import Columns, bootstrap_interval, ciou, giou
from seg_env.types import counted


def measure_ceilings(
    core: ReferringCore,
    questions: Sequence[int],
    epsilons: Sequence[float],
    decimals: Sequence[int],
    *,
    empty_union: float,
    console: Console,
) -> list[dict[str, Any]]:
    """Score outlines of some targets, for each tolerance and number of decimals.

    Decimals have no effect in a frame of whole numbers. A target without pixels has IoU
    ``empty_union``.

    Returns:
        JSON-able, one entry a setting: ``sizes`` is the gIoU by size class, ``vertices`` and
        ``characters`` are means and medians.
    """
    settings = [(epsilon, places) for places in decimals for epsilon in epsilons]
    answered: Answered = {}
    with progress_bar(console) as progress:
        task = progress.add_task("outlining", total=len(questions), status="")
        for index in questions:
            target = core.dataset[index].target
            frame = core.answer_frame.for_image(target.size)
            texts = (encode(target.outline(epsilon), n, frame=frame) for epsilon, n in settings)
            answered[index] = list(map(AnswerRecord, texts))
            progress.advance(task)
    columns = measure_answers(
        core, answered, details=False, empty_union=empty_union, console=console
    )
    found = []
    for place, (epsilon, n) in enumerate(settings):
        rows = {name: column[place :: len(settings)] for name, column in columns.items()}
        found.append({"epsilon": epsilon, "decimals": n, **_summary(rows, empty_union)})
    return found


def _summary(columns: Columns, empty_union: float) -> dict[str, Any]:
    scores = columns["iou"]
    score, low, high = bootstrap_interval(giou, scores)
    shared, united = columns["intersection"], columns["union"]
    sizes = np.unique(columns["size"])
    return {
        "giou": score,
        "interval": [low, high],
        "ciou": float(ciou(shared, united, empty_union)),
        "sizes": {str(size): float(scores[columns["size"] == size].mean()) for size in sizes},
        **{
            name: {"mean": float(columns[name].mean()), "median": float(np.median(columns[name]))}
            for name in ("vertices", "characters")
        },
    }


def ceiling_table(found: dict[str, Any]) -> Table:
    """The ceilings that ``ceiling.json`` holds, for a terminal."""
    sizes = [size for size in ("small", "medium", "large") if size in found["ceilings"][0]["sizes"]]
    rows = [
        [
            f"{row['epsilon']:g}",
            row["decimals"],
            *(f"{100 * row[score]:.2f}" for score in ("giou", "ciou")),
            *(f"{100 * row['sizes'][size]:.1f}" for size in sizes),
            f"{row['vertices']['mean']:.1f}",
            f"{row['characters']['mean']:.0f}",
        ]
        for row in found["ceilings"]
    ]
    return terminal_table(
        ["ε", "decimals", "gIoU", "cIoU", *sizes, "vertices", "characters"],
        rows,
        "r",
        title=f"Best scores that text allows: {found['dataset']} ({found['split']}), "
        f"{counted(found['questions'], 'question')}",
        caption="in per cent, small to large: gIoU; means of the rest; "
        f"frame: {found['frame']}; an empty union counts {found['empty_union']:g}",
    )
