"""What the representation allows: outlines of the truth itself, written as text and read again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from experiments.common.logs import progress_bar
from experiments.common.tables import terminal_table
from seg_env.envs.core import ReferringCore
from seg_env.frames import AnswerFrame
from seg_env.geometry.contour import trace
from seg_env.geometry.rle import Rle
from seg_env.geometry.simplify import simplify_rings
from seg_env.grammar import decode, encode
from seg_env.metrics import bootstrap_interval, ciou, giou, iou, overlaps, size_class, vertex_counts
from seg_env.types import Sample

Setting = tuple[float, int]
"""Tolerance of the simplification as a share of the perimeter, and decimals."""


def measure_ceilings(
    core: ReferringCore,
    questions: int,
    epsilons: Sequence[float],
    decimals: Sequence[int],
    *,
    empty_union: float,
    console: Console,
) -> list[dict[str, Any]]:
    """Score outlines of the first targets, for each tolerance and number of decimals.

    Decimals are of no effect in a frame of whole numbers. A target without pixels has IoU
    ``empty_union``.

    Returns:
        JSON-able, one entry a setting: ``sizes`` is the gIoU by size class, ``vertices`` and
        ``characters`` are means and medians.
    """
    settings = [(epsilon, places) for places in decimals for epsilon in epsilons]
    rows: list[NDArray[np.float64]] = []
    areas: list[int] = []
    before: Rle | None = None
    with progress_bar(console) as progress:
        task = progress.add_task("outlining", total=questions, status="")
        for index in range(questions):
            sample = core.dataset[index]
            # Sentences about one object follow each other.
            known = sample.target.rle == before
            rows.append(rows[-1] if known else _measure(sample, core.answer_frame, settings))
            areas.append(sample.target.area)
            before = sample.target.rle
            progress.advance(task)
    sizes = size_class(areas)
    return [
        _summary(setting, table, sizes, empty_union)
        for setting, table in zip(settings, np.stack(rows, axis=1), strict=True)
    ]


def _measure(
    sample: Sample, answer_frame: AnswerFrame, settings: Sequence[Setting]
) -> NDArray[np.float64]:
    """``(S, 4)`` intersection, union, vertices and characters by setting."""
    target, frame = sample.target, answer_frame.for_image(sample.target.size)
    exact = trace(target.mask())
    outlines = {
        epsilon: simplify_rings(exact, target.size, epsilon)
        for epsilon in {epsilon for epsilon, _ in settings}
    }
    texts = [encode(outlines[epsilon], places, frame=frame) for epsilon, places in settings]
    read = [decode(text, frame) for text in texts]
    counts = overlaps(read, [target] * len(read))
    vertices = vertex_counts(answer.rings for answer in read)
    return np.stack([*counts, vertices, np.array(list(map(len, texts)))], axis=1).astype(np.float64)


def _summary(
    setting: Setting, rows: NDArray[np.float64], sizes: NDArray[np.str_], empty_union: float
) -> dict[str, Any]:
    epsilon, decimals = setting
    shared, united, vertices, characters = rows.T
    scores = iou(shared, united, empty_union)
    score, low, high = bootstrap_interval(giou, scores)
    return {
        "epsilon": epsilon,
        "decimals": decimals,
        "giou": score,
        "interval": [low, high],
        "ciou": float(ciou(shared, united, empty_union)),
        "sizes": {str(size): float(scores[sizes == size].mean()) for size in np.unique(sizes)},
        "vertices": {"mean": float(vertices.mean()), "median": float(np.median(vertices))},
        "characters": {"mean": float(characters.mean()), "median": float(np.median(characters))},
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
        f"{found['questions']} questions",
        caption="in per cent, small to large: gIoU; means of the rest; "
        f"frame: {found['frame']}; an empty union counts {found['empty_union']:g}",
    )
