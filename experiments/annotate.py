"""Turn web images into training data: detect, segment, outline, describe, sort out, write.

Without arguments it shows the whole path on images with known ground truth: 2,000 procedural scenes
are rendered into tar archives, annotated by that truth, and every record is compared with it.

    python experiments/annotate.py
    python experiments/annotate.py --box-jitter 0.1 --mask-fray 2 --output-dir runs/noisy

Images of your own, with models (docs/annotate.md):

    python experiments/annotate.py --images "/data/laion/*.tar" --describer 'vlm{"model": FOLDER}'

Run it again to go on after any interruption: nothing is lost, nothing is duplicated.
"""

from __future__ import annotations

import json
import os
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from experiments.common.command import run_command, typed_command
from experiments.common.logs import progress_bar, write_atomically, write_json
from experiments.common.tables import markdown_table
from seg_env.data import Dataset, open_dataset
from seg_env.data.annotate import DEFAULT_FILTERS, Job, annotate, write_scene_shards
from seg_env.data.annotate.job import parse_part
from seg_env.data.annotate.tally import BINS
from seg_env.data.annotate.truth import best_object, scene_of

FIRST = {
    "What is annotated": ("images", "shard", "scenes", "difficulty"),
    "How": ("detector", "segmenter", "describer", "filters"),
    "What comes out": ("container", "form", "output-dir"),
    "Speed": ("workers", "batch-size"),
}


@dataclass
class Args:
    """Turn web images into training data."""

    images: str = ""
    """A folder of images; .tar archives (WebDataset) or .parquet files as one file, a folder or a
    pattern in quotes; or a source by name or import path. Without it scenes are rendered."""
    detector: str = ""
    """Finds boxes: grounding_dino, or my_pkg.module:Class, followed by arguments as JSON:
    'grounding_dino{"labels": ["dog", "cat"]}'. Scenes: their truth."""
    segmenter: str = ""
    """Turns boxes into masks: sam, with SAM or SAM 2. Scenes: their truth."""
    describer: str = ""
    """Says what objects are: 'vlm{"model": FOLDER}', 'endpoint{"url": URL, "model": NAME}', label
    (the detector's word). Scenes: their truth."""
    filters: tuple[str, ...] = DEFAULT_FILTERS
    """Filters to apply, in order: names or import paths, with arguments as above."""
    container: Literal["jsonl", "parquet"] = "jsonl"
    """JSON lines beside images, or parquet with the images in it."""
    form: Literal["rings", "rle"] = "rings"
    """How JSON lines hold masks: as outlines, or exactly."""
    epsilon: float = 0.001
    """Douglas-Peucker tolerance of written outlines, as a share of the perimeter."""
    decimals: int = 4
    """Digits of written outlines."""
    batch_size: int = 8
    """Images that models see at a time."""
    workers: int = 0
    """Processes, each with models of its own; 0: one with models, one per core for scenes."""
    shard: str = "0/1"
    """Part i/n of the archives, for machine i of n; all write into one folder, or into folders
    that are merged later."""
    scenes: int = 2000
    """Number of scenes."""
    per_shard: int = 200
    """Scenes in an archive; images of a folder in a shard."""
    difficulty: Literal["easy", "medium", "hard"] = "medium"
    """Difficulty of scenes."""
    size: int = 128
    """Side of scenes in pixels."""
    box_jitter: float = 0.0
    """Noise: standard deviation of the sides of boxes, as a share of width and height."""
    mask_fray: int = 0
    """Noise: masks grow or shrink by up to this many pixels."""
    wrong_expressions: float = 0.0
    """Noise: share of objects that are described as another object."""
    seed: int = 0
    """Seed of scenes and noise."""
    output_dir: Path = Path("runs/annotate")
    """Folder of the records and of the report."""


