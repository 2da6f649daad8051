"""Turn web pictures into training data: detect, segment, outline, describe, sort out, write.

Without arguments it shows the whole path on pictures whose truth is known: 2,000 procedural scenes
are rendered into tar archives, annotated by their own truth, and every record is compared with it.

    python experiments/annotate.py
    python experiments/annotate.py --box-jitter 0.1 --mask-fray 2 --output-dir runs/noisy

Pictures of your own, with models (docs/annotate.md):

    python experiments/annotate.py --images "/data/laion/*.tar" --describer 'vlm{"model": FOLDER}'

Run it again to go on after an interruption, however violent: nothing is lost, nothing is doubled.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.progress import Progress as Bars

from experiments.common.command import brief_errors
from experiments.common.logs import progress_bar
from seg_env.data.annotate import DEFAULT_FILTERS, Job, Progress, annotate, write_scene_shards
from seg_env.data.annotate.plan import parse_part

TRUTH = ("true_boxes", "true_masks", "true_expressions")
"""Detector, segmenter and describer of scenes."""


@dataclass
class Args:
    """Turn web pictures into training data."""

    images: str = ""
    """A folder of pictures; .tar archives (WebDataset) or .parquet files as one file, a folder or a
    pattern in quotes; or a source by name or import path. Without it scenes are rendered."""
    detector: str = ""
    """Finds boxes: grounding_dino, or my_pkg.module:Class, with arguments as JSON behind it:
    'grounding_dino{"labels": ["dog", "cat"]}'. Scenes: their truth."""
    segmenter: str = ""
    """Turns boxes into masks: sam, with SAM or SAM 2. Scenes: their truth."""
    describer: str = ""
    """Says what objects are: 'vlm{"model": FOLDER}', 'endpoint{"url": URL, "model": NAME}', label
    (the detector's word). Scenes: their truth."""
    filters: tuple[str, ...] = DEFAULT_FILTERS
    """What sorts out, in order: names or import paths, with arguments as above."""
    container: Literal["jsonl", "parquet"] = "jsonl"
    """JSON lines beside pictures, or parquet with the pictures in it."""
    form: Literal["rings", "rle"] = "rings"
    """How JSON lines hold masks: as outlines, or exactly."""
    epsilon: float = 0.001
    """Douglas-Peucker tolerance of written outlines, as a share of the perimeter."""
    decimals: int = 4
    """Digits of written outlines."""
    batch_size: int = 8
    """Pictures that models see at a time."""
    workers: int = 0
    """Processes, each with models of its own; 0: one for models, one a core for scenes."""
    shard: str = "0/1"
    """Part i/n of the archives, for machine i of n; all write into one folder, or into folders
    whose contents are put together later."""
    scenes: int = 2000
    """Number of scenes."""
    per_shard: int = 200
    """Scenes in an archive; pictures of a folder in a shard."""
    difficulty: Literal["easy", "medium", "hard"] = "medium"
    """Of scenes."""
    size: int = 128
    """Side of scenes in pixels."""
    box_jitter: float = 0.0
    """Noise: standard deviation of the sides of boxes, as a share of width and height."""
    mask_fray: int = 0
    """Noise: masks grow or shrink by up to so many pixels."""
    wrong_expressions: float = 0.0
    """Noise: share of objects that are described as another object."""
    seed: int = 0
    """Seed of scenes and noise."""
    output_dir: Path = Path("runs/annotate")
    """Folder of the records and of the report."""


def main(args: Args, words: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the job; returns what ``report.json`` holds.

    Args:
        args: What to do.
        words: The command line that the report shows; by default that of this process.
    """
    from experiments.annotate_report import write_report  # matplotlib, which workers do not need

    console = Console()
    part = parse_part(args.shard)
    if args.workers < 0:
        raise ValueError(f"workers={args.workers}; use a whole number from 0, which finds one")
    web = args.output_dir / "web"
    job = build_job(args, web)
    with progress_bar(console) as progress:
        if not args.images:
            render(args, web, progress)
        start = time.perf_counter()
        show, pictures = _follow(progress)
        workers = args.workers or (1 if args.images else os.cpu_count() or 1)
        manifest = annotate(job, args.output_dir, workers=workers, part=part, on_progress=show)
        seconds = time.perf_counter() - start
    done = {"pictures": pictures(), "seconds": round(seconds, 2), "workers": workers}
    words = sys.argv[1:] if words is None else words
    command = shlex.join(["python", "experiments/annotate.py", *words])
    return write_report(args.output_dir, job, manifest, done, command, console)


def build_job(args: Args, web: Path) -> Job:
    """The job that the arguments ask for.

    Raises:
        ValueError: Pictures of one's own and no describer, or a value that is not allowed.
    """
    detector, segmenter, describer = TRUTH
    source = _stage("tar", path=str(web.absolute()))
    if args.images:
        source = find_source(args.images, args.per_shard)
        detector, segmenter, describer = "grounding_dino", "sam", ""
    detector, segmenter = args.detector or detector, args.segmenter or segmenter
    describer = args.describer or describer
    if not describer:
        raise ValueError(
            'pictures need a --describer: \'vlm{"model": "FOLDER or hub id"}\', \'endpoint{"url": '
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
    return Job(
        source,
        detector,
        segmenter,
        describer,
        filters=args.filters,
        container=args.container,
        form=args.form,
        epsilon=args.epsilon,
        decimals=args.decimals,
        batch_size=args.batch_size,
    )


def find_source(images: str, per_shard: int) -> str:
    """The source that a path stands for; a name or import path of a source stays as it is.

    Raises:
        FileNotFoundError: There is no such folder, and it names no archive or table.
    """
    place = Path(images).expanduser()
    if not place.exists() and (":" in images or "{" in images):
        return images
    names = [place.name]
    if place.is_dir():
        names = [each.name for each in place.iterdir()]
    for kind, endings in (("tar", (".tar", ".tar.gz", ".tgz")), ("parquet", (".parquet",))):
        if any(name.endswith(endings) for name in names):
            return _stage(kind, path=images)
    if not place.is_dir():
        raise FileNotFoundError(
            f"images={images!r} is no folder; give a folder of pictures, a .tar or .parquet file, "
            "or a folder or a quoted pattern of those, such as '/data/*.tar'"
        )
    return _stage("folder", path=images, per_shard=per_shard)


def render(args: Args, web: Path, progress: Bars) -> None:
    """Render the scenes; archives that are there stay."""
    task = progress.add_task("rendering scenes", total=args.scenes, status="")
    write_scene_shards(
        web,
        args.scenes,
        per_shard=args.per_shard,
        difficulty=args.difficulty,
        seed=args.seed,
        size=args.size,
        on_scene=lambda count: progress.update(task, completed=count),
    )


def _follow(progress: Bars) -> tuple[Callable[[Progress], None], Callable[[], int]]:
    """A bar over shards: what to tell about progress, and what it was told last."""
    task = progress.add_task("annotating shards", total=None, status="")
    start, last = time.perf_counter(), 0

    def show(found: Progress) -> None:
        nonlocal last
        last = found.pictures
        speed = last / max(time.perf_counter() - start, 1e-9)
        status = f"{last} pictures, {speed:.1f} a second"
        progress.update(task, completed=found.shards, total=found.of, status=status)

    return show, lambda: last


def _stage(name: str, **arguments: Any) -> str:
    return f"{name}{json.dumps(arguments)}"


if __name__ == "__main__":
    with brief_errors():
        main(tyro.cli(Args, description=__doc__))
