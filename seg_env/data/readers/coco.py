"""Annotations in COCO's form: ``instances.json``, and your own data sets in that form."""

from __future__ import annotations

import os
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, Unpack

from seg_env.data.folders import first_existing, folder_of
from seg_env.data.readers.annotated_images import AnnotatedImages, Entry, Key, Options
from seg_env.data.records import Id, Record, RecordError, garbage_collection_paused, read_json
from seg_env.data.segmentations import box_around, object_target, union
from seg_env.geometry.rle import Rle
from seg_env.types import Target

Known = TypeVar("Known")


class ImageRecord(NamedTuple):
    """One entry of ``images``."""

    file_name: str
    """Path relative to the folder of images; never leaves it."""
    size: tuple[int, int]
    """``(H, W)`` in pixels."""


class Annotation(NamedTuple):
    """One entry of ``annotations``."""

    category_id: Id | None
    is_crowd: bool
    """Whether it outlines a crowd instead of one object."""
    segmentation: Any
    """As in the file, but polygons are arrays."""
    box: Any
    """As in the file."""


def _records(tables: Any, key: str, path: Path) -> Iterator[Record]:
    records = tables.get(key, []) if isinstance(tables, dict) else None
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected an object with lists 'images' and 'annotations'")
    return (Record(each, f"{path}: record {row} of {key!r}") for row, each in enumerate(records))


def _pack_polygons(record: dict[str, Any]) -> dict[str, Any]:
    """Keep polygons and boxes as arrays while a file is parsed: lists take more memory."""
    if isinstance(record.get("bbox"), list):
        with suppress(TypeError, OverflowError):
            record["bbox"] = array("d", record["bbox"])
    parts = record.get("segmentation")
    if isinstance(parts, list):
        # What is not a list of numbers stays as it is, and is an error when it is asked for.
        with suppress(TypeError, OverflowError):
            record["segmentation"] = [
                array("d", part) if isinstance(part, list) else part for part in parts
            ]
    return record


