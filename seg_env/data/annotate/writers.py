"""Writing annotated pictures in the forms that the data sets of this project read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from seg_env.data.annotate.job import Job
from seg_env.data.annotate.nouns import Found, Picture
from seg_env.data.annotate.tally import Tally
from seg_env.data.annotate.text import clean_text
from seg_env.data.export import run_lengths
from seg_env.data.readers.hub import require
from seg_env.geometry.overlap import iou_batch
from seg_env.grammar import decode, encode

_GROUP_ROWS = 32


class JsonLinesWriter:
    """Lines as `seg_env.data.readers.jsonlines.JsonLines` reads them, and pictures beside them."""

    def __init__(self, folder: Path, job: Job, shard: str, tally: Tally) -> None:
        """Open ``<split>.jsonl`` in a folder.

        Args:
            folder: An empty folder.
            job: How masks are written.
            shard: Name that identifiers start with.
            tally: Counts the records.
        """
        self._folder, self._job, self._shard, self._tally = folder, job, shard, tally
        (folder / "images").mkdir()
        self._file = (folder / f"{job.split}.jsonl").open("w", encoding="utf-8")

    def write(self, number: int, picture: Picture, found: Sequence[Found]) -> None:
        """Write the objects of a picture.

        Args:
            number: The picture's place in the shard; files and records are named after it.
            picture: The picture.
            found: Its objects, at least one.
        """
        # Readers tell pictures apart by the names of files, whatever folder these are in.
        name = f"{self._shard}-{number:06d}"
        place = f"images/{name}{picture.suffix}"
        (self._folder / place).write_bytes(picture.data)
        for k, each in enumerate(found):
            text = encode(each.target.outline(self._job.epsilon), self._job.decimals)
            written = {"rings": json.loads(text)}
            if self._job.form == "rle":
                written = {"rle": run_lengths(each.target.rle)}
            record = {
                "id": f"{name}-{k}",
                "image": place,
                "expression": each.expression,
                "size": list(picture.size),
                **written,
                "metadata": {**_facts(picture, each), "outline_iou": _count(each, text, self)},
            }
            line = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            self._file.write(line + "\n")

    @property
    def tally(self) -> Tally:
        """Where records are counted."""
        return self._tally

    def __enter__(self) -> JsonLinesWriter:
        """Ready to write."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._file.close()


class ParquetWriter:
    """Rows as `Parquet` reads them (``moondream/refcoco-m``), exact masks."""

    def __init__(self, folder: Path, job: Job, shard: str, tally: Tally) -> None:
        """Open ``<split>.parquet`` in a folder; otherwise as `JsonLinesWriter`.

        Raises:
            ImportError: ``pyarrow`` is missing; names the extra.
        """
        arrow = require("pyarrow")
        self._job, self._shard, self._tally = job, shard, tally
        self._rows: list[dict[str, Any]] = []
        self._schema = _schema(arrow)
        self._table = arrow.Table
        path = folder / f"{job.split}.parquet"
        self._file = require("pyarrow.parquet").ParquetWriter(path, self._schema)

    def write(self, number: int, picture: Picture, found: Sequence[Found]) -> None:
        """As `JsonLinesWriter.write`."""
        name, key = f"{self._shard}-{number:06d}", clean_text(picture.key)
        samples = []
        for k, each in enumerate(found):
            _count(each, encode(each.target.outline(self._job.epsilon), self._job.decimals), self)
            x0, y0, x1, y1 = each.target.rle.bbox
            samples.append(
                {
                    "id": f"{name}-{k}",
                    "image_id": key,
                    "category": clean_text(each.detection.label),
                    "sentences": [each.expression],
                    "bbox": [float(value) for value in (x0, y0, x1 - x0, y1 - y0)],
                    "mask": run_lengths(each.target.rle),
                }
            )
        image = {"bytes": picture.data, "path": f"{name}{picture.suffix}"}
        self._rows.append(
            {"image": image, "image_id": key, "file_name": image["path"], "samples": samples}
        )
        if len(self._rows) == _GROUP_ROWS:
            self._flush()

    @property
    def tally(self) -> Tally:
        """Where records are counted."""
        return self._tally

    def _flush(self) -> None:
        if self._rows:
            self._file.write_table(self._table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def __enter__(self) -> ParquetWriter:
        """Ready to write."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what is left and the footer."""
        if kind is None:
            self._flush()
        self._file.close()


WRITERS: dict[str, type[JsonLinesWriter] | type[ParquetWriter]] = {
    "jsonl": JsonLinesWriter,
    "parquet": ParquetWriter,
}
"""Writers by container."""


def _count(found: Found, text: str, writer: JsonLinesWriter | ParquetWriter) -> float:
    """Count a record; returns the IoU of its written outline with its mask."""
    tally, rle = writer.tally, found.target.rle
    rings = decode(text).rings
    outline_iou = float(iou_batch([rings], rle)[0])
    tally.written += 1
    tally.observe("area", rle.area / (rle.size[0] * rle.size[1]))
    tally.observe("score", found.detection.score)
    tally.observe("outline_iou", outline_iou)
    tally.observe("vertices", sum(map(len, rings)))
    tally.observe("words", len(found.expression.split()))
    return round(outline_iou, 4)


def _facts(picture: Picture, found: Found) -> dict[str, Any]:
    """What metadata says about an object: where it came from and how sure the models were."""
    segment = found.segment
    return {
        **picture.metadata,
        "key": clean_text(picture.key),
        "label": clean_text(found.detection.label),
        "score": round(found.detection.score, 4),
        "mask_score": round(segment.score, 4) if segment else None,
        "box": [round(side, 1) for side in found.detection.box],
    }


def _schema(arrow: Any) -> Any:
    text, numbers = arrow.string(), arrow.list_(arrow.float64())
    mask = arrow.struct([("size", arrow.list_(arrow.int64())), ("counts", text)])
    sample = arrow.struct(
        [
            ("id", text),
            ("image_id", text),
            ("category", text),
            ("sentences", arrow.list_(text)),
            ("bbox", numbers),
            ("mask", mask),
        ]
    )
    return arrow.schema(
        [
            ("image", arrow.struct([("bytes", arrow.binary()), ("path", text)])),
            ("image_id", text),
            ("file_name", text),
            ("samples", arrow.list_(sample)),
        ]
    )
