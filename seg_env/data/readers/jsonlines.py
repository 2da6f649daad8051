"""A plain format of our own: one JSON object on each line."""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from seg_env.data.images import image_size, read_image, read_mask
from seg_env.data.readers.annotated_images import AnnotatedImages
from seg_env.data.records import (
    OnError,
    RecordError,
    describe,
    located,
    parse_json_object,
    relative_path,
    text_field,
)
from seg_env.data.segmentations import check_inside, parse_points, target_from_segmentation
from seg_env.geometry.raster import rasterize_rle
from seg_env.geometry.rle import Rle
from seg_env.types import Ring, Sample, Target

MAX_LINE = 1 << 26
"""Longest line that is read, in bytes."""


class JsonLines(AnnotatedImages):
    """A JSON-lines file: one sample on each line. ``python -m seg_env.data export`` writes it.

    On disk::

        <data_root>/
          train.jsonl
          images/0.jpg ...
          masks/0.png ...       (only where masks are images)

    and ``data_root`` may be the ``.jsonl`` file itself. Each line is an object::

        {"id": "0", "image": "images/0.jpg", "expression": "the café", "size": [480, 640],
         "rle": {"size": [480, 640], "counts": "..."}}

    ``image``: path relative to the file's folder, within it. ``expression``: text. The target is
    one of ``rle`` (COCO's run lengths, a string or a list), ``rings`` (an outline as answers have
    it: ``[[[x, y], ...], ...]``, x / width and y / height, holes turning the other way) and
    ``mask`` (path of an image of one channel, 0 outside of the object). Nothing in it, for example
    ``"rings": []``, means that the object is not there. Optional: ``id`` (default: the number of
    the line), ``size`` (``[H, W]``, saves looking into the image), ``ignore`` (run lengths of
    void pixels), ``others`` (a list of run lengths, the other objects of the image), and
    ``metadata`` (any object). Blank lines are passed over.

    Only the places of lines are kept in memory; metadata is that of the line and ``file_name``.
    """

    def __init__(
        self,
        data_root: str | os.PathLike[str],
        split: str = "train",
        image_root: str | os.PathLike[str] | None = None,
        *,
        exclude_images: Collection[str | int] | None = None,
        on_error: OnError = "raise",
    ) -> None:
        """Find the lines of a file; ``image_root`` is by default its folder."""
        super().__init__("jsonl", split, on_error)
        root = Path(data_root).expanduser().absolute()
        self.path = root if root.suffix in (".jsonl", ".json") else root / f"{split}.jsonl"
        self.image_root = Path(image_root or self.path.parent).expanduser().absolute()
        starts: list[int] = []
        position = 0
        with self.path.open("rb") as stream:
            while line := stream.readline(MAX_LINE + 1):
                if len(line) > MAX_LINE:
                    raise ValueError(f"{self.path}: line {len(starts) + 1} has over 64 MiB")
                starts.append(position if line.strip() else -1)
                position += len(line)
        self._starts = np.array(starts, dtype=np.int64)
        rows = np.flatnonzero(self._starts >= 0).tolist()
        if exclude_images and on_error == "skip":
            # Names of images are needed first, and lines without one cannot be judged.
            named = []
            for row in rows:
                with self._reading_record():
                    self._image_name(row)
                    named.append(row)
            rows = named
        self._choose_rows(rows, exclude_images)

    def _sample(self, row: int) -> Sample:
        record, where = self._record(row)
        image = self._file(record, "image", where)
        size = _size_of(record, image, where)
        extras = record.get("metadata", {})
        if not isinstance(extras, dict):
            raise RecordError(f"{where}: 'metadata' must be an object, got {describe(extras)}")
        return Sample(
            id=str(record.get("id", row)),
            expression=text_field(record, "expression", where),
            target=self._target(record, size, where),
            load_image=partial(read_image, image, size),
            metadata={**extras, "file_name": text_field(record, "image", where)},
        )

    def _target(self, record: dict[str, Any], size: tuple[int, int], where: str) -> Target:
        forms = [form for form in ("rle", "rings", "mask") if form in record]
        if len(forms) != 1:
            raise RecordError(f"{where}: expected one of 'rle', 'rings' and 'mask', got {forms}")
        with located(where):
            ignore = _run_lengths(record["ignore"], size) if "ignore" in record else None
            match forms[0]:
                case "rle":
                    rle = _run_lengths(record["rle"], size)
                case "rings":
                    rle = rasterize_rle(_rings(record["rings"], size), size)
                case _:
                    mask = self._file(record, "mask", where)
                    rle = Rle.from_mask(read_mask(mask, size))
        return Target(rle, ignore=ignore)

    def _record(self, row: int) -> tuple[dict[str, Any], str]:
        """The object of a line, and what errors call it."""
        where = f"{self.path}: line {row + 1}"
        with self.path.open("rb") as stream:
            stream.seek(int(self._starts[row]))
            return parse_json_object(stream.readline(MAX_LINE), where), where

    def _file(self, record: dict[str, Any], key: str, where: str) -> Path:
        return self.image_root / relative_path(text_field(record, key, where), where)

    def _image_name(self, row: int) -> str:
        record, where = self._record(row)
        return text_field(record, "image", where)

    def _image_path(self, row: int) -> Path:
        record, where = self._record(row)
        return self._file(record, "image", where)

    def _others(self, row: int) -> list[Target]:
        record, where = self._record(row)
        listed = record.get("others", [])
        if not isinstance(listed, list):
            raise RecordError(f"{where}: 'others' must be a list, got {describe(listed)}")
        size = _size_of(record, self._file(record, "image", where), where)
        with located(where):
            return [Target(_run_lengths(each, size)) for each in listed]


def _size_of(record: dict[str, Any], image: Path, where: str) -> tuple[int, int]:
    stated = record.get("size")
    if stated is None:
        return image_size(image)
    if (
        isinstance(stated, list)
        and len(stated) == 2
        and all(type(side) is int and side > 0 for side in stated)
    ):
        return stated[0], stated[1]
    raise RecordError(f"{where}: 'size' must be [height, width], got {describe(stated)}")


def _run_lengths(value: object, size: tuple[int, int]) -> Rle:
    if not isinstance(value, dict):
        raise RecordError(f"run lengths are {{'size', 'counts'}}, got {describe(value)}")
    return target_from_segmentation(value, size).rle


def _rings(value: object, size: tuple[int, int]) -> list[Ring]:
    if not isinstance(value, list):
        raise RecordError(f"'rings' must be a list of rings [[x, y], ...], got {describe(value)}")
    rings: list[Ring] = []
    scale = np.array([size[1], size[0]], dtype=np.float64)
    for number, listed in enumerate(value):
        with located(f"ring {number}"):
            ring = parse_points(listed)
            if len(ring) < 3:
                raise RecordError(f"a ring has at least 3 points, got {len(ring)}")
        check_inside(ring * scale, size, f"ring {number}")
        rings.append(ring)
    return rings