class CocoImages(AnnotatedImages[Key]):
    """Images whose outlines lie in an ``instances.json``."""

    image_root: Path
    _path: Path
    """Of ``instances.json``."""
    _images: dict[Id, ImageRecord]
    _categories: dict[Id, str]
    """Names by id."""
    _annotations: dict[Id, dict[Id, Annotation]]
    """By id of their image, then by their own id, sorted."""
    _incomplete: set[tuple[Id, Id | None]]
    """Image and category, None if unknown, of every annotation that is left out."""

    @garbage_collection_paused()
    def _read_instances(self, path: Path, image_ids: Collection[Id] | None = None) -> None:
        """Read an ``instances.json``, by default all of its images; other images are not checked.

        Raises:
            ValueError: It is not JSON of this form, or a record is broken.
        """
        tables = read_json(path, _pack_polygons, self._encoding)
        images: dict[Id, ImageRecord | None] = {}
        categories: dict[Id, str | None] = {}
        self._path, self._annotations, self._incomplete = path, {}, set()
        for record in _records(tables, "images", path):
            with self._reading_record():
                image_id = record.identifier("id")
                if image_ids is None or image_id in image_ids:
                    size = record.size()
                    _add(images, image_id, ImageRecord(record.path("file_name"), size), record)
        for record in _records(tables, "categories", path):
            with self._reading_record():
                _add(categories, record.identifier("id"), record.text("name"), record)
        self._images = {key: each for key, each in images.items() if each is not None}
        self._categories = {key: each for key, each in categories.items() if each is not None}
        for record in _records(tables, "annotations", path):
            with self._reading_record():
                image_id = record.identifier("image_id")
                if image_ids is None or image_id in image_ids:
                    self._add_annotation(record, image_id)
        for image_id, of_image in self._annotations.items():
            self._annotations[image_id] = dict(sorted(of_image.items(), key=_order))

    def _add_annotation(self, record: Record, image_id: Id) -> None:
        of_image = self._annotations.setdefault(image_id, {})
        category_id = None
        try:
            if record.get("category_id") is not None:
                category_id = record.identifier("category_id")
            number = record.identifier("id")
            if number in of_image:
                problem = f"the id {number} appears twice in image {image_id}"
                raise RecordError(f"{record.where}: {problem}")
        except RecordError:
            self._incomplete.add((image_id, category_id))
            raise
        is_crowd, segmentation = record.get("iscrowd") == 1, record.get("segmentation")
        of_image[number] = Annotation(category_id, is_crowd, segmentation, record.get("bbox"))

    def object_target(self, image_id: Id, annotation_id: Id) -> Target:
        """The mask of any annotated object in the images of this split.

        Raises:
            ValueError: There is no such annotation, or it is malformed, outside or empty.
        """
        annotation = self._annotations.get(image_id, {}).get(annotation_id)
        if annotation is None:
            raise ValueError(f"{self._path}: image {image_id} has no annotation {annotation_id}")
        where = f"{self._path}: annotation {annotation_id}"
        size = self._images[image_id].size
        return object_target(annotation.segmentation, size, where, annotation.box)

    def _entry(
        self,
        identifier: str,
        image_id: Id,
        annotation_ids: Sequence[Id],
        sentences: Mapping[Id, str],
        metadata: dict[str, Any],
    ) -> Entry:
        """The entry for some annotations of an image that are asked for together."""
        file_name, size = self._images[image_id]

        def target() -> Target:
            parts: list[Target] = []

            def masks() -> Iterator[Rle]:  # one by one, so that their number is bounded
                for each in annotation_ids:
                    parts.append(self.object_target(image_id, each))
                    yield parts[-1].rle

            together = union(masks(), size, f"{self._path}: image {image_id}")
            return replace(together, box=box_around(parts))

        of_image = self._annotations.get(image_id, {})
        others = [each for each in of_image if each not in annotation_ids]
        return Entry(
            id=identifier,
            sentences=sentences,
            image=self.image_root / file_name,
            size=size,
            target=target,
            metadata=metadata | {"image_id": image_id, "file_name": file_name},
            others=[partial(self.object_target, image_id, each) for each in others],
        )


def _add(table: dict[Id, Known | None], number: Id, value: Known, record: Record) -> None:
    """Add an entry; if two share an id and differ, neither counts: nobody knows which is meant."""
    if table.setdefault(number, value) != value:
        table[number] = None
        raise RecordError(f"{record.where}: the id {number} appears twice, with other values")


def _order(item: tuple[Id | None, object]) -> tuple[str, Any]:
    """A sort key: ids that are numbers come first, then those that are text."""
    return type(item[0]).__name__, item[0]


