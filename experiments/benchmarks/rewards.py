"""Speed and exactness of the mask IoU reward beside other ways of computing it."""

from __future__ import annotations

import ast
import platform
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module, metadata
from json import loads
from pathlib import Path
from typing import Any, TypeAlias

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
HOTCOCO = "hotcoco, batched"

Contenders: TypeAlias = dict[str, Callable[[], NDArray[np.float64]]]
"""Ways of computing the IoU of some answers about one object, by name."""


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
    medians of CPU time over the turns. Every contender starts from its preferred input: ours from
    arrays, pycocotools from flat lists, the lines "from text" from the answers. Preparing the
    target from its run lengths counts for ours, once per group, and not for the others. Batched
    pycocotools is one frPyObjects and merge per answer and one iou call per group. "Released
    decoder" does what SimpleSeg's script does: read the text, rasterise polygon by polygon with
    pycocotools, unite and compare full masks in numpy.

    Needs pycocotools: pip install 'simpleseg-rl[test]'. hotcoco (pip install hotcoco), COCO's
    functions in Rust, takes part in the same calls where it is installed.

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
    peers, left_out = {BATCHED: coco}, []
    try:
        peers[HOTCOCO] = import_module("hotcoco").mask
    except ImportError:
        left_out.append("hotcoco, which is not installed: pip install hotcoco")
    rng = np.random.default_rng(seed)
    groups = [
        make_contenders(rng, scale, (height, width), group, vertices, peers)
        for scale in np.linspace(0, 1, objects)
    ]
    seconds = measure(groups, rounds)
    microseconds = {name: times / (objects * group) * 1e6 for name, times in seconds.items()}
    ratios = microseconds[OURS] / microseconds[BATCHED]
    differences = {
        name: sum(int((each[OURS]() != each[name]()).sum()) for each in groups) for name in peers
    }
    packages = ["numpy", "pycocotools", "rasterio", *(["hotcoco"] if HOTCOCO in peers else [])]
    results: dict[str, Any] = {
        "ratio_vs_pycocotools_batched": float(np.median(ratios)),
        "ratio_vs_pycocotools_batched_range": [float(ratios.min()), float(ratios.max())],
        "differences_from_pycocotools": differences[BATCHED],
        "left_out": left_out,
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
        "versions": {name: metadata.version(name) for name in packages},
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }
    if HOTCOCO in peers:
        ratio = np.median(microseconds[OURS] / microseconds[HOTCOCO])
        results["ratio_vs_hotcoco_batched"] = float(ratio)
        results["differences_from_hotcoco"] = differences[HOTCOCO]
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


def make_contenders(
    rng: np.random.Generator,
    scale: float,
    size: tuple[int, int],
    group: int,
    vertices: int,
    peers: dict[str, Any],
) -> Contenders:
    """All contenders, with noisy answers about a smooth object in the form that each reads.

    ``peers`` are modules with COCO's functions, pycocotools first.
    """
    coco = peers[BATCHED]
    radius, outline = smooth_object(rng, scale, size)
    pixels = np.array(size[::-1], dtype=np.float64)
    truth = coco.merge(coco.frPyObjects([outline(200).ravel().tolist()], *size))
    rle, mask = Rle.from_string(size, truth["counts"]), coco.decode(truth).astype(bool)
    noise = rng.normal(0, 0.03 * radius, (group, vertices, 2))
    rings = [[ring] for ring in ((outline(vertices) + noise) / pixels).clip(0, 1).round(3)]
    flat = [[(ring * pixels).ravel().tolist()] for (ring,) in rings]
    texts = [encode(answer) for answer in rings]

    def batched(peer: Any) -> NDArray[np.float64]:
        masks = [peer.merge(peer.frPyObjects(answer, *size)) for answer in flat]
        return np.asarray(peer.iou(masks, [truth], [0]), dtype=np.float64)[:, 0]

    def rasterio_full() -> NDArray[np.float64]:
        return np.array([mask_iou(rasterio_mask(ring * pixels, size), mask) for (ring,) in rings])

    def released(read: Callable[[str], Any]) -> NDArray[np.float64]:
        return np.array([mask_iou(released_mask(text, size, read, coco), mask) for text in texts])

    return {
        OURS: lambda: iou_batch(rings, rle),
        **{name: partial(batched, peer) for name, peer in peers.items()},
        "rasterio, full frame": rasterio_full,
        "ours, from text": lambda: iou_batch([decode(text).rings for text in texts], rle),
        "released decoder, from text (json)": partial(released, loads),
        "released decoder, from text (ast)": partial(released, ast.literal_eval),
    }


def rasterio_mask(ring: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask of a ring in pixels by rasterio (its fill rule, which is not COCO's)."""
    from rasterio.features import rasterize

    shape = {"type": "Polygon", "coordinates": [ring.tolist()]}
    mask: NDArray[np.bool_] = rasterize([shape], out_shape=size, dtype="uint8").astype(bool)
    return mask


def released_mask(
    text: str, size: tuple[int, int], read: Callable[[str], Any], coco: Any
) -> NDArray[np.bool_]:
    """The mask of an answer, polygon by polygon, as SimpleSeg's script decodes it."""
    found = re.search(r"\[\[\[.*\]\]\]", text, re.DOTALL)
    union = np.zeros(size, dtype=bool)
    for polygon in read(found.group()) if found else []:
        flat = (np.array(polygon) * size[::-1]).ravel().tolist()
        union |= coco.decode(coco.frPyObjects([flat], *size))[:, :, 0].astype(bool)
    return union


def mask_iou(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """IoU of two masks by counting pixels."""
    union = np.logical_or(predicted, truth).sum()
    return float(np.logical_and(predicted, truth).sum() / union) if union else 1.0


def measure(groups: Sequence[Contenders], rounds: int) -> dict[str, NDArray[np.float64]]:
    """CPU seconds ``(rounds,)`` of each contender for one pass over the answers to all objects."""
    seconds: dict[str, list[float]] = {name: [] for name in groups[0]}
    for _ in range(rounds + 1):
        for name, times in seconds.items():
            start = time.thread_time()
            for group in groups:
                group[name]()
            times.append(time.thread_time() - start)
    return {name: np.array(times[1:]) for name, times in seconds.items()}  # the first warms up


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
    if "ratio_vs_hotcoco_batched" in results:
        console.print(
            f"ours / batched hotcoco: {results['ratio_vs_hotcoco_batched']:.2f}; scores that "
            f"differ from hotcoco: {results['differences_from_hotcoco']}"
        )
    for reason in results["left_out"]:
        console.print(f"left out: {reason}", highlight=False)
