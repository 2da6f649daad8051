"""RefCOCO as it is found on the Hugging Face hub."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Unpack

from seg_env.data.folders import folder_of
from seg_env.data.images import image_size
from seg_env.data.readers.annotated_images import AnnotatedImages, Entry, Options
from seg_env.data.readers.refer import COCO_FOLDERS
from seg_env.data.records import Record
from seg_env.data.segmentations import object_target
from seg_env.geometry.limits import LimitError, check_limit


class Parquet(AnnotatedImages[tuple[int, int, str]]):
    """One split of a table of the hub: one sample for each sentence.

    On disk, as ``huggingface-cli download --repo-type dataset`` leaves it::

        <data_root>/
          data/  val-00000-of-00004.parquet  testA-00000-of-00001.parquet ...

    (or directly in ``<data_root>``, which may also be a parquet file itself), with these columns:

    - ``lmms-lab/RefCOCO`` and its like: ``question_id, image, question, answer[], segmentation,
      bbox, iscrowd, file_name``; ``answer`` holds the sentences, ``segmentation`` one flat polygon:
      of objects of several parts it kept one, so scores differ from those on RefCOCO itself.
    - ``jxu124/refcoco`` and its like: ``ref_id, ann_id, image_id, category_id, split,
      sentences[{sent}], raw_anns, raw_image_info, image_path``; annotations are JSON texts and
      there are no images: they are looked for below ``image_root``.
    - ``moondream/refcoco-m``: ``image, image_id, file_name, samples[{id, category, sentences[],
      bbox, mask{counts, size}}]``; split ``validation``.

    ``data_root`` may also be the id of a data set (``"moondream/refcoco-m"``), whose files
    are then downloaded. Objects are outlined on images as they are stored, whatever EXIF data say.

    Metadata holds what the row knows about the object, ``file_name`` and ``row``, and ``sentences``
    where samples are references.
    """

    sentence_key = ""

    def __init__(
        self,
        data_root: str | os.PathLike[str],
        split: str = "val",
        image_root: str | os.PathLike[str] | None = None,
        *,
        per_reference: bool = False,
        **options: Unpack[Options],
    ) -> None:
        """Read the sentences of a split; with ``per_reference`` the first one of each object."""
        root = Path(data_root).expanduser()
        on_hub = not root.exists() and len(root.parts) == 2 and not root.is_absolute()
        name = str(data_root) if on_hub else "parquet"
        super().__init__(name, split, per_reference=per_reference, **options)
        if on_hub:
            from huggingface_hub import snapshot_download

            patterns = [f"*{split}*.parquet"]
            root = Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
        self._table = ParquetFiles(_find_files(root.absolute(), split))
        columns = self._table.columns
        fitting = [read for needed, read in LAYOUTS.values() if columns.issuperset(needed)]
        if not fitting:
            known = "; ".join(f"{name}: {', '.join(it)}" for name, (it, _) in LAYOUTS.items())
            raise ValueError(
                f"{data_root} has the columns {', '.join(sorted(columns))}; known layouts are "
                f"{known}"
            )
        self._objects_of = fitting[0]
        places = [root.absolute() / place for place in (*COCO_FOLDERS, "")]
        self._image_roots = [Path(image_root).expanduser().absolute()] if image_root else places
        for number, record in enumerate(self._table.walk(LIGHT)):
            with self._reading_record():
                for k, each in enumerate(self._objects_of(record)):
                    self._ask((number, k, _file_name(record)), range(len(each.sentences)))

    def _read(self, key: tuple[int, int, str]) -> Entry:
        number, k, file_name = key
        record = self._table.row(number)
        objects = self._objects_of(record)
        image, size = self._image(record)
        targets = [
            partial(object_target, each.segmentation, size, each.where, each.box)
            for each in objects
        ]
        return Entry(
            id=f"{self.name}-{self.split}-{number}-{k}",
            sentences=dict(enumerate(objects[k].sentences)),
            image=image,
            size=size,
            target=targets[k],
            metadata={**objects[k].metadata, "file_name": file_name, "row": number},
            others=targets[:k] + targets[k + 1 :],
            image_name=f"{record.where}: image" if isinstance(image, bytes) else "",
        )

    def _image(self, record: Record) -> tuple[Path | bytes, tuple[int, int]]:
        """The image of a row, a file or its content, and its size."""
        if "image_path" in record:
            name = Record({"file_name": _file_name(record)}, record.where).path("file_name")
            size = _parsed(record, "raw_image_info").size()
            return (folder_of([name], self._image_roots) or self._image_roots[0]) / name, size
        image = record.get("image")
        data = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(data, bytes):
            raise record.error("image", "must hold an image")
        return data, image_size(data, f"{record.where}: image")

    def _image_name(self, key: tuple[int, int, str]) -> str:
        return key[2]


def _find_files(root: Path, split: str) -> list[Path]:
    if root.is_file():
        return [root]
    named = (f"{split}-*.parquet", f"{split}.parquet")
    for folder, patterns in (("data", named), ("", named), (f"default/{split}", ("*.parquet",))):
        if paths := [path for each in patterns for path in sorted((root / folder).glob(each))]:
            return paths
    raise FileNotFoundError(
        f"there is no {split}-*.parquet in {root / 'data'} or {root}; or name a file, or an id on "
        "the hub such as 'moondream/refcoco-m'"
    )


class HubObject(NamedTuple):
    """An object of a row."""

    sentences: list[str]
    segmentation: Any
    """In COCO's form; None while only the light columns are read."""
    metadata: dict[str, Any]
    where: str
    """Its name in errors."""
    box: Any = None
    """``[x, y, width, height]`` in pixels, as annotated; None for moondream's masks, which were
    redrawn and give the box."""