def main(args: Args) -> dict[str, Any]:
    """Run the job; returns what ``report.json`` holds."""
    console = Console()
    part = parse_part(args.shard)
    if args.workers < 0:
        raise ValueError(f"workers={args.workers}; use a whole number from 0, which finds one")
    web = args.output_dir / "web"
    job = build_job(args, web)
    workers = args.workers or (1 if args.images else os.cpu_count() or 1)
    images = 0
    with progress_bar(console) as progress:
        if not args.images:
            rendering = progress.add_task("rendering scenes", total=args.scenes, status="")
            write_scene_shards(
                web,
                args.scenes,
                per_shard=args.per_shard,
                difficulty=args.difficulty,
                seed=args.seed,
                size=args.size,
                on_scenes=lambda count: progress.update(rendering, completed=count),
            )
        task = progress.add_task("annotating shards", total=None, status="")
        start = time.perf_counter()

        def show(done: int, of: int, annotated: int) -> None:
            nonlocal images
            images = annotated
            speed = images / max(time.perf_counter() - start, 1e-9)
            status = f"{images} images, {speed:.1f} a second"
            progress.update(task, completed=done, total=of, status=status)

        manifest = annotate(job, args.output_dir, workers=workers, part=part, on_progress=show)
        seconds = round(time.perf_counter() - start, 2)
    this_run = {"pictures": images, "seconds": seconds, "workers": workers}
    report = {"command": typed_command(), "this_run": this_run, **manifest}
    return write_annotation_report(args.output_dir, job, report, console)


def build_job(args: Args, web: Path) -> Job:
    """The job that the arguments ask for, on scenes below ``web`` or images of one's own."""
    source = _stage("tar", path=str(web.absolute()))
    detector, segmenter, describer = "true_boxes", "true_masks", "true_expressions"
    if args.images:
        source = find_source(args.images, args.per_shard)
        detector, segmenter, describer = "grounding_dino", "sam", ""
    detector, segmenter = args.detector or detector, args.segmenter or segmenter
    describer = args.describer or describer
    if not describer:
        raise ValueError(
            'images need a --describer: \'vlm{"model": "FOLDER or hub id"}\', \'endpoint{"url": '
            '"http://localhost:8000/v1", "model": "NAME"}\', or label for the detector\'s words'
        )
    if args.box_jitter:
        noise = {"sigma": args.box_jitter, "seed": args.seed}
        detector = _stage("jittered_boxes", stage=detector, **noise)
    if args.mask_fray:
        segmenter = _stage("frayed_masks", stage=segmenter, most=args.mask_fray, seed=args.seed)
    if args.wrong_expressions:
        noise = {"share": args.wrong_expressions, "seed": args.seed}
        describer = _stage("mixed_up_expressions", stage=describer, **noise)
    options = ("filters", "container", "form", "epsilon", "decimals", "batch_size")
    return Job(
        source, detector, segmenter, describer, **{name: getattr(args, name) for name in options}
    )


def find_source(images: str, per_shard: int) -> str:
    """The source that a path stands for; a name or import path of a source stays as it is."""
    is_path = Path(images).expanduser().exists() or not {":", "{"} & set(images)
    return _stage("files", path=images, per_shard=per_shard) if is_path else images


def _stage(name: str, **arguments: Any) -> str:
    return f"{name}{json.dumps(arguments)}"


def write_annotation_report(
    folder: Path, job: Job, report: dict[str, Any], console: Console
) -> dict[str, Any]:
    """Write ``report.md``, ``report.json``, ``histograms.png`` and ``contact_sheet.png``.

    ``report`` is the manifest with ``command`` and ``this_run``; returned with a comparison where
    the truth is known.
    """
    if report["objects"]["written"]:
        if job.container == "parquet":
            dataset = open_dataset("parquet", data_root=folder, split=job.split)
        else:
            dataset = open_dataset(str(folder / f"{job.split}.jsonl"))
        draw_contact_sheet(dataset, folder / "contact_sheet.png")
        if job.source.startswith("tar") and "true_" in job.detector + job.segmenter:
            report["truth"] = compare_with_truth(dataset, report["objects"]["detected"])
    draw_histograms(report["histograms"], folder / "histograms.png")
    write_json(folder / "report.json", report)
    text = report_text(report, job)
    write_atomically(folder / "report.md", text)
    console.print(text, markup=False)
    console.print(f"records, report.md and contact_sheet.png in {folder}")
    return report


def compare_with_truth(dataset: Dataset, objects: int) -> dict[str, Any]:
    """Compare the records of scenes with their ground truth, which has ``objects`` objects.

    Returns:
        ``mask_iou`` (mean), ``worst_mask_iou`` and ``share_above_95`` of the masks that records
        decode to against the true mask they fit best; ``right_expressions``, the share of records
        with that object's own expression; ``objects_found``, the share of all objects that have a
        record; ``records`` that were compared.
    """
    overlaps, right, found = [], [], set()
    for index in range(len(dataset)):
        sample = dataset[index]
        key = str(sample.metadata.get("key", sample.metadata.get("image_id")))
        scene = scene_of(key, sample.target.size)
        if scene is not None:
            # By the mask, not by the expression, which may be another object's.
            number, overlap = best_object(scene, sample.target.rle)
            overlaps.append(overlap)
            right.append(sample.expression == scene.expressions[number])
            found.add((key, number))
    if not overlaps:
        return {"records": 0}
    return {
        "records": len(overlaps),
        "mask_iou": float(np.mean(overlaps)),
        "worst_mask_iou": min(overlaps),
        "share_above_95": float(np.mean(np.array(overlaps) >= 0.95)),
        "right_expressions": float(np.mean(right)),
        "objects_found": len(found) / max(objects, 1),
    }


