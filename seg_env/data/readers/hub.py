"""RefCOCO as it is found on the Hugging Face hub."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from seg_env.data.images import image_size, read_image, read_image_bytes
from seg_env.data.readers.annotated_images import AnnotatedImages, valid_targets
from seg_env.data.readers.refer import COCO_FOLDERS
from seg_env.data.records import (
    OnError,
    RecordError,
    describe,
    parse_json_object,
    relative_path,
    size_field,
)
from seg_env.data.segmentations import object_target
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
      there are no images: they are looked for below ``image_root``.
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
        """Read the sentences of a split; with ``per_reference`` the first one of each object."""
        root = Path(data_root).expanduser()
        on_hub = not root.exists() and len(root.parts) == 2 and not root.is_absolute()
        super().__init__("parquet" if not on_hub else str(data_root), split, on_error)
        self._table: HubTable | ParquetFiles = (
            HubTable(str(data_root), split) if on_hub else ParquetFiles(_find_files(root, split))
        )
        columns = self._table.columns
        fitting = [each for each in LAYOUTS.values() if set(each.columns) <= set(columns)]
        if not fitting:
            known = "; ".join(f"{name}: {', '.join(it.columns)}" for name, it in LAYOUTS.items())
            raise ValueError(
                f"{data_root} has the columns {', '.join(columns)}; known layouts are {known}"
            )
        self._layout = fitting[0]
        self.per_reference = per_reference
        self._image_roots = [Path(image_root).expanduser().absolute()] if image_root else []
        if not image_root and not on_hub:
            self._image_roots = [root.absolute() / place for place in (*COCO_FOLDERS, "")]
        self._image_names: list[str] = []
        self._questions = np.array(self._read_questions(), dtype=np.int64).reshape(-1, 3)
        self._choose_rows(range(len(self._questions)), exclude_images)

    def _read_questions(self) -> list[tuple[int, int, int]]:
        """Number of the row, of its object and of the sentence, for each question."""
        found: list[tuple[int, int, int]] = []
        light = [name for name in self._layout.light if name in self._table.columns]
        for number, record in enumerate(self._table.walk(light)):
            self._image_names.append(_file_name(record))
            with self._reading_record():
                for k, each in enumerate(self._layout.objects(record, self._table.where(number))):
                    count = len(each.sentences[:1] if self.per_reference else each.sentences)
                    found += [(number, k, sentence) for sentence in range(count)]
        return found

    def _sample(self, row: int) -> Sample:
        number, k, sentence = self._questions[row].tolist()
        objects, image = self._read(number)
        asked = objects[k]
        identifier = f"{self.name}-{self.split}-{number}-{k}"
        metadata = {**asked.metadata, "file_name": image.file_name, "row": number}
        if self.per_reference:
            metadata["sentences"] = asked.sentences
        else:
            identifier += f"-{sentence}"
        if image.data is None:
            load_image = partial(read_image, self._find(image.file_name), image.size)
        else:
            name = f"{self._table.where(number)}: image"
            load_image = partial(read_image_bytes, image.data, image.size, name)
        return Sample(
            id=identifier,
            expression=asked.sentences[sentence],
            target=object_target(asked.segmentation, image.size, asked.where),
            load_image=load_image,
            metadata=metadata,
        )

    def _read(self, number: int) -> tuple[list[HubObject], HubImage]:
        record, where = self._table.row(number), self._table.where(number)
        return self._layout.objects(record, where), _image(record, where)

    def _find(self, name: str) -> Path:
        """The file of an image; where it should be, if there is none."""
        places = [root / name for root in self._image_roots] or [Path(name)]
        return next((place for place in places if place.is_file()), places[0])

    def _unit(self, row: int) -> tuple[int, ...]:
        return tuple(self._questions[row, :2].tolist())

    def _image_name(self, row: int) -> str:
        return self._image_names[int(self._questions[row, 0])]

    def _image_path(self, row: int) -> Path | None:
        _, image = self._read(int(self._questions[row, 0]))
        return self._find(image.file_name) if image.data is None else None

    def _others(self, row: int) -> list[Target]:
        number, k, _ = self._questions[row].tolist()
        objects, image = self._read(number)
        return valid_targets(
            lambda each: object_target(each.segmentation, image.size, each.where),
            objects[:k] + objects[k + 1 :],
        )


def _find_files(root: Path, split: str) -> list[Path]:
    root = root.absolute()
    if root.is_file():
        return [root]
    for folder in (root / "data", root):
        paths = sorted(folder.glob(f"{split}-*.parquet")) + sorted(folder.glob(f"{split}.parquet"))
        if paths:
            return paths
    paths = sorted((root / "default" / split).glob("*.parquet"))
    if paths:
        return paths
    raise FileNotFoundError(
        f"there is no {split}-*.parquet in {root / 'data'} or {root}; or name a file, or an id on "
        "the hub such as 'moondream/refcoco-m'"
    )


# --- how the columns of a table are to be read ----------------------------------------------------


class HubObject(NamedTuple):
    """An object of a row."""

    sentences: list[str]
    segmentation: Any
    """In COCO's form; None while only the light columns are read."""
    metadata: dict[str, Any]
    where: str
    """What errors call it."""


