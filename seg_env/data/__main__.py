"""Look at a data set, or write it as JSON lines or, for maps, as GeoJSON.

python -m seg_env.data check --dataset refcoco --data-root ~/data --split val
python -m seg_env.data export --dataset refcoco --data-root ~/data --split val --output exported
python -m seg_env.data export --dataset coco --data-root ~/tiles --format geojson --output exported
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from seg_env.data.base import Dataset, not_asked
from seg_env.data.export import TargetForm, export_jsonlines
from seg_env.data.geojson import export_geojson
from seg_env.data.rasters import Stretch
from seg_env.data.sources import DATASET_NAMES, held_out_images, open_dataset
from seg_env.geometry.limits import set_limits

FORMATS: dict[str, tuple[Callable[..., Path], tuple[str, ...]]] = {
    "jsonl": (export_jsonlines, ("form", "others")),
    "geojson": (export_geojson, ("crs",)),
}
"""The functions that ``export`` calls, by format, and the options they take."""


def command_line(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, by default that of the process; 2 when data cannot be read, else 0."""
    options = vars(_parser().parse_args(arguments))
    command, debug = options.pop("command"), options.pop("debug")
    output, layout, limits = (options.pop(name, None) for name in ("output", "format", "limits"))
    writing = {name: options.pop(name, None) for name in ("form", "others", "crs", "limit")}
    writing = {name: value for name, value in writing.items() if value is not None}
    try:
        if limits is not None:
            set_limits(limits)
        dataset = _open(**options)
        if command == "export":
            progress = _report if sys.stderr.isatty() else None
            write, taken = FORMATS[layout]
            if unused := writing.keys() - {*taken, "limit"}:
                raise ValueError(f"--{unused.pop()} says nothing about --format {layout}")
            path = write(dataset, output, **writing, progress=progress)
            print(f"wrote {path}")
    except (ValueError, OSError, ImportError) as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{dataset.name} {dataset.split}: {len(dataset)} samples")
    for reason, count in not_asked(dataset).items():
        print(f"  {reason}: {count}")
    return 0


def _open(
    exclude_images: str | None, exclude_root: str | None, exclude_split_by: str | None, **given: Any
) -> Dataset:
    if exclude_images:
        other, _, splits = exclude_images.partition(":")
        given["exclude_images"] = held_out_images(
            other,
            splits.split(",") if splits else None,
            data_root=exclude_root or given["data_root"],
            split_by=exclude_split_by,
        )
    return open_dataset(**given)


def _report(written: int, count: int) -> None:
    if written == count or written % 100 == 0:
        print(f"\r{written} of {count}", end="\n" if written == count else "", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m seg_env.data" if "__main__" in sys.argv[0] else None, description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="read every record and count what is broken")
    export = commands.add_parser("export", help="write <split>.jsonl and images/, or geojson")
    for command, on_error in ((check, "skip"), (export, None)):
        add = command.add_argument
        add("--dataset", required=True, help=f"{', '.join(DATASET_NAMES)}, or a file")
        add("--data-root", help="folder of the data set; an id on the hub for parquet")
        add("--image-root", help="folder of the images, where it is not the usual one")
        add("--split")
        add("--split-by", help="of RefCOCO: unc, google, umd, berkeley")
        add("--per-reference", action="store_true", default=None, help="one sample a reference")
        add("--per-annotation", action="store_true", default=None, help="one sample an object")
        add("--on-error", choices=("raise", "skip"), default=on_error, help="about broken records")
        add("--encoding", help="of files that are neither UTF-8 nor UTF-16, such as gbk")
        add("--stretch", choices=get_args(Stretch), help="how images over 8 bits become bytes")
        add("--bands", type=int, nargs="+", metavar="BAND", help="of images of many, as 4 3 2")
        add("--exclude-images", metavar="NAME[:SPLIT,SPLIT]", help="leave out another's images")
        add("--exclude-root", help="folder of that data set, by default the same")
        add("--exclude-split-by", help="whose split of that data set")
        add("--difficulty", help="of scenes")
        add("--data-seed", type=int, help="of scenes")
        add("--size", type=int, help="of scenes")
        add("--limits", metavar="'NAME=NUMBER ...'", help="what is read at most: pixels=1e9 ...")
        add("--debug", action="store_true", help="show where an error comes from")
    add = export.add_argument
    add("--output", required=True, help="folder to write into")
    add("--format", choices=FORMATS, default="jsonl", help="geojson: outlines in map coordinates")
    add("--form", choices=get_args(TargetForm), help="how masks look in jsonl, by default rle")
    add("--others", action="store_true", default=None, help="also write the other objects (jsonl)")
    add("--crs", help="coordinate system of geojson, by default the map's; EPSG:4326 for RFC 7946")
    add("--limit", type=int, help="the first so many samples")
    return parser


if __name__ == "__main__":
    sys.exit(command_line())
