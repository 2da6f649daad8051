"""Annotations in COCO's form: ``instances.json``, and data sets of one's own that have one."""

from __future__ import annotations

import os
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Unpack

from seg_env.data.images import first_existing, folder_of
from seg_env.data.readers.annotated_images import AnnotatedImages, Entry, Key, Options
from seg_env.data.records import Record, RecordError, garbage_collection_paused, read_json
from seg_env.data.segmentations import object_target, union
from seg_env.types import Target


class ImageRecord(NamedTuple):
    """One entry of ``images``."""

    file_name: str
    """Path relative to the folder of images; never leaves it."""
    size: tuple[int, int]
    """``(H, W)`` in pixels."""


class Annotation(NamedTuple):
    """One entry of ``annotations``."""

    category_id: int
    """-1 where it has none."""
    is_crowd: bool
    """Whether it outlines a crowd instead of one object."""
    segmentation: Any
    """As in the file, but polygons are arrays."""


def _records(tables: Any, key: str, path: Path) -> Iterator[Record]:
    records = tables.get(key, []) if isinstance(tables, dict) else None
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected an object with lists 'images' and 'annotations'")
    return (Record(each, f"{path}: record {row} of {key!r}") for row, each in enumerate(records))


def _pack_polygons(record: dict[str, Any]) -> dict[str, Any]:
    """Keep polygons as arrays while a file is parsed: in lists they take four times the memory."""
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
    _images: dict[int, ImageRecord]
    _categories: dict[int, str]
    """Names by id."""
    _annotations: dict[int, dict[int, Annotation]]
    """By id of their image, then by their own id, sorted."""

    @garbage_collection_paused()
    def _read_instances(self, path: Path, image_ids: Collection[int] | None = None) -> None:
        """Read an ``instances.json``, by default all of its images.

        Raises:
            ValueError: It is not JSON of this form, or a record is broken.
        """
        tables = read_json(path, _pack_polygons)
        self._path, self._images, self._categories, self._annotations = path, {}, {}, {}
        for record in _records(tables, "images", path):
            with self._reading_record():
                image_id, size = record.integer("id"), record.size()
                self._images[image_id] = ImageRecord(record.path("file_name"), size)
        for record in _records(tables, "categories", path):
            with self._reading_record():
                self._categories[record.integer("id")] = record.text("name")
        for record in _records(tables, "annotations", path):
            with self._reading_record():
                self._add_annotation(record)
        for image_id, of_image in self._annotations.items():
            self._annotations[image_id] = dict(sorted(of_image.items()))
        if image_ids is not None:
            self._images = {key: self._images[key] for key in self._images if key in image_ids}
            wanted = (key for key in self._annotations if key in image_ids)
            self._annotations = {key: self._annotations[key] for key in wanted}

    def _add_annotation(self, record: Record) -> None:
        number, image_id = record.integer("id"), record.integer("image_id")
        category_id = record.integer("category_id") if "category_id" in record else -1
        is_crowd, segmentation = record.get("iscrowd") == 1, record.get("segmentation")
        of_image = self._annotations.setdefault(image_id, {})
        if number in of_image:
            raise RecordError(f"{record.where}: the id {number} appears twice in image {image_id}")
        of_image[number] = Annotation(category_id, is_crowd, segmentation)

    def object_target(self, image_id: int, annotation_id: int) -> Target:
        """The mask of any annotated object in the images of this split.

        Raises:
            ValueError: There is no such annotation, or it is malformed, outside or empty.
        """
        annotation = self._annotations.get(image_id, {}).get(annotation_id)
        if annotation is None:
            raise ValueError(f"{self._path}: image {image_id} has no annotation {annotation_id}")
        where = f"{self._path}: annotation {annotation_id}"
        return object_target(annotation.segmentation, self._images[image_id].size, where)

    def _entry(
        self,
        identifier: str,
        image_id: int,
        annotation_ids: Sequence[int],
        sentences: Mapping[int, str],
        metadata: dict[str, Any],
    ) -> Entry:
        """What is known of some annotations of an image, which are asked for together."""
        file_name, size = self._images[image_id]

        def target() -> Target:
            parts = (self.object_target(image_id, each).rle for each in annotation_ids)
            return union(parts, size, f"{self._path}: image {image_id}")

        others = self._annotations.get(image_id, {}).keys() - set(annotation_ids)
        return Entry(
            id=identifier,
            sentences=sentences,
            image=self.image_root / file_name,
            size=size,
            target=target,
            metadata=metadata | {"image_id": image_id, "file_name": file_name},
            others=[partial(self.object_target, image_id, each) for each in sorted(others)],
        )


class Coco(CocoImages[tuple[int, int, tuple[int, ...]]]):
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

    The expression is the name of the category, the target all that the image has of it: "person"
    means every person. With ``per_annotation`` each object is a sample of its own, which suits
    images with one object of a kind; crowds (``iscrowd``) are then left out.

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
        first = next(iter(self._images.values()), None)
        self.image_root = _find_images(root, split, image_root, first.file_name if first else "")
        for image_id, members in sorted(self._annotations.items()):
            with self._reading_record(len(members)):
                self._ask_for(image_id, members)

    def _ask_for(self, image_id: int, members: Mapping[int, Annotation]) -> None:
        """Ask for each object of an image, or for all of each category."""
        if image_id not in self._images:
            problem = f"annotation {next(iter(members))} belongs to image {image_id}, which is not"
            raise RecordError(f"{self._path}: {problem} in 'images'")
        by_category: dict[int, list[int]] = {}
        for number, each in members.items():
            if not self.per_annotation:
                by_category.setdefault(each.category_id, []).append(number)
            elif not each.is_crowd:
                self._ask((image_id, each.category_id, (number,)))
        for category_id, numbers in sorted(by_category.items()):
            self._ask((image_id, category_id, tuple(numbers)))

    def _read(self, key: tuple[int, int, tuple[int, ...]]) -> Entry:
        image_id, category_id, objects = key
        category = self._categories.get(category_id)
        if category is None:
            problem = f"category {category_id}, which is not in 'categories'"
            raise RecordError(f"{self._path}: annotation {objects[0]} has {problem}")
        number = objects[0] if self.per_annotation else category_id
        identifier = f"{self.name}-{self.split}-{image_id}-{number}"
        described = {"category_id": category_id, "category": category, "ann_id": list(objects)}
        return self._entry(identifier, image_id, objects, {0: category}, described)

    def _image_name(self, key: tuple[int, int, tuple[int, ...]]) -> str:
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
    root: Path, split: str, image_root: str | os.PathLike[str] | None, first: str
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
    # Any image may be the one that is missing: an existing folder will do.
    existing = (folder for folder in folders if folder.is_dir() and folder != root)
    found = folder_of(first, folders) or next(existing, None)
    if found is None:
        looked = ", ".join(str(folder) for folder in folders)
        raise FileNotFoundError(f"{first} is missing; looked in {looked}. Name it by image_root=")
    return found
