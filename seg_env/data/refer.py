"""RefCOCO, RefCOCO+, RefCOCOg and RefCLEF as they lie on disk.

The data itself is not ours to give away: users point to their copy. See
`seg_env.data.refer_layout` for where each file is looked for.
"""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from seg_env.data.images import read_image
from seg_env.data.instances import ImageRecord, Instances, read_instances
from seg_env.data.refer_index import ReferIndex, read_references
from seg_env.data.refer_layout import (
    DEFAULT_SPLIT_BY,
    find_images,
    find_instances,
    find_references,
)
from seg_env.data.segmentations import target_from_segmentation
from seg_env.types import Sample, Target

EMBEDDED_NAME = "embedded-sample"
"""What the embedded sample is called in place of the data set that it stands in for."""


def embedded_root() -> Path:
    """The folder of the embedded sample, laid out as a ``data_root``."""
    return Path(__file__).parent / "embedded"


class Refer:
    """One split of a data set of the RefCOCO family: one sample for each sentence.

    What is kept in memory is some fifty bytes a sentence and forty an annotation; polygons and
    pictures are read when a sample is asked for. Pickling it copies that, no open files.
    """

    def __init__(
        self,
        data_root: str | os.PathLike[str],
        name: str = "refcoco",
        split: str = "train",
        split_by: str | None = None,
        image_root: str | os.PathLike[str] | None = None,
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

        Raises:
            FileNotFoundError: A file or folder is missing; names it and the layout expected.
            ValueError: An unknown name or split, or a malformed record; names what there is.
        """
        if name not in DEFAULT_SPLIT_BY:
            raise ValueError(f"unknown data set {name!r}; there are {', '.join(DEFAULT_SPLIT_BY)}")
        root = Path(data_root).expanduser().absolute()
        self.name = name
        self.split = split
        references_path, self.split_by = find_references(root, name, split_by)
        instances_path = find_instances(root, name)
        self._index = read_references(references_path, split)
        instances = read_instances(instances_path).only(self._index.image_ids)
        _check_links(self._index, instances)
        self._instances = instances
        self._image_root = find_images(root, name, image_root, self._image_of(0).file_name)

    def __len__(self) -> int:
        """Number of sentences."""
        return len(self._index)

    def __iter__(self) -> Iterator[Sample]:
        """All samples in the order of the file."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int, /) -> Sample:
        """The sample of sentence ``index``; negative indices count from the end.

        Its metadata holds ``ref_id``, ``ann_id``, ``sent_id``, ``image_id``, ``category_id``,
        ``category``, ``file_name`` and ``image_ann_ids`` (all annotated objects of the picture, see
        `object_target`).

        Raises:
            IndexError: Outside ``[-len, len)``.
            ValueError: The annotation is malformed; names file and annotation.
        """
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"index {number} is outside of {len(self)} samples")
        number %= len(self)
        table, row = self._index, int(self._index.references[number])
        image = self._image_of(row)
        annotation_id, image_id = int(table.annotation_ids[row]), int(table.image_ids[row])
        reference_id, sentence_id = int(table.reference_ids[row]), int(table.sentence_ids[number])
        category_id = int(table.category_ids[row])
        metadata: dict[str, Any] = {
            "ref_id": reference_id,
            "ann_id": annotation_id,
            "sent_id": sentence_id,
            "image_id": image_id,
            "category_id": category_id,
            "category": self._instances.categories.get(category_id, ""),
            "file_name": image.file_name,
            "image_ann_ids": self._instances.annotations_of(image_id),
        }
        return Sample(
            id=f"{self.name}-{self.split_by}-{self.split}-{reference_id}-{sentence_id}",
            expression=table.sentence(number),
            target=self.object_target(image_id, annotation_id),
            load_image=partial(read_image, self._image_root / image.file_name, image.size),
            metadata=metadata,
        )

    def object_target(self, image_id: int, annotation_id: int) -> Target:
        """The mask of any annotated object in the pictures of this split.

        Raises:
            ValueError: There is no such annotation, or it is malformed.
        """
        record = self._instances.annotation(image_id, annotation_id)
        size = self._instances.images[image_id].size
        try:
            return target_from_segmentation(record.get("segmentation"), size)
        except ValueError as error:
            path = self._instances.path
            raise ValueError(f"{path}: annotation {annotation_id}: {error}") from error

    def _image_of(self, row: int) -> ImageRecord:
        return self._instances.images[int(self._index.image_ids[row])]


def load_refer(
    name: str,
    split: str = "train",
    split_by: str | None = None,
    data_root: str | os.PathLike[str] | None = None,
) -> Refer:
    """Open a data set of the RefCOCO family, or the embedded sample where there is none.

    Args:
        name: ``"refcoco"``, ``"refcoco+"``, ``"refcocog"`` or ``"refclef"``.
        split: See `Refer`.
        split_by: See `Refer`.
        data_root: The user's copy; by default what the variable ``SIMPLESEG_DATA`` names. With
            neither, the sample that comes with the package is opened; it warns, and its ``name`` is
            ``"embedded-sample"``, so that no score on it is taken for one on the real data.

    Raises:
        FileNotFoundError: A folder was named, but a file is missing in it.
        ValueError: See `Refer`.
    """
    root = data_root or os.environ.get("SIMPLESEG_DATA")
    if root:
        return Refer(root, name, split, split_by)
    dataset = Refer(embedded_root(), name, split, split_by)
    dataset.name = EMBEDDED_NAME
    warnings.warn(
        f"the embedded sample of procedural scenes stands in for {name}: it has its form, not its "
        f"content. Name the folder of your copy by data_root= or by SIMPLESEG_DATA",
        stacklevel=2,
    )
    return dataset


def _check_links(index: ReferIndex, instances: Instances) -> None:
    """Every reference must point to an annotation of its own image."""
    image_ids, annotation_ids = instances.annotation_images, instances.annotation_ids
    known = set(zip(image_ids.tolist(), annotation_ids.tolist(), strict=True))
    links = zip(index.image_ids.tolist(), index.annotation_ids.tolist(), strict=True)
    for row, (image_id, annotation_id) in enumerate(links):
        if image_id not in instances.images or (image_id, annotation_id) not in known:
            raise ValueError(
                f"{index.path}: ref_id {index.reference_ids[row]} names annotation {annotation_id} "
                f"of image {image_id}, which is not in {instances.path}"
            )