def report_text(report: dict[str, Any], job: Job) -> str:
    """The report as Markdown."""
    images, objects, shards = report["pictures"], report["objects"], report["shards"]
    done = report["this_run"]
    this_run = "This run found everything done."
    if done["pictures"]:
        speed = done["pictures"] / max(done["seconds"], 0.01)  # seconds are rounded
        this_run = (
            f"This run: {done['pictures']} images in {done['seconds']} s, {speed:.1f} images a "
            f"second with {done['workers']} workers."
        )
    paragraphs = [
        "# Annotation",
        f"`{report['command']}`",
        f"{images['read']} images read, {images['annotated']} with records; "
        f"{objects['detected']} objects detected, **{objects['written']} records** written; "
        f"{shards['done']} of {shards['of']} shards done.",
        this_run,
    ]
    if truth := report.get("truth", {}).get("records"):
        found = report["truth"]
        paragraphs.append(
            f"Against the truth ({truth} records): mask IoU {found['mask_iou']:.4f} on average, "
            f"{found['worst_mask_iou']:.4f} at worst, {found['share_above_95']:.1%} at .95 or "
            f"above; {found['right_expressions']:.1%} of expressions right; "
            f"{found['objects_found']:.1%} of all objects found."
        )
    tables = {
        ("Left out", "images and files"): images["rejected"],
        ("Dropped", "objects"): objects["dropped"],
        ("Seconds by stage, over all workers and runs", "seconds"): report["seconds"],
    }
    for headings, counts in tables.items():
        paragraphs.append(markdown_table(headings, counts.items() or [("nothing", 0)]))
    stages = (job.source, job.detector, job.segmenter, job.describer, *job.filters)
    paragraphs += [
        "Stages:",
        "\n".join(f"- `{stage}`" for stage in stages),
        "![Records](contact_sheet.png)\n![Counts](histograms.png)\n",
    ]
    return "\n\n".join(paragraphs)


def draw_contact_sheet(dataset: Dataset, path: Path) -> None:
    """Draw records from all over the data set: the outline on the image, the expression above.

    The mask is not tinted, so that colours look as expressions call them.
    """
    from matplotlib.figure import Figure  # which workers do not need

    count = min(24, len(dataset))
    places = np.linspace(0, len(dataset) - 1, count).round().astype(int)
    samples = [dataset[int(place)] for place in places]
    columns = min(6, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.7 * columns, 3.0 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, sample in zip(axes.flat, samples, strict=False):
        height, width = sample.target.size
        axis.imshow(sample.image, extent=(0, width, height, 0))
        for ring in sample.target.rings:
            line = np.concatenate([ring, ring[:1]]) * (width, height)
            axis.plot(*line.T, color="white", linewidth=3.0)
            axis.plot(*line.T, color="#d6006c", linewidth=1.4)
        caption = textwrap.fill(textwrap.shorten(sample.expression, 100, placeholder="…"), 34)
        axis.set_title(caption, fontsize=9, loc="left", parse_math=False)
    for axis in axes.flat:
        axis.axis("off")
    figure.savefig(path, dpi=90)


def draw_histograms(histograms: dict[str, Sequence[int]], path: Path) -> None:
    """Draw how areas, scores, outlines and expressions of the records are distributed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 3.2), layout="constrained")
    axes = figure.subplots(1, len(BINS))
    for axis, (name, edges) in zip(axes, BINS.items(), strict=True):
        axis.bar([f"{edge:g}+" for edge in edges[:-1]], histograms[name])
        axis.set(title=name.replace("_", " "), ylabel="records")
        axis.tick_params(axis="x", labelrotation=60, labelsize=8)
    figure.savefig(path, dpi=90)


command_line = partial(run_command, Args, main, __doc__, FIRST)
"""Run what the command line, or the words given, ask for."""


if __name__ == "__main__":
    command_line()
