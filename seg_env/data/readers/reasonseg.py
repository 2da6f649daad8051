"""ReasonSeg: questions that need reasoning, with regions that do not count."""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seg_env.data.faults import Fault, OnError, RecordError, check_on_error
from seg_env.data.images import image_size, read_image
from seg_env.data.readers.annotated_images import AnnotatedImages
from seg_env.data.readers.annotation_files import (
    photo_beside,
    points_of,
    read_json_object,
    shapes_of,
    split_folder,
)
from seg_env.data.readers.inclusive_fill import fill_inclusive
from seg_env.data.readers.instances import describe
from seg_env.data.segmentations import check_inside
from seg_env.geometry.rle import Rle
from seg_env.types import Sample, Target


class ReasonSeg(AnnotatedImages):
    """One split of ReasonSeg (Lai et al. 2023, arXiv 2308.00692): one sample for each sentence.

    On disk, as it was published::

        <data_root>/
          ReasonSeg/
            train/  00001_abc.jpg  00001_abc.json ...        (239 pictures)
            val/    ...                                      (200)
            test/   ...                                      (779)

    with ``<data_root>/train`` and so on being found too. A ``.json`` holds ``text`` (a list of
    sentences, or one), ``is_sentence`` and ``shapes``, each with a ``label`` and ``points`` in
    pixels. A label that contains "ignore" marks void pixels (`Target.ignore`), a shape named "flag"
    is passed over, all others are the target. Shapes are painted from the largest to the smallest,
    borders included, see `seg_env.data.readers.inclusive_fill`: pixels are those that the published
    evaluation scores.

    A few pictures are left with an empty target, as in the published evaluation: there ``[]`` is
    the right answer. The metadata holds ``file_name``, ``is_sentence`` and ``sentence`` (its
    number), and ``sentences`` where samples are pictures.
    """

    def __init__(
        self,
        data_root: str | os.PathLike[str],
        split: str = "val",
        *,
        per_reference: bool = False,
        exclude_images: Collection[str | int] | None = None,
        on_error: OnError = "raise",
    ) -> None:
        """Read the sentences of a split.

        Args:
            data_root: The folder that holds ``ReasonSeg/``, or the splits themselves.
            split: ``"train"``, ``"val"`` or ``"test"``.
            per_reference: One sample for each picture, with its first sentence, as the published
                evaluation has it.
            exclude_images: Names of pictures to leave out, see `seg_env.data.leakage`.
            on_error: What to do about broken records, see `seg_env.data.faults.OnError`.

        Raises:
            FileNotFoundError: There is no folder of the split, or nothing in it.
            ValueError: A record is malformed; names the file.
        """
        check_on_error(on_error)
        super().__init__("reasonseg", split)
        root = Path(data_root).expanduser().absolute()
        self.image_root = split_folder(root, split, ("ReasonSeg", ""))
        self.per_reference = per_reference
        self._files = sorted(path.name for path in self.image_root.glob("*.json"))
        if not self._files:
            raise FileNotFoundError(f"{self.image_root} has no .json files")
        rows: list[tuple[int, int]] = []  # number of the file, number of the sentence
        for number in range(len(self._files)):
            try:
                texts = _texts(read_json_object(self._path(number)), self._path(number))
            except RecordError:
                if on_error == "raise":
                    raise
                self.skipped[Fault.MALFORMED] = self.skipped.get(Fault.MALFORMED, 0) + 1
                continue
            count = 1 if per_reference else len(texts)
            rows += [(number, sentence) for sentence in range(count)]
        self._sentences = np.array(rows, dtype=np.int64).reshape(-1, 2)
        self._choose_rows(np.arange(len(rows)), exclude_images, on_error)

    def _sample(self, row: int) -> Sample:
        number, sentence = self._sentences[row].tolist()
        path = self._path(number)
        record = read_json_object(path)
        texts = _texts(record, path)
        if sentence >= len(texts):
            raise RecordError(f"{path} has changed since it was opened; open it again")
        photo = photo_beside(path)
        size = image_size(photo)
        metadata: dict[str, Any] = {
            "file_name": photo.name,
            "is_sentence": bool(record.get("is_sentence", True)),
            "sentence": sentence,
        }
        identifier = f"{self.name}-{self.split}-{path.stem}"
        if self.per_reference:
            metadata["sentences"] = texts
        else:
            identifier += f"-{sentence}"
        return Sample(
            id=identifier,
            expression=texts[sentence],
            target=painted_target(record, path, size),
            load_image=partial(read_image, photo, size),
            metadata=metadata,
        )

    def _path(self, number: int) -> Path:
        return self.image_root / self._files[number]

    def _unit(self, row: int) -> int:
        return int(self._sentences[row, 0])

    def _image_name(self, unit: int) -> str:
        return self._files[unit]

    def _photo(self, row: int) -> Path:
        return photo_beside(self._path(self._unit(row)))

    def _check(self, row: int) -> None:
        self._sample(row)


def painted_target(record: dict[str, Any], path: Path, size: tuple[int, int]) -> Target:
    """Paint the shapes of a file, the largest first; later ones cover earlier ones.

    Args:
        record: The content of the file.
        path: What errors call it.
        size: ``(H, W)`` of the picture.

    Raises:
        RecordError: A shape is malformed or lies outside, or there are none.
    """
    layers: list[tuple[int, bool, NDArray[np.bool_]]] = []
    for number, shape in enumerate(shapes_of(record, path)):
        label = shape["label"].lower()
        if label == "flag":
            continue
        where = f"{path}: shape {number}"
        points = points_of(shape, where)
        check_inside(np.trunc(points) + 0.5, size, where)
        filled = fill_inclusive(points, size)
        layers.append((int(filled.sum()), "ignore" in label, filled))
    if not layers:
        raise RecordError(f"{path}: 'shapes' is empty: there is nothing to outline", Fault.EMPTY)
    target, void = np.zeros(size, dtype=np.bool_), np.zeros(size, dtype=np.bool_)
    order = np.argsort([area for area, _, _ in layers], kind="stable")[::-1]
    for index in order.tolist():
        _, is_void, filled = layers[index]
        target[filled], void[filled] = not is_void, is_void
    ignore = Rle.from_mask(void) if void.any() else None
    return Target(Rle.from_mask(target), ignore=ignore)


def _texts(record: dict[str, Any], path: Path) -> list[str]:
    listed = record.get("text")
    texts = [listed] if isinstance(listed, str) else listed
    if not isinstance(texts, list) or not texts or not all(isinstance(each, str) for each in texts):
        raise RecordError(f"{path}: 'text' must be a list of sentences, got {describe(listed)}")
    return texts
