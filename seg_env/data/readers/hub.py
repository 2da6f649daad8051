"""RefCOCO as it is found on the Hugging Face hub."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple

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

MAX_OBJECTS = 1 << 20
"""More objects than an image has; a row's number and an object's make one number."""


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
        """Read the sentences of a split.

        Args:
            data_root: Folder, parquet file or id on the hub.
            split: Which part.
            image_root: Where the images are, for tables without; by default the usual places of
                COCO below ``data_root``.
            per_reference: One sample for each object, with its first sentence.
            exclude_images: Image ids or names of images to leave out, see
                `seg_env.data.held_out_images`.
            on_error: What to do about broken records, see `seg_env.data.records.OnError`.

        Raises:
            ImportError: The extra is not installed.
            FileNotFoundError: There is no file of the split.
            ValueError: The table is of no known layout, or a record is malformed.
        """
        root = Path(data_root).expanduser()
        on_hub = not root.exists() and len(root.parts) == 2 and not root.is_absolute()
        super().__init__("parquet" if not on_hub else str(data_root), split, on_error)
        self._table: HubTable | ParquetFiles = (
            HubTable(str(data_root), split) if on_hub else ParquetFiles(_find_files(root, split))
        )
        self._layout = _find_layout(self._table.columns, str(data_root))
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
            self._image_names.append(self._layout.file_name(record))
            try:
                objects = self._layout.sentences(record, self._table.where(number))
            except RecordError as error:
                self._broken(error)
                continue
            for k, texts in enumerate(objects):
                count = min(1, len(texts)) if self.per_reference else len(texts)
                found += [(number, k, sentence) for sentence in range(count)]
        return found

    def _sample(self, row: int) -> Sample:
        number, k, sentence = self._questions[row].tolist()
        record, where, image = self._read(number)
        texts = self._layout.sentences(record, where)[k]
        identifier = f"{self.name}-{self.split}-{number}-{k}"
        metadata: dict[str, Any] = {
            **self._layout.metadata(record, k),
            "file_name": image.file_name,
            "row": number,
        }
        if self.per_reference:
            metadata["sentences"] = texts
        else:
            identifier += f"-{sentence}"
        return Sample(
            id=identifier,
            expression=texts[sentence],
            target=self._layout.target(record, k, image.size, where),
            load_image=(
                partial(read_image, self._find(image.file_name), image.size)
                if image.data is None
                else partial(read_image_bytes, image.data, image.size, f"{where}: image")
            ),
            metadata=metadata,
        )

    def _read(self, number: int) -> tuple[dict[str, Any], str, HubImage]:
        record, where = self._table.row(number), self._table.where(number)
        return record, where, self._layout.image(record, where)

    def _find(self, name: str) -> Path:
        """The file of an image; where it should be, if there is none."""
        places = [root / name for root in self._image_roots] or [Path(name)]
        return next((place for place in places if place.is_file()), places[0])

    def _unit(self, row: int) -> int:
        return int(self._questions[row, 0]) * MAX_OBJECTS + int(self._questions[row, 1])

    def _image_name(self, row: int) -> str:
        return self._image_names[int(self._questions[row, 0])]

    def _image_path(self, row: int) -> Path | None:
        image = self._read(int(self._questions[row, 0]))[2]
        return self._find(image.file_name) if image.data is None else None

    def _others(self, row: int) -> list[Target]:
        number, k, _ = self._questions[row].tolist()
        record, where, image = self._read(number)
        others = [each for each in range(len(self._layout.sentences(record, where))) if each != k]
        return valid_targets(
            lambda other: self._layout.target(record, other, image.size, where), others
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


class HubImage(NamedTuple):
    """The image of a row."""

    size: tuple[int, int]
    """``(H, W)``."""
    file_name: str
    """What it is called; ``""`` where it has no name."""
    data: bytes | None
    """Its content, or None where only its name is known."""


class LmmsLayout:
    """``lmms-lab/RefCOCO``, ``RefCOCOplus``, ``RefCOCOg``: one object a row, several sentences."""

    columns: ClassVar[tuple[str, ...]] = ("question_id", "image", "answer", "segmentation")
    """What a table of this layout has."""
    light: ClassVar[tuple[str, ...]] = ("question_id", "answer", "file_name")
    """What `sentences` and `file_name` need; holds no images."""

    def sentences(self, record: dict[str, Any], where: str) -> list[list[str]]:
        """Sentences of each object of a row: ``answer``; ``question`` is the same for all rows."""
        return [_texts(record.get("answer"), where)]

    def file_name(self, record: dict[str, Any]) -> str:
        """Name of the image; here it has the number of an object behind."""
        return str(record.get("file_name") or "")

    def image(self, record: dict[str, Any], where: str) -> HubImage:
        """The image of a row; the size is in its header only."""
        image = record.get("image")
        data = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(data, bytes):
            raise RecordError(f"{where}: 'image' holds no image, got {describe(data)}")
        return HubImage(image_size(data, f"{where}: image"), self.file_name(record), data)

    def target(
        self, record: dict[str, Any], number: int, size: tuple[int, int], where: str
    ) -> Target:
        """The mask of an object: one flat polygon, all that this layout kept of it."""
        flat = record.get("segmentation")
        return object_target([flat] if flat else [], size, where)

    def metadata(self, record: dict[str, Any], number: int) -> dict[str, Any]:
        """What is known about an object: ``question_id`` and ``bbox`` (x, y, width, height)."""
        return {"question_id": str(record.get("question_id")), "bbox": record.get("bbox")}


class RawLayout(LmmsLayout):
    """``jxu124/refcoco``, ``refcocoplus``, ``refcocog``: annotations as JSON texts, no images."""

    columns: ClassVar[tuple[str, ...]] = ("ref_id", "sentences", "raw_anns", "image_path")
    light: ClassVar[tuple[str, ...]] = ("ref_id", "sentences", "image_path")

    def sentences(self, record: dict[str, Any], where: str) -> list[list[str]]:
        """``sent`` of each of ``sentences``."""
        listed = record.get("sentences")
        if not isinstance(listed, list):
            raise RecordError(f"{where}: 'sentences' must be a list, got {describe(listed)}")
        texts = [each.get("sent") if isinstance(each, dict) else None for each in listed]
        return [_texts(texts, where)]

    def file_name(self, record: dict[str, Any]) -> str:
        """The last part of ``image_path``; the folders in front differ from disk to disk."""
        return PurePosixPath(str(record.get("image_path"))).name

    def image(self, record: dict[str, Any], where: str) -> HubImage:
        """From ``raw_image_info``."""
        info = _parsed(record, "raw_image_info", where)
        name = relative_path(self.file_name(record), where)
        return HubImage(size_field(info, f"{where}: raw_image_info"), name, None)

    def target(
        self, record: dict[str, Any], number: int, size: tuple[int, int], where: str
    ) -> Target:
        """From ``raw_anns``."""
        return object_target(_parsed(record, "raw_anns", where).get("segmentation"), size, where)

    def metadata(self, record: dict[str, Any], number: int) -> dict[str, Any]:
        """``ref_id``, ``ann_id``, ``image_id`` and ``category_id``."""
        return {key: record.get(key) for key in ("ref_id", "ann_id", "image_id", "category_id")}


class SamplesLayout(LmmsLayout):
    """``moondream/refcoco-m``: one image a row, several objects, exact masks."""

    columns: ClassVar[tuple[str, ...]] = ("image", "samples")
    light: ClassVar[tuple[str, ...]] = ("samples", "file_name")

    def sentences(self, record: dict[str, Any], where: str) -> list[list[str]]:
        """``sentences`` of each of ``samples``."""
        listed = record.get("samples")
        if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
            raise RecordError(f"{where}: 'samples' must be a list of objects")
        return [
            _texts(each.get("sentences"), f"{where}, sample {number}")
            for number, each in enumerate(listed)
        ]

    def target(
        self, record: dict[str, Any], number: int, size: tuple[int, int], where: str
    ) -> Target:
        """From ``mask`` of a sample: COCO's compressed run lengths."""
        mask = record["samples"][number].get("mask")
        return object_target(mask, size, f"{where}, sample {number}")

    def metadata(self, record: dict[str, Any], number: int) -> dict[str, Any]:
        """``ann_id``, ``image_id``, ``category`` and ``bbox`` (x, y, width, height)."""
        sample = record["samples"][number]
        metadata = {key: sample.get(key) for key in ("image_id", "category", "bbox")}
        return {"ann_id": sample.get("id"), **metadata}


