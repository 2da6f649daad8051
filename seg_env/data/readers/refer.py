"""RefCOCO, RefCOCO+, RefCOCOg and RefCLEF as they lie on disk.

The data itself is not ours to give away: users point to their copy. See
`seg_env.data.readers.refer_layout` for where each file is looked for.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from seg_env.data.faults import Fault, OnError, check_on_error
from seg_env.data.images import read_image
from seg_env.data.readers.instance_images import InstanceImages
from seg_env.data.readers.instances import Instances, read_instances
from seg_env.data.readers.official_counts import check_counts
from seg_env.data.readers.refer_index import ReferIndex, read_references
from seg_env.data.readers.refer_layout import find_images, find_instances, find_references
from seg_env.types import Sample, Target

EMBEDDED_NAME = "embedded-sample"
"""What the embedded sample is called in place of the data set that it stands in for."""


def embedded_root() -> Path:
    """The folder of the embedded sample, laid out as a ``data_root``."""
    return Path(__file__).parents[1] / "embedded"


class Refer(InstanceImages):
    """One split of a data set of the RefCOCO family: one sample for each sentence.

    On disk, as the ``refer`` API and its data have it::

        <data_root>/
          refcoco/      instances.json  refs(unc).p  refs(google).p
          refcoco+/     instances.json  refs(unc).p
          refcocog/     instances.json  refs(umd).p  refs(google).p
          refclef/      instances.json  refs(unc).p  refs(berkeley).p
          images/mscoco/images/train2014/COCO_train2014_000000581857.jpg ...
          images/saiapr_tc-12/38/images/38685.jpg ...                     (refclef)

    ``images/coco_2014/train2014``, ``images/train2014``, ``train2014`` and ``saiapr_tc-12`` are
    found too, and ``refs(*).json`` is read instead of a pickle. ``refs(*)`` is a list of ``{ref_id,
    ann_id, image_id, category_id, split, sentences: [{sent_id, sent}]}``, and ``instances.json``
    COCO's ``{images, annotations, categories}``.

    What is kept in memory is some forty bytes a sentence and twenty an annotation; polygons and
    pictures are read when a sample is asked for. Pickling it copies that, no open files.
    """

    names: ClassVar[tuple[str, ...]] = ("refcoco", "refcoco+", "refcocog", "refclef")
    """Data sets that are read by this class."""
    several_objects: ClassVar[bool] = False
    """Whether a reference names a list of objects."""

    def __init__(
        self,
        data_root: str | os.PathLike[str],
        name: str = "refcoco",
        split: str = "train",
        split_by: str | None = None,
        image_root: str | os.PathLike[str] | None = None,
        *,
        per_reference: bool = False,
        exclude_images: Collection[str | int] | None = None,
        on_error: OnError = "raise",
    ) -> None:
        """Index the files of one split.

        Args:
            data_root: The folder that holds ``refcoco/``, ``images/``, and so on.
            name: ``"refcoco"``, ``"refcoco+"``, ``"refcocog"`` or ``"refclef"``.
            split: ``"train"``, ``"val"``, ``"test"``, ``"testA"``, ``"testB"``, ...: what the file
                has.
            split_by: Who made the partition: ``"unc"``, ``"umd"``, ``"google"``, ``"berkeley"``. By
                default the one of `DEFAULT_SPLIT_BY`, or the only one there is.
            image_root: The folder of pictures; by default found among the usual places.
            per_reference: One sample for each reference, with its first sentence (the longest would
                be the easiest question); the others are in its metadata.
            exclude_images: Pictures to leave out: image ids or names of files, see
                `seg_env.data.leakage.held_out_images`.
            on_error: What to do about broken records, see `seg_env.data.faults.OnError`.

        Raises:
            FileNotFoundError: A file or folder is missing; names it and the layout expected.
            ValueError: An unknown name or split, or a malformed record; names what there is.
        """
        if name not in self.names:
            raise ValueError(f"unknown data set {name!r}; there are {', '.join(self.names)}")
        check_on_error(on_error)
        super().__init__(name, split)
        root = Path(data_root).expanduser().absolute()
        broken: list[str] | None = [] if on_error == "skip" else None
        references_path, self.split_by = find_references(root, name, split_by)
        instances_path = find_instances(root, name)
        self._index = read_references(
            references_path, split, several=self.several_objects, broken=broken
        )
        if root != embedded_root():
            counts = len(self._index.reference_ids), len(self._index)
            check_counts(name, self.split_by, split, *counts)
        instances = read_instances(instances_path, broken)
        self._instances = instances.only(self._index.image_ids)
        linked = _linked(self._index, self._instances, strict=broken is None)
        self.per_reference = per_reference
        rows = np.arange(len(self._index))
        if per_reference:
            rows = np.unique(self._index.references, return_index=True)[1]
        of_linked = linked[self._index.references[rows]]
        unlinked = len(broken or ()) + int((~of_linked).sum())
        self.skipped = {str(Fault.MALFORMED): unlinked} if unlinked else {}
        first = next(iter(self._instances.images.values()), None)
        self.image_root = find_images(root, name, image_root, first.file_name if first else "")
        self._choose_rows(rows[of_linked], exclude_images, on_error)

    def _sample(self, number: int) -> Sample:
        """The sample of a sentence.

        Its metadata holds ``ref_id``, ``ann_id``, ``sent_id``, ``image_id``, ``category_id``,
        ``category``, ``file_name`` and ``image_ann_ids`` (all annotated objects of the picture, see
        `object_target`), and ``sentences`` where samples are references.
        """
        table, row = self._index, self._unit(number)
        image_id, objects = int(table.image_ids[row]), table.annotations_of(row)
        image = self._image(image_id)
        reference_id, sentence_id = int(table.reference_ids[row]), int(table.sentence_ids[number])
        metadata: dict[str, Any] = {
            "ref_id": reference_id,
            **self._described(row, objects),
            "sent_id": sentence_id,
            "image_id": image_id,
            "file_name": image.file_name,
            "image_ann_ids": self._instances.annotations_of(image_id),
        }
        identifier = f"{self.name}-{self.split_by}-{self.split}-{reference_id}"
        if self.per_reference:
            first, last = np.searchsorted(table.references, [row, row + 1]).tolist()
            metadata["sentences"] = [table.sentence(k) for k in range(first, last)]
        else:
            identifier += f"-{sentence_id}"
        return Sample(
            id=identifier,
            expression=table.sentence(number),
            target=self._united(image_id, objects),
            load_image=partial(read_image, self.image_root / image.file_name, image.size),
            metadata=metadata,
        )

    def _described(self, row: int, objects: list[int]) -> dict[str, Any]:
        """What the metadata says about the objects of a reference."""
        category_id = int(self._index.category_ids[row])
        category = self._instances.categories.get(category_id, "")
        return {"ann_id": objects[0], "category_id": category_id, "category": category}

    def _unit(self, row: int) -> int:
        return int(self._index.references[row])

    def _image_name(self, unit: int) -> str:
        return self._image(int(self._index.image_ids[unit])).file_name

    def _photo(self, row: int) -> Path:
        return self.image_root / self._image_name(self._unit(row))

    def _check(self, row: int) -> None:
        self._sample(row)
        self._check_photo(int(self._index.image_ids[self._unit(row)]))

    def _others(self, row: int) -> list[Target]:
        unit = self._unit(row)
        image_id = int(self._index.image_ids[unit])
        return self._others_than(image_id, self._index.annotations_of(unit))


def load_refer(
    name: str,
    split: str = "train",
    split_by: str | None = None,
    data_root: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Refer:
    """Open a data set of the RefCOCO family, or the embedded sample where there is none.

    Args:
        name: ``"refcoco"``, ``"refcoco+"``, ``"refcocog"`` or ``"refclef"``.
        split: See `Refer`.
        split_by: See `Refer`.
        data_root: The user's copy; by default what the variable ``SIMPLESEG_DATA`` names. With
            neither, the sample that comes with the package is opened; it warns, and its ``name`` is
            ``"embedded-sample"``, so that no score on it is taken for one on the real data.
        **options: Further arguments of `Refer`.

    Raises:
        FileNotFoundError: A folder was named, but a file is missing in it.
        ValueError: See `Refer`.
    """
    root = data_root or os.environ.get("SIMPLESEG_DATA")
    if root:
        return Refer(root, name, split, split_by, **options)
    dataset = Refer(embedded_root(), name, split, split_by, **options)
    dataset.name = EMBEDDED_NAME
    warnings.warn(
        f"the embedded sample of procedural scenes stands in for {name}: it has its form, not its "
        f"content. Name the folder of your copy by data_root= or by SIMPLESEG_DATA",
        stacklevel=2,
    )
    return dataset


def _linked(index: ReferIndex, instances: Instances, *, strict: bool) -> NDArray[np.bool_]:
    """``(R,)`` whether each reference names annotations of its own image.

    Raises:
        ValueError: One does not, and ``strict``.
    """
    image_ids, annotation_ids = instances.annotation_images, instances.annotation_ids
    known = set(zip(image_ids.tolist(), annotation_ids.tolist(), strict=True))
    found = np.ones(len(index.reference_ids), dtype=np.bool_)
    for row, image_id in enumerate(index.image_ids.tolist()):
        objects = index.annotations_of(row)
        missing = [each for each in objects if (image_id, each) not in known]
        found[row] = not missing and image_id in instances.images
        if strict and not found[row]:
            what = f"annotation {(missing or objects)[0]} of " if objects else ""
            raise ValueError(
                f"{index.path}: ref_id {index.reference_ids[row]} names {what}image {image_id}, "
                f"which is not in {instances.path}"
            )
    return found
