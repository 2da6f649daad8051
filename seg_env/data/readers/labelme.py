"""Folders of images annotated with LabelMe, and reading files of its form."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from seg_env.data.folders import SUFFIXES
from seg_env.data.images import image_size, is_turned, read_mask
from seg_env.data.readers.annotated_images import AnnotatedImages, Entry, Options
from seg_env.data.records import Fault, Record, RecordError, located
from seg_env.data.segmentations import check_inside, fill_polygon, parse_points, union
from seg_env.geometry.limits import check_limit
from seg_env.geometry.rle import Rle
from seg_env.types import Target

LINES = ("point", "points", "line", "linestrip")
"""Kinds of shapes that outline nothing."""


class LabelMe(AnnotatedImages[tuple[str, str, tuple[int, ...]]]):
    """A folder annotated with LabelMe: one sample for each image and label in it.

    On disk, as LabelMe saves it::

        <data_root>/
          train/  desk.jpg  desk.json ...
          val/    ...

    or all files in ``<data_root>`` itself, whatever ``split`` is called. A ``.json`` holds
    ``imagePath`` (relative to it), ``imageHeight``, ``imageWidth`` (by default those of the image),
    perhaps ``imageData`` (the image itself, base64), and ``shapes``, each with ``label``,
    ``points`` in pixels, ``shape_type`` (``polygon``, ``rectangle``, ``circle``, ``mask``),
    ``group_id`` and ``description``. Points and lines are not used, only counted.

    An object is a shape, or the shapes of one label and ``group_id`` together. The expression is
    its description where it has one, else its label; the target is all objects of the image with
    the same expression. With ``per_annotation`` each object is a sample. Polygons are filled by
    COCO's rule.

    LabelMe shows images upright, as EXIF data turn them, and so they are read here. ``imageData``
    is the image that was drawn on: it is read, as it is stored, if the file is missing, of another
    size or to be turned.

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
                record = read_json_file(path, self._encoding)
                groups = self._groups(shapes_of(record))
                if not groups:
                    self.unused["images without annotations"] += 1
                    continue
                image = self._find_image(record, path)
                for group in groups:
                    self._ask((str(path.relative_to(self.image_root)), image, group))

    def _groups(self, shapes: list[Record]) -> list[tuple[int, ...]]:
        """Numbers of the shapes that belong together."""
        objects: dict[object, list[int]] = {}
        for number, shape in enumerate(shapes):
            if (kind := _kind_of(shape)) in LINES:
                self.unused[f"{kind} shapes"] += 1
                continue
            group_id = shape.get("group_id")
            label, is_part = shape.text("label"), isinstance(group_id, int | float | str)
            objects.setdefault((label, group_id) if is_part else number, []).append(number)
        if self.per_annotation:
            return [tuple(group) for group in objects.values()]
        groups: dict[str, list[int]] = {}
        for group in objects.values():
            groups.setdefault(_expression_of([shapes[k] for k in group]), []).extend(group)
        return [tuple(sorted(group)) for group in groups.values()]

    def _find_image(self, record: Record, path: Path) -> str:
        """The image relative to the root; ``imagePath`` may go up, but not out of the root."""
        stated = record.text("imagePath")
        if not stated or "\0" in stated:
            raise record.error("imagePath", "must be the name of a file")
        place = Path(os.path.normpath(path.parent / stated.replace("\\", "/")))
        if not place.is_relative_to(self.image_root):
            raise RecordError(f"{path}: imagePath {stated[:80]!r} leads out of {self.image_root}")
        # os.path's isfile treats a name that is too long as a missing file.
        if not os.path.isfile(place) and image_beside(path).is_file():
            place = image_beside(path)  # files are often renamed together, imagePath is not
        return str(place.relative_to(self.image_root))

    def _read(self, key: tuple[str, str, tuple[int, ...]]) -> Entry:
        name, image_name, group = key  # annotations and image, relative to the root
        record = read_json_file(self.image_root / name, self._encoding)
        shapes = shapes_of(record)
        if group[-1] >= len(shapes):
            raise RecordError(f"{record.where} has changed since it was opened; open it again")
        image, size = _image_of(record, self.image_root / image_name)
        others = [
            k for k, each in enumerate(shapes) if k not in group and _kind_of(each) not in LINES
        ]
        label = shapes[group[0]].text("label")
        return Entry(
            id=f"{self.name}-{self.split}-{name}-{group[0]}",
            sentences={0: _expression_of([shapes[k] for k in group])},
            image=image,
            size=size,
            target=partial(_filled, [shapes[k] for k in group], size),
            metadata={"file_name": image_name, "label": label, "shapes": list(group)},
            others=[partial(_filled, [shapes[k]], size) for k in others],
            image_name=f"{record.where}: imageData" if isinstance(image, bytes) else "",
            upright=isinstance(image, Path),
        )

    def _image_name(self, key: tuple[str, str, tuple[int, ...]]) -> str:
        return key[1]


