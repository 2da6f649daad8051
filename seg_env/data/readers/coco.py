"""Annotations in COCO's form: ``instances.json``, and data sets of one's own that have one."""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from seg_env.data.images import read_image
from seg_env.data.readers.annotated_images import AnnotatedImages, valid_targets
from seg_env.data.records import (
    OnError,
    RecordError,
    garbage_collection_paused,
    integer,
    relative_path,
    size_field,
    text_field,
)
from seg_env.data.segmentations import object_target
from seg_env.geometry.rle import Rle
from seg_env.types import Sample, Target


class ImageRecord(NamedTuple):
    """One entry of ``images``."""

    file_name: str
    """Path relative to the folder of images; never leaves it."""
    size: tuple[int, int]
    """``(H, W)`` in pixels."""


class Annotation(NamedTuple):
    """One entry of ``annotations``."""

    id: int
    image_id: int
    category_id: int
    """-1 where it has none."""
    is_crowd: bool
    """Whether it outlines a crowd instead of one object."""
    segmentation: Any
    """As in the file, but polygons are arrays."""


@dataclass(frozen=True, eq=False)
class Instances:
    """The content of an ``instances.json`` that is used here."""

    path: Path
    images: Mapping[int, ImageRecord]
    categories: Mapping[int, str]
    """Names by id."""
    annotations: Mapping[int, list[Annotation]]
    """Annotations by id of their image, sorted by their own id."""

    def only(self, image_ids: Collection[int]) -> Instances:
        """Some of the images with their annotations, and all categories."""
        images = {key: image for key, image in self.images.items() if key in image_ids}
        annotations = {key: each for key, each in self.annotations.items() if key in image_ids}
        return replace(self, images=images, annotations=annotations)

    def annotations_of(self, image_id: int) -> list[int]:
        """Ids of the annotations of an image, sorted."""
        return [each.id for each in self.annotations.get(image_id, [])]

    def annotation(self, image_id: int, annotation_id: int) -> Annotation:
        """An annotation of an image; a `ValueError` if there is none, or several of that id."""
        of_image = self.annotations.get(image_id, [])
        first = bisect_left(of_image, annotation_id, key=attrgetter("id"))
        count = bisect_right(of_image, annotation_id, key=attrgetter("id")) - first
        if count != 1:
            raise ValueError(
                f"{self.path}: image {image_id} has {count} annotations of the id "
                f"{annotation_id}, expected one"
            )
        return of_image[first]


@garbage_collection_paused()
def read_instances(path: Path, on_broken: Callable[[ValueError], None]) -> Instances:
    """Read an ``instances.json``.

    ``on_broken`` raises the error of a broken record, or returns to go on without it. A file that
    is not JSON of this form is a `ValueError`.
    """
    try:
        with path.open(encoding="utf-8-sig") as stream:
            tables = json.load(stream, object_hook=_pack_polygons)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    images: dict[int, ImageRecord] = {}
    categories: dict[int, str] = {}
    annotations: dict[int, list[Annotation]] = {}
    for key in ("images", "categories", "annotations"):
        records = tables.get(key, []) if isinstance(tables, dict) else tables
        if not isinstance(records, list) or records is tables:
            raise ValueError(f"{path}: expected an object with lists 'images' and 'annotations'")
        for row, record in enumerate(records):
            where = f"{path}: record {row} of {key!r}"
            try:
                if key == "images":
                    identifier, size = integer(record, "id", where), size_field(record, where)
                    name = relative_path(text_field(record, "file_name", where), where)
                    images[identifier] = ImageRecord(name, size)
                elif key == "categories":
                    categories[integer(record, "id", where)] = text_field(record, "name", where)
                else:
                    numbered = integer(record, "id", where), integer(record, "image_id", where)
                    category = (
                        integer(record, "category_id", where) if "category_id" in record else -1
                    )
                    annotation = Annotation(
                        *numbered, category, record.get("iscrowd") == 1, record.get("segmentation")
                    )
                    annotations.setdefault(annotation.image_id, []).append(annotation)
            except RecordError as error:
                on_broken(error)
    for of_image in annotations.values():
        of_image.sort(key=attrgetter("id"))
    return Instances(path, images, categories, annotations)


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