class HubImage(NamedTuple):
    """The image of a row."""

    size: tuple[int, int]
    """``(H, W)``."""
    file_name: str
    """``""`` where it has no name."""
    data: bytes | None
    """Content of the file, or None where only its name is known."""


class Layout(NamedTuple):
    """How the rows of a table are to be read."""

    columns: tuple[str, ...]
    """What a table of this layout has."""
    light: tuple[str, ...]
    """Columns that hold sentences and names of images, but no images."""
    objects: Callable[[dict[str, Any], str], list[HubObject]]
    """The objects of a row, given what errors call it."""


def _lmms_objects(record: dict[str, Any], where: str) -> list[HubObject]:
    """One object a row; ``question`` is the same for all rows, ``answer`` holds the sentences."""
    flat = record.get("segmentation")
    metadata = {"question_id": str(record.get("question_id")), "bbox": record.get("bbox")}
    sentences = _texts(record.get("answer"), where)
    return [HubObject(sentences, [flat] if flat else [], metadata, where)]


def _raw_objects(record: dict[str, Any], where: str) -> list[HubObject]:
    """One object a row; its annotation is a JSON text."""
    listed = record.get("sentences")
    if not isinstance(listed, list):
        raise RecordError(f"{where}: 'sentences' must be a list, got {describe(listed)}")
    texts = [each.get("sent") if isinstance(each, dict) else None for each in listed]
    annotation = _parsed(record, "raw_anns", where) if "raw_anns" in record else {}
    metadata = {key: record.get(key) for key in ("ref_id", "ann_id", "image_id", "category_id")}
    return [HubObject(_texts(texts, where), annotation.get("segmentation"), metadata, where)]


def _sample_objects(record: dict[str, Any], where: str) -> list[HubObject]:
    """Several objects a row; masks are COCO's compressed run lengths."""
    listed = record.get("samples")
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise RecordError(f"{where}: 'samples' must be a list of objects")
    objects = []
    for number, each in enumerate(listed):
        of_object = f"{where}, sample {number}"
        metadata = {key: each.get(key) for key in ("image_id", "category", "bbox")}
        metadata = {"ann_id": each.get("id"), **metadata}
        sentences = _texts(each.get("sentences"), of_object)
        objects.append(HubObject(sentences, each.get("mask"), metadata, of_object))
    return objects


LAYOUTS = {
    "lmms-lab": Layout(
        columns=("question_id", "image", "answer", "segmentation"),
        light=("question_id", "answer", "file_name"),
        objects=_lmms_objects,
    ),
    "jxu124": Layout(
        columns=("ref_id", "sentences", "raw_anns", "image_path"),
        light=("ref_id", "sentences", "image_path"),
        objects=_raw_objects,
    ),
    "moondream": Layout(
        columns=("image", "samples"),
        light=("samples", "file_name"),
        objects=_sample_objects,
    ),
}
"""Layouts by who publishes in them."""


def _file_name(record: dict[str, Any]) -> str:
    """The name of a row's image; folders in front of it differ from disk to disk."""
    if "image_path" in record:
        return PurePosixPath(str(record["image_path"])).name
    return str(record.get("file_name") or "")


