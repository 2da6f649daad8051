"""Annotations of one's own in COCO's form, asked for by the names of their categories."""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from seg_env.data.faults import Fault, OnError, check_on_error
from seg_env.data.images import read_image
from seg_env.data.readers.instance_images import InstanceImages
from seg_env.data.readers.instances import read_instances
from seg_env.types import Sample, Target


class Coco(InstanceImages):
    """Pictures annotated in COCO's form: one sample for each picture and category in it.

    On disk, as COCO has it::

        <data_root>/
          annotations/instances_train2017.json
          train2017/000000000009.jpg ...

    The annotations may also lie in ``instances_<split>.json``, ``<split>.json``,
    ``<split>/_annotations.coco.json`` or ``instances.json``, the pictures in ``<split>/``,
    ``images/<split>/``, ``images/`` or ``<data_root>`` itself, and ``data_root`` may be the
    annotation file. It holds ``images`` (``id, file_name, height, width``), ``annotations`` (``id,
    image_id, category_id, segmentation``) and ``categories`` (``id, name``).

    The expression is the name of the category, the target all that the picture has of it: "person"
    means every person. With ``per_annotation`` each object is a sample of its own, which suits
    pictures with one object of a kind; crowds (``iscrowd``) are then left out.

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
        """Index an annotation file.

        Args:
            data_root: The folder of the data set, or the annotation file.
            split: Which part of it.
            image_root: The folder of pictures; by default found among the usual places.
            per_annotation: One sample for each object.
            exclude_images: Image ids or names of pictures to leave out, see
                `seg_env.data.leakage`.
            on_error: What to do about broken records, see `seg_env.data.faults.OnError`.

        Raises:
            FileNotFoundError: A file or folder is missing; says where it was looked for.
            ValueError: A record is malformed; names file and record.
        """
        check_on_error(on_error)
        super().__init__("coco", split)
        root = Path(data_root).expanduser().absolute()
        broken: list[str] | None = [] if on_error == "skip" else None
        self._instances = read_instances(_find_annotations(root, split), broken)
        self.per_annotation = per_annotation
        unlinked = self._group(strict=broken is None) + len(broken or ())
        self.skipped = {str(Fault.MALFORMED): unlinked} if unlinked else {}
        first = next(iter(self._instances.images.values()), None)
        self.image_root = _find_images(root, split, image_root, first.file_name if first else "")
        self._choose_rows(np.arange(len(self._starts)), exclude_images, on_error)

    def _group(self, *, strict: bool) -> int:
        """Sort annotations into samples: ``_members[_starts[row]:_ends[row]]`` belong together.

        Returns:
            How many annotations belong to no image.
        """
        table = self._instances
        known = np.array(list(table.images), dtype=np.int64)
        linked = np.isin(table.annotation_images, known)
        if strict and not linked.all():
            row = int(np.flatnonzero(~linked)[0])
            raise ValueError(
                f"{table.path}: annotation {table.annotation_ids[row]} belongs to image "
                f"{table.annotation_images[row]}, which is not in 'images'"
            )
        wanted = np.flatnonzero(linked & ~(table.crowds & self.per_annotation))
        keys = np.column_stack((table.annotation_images, table.annotation_categories))[wanted]
        order = np.lexsort((wanted, keys[:, 1], keys[:, 0]))
        if self.per_annotation:
            order = np.arange(len(wanted))
        keys, self._members = keys[order], wanted[order]
        changes = np.ones(len(keys), dtype=np.bool_)
        if not self.per_annotation and len(keys):
            changes[1:] = (keys[1:] != keys[:-1]).any(axis=1)
        self._starts = np.flatnonzero(changes)
        self._ends = np.append(self._starts[1:], len(keys))[: len(self._starts)]
        return int((~linked).sum())

    def _sample(self, row: int) -> Sample:
        image_id, category_id, objects = self._asked(row)
        image = self._image(image_id)
        category = self._instances.categories.get(category_id)
        if category is None:
            raise ValueError(
                f"{self._instances.path}: annotation {objects[0]} has category {category_id}, "
                "which is not in 'categories'"
            )
        number = objects[0] if self.per_annotation else category_id
        metadata: dict[str, Any] = {
            "image_id": image_id,
            "category_id": category_id,
            "category": category,
            "ann_id": objects,
            "file_name": image.file_name,
        }
        return Sample(
            id=f"{self.name}-{self.split}-{image_id}-{number}",
            expression=category,
            target=self._united(image_id, objects),
            load_image=partial(read_image, self.image_root / image.file_name, image.size),
            metadata=metadata,
        )

    def _asked(self, row: int) -> tuple[int, int, list[int]]:
        members = self._members[self._starts[row] : self._ends[row]]
        table = self._instances
        image_id = int(table.annotation_images[members[0]])
        category_id = int(table.annotation_categories[members[0]])
        return image_id, category_id, table.annotation_ids[members].tolist()

    def _unit(self, row: int) -> int:
        return row

    def _image_name(self, unit: int) -> str:
        return self._image(self._asked(unit)[0]).file_name

    def _photo(self, row: int) -> Path:
        return self.image_root / self._image_name(row)

    def _check(self, row: int) -> None:
        self._sample(row)
        self._check_photo(self._asked(row)[0])

    def _others(self, row: int) -> list[Target]:
        image_id, _, objects = self._asked(row)
        return self._others_than(image_id, objects)


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
    return _first_file(root, places, f"no annotations of the split {split!r}")


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
    # Any picture may be the one that is missing: an existing folder will do.
    for folder in folders:
        if folder.is_dir() and folder != root:
            return folder
    looked = ", ".join(str(folder) for folder in folders)
    raise FileNotFoundError(f"{first} is missing; looked in {looked}. Name it by image_root=")


def _first_file(root: Path, places: tuple[str, ...], problem: str) -> Path:
    for place in places:
        if (root / place).is_file():
            return root / place
    raise FileNotFoundError(f"{problem} below {root}; looked for {', '.join(places)}")
