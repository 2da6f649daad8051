"""Folders of images annotated with LabelMe, and reading files of its form."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from seg_env.data.readers.annotated_images import AnnotatedImages, Entry, Options
from seg_env.data.records import Fault, Record, RecordError, located
from seg_env.data.segmentations import check_inside, fill_polygon, parse_points, union
from seg_env.geometry.limits import check_limit
from seg_env.geometry.rle import Rle
from seg_env.types import Target


class LabelMe(AnnotatedImages[tuple[str, str, tuple[int, ...]]]):
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
        **options: Unpack[Options],
    ) -> None:
        """Read the labels of a folder."""
        super().__init__("labelme", split, **options)
        self.image_root = Path(data_root).expanduser().absolute()
        folder = self.image_root / split
        folder = folder if folder.is_dir() else self.image_root
        paths = sorted(folder.rglob("*.json"))
        if not paths:
            raise FileNotFoundError(f"{folder} has no .json files")
        self.per_annotation = per_annotation
        for path in paths:
            with self._reading_record():
                record = read_json_file(path)
                groups, image = self._groups(shapes_of(record)), self._find_image(record, path)
                for group in groups:
                    self._ask((str(path.relative_to(self.image_root)), image, group))

    def _groups(self, shapes: list[Record]) -> list[tuple[int, ...]]:
        """Numbers of the shapes that belong together."""
        groups: dict[object, list[int]] = {}
        for number, shape in enumerate(shapes):
            if _is_area(shape):
                group_id = shape.get("group_id")
                key: object = _expression_of(shape)
                if self.per_annotation:
                    key = (key, group_id) if isinstance(group_id, int) else number
                groups.setdefault(key, []).append(number)
        return [tuple(group) for group in groups.values()]

    def _find_image(self, record: Record, path: Path) -> str:
        """The image relative to the root; ``imagePath`` may go up, but not out of the root."""
        stated = record.text("imagePath")
        if not stated or "\0" in stated:
            raise record.error("imagePath", "must be the name of a file")
        place = Path(os.path.normpath(path.parent / stated.replace("\\", "/")))
        if not place.is_relative_to(self.image_root):
            raise RecordError(f"{path}: imagePath {stated[:80]!r} leads out of {self.image_root}")
        # os.path's, which takes a name that is too long for one that is not there.
        if not os.path.isfile(place) and image_beside(path).is_file():
            place = image_beside(path)  # files are often renamed together, imagePath is not
        return str(place.relative_to(self.image_root))

    def _read(self, key: tuple[str, str, tuple[int, ...]]) -> Entry:
        name, image_name, group = key  # annotations and image, relative to the root
        record = read_json_file(self.image_root / name)
        size, shapes = record.size("imageHeight", "imageWidth"), shapes_of(record)
        if group[-1] >= len(shapes):
            raise RecordError(f"{record.where} has changed since it was opened; open it again")
        file, data = self.image_root / image_name, record.get("imageData")
        image: Path | bytes = file
        if not os.path.isfile(file) and isinstance(data, str):
            with located(f"{record.where}: imageData is not base64"):
                image = base64.b64decode(data, validate=True)
        others = [k for k, shape in enumerate(shapes) if k not in group and _is_area(shape)]
        first = shapes[group[0]]
        return Entry(
            id=f"{self.name}-{self.split}-{name}-{group[0]}",
            sentences={0: _expression_of(first)},
            image=image,
            size=size,
            target=partial(_filled, [shapes[k] for k in group], size),
            metadata={"file_name": image_name, "label": first.text("label"), "shapes": list(group)},
            others=[partial(_filled, [shapes[k]], size) for k in others],
            image_name=f"{record.where}: imageData" if isinstance(image, bytes) else "",
        )

    def _image_name(self, key: tuple[str, str, tuple[int, ...]]) -> str:
        return key[1]


def read_json_file(path: Path) -> Record:
    """Read a JSON object, in UTF-8 or, as a few of ReasonSeg's files are, in Windows-1252."""
    with located(str(path)):
        check_limit("label_bytes", size := path.stat().st_size, f"{size} bytes")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        with located(str(path)):
            text = data.decode("cp1252")
    return Record.parse(text, str(path))


def shapes_of(record: Record) -> list[Record]:
    """The entries of ``shapes``, each with a ``label`` that is a string."""
    listed = record.items("shapes")
    shapes = [Record(each, f"{record.where}: shape {k}") for k, each in enumerate(listed)]
    for shape in shapes:
        shape.text("label")
    return shapes


def points_of(shape: Record) -> NDArray[np.float64]:
    """The ``points`` of a shape, ``(V, 2)`` in pixels."""
    with located(f"{shape.where}: 'points'"):
        return parse_points(shape.get("points"))


def image_beside(path: Path) -> Path:
    """The image of the same name as an annotation file; ``.jpg``, which is missing, if none is."""
    for suffix in (".jpg", ".jpeg", ".png", ".webp", ".bmp"):
        for candidate in (path.with_suffix(suffix), path.with_suffix(suffix.upper())):
            if candidate.is_file():
                return candidate
    return path.with_suffix(".jpg")


def _is_area(shape: Record) -> bool:
    """Whether a shape outlines something; points and lines are passed over."""
    return shape.get("shape_type", "polygon") in ("polygon", "rectangle", "circle")


def _expression_of(shape: Record) -> str:
    description = shape.get("description")
    text = description.strip() if isinstance(description, str) else ""
    return text or shape.text("label")


def _filled(shapes: list[Record], size: tuple[int, int]) -> Target:
    def masks() -> Iterator[Rle]:
        for shape in shapes:
            corners = _corners(shape)
            with located(shape.where):
                check_inside(corners, size)
                yield fill_polygon(corners, size)

    target = union(masks(), size, shapes[0].where)
    if not target.area:
        raise RecordError(f"{shapes[0].where} fills not one pixel", Fault.EMPTY)
    return target


def _corners(shape: Record) -> NDArray[np.float64]:
    points, kind = points_of(shape), shape.get("shape_type", "polygon")
    if kind == "polygon":
        return points
    if len(points) != 2:
        raise RecordError(f"{shape.where}: a {kind} has 2 points, got {len(points)}")
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points
        return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    angles = np.arange(128) * (2 * np.pi / 128)
    radius = np.hypot(*(points[1] - points[0]))
    return np.asarray(points[0] + radius * np.column_stack((np.cos(angles), np.sin(angles))))
