"""COCO's ``instances.json`` as an index: what is where, a few bytes per annotation."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from seg_env.data.readers.json_stream import Element, walk_elements
from seg_env.geometry.rle import MAX_PIXELS

Column: TypeAlias = NDArray[np.int32] | NDArray[np.int64]
"""A column of integers, see `narrow`."""

_CROWD = re.compile(r'"iscrowd"[ \t\n\r]*:[ \t\n\r]*(?:1|true)')


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One entry of ``images``."""

    file_name: str
    """Path relative to the folder of images; never leaves it."""
    size: tuple[int, int]
    """``(H, W)`` in pixels."""


@dataclass(frozen=True, eq=False)
class Instances:
    """The images of an ``instances.json``, and where its annotations lie in the file.

    Polygons stay on disk and are read one by one.
    """

    path: Path
    """The file."""
    images: Mapping[int, ImageRecord]
    """Images by id."""
    categories: Mapping[int, str]
    """Names of categories by id."""
    annotation_images: Column
    """``(A,)`` id of the image that each annotation belongs to, sorted."""
    annotation_ids: Column
    """``(A,)`` sorted within an image."""
    offsets: Column
    """``(A,)`` byte at which the annotation starts."""
    lengths: Column
    """``(A,)`` number of bytes it takes."""
    annotation_categories: Column
    """``(A,)`` id of its category, -1 where it has none."""
    crowds: NDArray[np.bool_]
    """``(A,)`` whether it outlines a crowd (``iscrowd``) instead of one object."""

    def only(self, image_ids: Column) -> Instances:
        """The same for some of the images, with their annotations and all categories."""
        wanted = set(image_ids.tolist())
        rows = np.isin(self.annotation_images, image_ids)
        return replace(
            self,
            images={key: image for key, image in self.images.items() if key in wanted},
            annotation_ids=self.annotation_ids[rows],
            annotation_images=self.annotation_images[rows],
            offsets=self.offsets[rows],
            lengths=self.lengths[rows],
            annotation_categories=self.annotation_categories[rows],
            crowds=self.crowds[rows],
        )

    def annotations_of(self, image_id: int) -> list[int]:
        """Ids of the annotations of an image, sorted."""
        ids: list[int] = self.annotation_ids[self._rows_of(image_id)].tolist()
        return ids

    def annotation(self, image_id: int, annotation_id: int) -> dict[str, Any]:
        """Read one annotation from disk.

        Raises:
            ValueError: The image has no such annotation, or several, or it is malformed, or the
                file has changed since it was opened.
        """
        row = self._row_of(image_id, annotation_id)
        with self.path.open("rb") as stream:
            stream.seek(int(self.offsets[row]))
            text = stream.read(int(self.lengths[row]))
        try:
            record = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path}: annotation {annotation_id}: {error}") from error
        if not isinstance(record, dict) or record.get("id") != annotation_id:
            raise ValueError(f"{self.path} has changed since it was opened; open it again")
        return record

    def category_of(self, image_id: int, annotation_id: int) -> int:
        """The category of an annotation, -1 where it has none.

        Raises:
            ValueError: The image has no such annotation, or several.
        """
        return int(self.annotation_categories[self._row_of(image_id, annotation_id)])

    def _row_of(self, image_id: int, annotation_id: int) -> int:
        rows = self._rows_of(image_id)
        matches = rows.start + np.flatnonzero(self.annotation_ids[rows] == annotation_id)
        if len(matches) != 1:
            raise ValueError(
                f"{self.path}: image {image_id} has {len(matches)} annotations of the id "
                f"{annotation_id}, expected one"
            )
        return int(matches[0])

    def _rows_of(self, image_id: int) -> slice:
        first, last = np.searchsorted(self.annotation_images, [image_id, image_id + 1])
        return slice(int(first), int(last))


