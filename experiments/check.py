"""Describe a data set before anything is trained on it, and draw some of it.

It reports the layout that was found, images, objects, parts and sizes, what is left out and why,
and the best score that outlines as text can reach. ``samples.png`` in the output folder shows
samples with their outlines: check that they lie on the objects.

    python experiments/check.py my_images --split train
    simpleseg check annotations/instances_train.json --per-annotation
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from matplotlib.figure import Figure
from rich.console import Console

from experiments.common.command import opening, run_command
from experiments.common.logs import progress_bar, write_json
from experiments.common.policies import describe_data, spread_evenly
from experiments.common.tables import terminal_table
from experiments.evaluation.ceiling import measure_ceilings
from seg_env.data.base import Dataset, not_asked
from seg_env.data.rasters import Stretch
from seg_env.data.readers.annotated_images import AnnotatedImages
from seg_env.data.sources import kind_of, open_dataset
from seg_env.envs.core import ReferringCore
from seg_env.envs.left_out import LeftOut, UnusableSampleError, loading, name_of
from seg_env.errors import WrongOptionError
from seg_env.geometry.drawing import draw_overlay

GRID = (4, 4)
"""Columns and rows of the sheet."""
EPSILONS = (0.0, 0.001, 0.005, 0.01)
"""Tolerances of simplification for which the ceiling is reported."""


@dataclass
class Args:
    """Describe a data set."""

    dataset: Annotated[str, tyro.conf.Positional]
    """A folder or file, an id on the hub, my_pkg.data:make, or a name; see docs/own_data.md."""
    data_root: str | None = None
    """Folder of a data set that is given by name."""
    image_root: str | None = None
    """Folder of the images, if it is not the usual one."""
    split: str | None = None
    """Split to look at, by default that of the layout."""
    split_by: str | None = None
    """Whose split of RefCOCO data: unc, umd, google, berkeley."""
    per_annotation: bool = False
    """One sample for each object instead of one for all objects of a kind."""
    encoding: str | None = None
    """Of annotation files that are neither UTF-8 nor UTF-16, such as gbk."""
    stretch: Stretch | None = None
    """How images deeper than 8 bits become bytes: over their full range, or percentiles."""
    bands: tuple[int, ...] | None = None
    """Bands of images that have many, from 1: one for gray, three for red, green and blue."""
    on_error: Literal["raise", "skip"] = "skip"
    """Broken records: left out and counted, or an error."""
    questions: int = 1000
    """Most samples to measure, spread evenly over the data set."""
    output_dir: Path = Path("runs/check")
    """Folder for ``samples.png`` and ``check.json``."""


def main(args: Args) -> dict[str, Any]:
    """Look at the data; returns what ``check.json`` holds."""
    console, left_out = Console(), LeftOut()
    places = ("data_root", "image_root", "split", "split_by", "encoding", "stretch", "bands")
    given = {name: value for name in places if (value := getattr(args, name)) is not None}
    if args.dataset != "scenes":
        given["on_error"] = args.on_error
    if args.per_annotation:
        given["per_annotation"] = True
    with opening():
        dataset = open_dataset(args.dataset, **given)
        core = ReferringCore(dataset) if len(dataset) else None
        layout = dataset.name if ":" in args.dataset else kind_of(args.dataset)
        args.output_dir.mkdir(parents=True, exist_ok=True)
    faults: dict[str, str] = dict(getattr(dataset, "faults", {}))
    rows: dict[int, tuple[str, int, int, int, int]] = {}  # text, area, rings, height, width
    with progress_bar(console) as progress:
        some = spread_evenly(len(dataset), args.questions) if core else []
        task = progress.add_task("reading samples", total=len(some), status="")
        for index in some:
            try:
                with loading():
                    sample = dataset[index]
                    size, target = sample.image.shape[:2], sample.target
                    if size != target.size:
                        raise ValueError("image and target have different sizes")
                    rows[index] = (sample.expression, target.area, len(target.rings), *size)
            except UnusableSampleError as error:
                left_out.add(name := name_of(dataset, index), error)
                faults.setdefault(left_out.reasons[name], f"{name}: {error}")
            progress.advance(task)
    found = {
        "layout": layout,
        "dataset": dataset.name,
        "split": dataset.split,
        "samples": len(dataset),
        "left_out": not_asked(dataset)
        | {f"left out for {why}": n for why, n in Counter(left_out.reasons.values()).items()},
    }
    if isinstance(dataset, AnnotatedImages):
        found["images"] = len(dataset.image_names())
    if rows and core is not None:
        found |= _measured(list(rows.values()))
        found["ceilings"] = measure_ceilings(
            core, list(rows)[:256], EPSILONS, (3,), empty_union=1.0, console=console
        )
        _draw(dataset, list(rows), args.output_dir / "samples.png")
    write_json(args.output_dir / "check.json", found)
    _tell(found, console)
    for fault, example in faults.items():
        console.print(
            f"{fault}, the first: {example}", highlight=False, markup=False, soft_wrap=True
        )
    if not rows:
        why = next(iter(faults.values()), ", ".join(not_asked(dataset)) or "it has no records")
        raise WrongOptionError(f"{describe_data(dataset)} has nothing to ask about: {why}")
    console.print(f"look at {args.output_dir / 'samples.png'}", highlight=False, soft_wrap=True)
    return found


def _measured(rows: list[tuple[str, int, int, int, int]]) -> dict[str, Any]:
    """Figures about objects; JSON-able."""
    areas, parts, heights, widths = np.array([row[1:] for row in rows]).T
    quantiles = partial(np.quantile, q=(0, 0.05, 0.5, 0.95, 1))
    return {
        "measured": len(rows),
        "expressions": Counter(row[0] for row in rows).most_common(10),
        "absent": int((areas == 0).sum()),
        "image_height": quantiles(heights).tolist(),
        "image_width": quantiles(widths).tolist(),
        "share_of_image": quantiles(areas / (heights * widths)).tolist(),
        "rings": quantiles(parts).tolist(),
        "several_rings": float((parts > 1).mean()),
    }


def _tell(found: dict[str, Any], console: Console) -> None:
    """Print what was found."""
    rows: list[tuple[str, object]] = [("layout", found["layout"]), ("samples", found["samples"])]
    rows += [(name, found[name]) for name in ("images", "measured", "absent") if name in found]
    for name in ("image_width", "image_height", "share_of_image", "rings"):
        if name in found:
            values = [f"{value:.3g}" if value < 1 else f"{value:.0f}" for value in found[name]]
            rows.append(
                (f"{name.replace('_', ' ')}: least, 5 %, half, 95 %, most", ", ".join(values))
            )
    if "several_rings" in found:
        rows.append(("of several parts, or with holes", f"{found['several_rings']:.1%}"))
        asked = ", ".join(f"{text} ({count})" for text, count in found["expressions"])
        rows.append(("asked for most", asked))
    rows += list(found["left_out"].items())
    for row in found.get("ceilings", ()):
        label = f"best gIoU of an outline, ε {row['epsilon']:g}"
        rows.append((label, f"{row['giou']:.1%} with {row['vertices']['mean']:.0f} vertices"))
    title = f"{found['dataset']} ({found['split']})"
    console.print(terminal_table(["", ""], rows, "ll", title=title))


def _draw(dataset: Dataset, indices: list[int], path: Path) -> None:
    """Draw samples with their outlines, of as many images as there is room for."""
    by_image: dict[Any, int] = {}
    for index in indices:
        file = dataset.image_path(index) if isinstance(dataset, AnnotatedImages) else None
        by_image.setdefault(file or index, index)
    several = list(by_image.values())  # an image comes twice only where there are too few
    others = [index for index in indices if index not in several]
    missing = max(0, GRID[0] * GRID[1] - len(several))
    shown = [several[place] for place in spread_evenly(len(several), GRID[0] * GRID[1])]
    shown += [others[place] for place in spread_evenly(len(others), missing)]
    columns = min(GRID[0], len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.5 * rows + 0.6), layout="constrained")
    figure.suptitle(f"{describe_data(dataset)}: outlines of what is asked for", fontsize=13)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, index in zip(axes.flat, shown, strict=False):
        sample = dataset[index]
        axis.imshow(draw_overlay(sample.image, sample.target))
        axis.set_title(sample.expression[:44].replace("$", r"\$"), fontsize=10)
    figure.savefig(path, dpi=100)


def command_line(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what the command line, or ``words``, ask for."""
    return run_command(Args, main, __doc__, None, words)


if __name__ == "__main__":
    command_line()
