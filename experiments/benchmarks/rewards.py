"""Speed and exactness of the mask IoU reward beside other ways of computing it."""

from __future__ import annotations

import ast
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata
from json import loads
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from experiments.common.logs import write_json
from experiments.common.tables import terminal_table
from seg_env.geometry.overlap import iou_batch
from seg_env.geometry.rle import Rle
from seg_env.grammar import decode, encode

OURS = "ours"
BATCHED = "pycocotools, batched"


@dataclass(frozen=True)
class AnswerGroup:
    """Answers about one object, in the form that each contender takes as its input."""

    size: tuple[int, int]
    """``(H, W)`` of the image."""
    rings: list[list[NDArray[np.float64]]]
    """One ring per answer in the unit frame; ``flat`` has them in pixels, ``texts`` as text."""
    flat: list[list[list[float]]]
    texts: list[str]
    truth: dict[str, Any]
    """COCO's compressed run lengths of the object; ``rle`` and ``mask`` hold the same."""
    rle: Rle
    mask: NDArray[np.bool_]


def benchmark_rewards(
    json: Path | None = None,
    output_dir: Path | None = None,
    seed: int = 0,
    group: int = 16,
    vertices: int = 25,
    width: int = 640,
    height: int = 480,
    objects: int = 8,
    rounds: int = 25,
) -> None:
    """Time the mask IoU of a group of answers with their target, and compare it to pycocotools.

    All contenders take turns (A B C A B C ...), each over all objects, on one thread; figures are
    medians of CPU time over the turns. Every contender starts from the input it likes best: ours
    from arrays, pycocotools from flat lists, the lines "from text" from the answers. Preparing the
    target from its run lengths counts for ours, once per group, and not for the others. Batched
    pycocotools is one frPyObjects and merge per answer and one iou call per group. "Released
    decoder" does what SimpleSeg's script does: read the text, rasterise polygon by polygon with
    pycocotools, unite and compare full masks in numpy.

    Needs pycocotools: pip install 'simpleseg-rl[test]'.

    Args:
        json: File to write the figures to.
        output_dir: Folder to write them to as rewards.json.
        seed: Seed of the objects and answers.
        group: Answers per object.
        vertices: Vertices of an answer.
        width: Width of the images in pixels.
        height: Height of the images in pixels.
        objects: Number of objects; their sizes run from small to large.
        rounds: Turns of each contender.
    """
    try:
        coco = import_module("pycocotools.mask")
    except ImportError as error:
        raise SystemExit(
            "This benchmark compares with pycocotools, which is not installed. Install it with "
            "`pip install 'simpleseg-rl[test]'` or `pip install pycocotools`."
        ) from error
    rng = np.random.default_rng(seed)
    groups = [
        make_group(rng, scale, (height, width), group, vertices, coco)
        for scale in np.linspace(0, 1, objects)
    ]
    contenders = make_contenders(coco)
    seconds = measure(contenders, groups, rounds)
    microseconds = {name: times / (objects * group) * 1e6 for name, times in seconds.items()}
    ratios = microseconds[OURS] / microseconds[BATCHED]
    differences = sum(
        int((contenders[OURS](each) != contenders[BATCHED](each)).sum()) for each in groups
    )
    results = {
        "ratio_vs_pycocotools_batched": float(np.median(ratios)),
        "ratio_vs_pycocotools_batched_range": [float(ratios.min()), float(ratios.max())],
        "differences_from_pycocotools": differences,
        "microseconds_per_prediction": {
            name: {"median": float(np.median(t)), "min": float(t.min()), "max": float(t.max())}
            for name, t in microseconds.items()
        },
        "settings": {
            "seed": seed,
            "group": group,
            "vertices": vertices,
            "size": [height, width],
            "objects": objects,
            "rounds": rounds,
        },
        "versions": {name: metadata.version(name) for name in ("numpy", "pycocotools", "rasterio")},
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }
    show(results, Console())
    for path in (json, output_dir and output_dir / "rewards.json"):
        if path:
            write_json(path, results)


def smooth_object(
    rng: np.random.Generator, scale: float, size: tuple[int, int]
) -> tuple[float, Callable[[int], NDArray[np.float64]]]:
    """A smooth object in the middle of an image, small for ``scale`` 0 and large for 1.

    Returns:
        Its mean radius, and its outline of so many vertices, ``(V, 2)``; both in pixels.
    """
    radius = min(size) * (0.05 + 0.35 * scale)
    center = np.array(size[::-1]) * rng.uniform(0.4, 0.6, 2)
    waves = rng.normal(0, 0.08, (2, 4))

    def outline(count: int) -> NDArray[np.float64]:
        angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
        phases = angles[:, None] * np.arange(2, 6)
        radii = radius * (1 + np.cos(phases) @ waves[0] + np.sin(phases) @ waves[1])
        return center + radii[:, None] * np.stack((np.cos(angles), np.sin(angles)), axis=1)

    return radius, outline


