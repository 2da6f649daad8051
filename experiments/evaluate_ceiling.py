"""What the representation allows: outlines of the truth itself, written as text and read again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from experiments.evaluate_frames import Reader
from seg_env.data.base import Dataset
from seg_env.geometry.contour import trace
from seg_env.geometry.simplify import simplify_rings
from seg_env.grammar import encode
from seg_env.metrics import bootstrap_interval, ciou, giou, iou, overlaps, size_class, vertex_counts
from seg_env.types import Ring, Sample

Setting = tuple[float, int]
"""Tolerance of the simplification as a share of the perimeter, and decimals."""


def measure_ceilings(
    dataset: Dataset,
    questions: int,
    reader: Reader,
    epsilons: Sequence[float],
    decimals: Sequence[int],
    *,
    empty_union: float,
    on_question: Callable[[], None],
) -> list[dict[str, Any]]:
    """Score outlines of the targets, for each tolerance and number of decimals.

    Args:
        dataset: Whose targets.
        questions: How many samples, from the first.
        reader: Gives the frame that outlines are written in.
        epsilons: Tolerances.
        decimals: Digits after the point; of no effect in a frame of whole numbers.
        empty_union: IoU of a target without pixels.
        on_question: Called after each sample.

    Returns:
        JSON-able, one entry a setting: ``epsilon``, ``decimals``, ``giou``, ``interval``, ``ciou``,
        ``sizes`` (gIoU by size class), ``vertices`` and ``characters`` (means and medians).
    """
    settings = [(epsilon, places) for places in decimals for epsilon in epsilons]
    rows: dict[Setting, list[NDArray[np.float64]]] = {setting: [] for setting in settings}
    areas = []
    for index in range(questions):
        sample = dataset[index]
        areas.append(sample.target.area)
        exact = trace(sample.target.mask())
        for epsilon in epsilons:
            rings = simplify_rings(exact, sample.target.size, epsilon)
            for places in decimals:
                rows[epsilon, places].append(_measure(sample, rings, reader, places))
        on_question()
    sizes = size_class(areas)
    return [_summary(setting, np.array(rows[setting]), sizes, empty_union) for setting in settings]


def _measure(
    sample: Sample, rings: tuple[Ring, ...], reader: Reader, decimals: int
) -> NDArray[np.float64]:
    """Intersection, union, vertices, characters."""
    text = encode(rings, decimals, frame=reader.frame(sample))
    read = reader.read(text, sample)
    counts = overlaps([read], [sample.target])
    vertices = vertex_counts([read.rings])
    return np.array([counts.intersections[0], counts.unions[0], vertices[0], len(text)])


def _summary(
    setting: Setting, rows: NDArray[np.float64], sizes: NDArray[np.str_], empty_union: float
) -> dict[str, Any]:
    shared, united, vertices, characters = rows.T
    scores = iou(shared, united, empty_union)
    score, low, high = bootstrap_interval(giou, scores)
    return {
        "epsilon": setting[0],
        "decimals": setting[1],
        "giou": score,
        "interval": [low, high],
        "ciou": float(ciou(shared, united, empty_union)),
        "sizes": {str(size): float(scores[sizes == size].mean()) for size in np.unique(sizes)},
        "vertices": {"mean": float(vertices.mean()), "median": float(np.median(vertices))},
        "characters": {"mean": float(characters.mean()), "median": float(np.median(characters))},
    }


def ceiling_table(ceilings: list[dict[str, Any]], title: str, *, decimals: bool) -> Table:
    """The ceilings for a terminal; ``decimals`` shows that column."""
    sizes = [s for s in ("small", "medium", "large") if any(s in row["sizes"] for row in ceilings)]
    table = Table(title=title, caption="gIoU, cIoU and sizes in per cent; sizes are gIoU")
    headings = ["ε", *(["decimals"] if decimals else []), "gIoU", "95 % interval", "cIoU", *sizes]
    for heading in [*headings, "vertices", "median", "characters", "median"]:
        table.add_column(heading, justify="right")
    for row in ceilings:
        low, high = row["interval"]
        table.add_row(
            f"{row['epsilon']:g}",
            *([str(row["decimals"])] if decimals else []),
            f"{100 * row['giou']:.2f}",
            f"[{100 * low:.2f}, {100 * high:.2f}]",
            f"{100 * row['ciou']:.2f}",
            *(f"{100 * row['sizes'][s]:.1f}" if s in row["sizes"] else "" for s in sizes),
            *(
                f"{row[name][kind]:.{0 if kind == 'median' else 1}f}"
                for name in ("vertices", "characters")
                for kind in ("mean", "median")
            ),
        )
    return table
