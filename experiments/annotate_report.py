"""What came of an annotation: counts, histograms, a sheet of pictures, a comparison with truth."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from rich.console import Console

from experiments.common.logs import write_atomically, write_json
from seg_env.data import Dataset, open_dataset
from seg_env.data.annotate import Job
from seg_env.data.annotate.filters import mask_iou
from seg_env.data.annotate.tally import BINS
from seg_env.data.annotate.truth import best_object, scene_of
from seg_env.geometry.rle import Rle
from seg_env.types import Sample

mpl.use("Agg")
import matplotlib.pyplot as plt

GRID = (6, 4)
"""Columns and rows of the sheet."""


def write_report(
    folder: Path,
    job: Job,
    manifest: dict[str, Any],
    done: dict[str, Any],
    command: str,
    console: Console,
) -> dict[str, Any]:
    """Write ``report.md``, ``report.json``, ``histograms.png`` and ``contact_sheet.png``.

    Args:
        folder: Folder of the run.
        job: What was done.
        manifest: What `seg_env.data.annotate.annotate` returned.
        done: ``pictures`` and ``seconds`` of this run, and ``workers``.
        command: The command line.
        console: Gets a summary.

    Returns:
        What ``report.json`` holds.
    """
    report: dict[str, Any] = {"command": command, "this_run": done, **manifest}
    if manifest["objects"]["written"]:
        dataset = open_records(folder, job)
        draw_sheet(dataset, folder / "contact_sheet.png")
        if job.source.startswith("tar") and "true_" in job.detector + job.segmenter:
            report["truth"] = compare_with_truth(dataset, manifest["objects"]["detected"])
    draw_histograms(manifest["histograms"], folder / "histograms.png")
    write_json(folder / "report.json", report)
    text = markdown(report, job)
    write_atomically(folder / "report.md", text)
    console.print(text, markup=False)
    console.print(f"records, report.md and contact_sheet.png in {folder}")
    return report


def open_records(folder: Path, job: Job) -> Dataset:
    """The records of a run, as training reads them."""
    if job.container == "parquet":
        return open_dataset("parquet", data_root=folder, split=job.split)
    return open_dataset(str(folder / f"{job.split}.jsonl"))


def compare_with_truth(dataset: Dataset, objects: int) -> dict[str, Any]:
    """Compare the records of scenes with the scenes.

    Args:
        dataset: The records, read back.
        objects: Number of objects in all scenes.

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
        if scene is None:
            continue
        # By the mask, not by the expression, which may be another object's.
        number, _ = best_object(scene, sample.target.rle)
        overlaps.append(mask_iou(Rle.from_mask(scene.masks[number]), sample.target.rle))
        right.append(sample.expression == scene.expressions[number])
        found.add((key, number))
    if not overlaps:
        return {"records": 0}
    scores = np.array(overlaps)
    return {
        "records": len(scores),
        "mask_iou": float(scores.mean()),
        "worst_mask_iou": float(scores.min()),
        "share_above_95": float((scores >= 0.95).mean()),
        "right_expressions": float(np.mean(right)),
        "objects_found": len(found) / max(objects, 1),
    }


def markdown(report: dict[str, Any], job: Job) -> str:
    """The report as text."""
    pictures, objects, done = report["pictures"], report["objects"], report["this_run"]
    shards = report["shards"]
    speed = done["pictures"] / max(done["seconds"], 0.01)  # seconds are rounded
    lines = [
        "# Annotation",
        "",
        f"`{report['command']}`",
        "",
        f"{pictures['read']} pictures read, {pictures['annotated']} with records; "
        f"{objects['detected']} objects detected, **{objects['written']} records** written; "
        f"{shards['done']} of {shards['of']} shards done.",
        "",
        f"This run: {done['pictures']} pictures in {done['seconds']} s, {speed:.1f} pictures a "
        f"second with {done['workers']} workers."
        if done["pictures"]
        else "This run found everything done.",
        "",
    ]
    if truth := report.get("truth", {}).get("records"):
        found = report["truth"]
        lines += [
            f"Against the truth ({truth} records): mask IoU {found['mask_iou']:.4f} on average, "
            f"{found['worst_mask_iou']:.4f} at worst, {found['share_above_95']:.1%} at .95 or "
            f"above; {found['right_expressions']:.1%} of expressions right; "
            f"{found['objects_found']:.1%} of all objects found.",
            "",
        ]
    lines += _table("Left out", "pictures and files", pictures["rejected"])
    lines += _table("Dropped", "objects", objects["dropped"])
    lines += _table("Seconds by stage, over all workers and runs", "seconds", report["seconds"])
    stages = (job.source, job.detector, job.segmenter, job.describer, *job.filters)
    lines += ["Stages:", "", *(f"- `{stage}`" for stage in stages), ""]
    return "\n".join([*lines, "![Records](contact_sheet.png)", "![Counts](histograms.png)", ""])


def _table(title: str, unit: str, counts: dict[str, float]) -> list[str]:
    rows = [f"| {name} | {count} |" for name, count in counts.items()] or ["| nothing | 0 |"]
    return [f"| {title} | {unit} |", "|---|---:|", *rows, ""]


def draw_sheet(dataset: Dataset, path: Path) -> None:
    """Draw records from all over the data set: the outline on the picture, the expression above.

    The mask is not tinted, so that colours look as expressions call them.
    """
    count = min(GRID[0] * GRID[1], len(dataset))
    places = np.linspace(0, len(dataset) - 1, count).round().astype(int)
    samples = [dataset[int(place)] for place in places]
    columns = min(GRID[0], count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.7 * columns, 3.0 * rows), layout="constrained", squeeze=False
    )
    for axis, sample in zip(axes.flat, samples, strict=False):
        height, width = sample.target.size
        axis.imshow(sample.image, extent=(0, width, height, 0))
        for ring in sample.target.rings:
            line = np.concatenate([ring, ring[:1]]) * (width, height)
            axis.plot(*line.T, color="white", linewidth=3.0)
            axis.plot(*line.T, color="#d6006c", linewidth=1.4)
        axis.set_title(_caption(sample), fontsize=9, loc="left")
    for axis in axes.flat:
        axis.axis("off")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _caption(sample: Sample) -> str:
    text = textwrap.shorten(sample.expression, 100, placeholder="…")
    return textwrap.fill(text, 34).replace("$", r"\$")  # matplotlib reads $ as mathematics


def draw_histograms(histograms: dict[str, Sequence[int]], path: Path) -> None:
    """Draw how areas, scores, outlines and expressions of the records are distributed."""
    titles = {
        "area": "share of the picture",
        "score": "detection score",
        "outline_iou": "IoU of outline and mask",
        "vertices": "vertices",
        "words": "words",
    }
    figure, axes = plt.subplots(1, len(titles), figsize=(17, 3.2), layout="constrained")
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        edges = BINS[name]
        labels = [f"{edge:g}+" for edge in edges[:-1]]
        axis.bar(labels, histograms[name], color="#2a9d8f")
        axis.set(title=title, ylabel="records" if name == "area" else "")
        axis.tick_params(axis="x", labelrotation=60, labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=90)
    plt.close(figure)