def read_instances(path: Path, broken: list[str] | None = None) -> Instances:
    """Index an ``instances.json``.

    Args:
        path: The file.
        broken: Where given, the errors of broken records are put here instead of being raised.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON, or a record lacks what is needed; names file and record.
    """
    images: dict[int, ImageRecord] = {}
    categories: dict[int, str] = {}
    columns = tuple(array("q") for _ in range(6))
    name = str(path)
    for element in walk_elements(path, skim="annotations"):
        try:
            match element.key:
                case "annotations":
                    row = _annotation_row(element, name)
                    for column, number in zip(columns, row, strict=True):
                        column.append(number)
                case "images":
                    identifier, image = _image_record(element, name)
                    images[identifier] = image
                case "categories":
                    where = f"{name}: category at byte {element.offset}"
                    record = element.reread()
                    categories[integer(record, "id", where)] = text_field(record, "name", where)
        except ValueError as error:
            if broken is None:
                raise
            broken.append(str(error))
    table = np.array([np.frombuffer(column, dtype=np.int64) for column in columns])
    table = table[:, np.lexsort((table[0], table[1]))]
    ids, image_ids, offsets, lengths, kinds = map(narrow, table[:5])
    crowds = table[5].astype(np.bool_)
    return Instances(path, images, categories, image_ids, ids, offsets, lengths, kinds, crowds)


def narrow(column: Sequence[int] | NDArray[np.int64]) -> Column:
    """The same integers in four bytes each where they fit: most do, and there are many."""
    wide = np.asarray(column, dtype=np.int64)
    fits = not wide.size or (wide.min() >= -(2**31) and wide.max() < 2**31)
    return wide.astype(np.int32) if fits else wide


def _annotation_row(element: Element, name: str) -> tuple[int, int, int, int, int, int]:
    where = f"{name}: annotation at byte {element.offset}"
    identifier = integer(element.value, "id", where)
    image_id = integer(element.value, "image_id", where)
    has_category = isinstance(element.value, dict) and "category_id" in element.value
    category_id = integer(element.value, "category_id", where) if has_category else -1
    is_crowd = _CROWD.search(element.text) is not None
    return identifier, image_id, element.offset, len(element.text), category_id, int(is_crowd)


def _image_record(element: Element, name: str) -> tuple[int, ImageRecord]:
    where = f"{name}: image at byte {element.offset}"
    record = element.reread()
    identifier = integer(record, "id", where)
    size = (integer(record, "height", where), integer(record, "width", where))
    if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise ValueError(
            f"{where}: height and width are {size}; at least 1, together at most {MAX_PIXELS} "
            "pixels are read"
        )
    file_name = text_field(record, "file_name", where)
    return identifier, ImageRecord(relative_path(file_name, where), size)


def relative_path(file_name: str, where: str) -> str:
    """The name of a picture as a path that stays within the folder of pictures.

    Raises:
        ValueError: It leads out of it; starts with ``where``.
    """
    parts = PurePosixPath(file_name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in file_name or "\0" in file_name:
        raise ValueError(f"{where}: file_name {file_name[:80]!r} leads out of the image folder")
    return str(parts)


def integer(record: object, key: str, where: str) -> int:
    """The integer under ``key``, within 64 bits.

    Raises:
        ValueError: ``record`` is no mapping, or holds no such integer; starts with ``where``.
    """
    value = record.get(key) if isinstance(record, dict) else None
    if type(value) is not int or not -(2**63) <= value < 2**63 - 1:
        raise ValueError(f"{where}: {key!r} must be an integer, got {describe(value)}")
    return value


def text_field(record: object, key: str, where: str) -> str:
    """The string under ``key``.

    Raises:
        ValueError: ``record`` is no mapping, or holds no such string; starts with ``where``.
    """
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key!r} must be a string, got {describe(value)}")
    return value


def describe(value: object) -> str:
    """A few words about a value of a stranger; containers, which may be endless, are only named."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"the string {value[:40]!r}"
    if isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 10**20):
        return repr(value)
    return f"a value of type {type(value).__name__}"


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a coordinate")