class CocoImages(AnnotatedImages):
    """Images whose outlines lie in an `Instances`; a row asks for some annotations of one image."""

    _instances: Instances
    image_root: Path

    def object_target(self, image_id: int, annotation_id: int) -> Target:
        """The mask of any annotated object in the images of this split.

        Raises:
            ValueError: There is no such annotation, or it is malformed, outside or empty.
        """
        annotation = self._instances.annotation(image_id, annotation_id)
        where = f"{self._instances.path}: annotation {annotation_id}"
        size = self._instances.images[image_id].size
        return object_target(annotation.segmentation, size, where)

    @abstractmethod
    def _asked(self, row: int) -> tuple[int, Collection[int]]:
        """The image and the annotations that a row asks for, by id."""

    def _united(self, image_id: int, annotation_ids: Iterable[int]) -> Target:
        """All of some objects as one target; of none, an empty one."""
        parts = [self.object_target(image_id, each) for each in annotation_ids]
        if len(parts) == 1:
            return parts[0]
        height, width = self._instances.images[image_id].size
        empty = Rle.from_counts((height, width), [height * width])
        return Target(Rle.union_of([empty, *(part.rle for part in parts)]))

    def _load_image(self, image: ImageRecord) -> Callable[[], Any]:
        return partial(read_image, self.image_root / image.file_name, image.size)

    def _image_name(self, row: int) -> str:
        return self._instances.images[self._asked(row)[0]].file_name

    def _image_path(self, row: int) -> Path:
        return self.image_root / self._image_name(row)

    def _others(self, row: int) -> list[Target]:
        image_id, asked = self._asked(row)
        others = set(self._instances.annotations_of(image_id)).difference(asked)
        return valid_targets(partial(self.object_target, image_id), sorted(others))


class Coco(CocoImages):
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
        exclude_images: Collection[str | int] | None = None,
        on_error: OnError = "raise",
    ) -> None:
        """Read an annotation file."""
        super().__init__("coco", split, on_error)
        root = Path(data_root).expanduser().absolute()
        self._instances = read_instances(_find_annotations(root, split), self._broken)
        self.per_annotation = per_annotation
        self._questions = self._group()
        first = next(iter(self._instances.images.values()), None)
        self.image_root = _find_images(root, split, image_root, first.file_name if first else "")
        self._choose_rows(range(len(self._questions)), exclude_images)

    def _group(self) -> list[tuple[int, int, tuple[int, ...]]]:
        """Ids of the image, the category and the annotations of each question."""
        questions: list[tuple[int, int, tuple[int, ...]]] = []
        for image_id, members in sorted(self._instances.annotations.items()):
            if image_id not in self._instances.images:
                problem = (
                    f"{self._instances.path}: annotation {members[0].id} belongs to image "
                    f"{image_id}, which is not in 'images'"
                )
                self._broken(RecordError(problem), count=len(members))
            elif self.per_annotation:
                singles = (each for each in members if not each.is_crowd)
                questions += [(image_id, each.category_id, (each.id,)) for each in singles]
            else:
                by_category: dict[int, list[int]] = {}
                for each in members:
                    by_category.setdefault(each.category_id, []).append(each.id)
                for category_id, ids in sorted(by_category.items()):
                    questions.append((image_id, category_id, tuple(ids)))
        return questions

    def _asked(self, row: int) -> tuple[int, Collection[int]]:
        image_id, _, objects = self._questions[row]
        return image_id, objects

    def _sample(self, row: int) -> Sample:
        image_id, category_id, objects = self._questions[row]
        image = self._instances.images[image_id]
        category = self._instances.categories.get(category_id)
        if category is None:
            raise RecordError(
                f"{self._instances.path}: annotation {objects[0]} has category {category_id}, "
                "which is not in 'categories'"
            )
        number = objects[0] if self.per_annotation else category_id
        return Sample(
            id=f"{self.name}-{self.split}-{image_id}-{number}",
            expression=category,
            target=self._united(image_id, objects),
            load_image=self._load_image(image),
            metadata={
                "image_id": image_id,
                "category_id": category_id,
                "category": category,
                "ann_id": list(objects),
                "file_name": image.file_name,
            },
        )


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
    for place in places:
        if (root / place).is_file():
            return root / place
    raise FileNotFoundError(
        f"no annotations of the split {split!r} below {root}; looked for {', '.join(places)}"
    )


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
    for folder in folders:
        if (folder / first).is_file():
            return folder
    # Any image may be the one that is missing: an existing folder will do.
    for folder in folders:
        if folder.is_dir() and folder != root:
            return folder
    looked = ", ".join(str(folder) for folder in folders)
    raise FileNotFoundError(f"{first} is missing; looked in {looked}. Name it by image_root=")
