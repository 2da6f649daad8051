"""A plain format of our own: one JSON object on each line."""

from __future__ import annotations

import io
import json
import os
from array import array
from functools import partial
from pathlib import Path
from typing import IO, Unpack

import numpy as np

from seg_env.data.images import image_size, read_mask
from seg_env.data.readers.annotated_images import AnnotatedImages, Entry, Options
from seg_env.data.records import Record, RecordError, decode_text, describe, located
from seg_env.data.segmentations import (
    check_crossings,
    check_inside,
    parse_points,
    target_from_segmentation,
)
from seg_env.geometry.limits import check_limit, limits
from seg_env.geometry.raster import rasterize_rle
from seg_env.geometry.rle import Rle
from seg_env.types import Ring, Target


class JsonLines(AnnotatedImages[int]):
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
    one of ``rle`` (COCO's run lengths, a string or a list), ``rings`` (an outline in the form of
    answers: ``[[[x, y], ...], ...]``, x / width and y / height, holes turning the other way) and
    ``mask`` (path of an image of one channel, 0 outside of the object). An empty target, for
    example ``"rings": []``, means that the object is not there. Optional: ``id`` (default: the
    number of the line), ``size`` (``[H, W]``, saves opening the image), ``ignore`` (run lengths of
    void pixels), ``box`` (``[x0, y0, x1, y1]``, x / width and y / height: the annotated box, by
    default that of the mask), ``others`` (a list of run lengths, the other objects of the image),
    and ``metadata`` (any object). Blank lines are skipped. Targets are drawn on the image as it is
    stored, whatever its EXIF data say.

    Only the offsets of lines are kept in memory; metadata is that of the line and ``file_name``.
    """

    def __init__(
        self,
        data_root: str | os.PathLike[str],
        split: str = "train",
        image_root: str | os.PathLike[str] | None = None,
        **options: Unpack[Options],
    ) -> None:
        """Find the lines of a file; ``image_root`` is by default its folder."""
        super().__init__("jsonl", split, **options)
        root = Path(data_root).expanduser().absolute()
        self.path = root if root.suffix in (".jsonl", ".json") else root / f"{split}.jsonl"
        self.image_root = Path(image_root or self.path.parent).expanduser().absolute()
        self._starts = array("q")  # of all lines, in bytes
        self._recoded: bytes | None = None
        with self.path.open("rb") as stream:
            encoding = json.detect_encoding(stream.read(4))
        if not encoding.startswith("utf-8"):  # bytes do not tell where its lines end
            count = self.path.stat().st_size  # kept in memory
            check_limit("label_bytes", count, f"{self.path} has {count} bytes in {encoding}")
            self._recoded = decode_text(self.path.read_bytes(), str(self.path)).encode()
        with self._open() as stream:
            while line := stream.readline(limits().line_bytes + 1):
                number = len(self._starts)
                what = f"{self.path}: line {number + 1} has at least {len(line)} bytes"
                check_limit("line_bytes", len(line), what)
                self._starts.append(stream.tell() - len(line))
                if line.strip():
                    self._ask(number)

    def _read(self, key: int) -> Entry:
        record = self._record(key)
        image = self.image_root / record.path("image")
        size = stated_size(record) or image_size(image)
        extras = {} if record.get("metadata") is None else record.get("metadata")
        if not isinstance(extras, dict):
            raise record.error("metadata", "must be an object")
        return Entry(
            id=str(key if record.get("id") is None else record.get("id")),
            sentences={0: record.text("expression")},
            image=image,
            size=size,
            target=partial(read_target, record, size, self.image_root),
            metadata={**extras, "file_name": record.text("image")},
            others=[partial(_run_lengths, each, size) for each in record.items("others", [])],
        )

    def _record(self, key: int) -> Record:
        with self._open() as stream:
            stream.seek(self._starts[key])
            line, where = stream.readline(limits().line_bytes), f"{self.path}: line {key + 1}"
        return Record.parse(line, where, self._encoding)

    def _open(self) -> IO[bytes]:
        return self.path.open("rb") if self._recoded is None else io.BytesIO(self._recoded)

    def _image_name(self, key: int) -> str:
        return self._record(key).text("image")


def stated_size(record: Record) -> tuple[int, int] | None:
    """The ``(H, W)`` that a line gives under ``size``, None if it gives none."""
    size = record.get("size")
    if size is None:
        return None
    if not isinstance(size, list) or len(size) != 2:
        raise record.error("size", "must be [height, width]")
    sides = dict(zip(("height", "width"), size, strict=True))
    return Record(sides, f"{record.where}: 'size' must be [height, width]").size()


def read_target(record: Record, size: tuple[int, int], image_root: Path | None = None) -> Target:
    """The target of a line about an image of ``(H, W)``.

    Without ``image_root`` no file is read, and ``mask`` is not looked at.

    Raises:
        RecordError: The target is malformed, or there is none or more than one.
    """
    wanted = ("rle", "rings", "mask") if image_root else ("rle", "rings")
    forms = [form for form in wanted if record.get(form) is not None]
    if len(forms) != 1:
        expected = f"{', '.join(map(repr, wanted[:-1]))} and {wanted[-1]!r}"
        raise RecordError(f"{record.where}: expected one of {expected}, got {forms}")
    with located(record.where):
        void = record.get("ignore")
        ignore = None if void is None else _run_lengths(void, size).rle
        if forms[0] == "rle":
            rle = _run_lengths(record.get("rle"), size).rle
        elif forms[0] == "rings":
            rle = rasterize_rle(_rings(record.get("rings"), size), size)
        else:
            assert image_root is not None
            rle = Rle.from_mask(read_mask(image_root / record.path("mask"), size))
        box = _box(record.get("box")) if record.get("box") is not None and rle.area else None
    return Target(rle, ignore=ignore, box=box)


def _run_lengths(value: object, size: tuple[int, int]) -> Target:
    if not isinstance(value, dict):
        raise RecordError(f"run lengths are {{'size', 'counts'}}, got {describe(value)}")
    return target_from_segmentation(value, size)


def _box(value: object) -> tuple[float, float, float, float]:
    expected = "'box' must be [x0, y0, x1, y1] with x0 < x1 and y0 < y1"
    if not isinstance(value, list) or len(value) != 4:
        raise RecordError(f"{expected}, got {describe(value)}")
    (x0, y0), (x1, y1) = parse_points([value[:2], value[2:]]).tolist()
    if not (x0 < x1 and y0 < y1):
        raise RecordError(f"{expected}, got {value}")
    return x0, y0, x1, y1


def _rings(value: object, size: tuple[int, int]) -> list[Ring]:
    if not isinstance(value, list):
        raise RecordError(f"'rings' must be a list of rings [[x, y], ...], got {describe(value)}")
    rings: list[Ring] = []
    scale = np.array([size[1], size[0]], dtype=np.float64)
    check_limit("rings", len(value), f"'rings' has {len(value)} rings")
    for number, listed in enumerate(value):
        with located(f"ring {number}"):
            ring = parse_points(listed)
            if len(ring) < 3:
                raise RecordError(f"a ring has at least 3 points, got {len(ring)}")
            check_inside(ring * scale, size)
        rings.append(ring)
    if rings:  # all together: between rings, edges go back and forth at most once more
        check_crossings(np.concatenate(rings) * scale, size)
    return rings