def make_group(
    rng: np.random.Generator,
    scale: float,
    size: tuple[int, int],
    group: int,
    vertices: int,
    coco: Any,
) -> AnswerGroup:
    """A smooth object and noisy answers about it."""
    radius, outline = smooth_object(rng, scale, size)
    pixels = np.array(size[::-1], dtype=np.float64)
    truth = coco.merge(coco.frPyObjects([outline(200).ravel().tolist()], *size))
    noise = rng.normal(0, 0.03 * radius, (group, vertices, 2))
    rings = [[ring] for ring in ((outline(vertices) + noise) / pixels).clip(0, 1).round(3)]
    return AnswerGroup(
        size=size,
        rings=rings,
        flat=[[(ring * pixels).ravel().tolist()] for (ring,) in rings],
        texts=[encode(answer) for answer in rings],
        truth=truth,
        rle=Rle.from_string(size, truth["counts"]),
        mask=coco.decode(truth).astype(bool),
    )


def make_contenders(coco: Any) -> dict[str, Callable[[AnswerGroup], NDArray[np.float64]]]:
    """All ways of computing the IoU of a group, by name."""

    def masks_of(group: AnswerGroup) -> list[Any]:
        return [coco.merge(coco.frPyObjects(flat, *group.size)) for flat in group.flat]

    def one_by_one(group: AnswerGroup) -> NDArray[np.float64]:
        scores = [coco.iou([mask], [group.truth], [0])[0, 0] for mask in masks_of(group)]
        return np.array(scores)

    return {
        OURS: lambda group: iou_batch(group.rings, group.rle),
        BATCHED: lambda group: coco.iou(masks_of(group), [group.truth], [0])[:, 0],
        "pycocotools, one by one": one_by_one,
        "rasterio, full frame": rasterio_full,
        "ours, from text": lambda group: iou_batch(
            [decode(text).rings for text in group.texts], group.rle
        ),
        "released decoder, from text (json)": partial(released_decoder, coco, loads),
        "released decoder, from text (ast)": partial(released_decoder, coco, ast.literal_eval),
    }


def rasterio_full(group: AnswerGroup) -> NDArray[np.float64]:
    """Masks of the whole image by rasterio (its fill rule, which is not COCO's)."""
    from rasterio.features import rasterize

    height, width = group.size
    scores = []
    for (ring,) in group.rings:
        shape = {"type": "Polygon", "coordinates": [(ring * (width, height)).tolist()]}
        mask = rasterize([shape], out_shape=group.size, dtype="uint8")
        scores.append(mask_iou(mask.astype(bool), group.mask))
    return np.array(scores)


def released_decoder(
    coco: Any, read: Callable[[str], list[list[list[float]]]], group: AnswerGroup
) -> NDArray[np.float64]:
    """Text, polygon by polygon, to full masks, as SimpleSeg's script decodes answers."""
    height, width = group.size
    scores = []
    for text in group.texts:
        found = re.search(r"\[\[\[.*\]\]\]", text, re.DOTALL)
        union = np.zeros(group.size, dtype=bool)
        for polygon in read(found.group()) if found else []:
            flat = (np.array(polygon) * (width, height)).ravel().tolist()
            union |= coco.decode(coco.frPyObjects([flat], height, width))[:, :, 0].astype(bool)
        scores.append(mask_iou(union, group.mask))
    return np.array(scores)


def mask_iou(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """IoU of two masks by counting pixels."""
    union = np.logical_or(predicted, truth).sum()
    return float(np.logical_and(predicted, truth).sum() / union) if union else 1.0


def measure(
    contenders: dict[str, Callable[[AnswerGroup], NDArray[np.float64]]],
    groups: list[AnswerGroup],
    rounds: int,
) -> dict[str, NDArray[np.float64]]:
    """CPU seconds ``(rounds,)`` of each contender for one pass over all groups."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, contender in contenders.items():
            start = time.thread_time()
            for group in groups:
                contender(group)
            if turn:  # The first turn warms up.
                seconds[name].append(time.thread_time() - start)
    return {name: np.array(times) for name, times in seconds.items()}


def show(results: dict[str, Any], console: Console) -> None:
    """Print the figures as a table."""
    settings = results["settings"]
    height, width = settings["size"]
    figures = results["microseconds_per_prediction"]
    rows = [
        (
            name,
            f"{figure['median']:.1f}",
            f"{figure['min']:.1f}-{figure['max']:.1f}",
            f"{figure['median'] / figures[OURS]['median']:.2f}",
        )
        for name, figure in figures.items()
    ]
    title = f"{settings['group']} answers of {settings['vertices']} vertices per object"
    headings = ["", "µs per prediction", "min-max", "relative to ours"]
    console.print(terminal_table(headings, rows, title=f"Mask IoU: {title}, {width}x{height}"))
    low, high = results["ratio_vs_pycocotools_batched_range"]
    console.print(
        f"ours / batched pycocotools: {results['ratio_vs_pycocotools_batched']:.2f} "
        f"({low:.2f}-{high:.2f}); scores that differ from pycocotools: "
        f"{results['differences_from_pycocotools']}"
    )