LAYOUTS: dict[str, LmmsLayout] = {
    "lmms-lab": LmmsLayout(),
    "jxu124": RawLayout(),
    "moondream": SamplesLayout(),
}
"""Layouts by who publishes in them."""


def _find_layout(columns: Sequence[str], where: str) -> LmmsLayout:
    """The layout whose columns a table has."""
    for layout in LAYOUTS.values():
        if set(layout.columns) <= set(columns):
            return layout
    known = "; ".join(f"{name}: {', '.join(each.columns)}" for name, each in LAYOUTS.items())
    raise ValueError(f"{where} has the columns {', '.join(columns)}; known layouts are {known}")


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
        """Read the footers.

        Raises:
            ImportError: ``pyarrow`` is missing; names the extra.
            ValueError: A file is no parquet, or has other columns than the first.
        """
        parquet = require("pyarrow.parquet")
        self.columns: tuple[str, ...] = ()
        self._groups: list[tuple[Path, int, int]] = []  # file, row group, its first row in the file
        self._starts: list[int] = []  # its first row in all files
        length = 0
        for path in paths:
            try:
                with parquet.ParquetFile(path) as file:
                    names = tuple(file.schema_arrow.names)
                    groups = range(file.num_row_groups)
                    sizes = [file.metadata.row_group(group).num_rows for group in groups]
            except (ValueError, OSError) as error:
                raise ValueError(f"{path} cannot be read as parquet: {error}") from error
            if self.columns and set(names) != set(self.columns):
                raise ValueError(f"{path} has other columns than {paths[0]}: {', '.join(names)}")
            self.columns = names
            for group in groups:
                before = sum(sizes[:group])
                self._groups.append((path, group, before))
                self._starts.append(length + before)
            length += sum(sizes)
        self._cached: tuple[int, Any] = (-1, None)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the row group in memory."""
        return {**self.__dict__, "_cached": (-1, None)}

    def row(self, index: int) -> dict[str, Any]:
        """One row; an image is ``{"bytes", "path"}``."""
        group = bisect_right(self._starts, index) - 1
        if self._cached[0] != group:
            self._cached = (group, self._read(group, self.columns))
        found: list[dict[str, Any]] = (
            self._cached[1].slice(index - self._starts[group], 1).to_pylist()
        )
        return found[0]

    def walk(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Some columns of all rows in order."""
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
        """Download, or find in the cache.

        Raises:
            ImportError: ``datasets`` is missing; names the extra.
            ValueError: There is no such data set or split.
        """
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
        """Some columns of all rows in order."""
        return iter(self._table.select_columns(list(columns)))

    def where(self, index: int) -> str:
        """What errors call a row."""
        return f"{self._identifier}: row {index}"


def require(module: str) -> Any:
    """Import a module of the extra ``hub``.

    Raises:
        ImportError: It is not installed; says how to.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"data sets of the hub need {module.partition('.')[0]}: pip install 'simpleseg-rl[hub]'"
        ) from error
