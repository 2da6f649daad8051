"""Folders of pictures annotated with LabelMe."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seg_env.data.faults import Fault, OnError, RecordError, check_on_error, located
from seg_env.data.images import check_image, read_image, read_image_bytes
from seg_env.data.readers.annotated_images import AnnotatedImages
from seg_env.data.readers.annotation_files import (
    photo_beside,
    points_of,
    read_json_object,
    shapes_of,
)
from seg_env.data.readers.instances import integer
from seg_env.data.segmentations import check_inside, fill_polygon
from seg_env.geometry.rle import MAX_PIXELS, Rle
from seg_env.types import Sample, Target

AREAS = ("polygon", "rectangle", "circle")
"""Values of ``shape_type`` that outline something; points and lines are passed over."""
CIRCLE_CORNERS = 128


class LabelMe(AnnotatedImages):
    """A folder annotated with LabelMe: one sample for each picture and label in it.

    On disk, as LabelMe saves it::

        <data_root>/
          train/  desk.jpg  desk.json ...
          val/    ...

    or all files in ``<data_root>`` itself, whatever ``split`` is called. A ``.json`` holds
    ``imagePath`` (relative to it), ``imageHeight``, ``imageWidth``, perhaps ``imageData`` (the
    picture itself, base64), and ``shapes``, each with ``label``, ``points`` in pixels,
    ``shape_type`` (``polygon``, ``rectangle``, ``circle``), ``group_id`` and ``description``.

    The expression is the description of a shape where it has one, else its label; the target is all
    that the picture has of the same expression. With ``per_annotation`` each object is a sample:
    each shape, or the shapes of one ``group_id`` together. Polygons are filled by COCO's rule.

    Metadata holds ``file_name``, ``label`` and ``shapes`` (numbers of the shapes in the file).
    """

    def __init__(
        self,
        data_root: str | os.PathLike[str],
        split: str = "train",
        *,
        per_annotation: bool = False,
        exclude_images: Collection[str | int] | None = None,
        on_error: OnError = "raise",
    ) -> None:
        """Read the labels of a folder.

        Args:
            data_root: The folder.
            split: The folder in it, if there are any.
            per_annotation: One sample for each object.
            exclude_images: Names of pictures to leave out, see `seg_env.data.leakage`.
            on_error: What to do about broken records, see `seg_env.data.faults.OnError`.

        Raises:
            FileNotFoundError: There are no annotations.
            ValueError: A record is malformed; names the file.
        """
        check_on_error(on_error)
        super().__init__("labelme", split)
        self.image_root = Path(data_root).expanduser().absolute()
        folder = self.image_root / split
        folder = folder if folder.is_dir() else self.image_root
        paths = sorted(folder.rglob("*.json"))
        if not paths:
            raise FileNotFoundError(f"{folder} has no .json files")
        self.per_annotation = per_annotation
        self._files: list[str] = []
        self._photos: list[str] = []
        self._groups: list[tuple[int, tuple[int, ...]]] = []  # number of the file, of its shapes
        for path in paths:
            try:
                groups, photo = self._read_groups(path)
            except RecordError:
                if on_error == "raise":
                    raise
                self.skipped[Fault.MALFORMED] = self.skipped.get(Fault.MALFORMED, 0) + 1
                continue
            self._groups += [(len(self._files), group) for group in groups]
            self._files.append(str(path.relative_to(self.image_root)))
            self._photos.append(photo)
        self._choose_rows(np.arange(len(self._groups)), exclude_images, on_error)

    def _read_groups(self, path: Path) -> tuple[list[tuple[int, ...]], str]:
        record = read_json_object(path)
        groups: dict[object, list[int]] = {}
        for number, shape in enumerate(shapes_of(record, path)):
            if shape.get("shape_type", "polygon") not in AREAS:
                continue
            group_id = shape.get("group_id")
            key: object = expression_of(shape)
            if self.per_annotation:
                key = (key, group_id) if isinstance(group_id, int) else number
            groups.setdefault(key, []).append(number)
        return [tuple(group) for group in groups.values()], self._photo_name(record, path)

    def _photo_name(self, record: dict[str, Any], path: Path) -> str:
        """The picture relative to the root; `imagePath` may go up, but not out of the root."""
        stated = record.get("imagePath")
        if not isinstance(stated, str) or not stated or "\0" in stated:
            raise RecordError(f"{path}: 'imagePath' must be the name of a file")
        place = Path(os.path.normpath(path.parent / stated.replace("\\", "/")))
        if not place.is_relative_to(self.image_root):
            raise RecordError(f"{path}: imagePath {stated[:80]!r} leads out of {self.image_root}")
        if not place.is_file() and photo_beside(path).is_file():
            place = photo_beside(path)  # files are often renamed together, imagePath is not
        return str(place.relative_to(self.image_root))

    def _sample(self, row: int) -> Sample:
        number, group = self._groups[row]
        path, record, size = self._record(number)
        shapes = shapes_of(record, path)
        if group[-1] >= len(shapes):
            raise RecordError(f"{path} has changed since it was opened; open it again")
        first = shapes[group[0]]
        return Sample(
            id=f"{self.name}-{self.split}-{self._files[number]}-{group[0]}",
            expression=expression_of(first),
            target=united_shapes(shapes, group, path, size),
            load_image=partial(self._load, number),
            metadata={
                "file_name": self._photos[number],
                "label": first["label"],
                "shapes": list(group),
            },
        )

    def _record(self, number: int) -> tuple[Path, dict[str, Any], tuple[int, int]]:
        path = self.image_root / self._files[number]
        record = read_json_object(path)
        where = str(path)
        with located(where):
            size = (integer(record, "imageHeight", "size"), integer(record, "imageWidth", "size"))
            if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
                raise RecordError(f"imageHeight and imageWidth are {size}; at least 1 each")
        return path, record, size

    def _load(self, number: int) -> NDArray[np.uint8]:
        path, record, size = self._record(number)
        photo = self.image_root / self._photos[number]
        embedded = _embedded(record, path)
        if embedded is None or photo.is_file():
            return read_image(photo, size)
        return read_image_bytes(embedded, size, f"{path}: imageData")

    def _unit(self, row: int) -> int:
        return row

    def _image_name(self, unit: int) -> str:
        return self._photos[self._groups[unit][0]]

    def _photo(self, row: int) -> Path | None:
        path = self.image_root / self._image_name(row)
        return path if path.is_file() else None

    def _check(self, row: int) -> None:
        sample = self._sample(row)
        path, record, size = self._record(self._groups[row][0])
        photo = self.image_root / self._image_name(row)
        if photo.is_file() or _embedded(record, path) is None:
            check_image(photo, size)
        else:
            sample.load_image()

    def _others(self, row: int) -> list[Target]:
        number, group = self._groups[row]
        path, record, size = self._record(number)
        shapes = shapes_of(record, path)
        found = []
        for other, shape in enumerate(shapes):
            if other not in group and shape.get("shape_type", "polygon") in AREAS:
                try:
                    found.append(united_shapes(shapes, (other,), path, size))
                except RecordError:  # what nobody asks about need not be sound
                    continue
        return found


def expression_of(shape: dict[str, Any]) -> str:
    """What a shape is asked for by: its description, else its label."""
    description = shape.get("description")
    text = description.strip() if isinstance(description, str) else ""
    return text or str(shape["label"])


def united_shapes(
    shapes: list[dict[str, Any]], numbers: tuple[int, ...], path: Path, size: tuple[int, int]
) -> Target:
    """Some shapes of a file as one target.

    Raises:
        RecordError: A shape is malformed or lies outside, or they fill not one pixel.
    """
    parts = []
    for number in numbers:
        where = f"{path}: shape {number}"
        corners = _corners(shapes[number], where)
        check_inside(corners, size, where)
        parts.append(fill_polygon(corners, size))
    target = Target(Rle.union_of(parts))
    if not target.area:
        raise RecordError(f"{path}: shape {numbers[0]} fills not one pixel", Fault.EMPTY)
    return target


def _corners(shape: dict[str, Any], where: str) -> NDArray[np.float64]:
    points, kind = points_of(shape, where), shape.get("shape_type", "polygon")
    if kind == "polygon":
        return points
    if len(points) != 2:
        raise RecordError(f"{where}: a {kind} has 2 points, got {len(points)}")
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points
        return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    angles = np.arange(CIRCLE_CORNERS) * (2 * np.pi / CIRCLE_CORNERS)
    radius = np.hypot(*(points[1] - points[0]))
    return np.asarray(points[0] + radius * np.column_stack((np.cos(angles), np.sin(angles))))


def _embedded(record: dict[str, Any], path: Path) -> bytes | None:
    data = record.get("imageData")
    if not isinstance(data, str):
        return None
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise RecordError(f"{path}: imageData is not base64: {error}") from error
