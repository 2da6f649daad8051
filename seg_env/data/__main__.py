"""Look at a data set, or write it as JSON lines.

python -m seg_env.data check --dataset refcoco --data-root ~/data --split val
python -m seg_env.data export --dataset refcoco --data-root ~/data --split val --output exported
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, get_args

from seg_env.data.base import Dataset
from seg_env.data.export import TargetForm, export_jsonlines
from seg_env.data.sources import DATASET_NAMES, held_out_images, open_dataset

SOURCE_ARGUMENTS = (
    "split",
    "split_by",
    "data_root",
    "image_root",
    "per_reference",
    "per_annotation",
    "on_error",
    "difficulty",
    "data_seed",
    "size",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command line, by default that of the process.

    Returns:
        0, or 2 when the data set cannot be read.
    """
    options = _parser().parse_args(arguments)
    try:
        dataset = _open(options)
        if options.command == "export":
            path = export_jsonlines(
                dataset,
                options.output,
                form=options.form,
                others=options.others,
                limit=options.limit,
                progress=_report if sys.stderr.isatty() else None,
            )
            print(f"wrote {path}")
    except (ValueError, OSError, ImportError) as error:
        if options.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    _describe(dataset)
    return 0


def _open(options: argparse.Namespace) -> Dataset:
    given: dict[str, Any] = {name: getattr(options, name) for name in SOURCE_ARGUMENTS}
    if options.exclude_images:
        other, _, splits = options.exclude_images.partition(":")
        given["exclude_images"] = held_out_images(
            other,
            splits.split(",") if splits else None,
            data_root=options.exclude_root or options.data_root,
            split_by=options.exclude_split_by,
        )
    return open_dataset(options.dataset, **given)


def _describe(dataset: Dataset) -> None:
    print(f"{dataset.name} {dataset.split}: {len(dataset)} samples")
    if excluded := getattr(dataset, "excluded", 0):
        print(f"  left out for their image: {excluded}")
    for fault, count in getattr(dataset, "skipped", {}).items():
        print(f"  left out for {fault}: {count}")


def _report(written: int, count: int) -> None:
    if written == count or written % 100 == 0:
        print(f"\r{written} of {count}", end="\n" if written == count else "", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m seg_env.data", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="read every record and count what is broken")
    export = commands.add_parser("export", help="write <split>.jsonl, images/ and perhaps masks/")
    for command, on_error in ((check, "skip"), (export, None)):
        _add_source(command, on_error)
    export.add_argument("--output", required=True, help="folder to write into")
    export.add_argument(
        "--form", choices=get_args(TargetForm), default="rle", help="how masks look"
    )
    export.add_argument("--others", action="store_true", help="also write the other objects")
    export.add_argument("--limit", type=int, help="the first so many samples")
    return parser


def _add_source(parser: argparse.ArgumentParser, on_error: str | None) -> None:
    add = parser.add_argument
    add("--dataset", required=True, help=f"{', '.join(DATASET_NAMES)}, or a file")
    add("--data-root", help="folder of the data set; an id on the hub for parquet")
    add("--image-root", help="folder of the images, where it is not the usual one")
    add("--split")
    add("--split-by", help="of RefCOCO: unc, google, umd, berkeley")
    add("--per-reference", action="store_true", default=None, help="one sample a reference")
    add("--per-annotation", action="store_true", default=None, help="one sample an object")
    add("--on-error", choices=("raise", "skip"), default=on_error, help="about broken records")
    add("--exclude-images", metavar="NAME[:SPLIT,SPLIT]", help="leave out another's images")
    add("--exclude-root", help="folder of that data set, by default the same")
    add("--exclude-split-by", help="whose split of that data set")
    add("--difficulty", help="of scenes")
    add("--data-seed", type=int, help="of scenes")
    add("--size", type=int, help="of scenes")
    add("--debug", action="store_true", help="show where an error comes from")


if __name__ == "__main__":
    sys.exit(main())