def _image(record: dict[str, Any], where: str) -> HubImage:
    if "image_path" in record:
        size = size_field(_parsed(record, "raw_image_info", where), f"{where}: raw_image_info")
        return HubImage(size, relative_path(_file_name(record), where), None)
    image = record.get("image")
    data = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(data, bytes):
        raise RecordError(f"{where}: 'image' holds no image, got {describe(data)}")
    return HubImage(image_size(data, f"{where}: image"), _file_name(record), data)


def _texts(listed: object, where: str) -> list[str]:
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise RecordError(f"{where}: expected a list of sentences, got {describe(listed)}")
    return listed


def _parsed(record: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    """The object in a column of JSON texts, or of objects already."""
    value, where = record.get(key), f"{where}: {key}"
    if isinstance(value, str):
        return parse_json_object(value, where)
    if not isinstance(value, dict):
        raise RecordError(f"{where}: expected an object as JSON, got {describe(value)}")
    return value


# --- tables ---------------------------------------------------------------------------------------


class ParquetFiles:
    """Parquet files one after another; no file stays open, and one row group is kept in memory."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read the footers."""
        parquet = require("pyarrow.parquet")
        self.columns: tuple[str, ...] = ()
        self._groups: list[tuple[Path, int, int]] = []  # file, row group, its first row in the file
        self._starts: list[int] = []  # its first row in all files
        length = 0
        for path in paths:
            try:
                with parquet.ParquetFile(path) as file:
                    names = tuple(file.schema_arrow.names)
                    groups = map(file.metadata.row_group, range(file.num_row_groups))
                    sizes = [group.num_rows for group in groups]
            except (ValueError, OSError) as error:
                raise ValueError(f"{path} cannot be read as parquet: {error}") from error
            if self.columns and set(names) != set(self.columns):
                raise ValueError(f"{path} has other columns than {paths[0]}: {', '.join(names)}")
            self.columns = names
            before = length
            for group, size in enumerate(sizes):
                self._groups.append((path, group, length - before))
                self._starts.append(length)
                length += size
        self._cached: tuple[int, Any] = (-1, None)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": (-1, None)}

    def row(self, index: int) -> dict[str, Any]:
        """One row; an image is ``{"bytes", "path"}``."""
        group = bisect_right(self._starts, index) - 1
        if self._cached[0] != group:
            self._cached = (group, self._read(group, self.columns))
        return dict(self._cached[1].slice(index - self._starts[group], 1).to_pylist()[0])

    def walk(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Some columns of all rows, in order."""
        for group in range(len(self._groups)):
            yield from self._read(group, columns).to_pylist()

    def where(self, index: int) -> str:
        """What errors call a row: the file and its number in it."""
        group = bisect_right(self._starts, index) - 1
        path, _, first = self._groups[group]
        return f"{path}: row {first + index - self._starts[group]}"

    def _read(self, group: int, columns: Sequence[str]) -> Any:
        path, number, _ = self._groups[group]
        try:
            with require("pyarrow.parquet").ParquetFile(path) as file:
                return file.read_row_group(number, columns=list(columns))
        except OSError as error:
            raise ValueError(f"{path}: row group {number} cannot be read: {error}") from error


class HubTable:
    """A data set of the hub, downloaded and cached by ``datasets``."""

    def __init__(self, identifier: str, split: str) -> None:
        """Download, or find in the cache."""
        datasets = require("datasets")
        self._identifier = identifier
        table = datasets.load_dataset(identifier, split=split)
        for name, feature in table.features.items():
            if isinstance(feature, datasets.Image):
                table = table.cast_column(name, datasets.Image(decode=False))
        self._table = table
        self.columns: tuple[str, ...] = tuple(table.column_names)

    def row(self, index: int) -> dict[str, Any]:
        """One row; an image is ``{"bytes", "path"}``."""
        return dict(self._table[index])

    def walk(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Some columns of all rows, in order."""
        return iter(self._table.select_columns(list(columns)))

    def where(self, index: int) -> str:
        """What errors call a row."""
        return f"{self._identifier}: row {index}"


def require(module: str) -> Any:
    """Import a module of the extra ``hub``; the `ImportError` says how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"data sets of the hub need {module.partition('.')[0]}: pip install 'simpleseg-rl[hub]'"
        ) from error