class Coco(CocoImages[tuple[Id, Id | None, tuple[Id, ...]]]):
    """Images annotated in COCO's form: one sample for each image and category in it.

    On disk, as COCO has it::

        <data_root>/
          annotations/instances_train2017.json
          train2017/000000000009.jpg ...

    The annotations may also lie in ``instances_<split>.json``, ``<split>.json``,
    ``<split>/_annotations.coco.json`` or ``instances.json``, the images in ``<split>/``,
    ``images/<split>/``, ``images/`` or ``<data_root>`` itself, and ``data_root`` may be the
    annotation file. It holds ``images`` (``id, file_name, height, width``), ``annotations`` (``id,
    image_id, category_id, segmentation``) and ``categories`` (``id, name``).

    The expression is the name of the category, the target all its objects in the image: "person"
    means every person. With ``per_annotation`` each object is a sample of its own, which suits
    images with one object of a kind; crowds (``iscrowd``) are then left out, and counted. Polygons
    are drawn on the pixels as they are stored, whatever EXIF data say.

    Metadata holds ``image_id``, ``category_id``, ``category``, ``ann_id`` (a list) and
    ``file_name``.
    """

    def __init__(
        self,
        data_root: str | os.PathLike[str],
        split: str = "train2017",
        image_root: str | os.PathLike[str] | None = None,
        *,
        per_annotation: bool = False,
        **options: Unpack[Options],
    ) -> None:
        """Read an annotation file."""
        super().__init__("coco", split, **options)
        root = Path(data_root).expanduser().absolute()
        self._read_instances(_find_annotations(root, split))
        self.per_annotation = per_annotation
        names = [image.file_name for image in islice(self._images.values(), 1000)]
        self.image_root = _find_images(root, split, image_root, names)
        if bare := len(self._images.keys() - self._annotations.keys()):
            self.unused["images without annotations"] = bare
        ids: dict[str, Id] = {}
        self._one_id: dict[Id | None, Id] = {  # several of one name are asked for together
            key: ids.setdefault(name, key) for key, name in self._categories.items()
        }
        for image_id, members in sorted(self._annotations.items(), key=_order):
            with self._reading_record(len(members)):
                self._ask_for(image_id, members)

    def _ask_for(self, image_id: Id, members: Mapping[Id, Annotation]) -> None:
        """Ask for each object of an image, or for all of each category."""
        if image_id not in self._images:
            problem = f"annotation {next(iter(members))} belongs to image {image_id}, which is not"
            raise RecordError(f"{self._path}: {problem} in 'images'")
        by_category: dict[Id | None, list[Id]] = {}
        for number, each in members.items():
            if not self.per_annotation:
                category_id = self._one_id.get(each.category_id, each.category_id)
                by_category.setdefault(category_id, []).append(number)
            elif each.is_crowd:
                self.unused["crowds (iscrowd)"] += 1
            else:
                self._ask((image_id, each.category_id, (number,)))
        broken = {self._one_id.get(k, k) for image, k in self._incomplete if image == image_id}
        for category_id, numbers in sorted(by_category.items(), key=_order):
            with self._reading_record():
                if None in broken or category_id in broken:
                    problem = f"another of category {category_id} in image {image_id} is broken"
                    raise RecordError(f"{self._path}: annotation {numbers[0]}: {problem}")
                self._ask((image_id, category_id, tuple(numbers)))

    def _read(self, key: tuple[Id, Id | None, tuple[Id, ...]]) -> Entry:
        image_id, category_id, objects = key
        category = None if category_id is None else self._categories.get(category_id)
        if category is None:
            problem = f"'category_id' is {category_id}, which is not in 'categories'"
            if category_id is None:
                problem = "'category_id' is missing; objects are asked for by their category"
            raise RecordError(f"{self._path}: annotation {objects[0]}: {problem}")
        number = objects[0] if self.per_annotation else category_id
        identifier = f"{self.name}-{self.split}-{image_id}-{number}"
        described = {"category_id": category_id, "category": category, "ann_id": list(objects)}
        return self._entry(identifier, image_id, objects, {0: category}, described)

    def _image_name(self, key: tuple[Id, Id | None, tuple[Id, ...]]) -> str:
        return self._images[key[0]].file_name


def _find_annotations(root: Path, split: str) -> Path:
    if root.is_file():
        return root
    places = (
        f"annotations/instances_{split}.json",
        f"instances_{split}.json",
        f"annotations/{split}.json",
        f"{split}.json",
        f"{split}/_annotations.coco.json",
        "instances.json",
    )
    return first_existing(root, places, f"annotation file of the split {split!r}")


def _find_images(
    root: Path, split: str, image_root: str | os.PathLike[str] | None, names: list[str]
) -> Path:
    if image_root is not None:
        folders = [Path(image_root).expanduser().absolute()]
    else:
        base = root.parent if root.is_file() else root
        above = [base.parent] if base.name == "annotations" else []
        folders = [
            folder
            for top in (base, *above)
            for folder in (top / split, top / "images" / split, top / "images", top)
        ]
    # All images may be missing: an existing folder will do.
    existing = (folder for folder in folders if folder.is_dir() and folder != root)
    found = folder_of(names, folders) or next(existing, None)
    if found is None and names:
        looked = ", ".join(str(folder) for folder in folders)
        raise FileNotFoundError(
            f"{names[0]} is missing; looked in {looked}. Name it by image_root="
        )
    return found or folders[0]