def _lmms_objects(record: Record) -> list[HubObject]:
    """One object per row; ``question`` is the same for all rows, ``answer`` holds the sentences."""
    flat = record.get("segmentation")
    metadata = {"question_id": str(record.get("question_id")), "bbox": record.get("bbox")}
    parts, box = [flat] if flat else [], record.get("bbox")
    return [HubObject(record.texts("answer"), parts, metadata, record.where, box)]


def _raw_objects(record: Record) -> list[HubObject]:
    """One object per row; its annotation is a JSON text."""
    listed = [Record(each, record.where).text("sent") for each in record.items("sentences")]
    segmentation = box = None
    if "raw_anns" in record:
        annotation = _parsed(record, "raw_anns")
        segmentation, box = annotation.get("segmentation"), annotation.get("bbox")
    metadata = {key: record.get(key) for key in ("ref_id", "ann_id", "image_id", "category_id")}
    return [HubObject(listed, segmentation, metadata, record.where, box)]


def _sample_objects(record: Record) -> list[HubObject]:
    """Several objects per row; masks are COCO's compressed run lengths."""
    objects = []
    for number, values in enumerate(record.items("samples")):
        each = Record(values, f"{record.where}, sample {number}")
        metadata = {key: each.get(key) for key in ("image_id", "category", "bbox")}
        metadata["ann_id"] = each.get("id")
        objects.append(HubObject(each.texts("sentences"), each.get("mask"), metadata, each.where))
    return objects


LAYOUTS: dict[str, tuple[tuple[str, ...], Callable[[Record], list[HubObject]]]] = {
    "lmms-lab": (("question_id", "image", "answer", "segmentation"), _lmms_objects),
    "jxu124": (("ref_id", "sentences", "raw_anns", "image_path"), _raw_objects),
    "moondream": (("image", "samples"), _sample_objects),
}
"""By publisher: the columns of a layout, and the function that reads the objects of a row."""
LIGHT = ("question_id", "ref_id", "answer", "sentences", "samples", "file_name", "image_path")
"""Columns without images and outlines; only these are read when a table is opened."""


def _file_name(record: Record) -> str:
    """The name of a row's image; folders in front of it differ from disk to disk."""
    if "image_path" in record:
        return PurePosixPath(str(record.get("image_path"))).name
    return str(record.get("file_name") or "")


def _parsed(record: Record, key: str) -> Record:
    """The object in a column of JSON texts, or of objects."""
    return Record.parse(record.get(key), f"{record.where}: {key}")


class ParquetFiles:
    """Parquet files one after another; no file stays open, and one row group is kept in memory."""

    def __init__(self, paths: Sequence[Path]) -> None:
        from pyarrow.parquet import ParquetFile

        self.columns: set[str] = set()
        self._groups: list[tuple[int, Path, int]] = []  # its number, its file, rows before the file
        self._starts: list[int] = []  # its first row in all files
        length = 0
        for path in paths:
            before = length
            with _reading(path), ParquetFile(path) as file:
                self.columns.update(file.schema_arrow.names)
                for number in range(file.num_row_groups):
                    self._groups.append((number, path, before))
                    self._starts.append(length)
                    length += file.metadata.row_group(number).num_rows
        self._cached: tuple[int, Any] = (-1, None)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": (-1, None)}

    def row(self, index: int) -> Record:
        """One row; an image is ``{"bytes", "path"}``."""
        group = bisect_right(self._starts, index) - 1
        if self._cached[0] != group:
            from pyarrow import Table

            self._cached = (group, Table.from_batches(self._batches(group, None)))
        (values,) = self._cached[1].slice(index - self._starts[group], 1).to_pylist()
        return self._record(group, index, values)

    def walk(self, columns: Collection[str]) -> Iterator[Record]:
        """All rows in order, with those of ``columns`` that exist."""
        present = sorted(self.columns.intersection(columns))
        for group, start in enumerate(self._starts):
            rows = (row for batch in self._batches(group, present) for row in batch.to_pylist())
            for index, values in enumerate(rows, start):
                yield self._record(group, index, values)

    def _record(self, group: int, index: int, values: dict[str, Any]) -> Record:
        """A row, named in errors by its file and its number there."""
        _, path, before = self._groups[group]
        return Record(values, f"{path}: row {index - before}")

    def _batches(self, group: int, columns: list[str] | None) -> Iterator[Any]:
        """A row group in small batches: a few bytes may stand for millions of equal values."""
        from pyarrow.parquet import ParquetFile

        number, path, _ = self._groups[group]
        what, unfolded = f"{path}: row group {number}", 0
        with _reading(path), ParquetFile(path, buffer_size=1 << 20) as file:
            # Not the metadata of columns: if those are damaged, pyarrow ends the process.
            facts, size = file.metadata.row_group(number), max(path.stat().st_size, 1 << 20)
            check_limit("rows", facts.num_rows, f"{what} has {facts.num_rows} rows")
            claimed = facts.total_byte_size
            check_limit("inflation", claimed // size, f"{what} claims {claimed} bytes")
            for batch in file.iter_batches(16, row_groups=[number], columns=columns):
                unfolded += batch.nbytes
                times = unfolded // size
                check_limit("inflation", times, f"{what} unfolds to {times} times its size")
                yield batch


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except LimitError:
        raise
    except (ValueError, OSError, ArrowException) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from error
