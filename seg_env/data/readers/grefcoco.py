"""gRefCOCO: expressions for several objects at once, and for objects that are not there."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any, ClassVar

from seg_env.data.faults import OnError
from seg_env.data.readers.refer import Refer


class GRefCoco(Refer):
    """One split of gRefCOCO (Liu et al. 2023, arXiv 2306.00968): one sample for each sentence.

    On disk, as the ``grefer`` API has it::

        <data_root>/
          grefcoco/     instances.json  grefs(unc).json   (or .p)
          images/train2014/COCO_train2014_000000581857.jpg ...   (or where `Refer` looks)

    ``grefs(*)`` differs from ``refs(*)`` of RefCOCO in that ``ann_id`` is a list: of several
    objects the union is asked for, and ``[-1]`` says that nothing in the picture is meant
    (``no_target``). Then the target is empty, and ``[]`` is the right answer.

    Metadata is as that of `Refer`, but ``ann_id``, ``category_id`` and ``category`` are lists, and
    ``no_target`` is added.
    """

    names: ClassVar[tuple[str, ...]] = ("grefcoco",)
    several_objects: ClassVar[bool] = True

    def __init__(
        self,
        data_root: str | os.PathLike[str],
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
            data_root: The folder that holds ``grefcoco/`` and the pictures.
            split: ``"train"``, ``"val"``, ``"testA"`` or ``"testB"``.
            split_by: Who made the partition, ``"unc"`` by default.
            image_root: The folder of pictures; by default found among the usual places.
            per_reference: See `Refer`.
            exclude_images: See `Refer`.
            on_error: See `Refer`.

        Raises:
            FileNotFoundError: A file or folder is missing; names it and the layout expected.
            ValueError: An unknown split, or a malformed record; names what there is.
        """
        super().__init__(
            data_root,
            "grefcoco",
            split,
            split_by,
            image_root,
            per_reference=per_reference,
            exclude_images=exclude_images,
            on_error=on_error,
        )

    def _described(self, row: int, objects: list[int]) -> dict[str, Any]:
        image_id = int(self._index.image_ids[row])
        categories = [self._instances.category_of(image_id, each) for each in objects]
        return {
            "ann_id": objects,
            "category_id": categories,
            "category": [self._instances.categories.get(each, "") for each in categories],
            "no_target": not objects,
        }
