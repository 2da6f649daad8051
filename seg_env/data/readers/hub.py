"""RefCOCO as it is found on the Hugging Face hub."""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from seg_env.data.faults import Fault, OnError, RecordError, check_on_error
from seg_env.data.images import check_image, read_image, read_image_bytes
from seg_env.data.readers.annotated_images import AnnotatedImages
from seg_env.data.readers.hub_layouts import Picture, find_layout
from seg_env.data.readers.parquet_rows import HubRows, ParquetRows, Rows
from seg_env.data.readers.refer_layout import COCO_FOLDERS
from seg_env.types import Sample, Target


class Parquet(AnnotatedImages):
    """One split of a table of the hub: one sample for each sentence.

    On disk, as ``huggingface-cli download --repo-type dataset`` leaves it::

        <data_root>/
          data/  val-00000-of-00004.parquet  testA-00000-of-00001.parquet ...

    (also directly in ``<data_root>``, which may be one parquet file, too), with these columns:

    - ``lmms-lab/RefCOCO`` and its like: ``question_id, image, question, answer[], segmentation,
      bbox, iscrowd, file_name``; ``answer`` holds the sentences, ``segmentation`` one flat polygon:
      of objects of several parts it kept one, so scores differ from those on RefCOCO itself.
    - ``jxu124/refcoco`` and its like: ``ref_id, ann_id, image_id, category_id, split,
      sentences[{sent}], raw_anns, raw_image_info, image_path``; annotations are JSON texts and
      there are no pictures: they are looked for below ``image_root``.
    - ``moondream/refcoco-m``: ``image, image_id, file_name, samples[{id, category, sentences[],
      bbox, mask{counts, size}}]``; split ``validation``.

    ``data_root`` may also be the id of a data set (``"moondream/refcoco-m"``), which ``datasets``
    then downloads. Either way needs ``pip install 'simpleseg-rl[hub]'``.

    Metadata holds what the row knows about the object, ``file_name`` and ``row``, and ``sentences``
    where samples are references.
    """

    def __init__(
        self,
        data_root: str | os.PathLike[str],
        split: str = "val",
        image_root: str | os.PathLike[str] | None = None,
        *,
        per_reference: bool = False,
        exclude_images: Collection[str | int] | None = None,
        on_error: OnError = "raise",
    ) -> None:
        """Read the sentences of a split.

        Args:
            data_root: Folder, parquet file or id on the hub.
            split: Which part.
            image_root: Where the pictures are, for tables without; by default the usual places of
                COCO below ``data_root``.
            per_reference: One sample for each object, with its first sentence.
            exclude_images: Image ids or names of pictures to leave out, see
                `seg_env.data.leakage`.
            on_error: What to do about broken records, see `seg_env.data.faults.OnError`.

        Raises:
            ImportError: The extra is not installed.
            FileNotFoundError: There is no file of the split.
            ValueError: The table is of no known layout, or a record is malformed.
        """
        check_on_error(on_error)
        root = Path(data_root).expanduser()
        on_hub = not root.exists() and len(root.parts) == 2 and not root.is_absolute()
        super().__init__("parquet" if not on_hub else str(data_root), split)
        self._rows_of_table: Rows = (
            HubRows(str(data_root), split) if on_hub else ParquetRows(_files(root, split))
        )
        self._layout = find_layout(self._rows_of_table.columns, str(data_root))
        self.per_reference = per_reference
        self._image_roots = [Path(image_root).expanduser().absolute()] if image_root else []
        if not image_root and not on_hub:
            self._image_roots = [root.absolute() / place for place in (*COCO_FOLDERS, "")]
        self._photo_names: list[str] = []
        self._questions = np.array(self._read_questions(on_error), dtype=np.int64).reshape(-1, 3)
        self._choose_rows(np.arange(len(self._questions)), exclude_images, on_error)

    def _read_questions(self, on_error: OnError) -> list[tuple[int, int, int]]:
        """Number of the row, of its object and of the sentence, for each question."""
        found: list[tuple[int, int, int]] = []
        table = self._rows_of_table
        light = [name for name in self._layout.light if name in table.columns]
        for number, row in enumerate(table.walk(light)):
            self._photo_names.append(self._layout.file_name(row))
            try:
                objects = self._layout.sentences(row, table.where(number))
            except RecordError:
                if on_error == "raise":
                    raise
                self.skipped[Fault.MALFORMED] = self.skipped.get(Fault.MALFORMED, 0) + 1
                continue
            for k, texts in enumerate(objects):
                count = min(1, len(texts)) if self.per_reference else len(texts)
                found += [(number, k, sentence) for sentence in range(count)]
        return found

    def _sample(self, question: int) -> Sample:
        number, k, sentence = self._questions[question].tolist()
        row, where, picture = self._read(number)
        texts = self._layout.sentences(row, where)[k]
        identifier = f"{self.name}-{self.split}-{number}-{k}"
        metadata: dict[str, Any] = {
            **self._layout.metadata(row, k),
            "file_name": picture.file_name,
            "row": number,
        }
        if self.per_reference:
            metadata["sentences"] = texts
        else:
            identifier += f"-{sentence}"
        return Sample(
            id=identifier,
            expression=texts[sentence],
            target=self._layout.target(row, k, picture, where),
            load_image=(
                partial(read_image, self._find(picture.file_name), picture.size)
                if picture.data is None
                else partial(read_image_bytes, picture.data, picture.size, f"{where}: image")
            ),
            metadata=metadata,
        )

    def _read(self, number: int) -> tuple[dict[str, Any], str, Picture]:
        table = self._rows_of_table
        row, where = table.row(number, table.columns), table.where(number)
        return row, where, self._layout.picture(row, where)

    def _find(self, name: str) -> Path:
        """The file of a picture; where it should be, if there is none."""
        places = [root / name for root in self._image_roots] or [Path(name)]
        return next((place for place in places if place.is_file()), places[0])

    def _unit(self, row: int) -> int:
        return int(self._questions[row, 0]) * MAX_OBJECTS + int(self._questions[row, 1])

    def _image_name(self, unit: int) -> str:
        return self._photo_names[unit // MAX_OBJECTS]

    def _photo(self, row: int) -> Path | None:
        picture = self._read(int(self._questions[row, 0]))[2]
        return self._find(picture.file_name) if picture.data is None else None

    def _check(self, row: int) -> None:
        self._sample(row)
        picture = self._read(int(self._questions[row, 0]))[2]
        if picture.data is None:
            check_image(self._find(picture.file_name), picture.size)

    def _others(self, row: int) -> list[Target]:
        number, k, _ = self._questions[row].tolist()
        record, where, picture = self._read(number)
        found = []
        for other in range(len(self._layout.sentences(record, where))):
            if other != k:
                try:
                    found.append(self._layout.target(record, other, picture, where))
                except RecordError:  # what nobody asks about need not be sound
                    continue
        return found


MAX_OBJECTS = 1 << 20
"""More objects than a picture has; a row's number and an object's make one number."""


def _files(root: Path, split: str) -> list[Path]:
    root = root.absolute()
    if root.is_file():
        return [root]
    for folder in (root / "data", root, root / "default" / split):
        paths = sorted(folder.glob(f"{split}-*.parquet")) + sorted(folder.glob(f"{split}.parquet"))
        if folder.name == split:
            paths = sorted(folder.glob("*.parquet"))
        if paths:
            return paths
    raise FileNotFoundError(
        f"there is no {split}-*.parquet in {root / 'data'} or {root}; or name a file, or an id on "
        "the hub such as 'moondream/refcoco-m'"
    )
