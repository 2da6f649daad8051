"""Speed and memory of scoring answers: mask IoU and boundary IoU of many thousands of them."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from scipy import ndimage

from experiments.benchmarks.memory import resident_mib
from experiments.benchmarks.rewards import mask_iou, smooth_object
from experiments.common.logs import write_json
from experiments.common.tables import terminal_table
from seg_env.geometry.raster import rasterize_rle
from seg_env.metrics import band_radius, boundary_iou, iou, measure, overlaps
from seg_env.types import Prediction, Target

BATCH = 256
"""Answers scored in one call."""


def benchmark_evaluate(
    json: Path | None = None,
    output_dir: Path | None = None,
    seed: int = 0,
    predictions: int = 20_000,
    answers_per_target: int = 1,
    vertices: int = 25,
    width: int = 640,
    height: int = 480,
    compared: int = 48,
    measured: int = 512,
) -> None:
    """Time mask IoU and boundary IoU of many answers, and watch the memory meanwhile.

    Answers are scored in batches of 256; the seconds are CPU time of one thread and include
    preparing each target from its run lengths. Memory is the growth of the largest resident set
    from after the first tenth to the end. Where pycocotools is installed
    (pip install 'simpleseg-rl[test]'), a few answers are also scored in the straightforward way:
    pycocotools rasterises and compares, scipy.ndimage erodes whole masks by 3 x 3 pixels d times.
    "All columns" is `seg_env.metrics.measure`: also boundary F, HD95, PoLiS, boxes and the rest.

    Args:
        json: File to write the figures to.
        output_dir: Folder to write them to as evaluate.json.
        seed: Seed of the objects and answers.
        predictions: Number of answers.
        answers_per_target: Answers about one target.
        vertices: Vertices of an answer.
        width: Width of the images in pixels.
        height: Height of the images in pixels.
        compared: Answers that are also scored in the straightforward way.
        measured: Answers that are measured in all columns.
    """
    source = partial(
        make_batches, np.random.default_rng(seed), (height, width), vertices, answers_per_target
    )
    timed_rate(score, source, max(predictions // 10, 1))
    before = resident_mib("VmHWM")
    rate = timed_rate(score, source, predictions)
    results: dict[str, Any] = {
        "predictions_per_second": rate,
        "memory_growth_mib": resident_mib("VmHWM") - before,
        "all_columns_per_second": timed_rate(measure, source, measured),
        **compare_with_straightforward(source, compared, rate),
        "settings": {
            "seed": seed,
            "predictions": predictions,
            "size": [height, width],
            "vertices": vertices,
            "answers_per_target": answers_per_target,
            "compared": compared,
            "measured": measured,
        },
        "versions": {"numpy": metadata.version("numpy")},
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }
    show(results, Console())
    for path in (json, output_dir and output_dir / "evaluate.json"):
        if path:
            write_json(path, results)


Batch: TypeAlias = tuple[list[Prediction], list[Target]]
Source: TypeAlias = Callable[[int], Iterator[Batch]]
"""Makes so many answers, each with its target, in batches."""


def make_batches(
    rng: np.random.Generator, size: tuple[int, int], vertices: int, per_target: int, count: int
) -> Iterator[Batch]:
    """Answers about smooth objects, small and large, with noise on every vertex.

    Every target and every answer is new, none known from an earlier batch.
    """
    pixels = np.array(size[::-1], dtype=np.float64)
    for start in range(0, count, BATCH):
        predictions: list[Prediction] = []
        targets: list[Target] = []
        for index in range(min(BATCH, count - start)):
            if index % per_target == 0:
                radius, outline = smooth_object(rng, rng.uniform(), size)
                target = Target(rasterize_rle([outline(200) / pixels], size))
            ring = outline(vertices) + rng.normal(0, 0.03 * radius, (vertices, 2))
            predictions.append(Prediction(((ring / pixels).clip(0, 1).round(3),)))
            targets.append(target)
        yield predictions, targets


def score(
    predictions: Sequence[Prediction], targets: Sequence[Target]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mask IoU and boundary IoU."""
    return iou(*overlaps(predictions, targets)), boundary_iou(predictions, targets)


def timed_rate(function: Any, source: Source, count: int) -> float:
    """Answers per second of CPU time, not counting the time to make the answers."""
    seconds = 0.0
    for batch in source(count):
        start = time.thread_time()
        function(*batch)
        seconds += time.thread_time() - start
    return count / seconds


def compare_with_straightforward(source: Source, count: int, rate: float) -> dict[str, Any]:
    """Speed beside pycocotools and scipy, and by how much the scores differ."""
    if find_spec("pycocotools") is None:
        return {}
    coco = import_module("pycocotools.mask")
    seconds, difference = 0.0, 0.0
    for predictions, targets in source(count):
        ours = np.stack(score(predictions, targets))
        start = time.thread_time()
        pairs = zip(predictions, targets, strict=True)
        theirs = [straightforward(coco, *pair) for pair in pairs]
        seconds += time.thread_time() - start
        difference = max(difference, float(np.abs(ours - np.transpose(theirs)).max()))
    return {
        "straightforward_per_second": count / seconds,
        "ratio_vs_straightforward": rate * seconds / count,
        "largest_difference": difference,
    }


def straightforward(coco: Any, prediction: Prediction, target: Target) -> tuple[float, float]:
    """Mask IoU by pycocotools and boundary IoU by its definition, on whole masks."""
    height, width = target.size
    flat = [(ring * (width, height)).ravel().tolist() for ring in prediction.rings]
    answer = coco.merge(coco.frPyObjects(flat, height, width))
    truth = {"size": [height, width], "counts": target.rle.to_string()}
    bands = []
    for encoded in (answer, truth):
        mask = coco.decode(encoded).astype(bool)
        inside = ndimage.binary_erosion(mask, np.ones((3, 3)), band_radius(target.size))
        bands.append(mask & ~inside)
    return float(coco.iou([answer], [truth], [0])[0, 0]), mask_iou(*bands)


def show(results: dict[str, Any], console: Console) -> None:
    """Print the figures as a table."""
    settings = results["settings"]
    height, width = settings["size"]
    labels = {
        "predictions_per_second": "mask IoU and boundary IoU",
        "straightforward_per_second": "the same by pycocotools and scipy, straightforwardly",
        "all_columns_per_second": "all columns",
    }
    rows = [(label, f"{results[key]:.0f}") for key, label in labels.items() if key in results]
    title = (
        f"Scoring {settings['predictions']} answers of {settings['vertices']} vertices, "
        f"{settings['answers_per_target']} per target, {width}x{height}"
    )
    console.print(terminal_table(["", "answers per second"], rows, title=title))
    console.print(f"memory grew by {results['memory_growth_mib']:.1f} MiB")
    if "ratio_vs_straightforward" in results:
        console.print(
            f"{results['ratio_vs_straightforward']:.0f} times as fast; largest difference of a "
            f"score: {results['largest_difference']:.1g}"
        )
