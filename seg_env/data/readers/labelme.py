"""Folders of images annotated with LabelMe, and reading files of its form."""

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

from seg_env.data.images import read_image, read_image_bytes
from seg_env.data.readers.annotated_images import AnnotatedImages, valid_targets
from seg_env.data.records import (
    Fault,
    OnError,
    RecordError,
    describe,
    located,
    parse_json_object,
    size_field,
    text_field,
)
from seg_env.data.segmentations import check_inside, fill_polygon, parse_points
from seg_env.geometry.rle import Rle
from seg_env.types import Sample, Target

MAX_BYTES = 1 << 28
"""Largest file that is read; LabelMe may keep the image itself in it."""


class LabelMe(AnnotatedImages):
    """A folder annotated with LabelMe: one sample for each image and label in it.

    On disk, as LabelMe saves it::

        <data_root>/
          train/  desk.jpg  desk.json ...
          val/    ...

    or all files in ``<data_root>`` itself, whatever ``split`` is called. A ``.json`` holds
    ``imagePath`` (relative to it), ``imageHeight``, ``imageWidth``, perhaps ``imageData`` (the
    image itself, base64), and ``shapes``, each with ``label``, ``points`` in pixels,
    ``shape_type`` (``polygon``, ``rectangle``, ``circle``), ``group_id`` and ``description``.

    The expression is the description of a shape where it has one, else its label; the target is all
    that the image has of the same expression. With ``per_annotation`` each object is a sample:
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
        """Read the labels of a folder."""
        super().__init__("labelme", split, on_error)
        self.image_root = Path(data_root).expanduser().absolute()
        folder = self.image_root / split
        folder = folder if folder.is_dir() else self.image_root
        paths = sorted(folder.rglob("*.json"))
        if not paths:
            raise FileNotFoundError(f"{folder} has no .json files")
        self.per_annotation = per_annotation
        self._files: list[str] = []  # relative to the root, as the images
        self._images: list[str] = []
        self._groups: list[tuple[int, tuple[int, ...]]] = []  # number of the file, of its shapes
        for path in paths:
            with self._reading_record():
                record = read_json_file(path)
                groups, image = self._read_groups(record, path), self._find_image(record, path)
                self._groups += [(len(self._files), group) for group in groups]
                self._files.append(str(path.relative_to(self.image_root)))
                self._images.append(image)
        self._choose_rows(range(len(self._groups)), exclude_images)

    def _read_groups(self, record: dict[str, Any], path: Path) -> list[tuple[int, ...]]:
        groups: dict[object, list[int]] = {}
        for number, shape in enumerate(shapes_of(record, path)):
            if _is_area(shape):
                group_id = shape.get("group_id")
                key: object = _expression_of(shape)
                if self.per_annotation:
                    key = (key, group_id) if isinstance(group_id, int) else number
                groups.setdefault(key, []).append(number)
        return [tuple(group) for group in groups.values()]

    def _find_image(self, record: dict[str, Any], path: Path) -> str:
        """The image relative to the root; ``imagePath`` may go up, but not out of the root."""
        stated = text_field(record, "imagePath", str(path))
        if not stated or "\0" in stated:
            raise RecordError(f"{path}: 'imagePath' must be the name of a file")
        place = Path(os.path.normpath(path.parent / stated.replace("\\", "/")))
        if not place.is_relative_to(self.image_root):
            raise RecordError(f"{path}: imagePath {stated[:80]!r} leads out of {self.image_root}")
        if not place.is_file() and image_beside(path).is_file():
            place = image_beside(path)  # files are often renamed together, imagePath is not
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
            expression=_expression_of(first),
            target=_united(shapes, group, path, size),
            load_image=partial(self._load, number),
            metadata={
                "file_name": self._images[number],
                "label": first["label"],
                "shapes": list(group),
            },
        )

    def _record(self, number: int) -> tuple[Path, dict[str, Any], tuple[int, int]]:
        path = self.image_root / self._files[number]
        record = read_json_file(path)
        return path, record, size_field(record, str(path), ("imageHeight", "imageWidth"))

    def _load(self, number: int) -> NDArray[np.uint8]:
        path, record, size = self._record(number)
        file, data = self.image_root / self._images[number], record.get("imageData")
        if file.is_file() or not isinstance(data, str):
            return read_image(file, size)
        try:
            content = base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise RecordError(f"{path}: imageData is not base64: {error}") from error
        return read_image_bytes(content, size, f"{path}: imageData")

    def _image_name(self, row: int) -> str:
        return self._images[self._groups[row][0]]

    def _image_path(self, row: int) -> Path | None:
        path = self.image_root / self._image_name(row)
        return path if path.is_file() else None

    def _check(self, row: int) -> None:
        super()._check(row)
        if self._image_path(row) is None:
            self._load(self._groups[row][0])

    def _others(self, row: int) -> list[Target]:
        number, group = self._groups[row]
        path, record, size = self._record(number)
        shapes = shapes_of(record, path)
        others = [k for k, shape in enumerate(shapes) if k not in group and _is_area(shape)]
        return valid_targets(lambda other: _united(shapes, (other,), path, size), others)


def read_json_file(path: Path) -> dict[str, Any]:
    """Read a JSON object, in UTF-8 or, as a few of ReasonSeg's files are, in Windows-1252."""
    if path.stat().st_size > MAX_BYTES:
        raise RecordError(f"{path} has more than {MAX_BYTES} bytes, which is not read")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        with located(str(path)):
            text = data.decode("cp1252")
    return parse_json_object(text, str(path))


def shapes_of(record: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """The entries of ``shapes``, each with a ``label`` that is a string."""
    shapes = record.get("shapes")
    if not isinstance(shapes, list):
        raise RecordError(f"{path}: 'shapes' must be a list, got {describe(shapes)}")
    for number, shape in enumerate(shapes):
        text_field(shape, "label", f"{path}: shape {number}")
    return shapes


def points_of(shape: dict[str, Any], where: str) -> NDArray[np.float64]:
    """The ``points`` of a shape, ``(V, 2)`` in pixels; errors start with ``where``."""
    with located(f"{where}: 'points'"):
        return parse_points(shape.get("points"))


def image_beside(path: Path) -> Path:
    """The image of the same name as an annotation file; ``.jpg``, which is missing, if none is."""
    for suffix in (".jpg", ".jpeg", ".png", ".webp", ".bmp"):
        for candidate in (path.with_suffix(suffix), path.with_suffix(suffix.upper())):
            if candidate.is_file():
                return candidate
    return path.with_suffix(".jpg")


def _is_area(shape: dict[str, Any]) -> bool:
    """Whether a shape outlines something; points and lines are passed over."""
    return shape.get("shape_type", "polygon") in ("polygon", "rectangle", "circle")


def _expression_of(shape: dict[str, Any]) -> str:
    description = shape.get("description")
    text = description.strip() if isinstance(description, str) else ""
    return text or str(shape["label"])


def _united(
    shapes: list[dict[str, Any]], numbers: tuple[int, ...], path: Path, size: tuple[int, int]
) -> Target:
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
    angles = np.arange(128) * (2 * np.pi / 128)
    radius = np.hypot(*(points[1] - points[0]))
    return np.asarray(points[0] + radius * np.column_stack((np.cos(angles), np.sin(angles))))
