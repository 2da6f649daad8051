"""The columns of data sets on the hub, as questions and objects."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar, Protocol

from seg_env.data.faults import RecordError, located
from seg_env.data.images import image_size
from seg_env.data.readers.instances import describe, integer, relative_path
from seg_env.data.segmentations import object_target
from seg_env.types import Target


@dataclass(frozen=True)
class Picture:
    """The picture of a row."""

    size: tuple[int, int]
    """``(H, W)``."""
    file_name: str
    """What it is called; ``""`` where it has no name."""
    data: bytes | None
    """Its content, or None where only its name is known."""


class Layout(Protocol):
    """How the rows of a table are to be read. Columns in `light` hold no pictures."""

    light: ClassVar[tuple[str, ...]]
    names: ClassVar[tuple[str, ...]]

    def sentences(self, row: dict[str, Any], where: str) -> list[list[str]]:
        """Sentences of each object of a row; needs the columns of `light`."""
        ...

    def file_name(self, row: dict[str, Any]) -> str:
        """Name of the picture; needs the columns of `light`."""
        ...

    def picture(self, row: dict[str, Any], where: str) -> Picture:
        """The picture of a row."""
        ...

    def target(self, row: dict[str, Any], number: int, picture: Picture, where: str) -> Target:
        """The mask of an object of a row."""
        ...

    def metadata(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        """What is known about an object of a row."""
        ...


class LmmsLayout:
    """``lmms-lab/RefCOCO``, ``RefCOCOplus``, ``RefCOCOg``: one object a row, several sentences."""

    light: ClassVar[tuple[str, ...]] = ("question_id", "answer", "file_name")
    names: ClassVar[tuple[str, ...]] = ("question_id", "image", "answer", "segmentation")

    def sentences(self, row: dict[str, Any], where: str) -> list[list[str]]:
        """The column ``answer``; ``question`` is one sentence for all rows."""
        return [_texts(row.get("answer"), where)]

    def file_name(self, row: dict[str, Any]) -> str:
        """The column ``file_name``, which has the number of an object behind."""
        return str(row.get("file_name") or "")

    def picture(self, row: dict[str, Any], where: str) -> Picture:
        """From ``image``; the size is in its header only."""
        data = _image_bytes(row, where)
        return Picture(image_size(data, f"{where}: image"), self.file_name(row), data)

    def target(self, row: dict[str, Any], number: int, picture: Picture, where: str) -> Target:
        """From ``segmentation``: one flat polygon, all that this layout kept of an object."""
        flat = row.get("segmentation")
        return object_target([flat] if flat else [], picture.size, where)

    def metadata(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        """``question_id`` and ``bbox`` (x, y, width, height)."""
        return {"question_id": str(row.get("question_id")), "bbox": row.get("bbox")}


class RawLayout:
    """``jxu124/refcoco``, ``refcocoplus``, ``refcocog``: annotations as JSON texts, no pictures."""

    light: ClassVar[tuple[str, ...]] = ("ref_id", "sentences", "image_path")
    names: ClassVar[tuple[str, ...]] = ("ref_id", "sentences", "raw_anns", "image_path")

    def sentences(self, row: dict[str, Any], where: str) -> list[list[str]]:
        """``sent`` of each of ``sentences``."""
        listed = row.get("sentences")
        if not isinstance(listed, list):
            raise RecordError(f"{where}: 'sentences' must be a list, got {describe(listed)}")
        texts = [each.get("sent") if isinstance(each, dict) else None for each in listed]
        return [_texts(texts, where)]

    def file_name(self, row: dict[str, Any]) -> str:
        """The last part of ``image_path``; the folders in front differ from disk to disk."""
        return PurePosixPath(str(row.get("image_path"))).name

    def picture(self, row: dict[str, Any], where: str) -> Picture:
        """From ``raw_image_info``."""
        info = _json_text(row.get("raw_image_info"), f"{where}: raw_image_info")
        size = (integer(info, "height", where), integer(info, "width", where))
        return Picture(size, relative_path(self.file_name(row), where), None)

    def target(self, row: dict[str, Any], number: int, picture: Picture, where: str) -> Target:
        """From ``raw_anns``."""
        annotation = _json_text(row.get("raw_anns"), f"{where}: raw_anns")
        return object_target(annotation.get("segmentation"), picture.size, where)

    def metadata(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        """``ref_id``, ``ann_id``, ``image_id`` and ``category_id``."""
        return {key: row.get(key) for key in ("ref_id", "ann_id", "image_id", "category_id")}


class SamplesLayout:
    """``moondream/refcoco-m``: one picture a row, several objects, exact masks."""

    light: ClassVar[tuple[str, ...]] = ("samples", "file_name")
    names: ClassVar[tuple[str, ...]] = ("image", "samples")

    def sentences(self, row: dict[str, Any], where: str) -> list[list[str]]:
        """``sentences`` of each of ``samples``."""
        return [
            _texts(each.get("sentences"), f"{where}, sample {number}")
            for number, each in enumerate(self._samples(row, where))
        ]

    def file_name(self, row: dict[str, Any]) -> str:
        """The column ``file_name``."""
        return str(row.get("file_name") or "")

    def picture(self, row: dict[str, Any], where: str) -> Picture:
        """From ``image``."""
        data = _image_bytes(row, where)
        return Picture(image_size(data, f"{where}: image"), self.file_name(row), data)

    def target(self, row: dict[str, Any], number: int, picture: Picture, where: str) -> Target:
        """From ``mask`` of a sample: COCO's compressed run lengths."""
        mask = self._samples(row, where)[number].get("mask")
        return object_target(mask, picture.size, f"{where}, sample {number}")

    def metadata(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        """``ann_id``, ``image_id``, ``category`` and ``bbox`` (x, y, width, height)."""
        sample = row["samples"][number]
        metadata = {key: sample.get(key) for key in ("image_id", "category", "bbox")}
        return {"ann_id": sample.get("id"), **metadata}

    def _samples(self, row: dict[str, Any], where: str) -> list[dict[str, Any]]:
        listed = row.get("samples")
        if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
            raise RecordError(f"{where}: 'samples' must be a list of objects")
        return listed


LAYOUTS: dict[str, Layout] = {
    "lmms-lab": LmmsLayout(),
    "jxu124": RawLayout(),
    "moondream": SamplesLayout(),
}
"""Layouts by who publishes in them."""


def find_layout(columns: tuple[str, ...], where: str) -> Layout:
    """The layout whose columns a table has.

    Raises:
        ValueError: It is none of them; names what there is.
    """
    for layout in LAYOUTS.values():
        if set(layout.names) <= set(columns):
            return layout
    known = "; ".join(f"{name}: {', '.join(each.names)}" for name, each in LAYOUTS.items())
    raise ValueError(f"{where} has the columns {', '.join(columns)}; known layouts are {known}")


def _texts(listed: object, where: str) -> list[str]:
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise RecordError(f"{where}: expected a list of sentences, got {describe(listed)}")
    return listed


def _image_bytes(row: dict[str, Any], where: str) -> bytes:
    image = row.get("image")
    data = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(data, bytes):
        raise RecordError(f"{where}: 'image' holds no picture, got {describe(data)}")
    return data


def _json_text(text: object, where: str) -> dict[str, Any]:
    with located(where):
        try:
            value = json.loads(text) if isinstance(text, str) else text
        except RecursionError as error:
            raise RecordError(str(error)) from error
        if not isinstance(value, dict):
            raise RecordError(f"expected an object as JSON, got {describe(value)}")
        return value