def read_json_file(path: Path, encoding: str | None = None) -> Record:
    """Read a JSON object; for ``encoding`` see `seg_env.data.records.decode_text`."""
    with located(str(path)):
        check_limit("label_bytes", size := path.stat().st_size, f"{size} bytes")
    return Record.parse(path.read_bytes(), str(path), encoding)


def shapes_of(record: Record) -> list[Record]:
    """The entries of ``shapes``."""
    listed = record.items("shapes")
    return [Record(each, f"{record.where}: shape {k}") for k, each in enumerate(listed)]


def points_of(shape: Record) -> NDArray[np.float64]:
    """The ``points`` of a shape, ``(V, 2)`` in pixels."""
    with located(f"{shape.where}: 'points'"):
        return parse_points(shape.get("points"))


def image_beside(path: Path) -> Path:
    """The image of the same name as an annotation file; the missing ``.jpg`` if there is none."""
    for suffix in SUFFIXES:
        for candidate in (path.with_suffix(suffix), path.with_suffix(suffix.upper())):
            if candidate.is_file():
                return candidate
    return path.with_suffix(".jpg")


def _image_of(record: Record, file: Path) -> tuple[Path | bytes, tuple[int, int]]:
    """The image that the shapes of a file are drawn on, a file or its content, and its size."""
    size, data = None, record.get("imageData")
    if record.get("imageHeight") is not None or record.get("imageWidth") is not None:
        size = record.size("imageHeight", "imageWidth")
    if not isinstance(data, str) or not data:
        return file, size or image_size(file, upright=True)
    if size:
        with suppress(ValueError, OSError):
            if image_size(file) == size and not is_turned(file):
                return file, size
    with located(f"{record.where}: imageData is not base64"):
        image = base64.b64decode(data, validate=True)
    return image, size or image_size(image, f"{record.where}: imageData")


def _kind_of(shape: Record) -> object:
    return shape.get("shape_type") or "polygon"


def _expression_of(shapes: list[Record]) -> str:
    """The expression for some shapes together: the first description, else the label."""
    described = (shape.get("description") for shape in shapes)
    texts = (each.strip() for each in described if isinstance(each, str))
    return next(filter(None, texts), "") or shapes[0].text("label")


def _filled(shapes: list[Record], size: tuple[int, int]) -> Target:
    def masks() -> Iterator[Rle]:
        for shape in shapes:
            if _kind_of(shape) == "mask":
                yield _mask_of(shape, size)
                continue
            corners = _corners(shape)
            with located(shape.where):
                check_inside(corners, size)
                yield fill_polygon(corners, size)

    target = union(masks(), size, shapes[0].where)
    if not target.area:
        raise RecordError(f"{shapes[0].where} fills not one pixel", Fault.EMPTY)
    return target


def _mask_of(shape: Record, size: tuple[int, int]) -> Rle:
    """A shape's mask, an image within a box whose corners are its first and its last pixel."""
    points = np.trunc(points_of(shape))
    height, width = size
    box = points.tolist()
    if len(box) != 2 or not (
        0 <= box[0][0] <= box[1][0] < width and 0 <= box[0][1] <= box[1][1] < height
    ):
        raise RecordError(
            f"{shape.where}: a mask has the corners of a box within {width} x {height} (width x "
            f"height), got {str(box)[:80]}",
            Fault.OUTSIDE,
        )
    (x0, y0), (x1, y1) = points.astype(int).tolist()
    with located(f"{shape.where}: mask is not base64"):
        data = base64.b64decode(shape.text("mask"), validate=True)
    mask = np.zeros(size, dtype=np.bool_)
    part = read_mask(data, (y1 - y0 + 1, x1 - x0 + 1), f"{shape.where}: mask")
    mask[y0 : y1 + 1, x0 : x1 + 1] = part
    return Rle.from_mask(mask)


def _corners(shape: Record) -> NDArray[np.float64]:
    points, kind = points_of(shape), _kind_of(shape)
    if kind == "polygon" or (kind in ("rectangle", "oriented_rectangle") and len(points) == 4):
        return points
    if kind not in ("rectangle", "circle"):
        kinds = ", ".join(("polygon", "rectangle", "circle", "mask", *LINES))
        raise shape.error("shape_type", f"must be one of {kinds}")
    if len(points) != 2:
        raise RecordError(f"{shape.where}: a {kind} has 2 points, got {len(points)}")
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points
        return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    angles = np.arange(128) * (2 * np.pi / 128)
    radius = np.hypot(*(points[1] - points[0]))
    return np.asarray(points[0] + radius * np.column_stack((np.cos(angles), np.sin(angles))))
