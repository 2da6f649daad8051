"""Data sets whose outlines lie in an ``instances.json`` of COCO's form."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from seg_env.data.faults import RecordError
from seg_env.data.images import check_image
from seg_env.data.readers.annotated_images import AnnotatedImages
from seg_env.data.readers.instances import ImageRecord, Instances
from seg_env.data.segmentations import object_target
from seg_env.geometry.rle import Rle
from seg_env.types import Target


class InstanceImages(AnnotatedImages):
    """Pictures and annotations by id; subclasses know which annotations a row asks for."""

    _instances: Instances
    image_root: Path
    """The folder that the names of pictures are relative to."""

    def object_target(self, image_id: int, annotation_id: int) -> Target:
        """The mask of any annotated object in the pictures of this split.

        Raises:
            ValueError: There is no such annotation, or it is malformed, outside or empty.
        """
        record = self._instances.annotation(image_id, annotation_id)
        size = self._instances.images[image_id].size
        where = f"{self._instances.path}: annotation {annotation_id}"
        return object_target(record.get("segmentation"), size, where)

    def _united(self, image_id: int, annotation_ids: Collection[int]) -> Target:
        """All of some objects as one target; of none, an empty one."""
        parts = [self.object_target(image_id, each) for each in annotation_ids]
        if len(parts) == 1:
            return parts[0]
        height, width = self._instances.images[image_id].size
        empty = Rle.from_counts((height, width), [height * width])
        return Target(Rle.union_of([empty, *(part.rle for part in parts)]))

    def _others_than(self, image_id: int, annotation_ids: Collection[int]) -> list[Target]:
        found = []
        for other in self._instances.annotations_of(image_id):
            if other not in annotation_ids:
                try:
                    found.append(self.object_target(image_id, other))
                except RecordError:  # what nobody asks about need not be sound
                    continue
        return found

    def _check_photo(self, image_id: int) -> None:
        image = self._instances.images[image_id]
        check_image(self.image_root / image.file_name, image.size)

    def _image(self, image_id: int) -> ImageRecord:
        return self._instances.images[image_id]
