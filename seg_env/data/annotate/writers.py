"""Writing annotated images in the forms that the data sets of this project read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seg_env.data.annotate.describing import clean_text
from seg_env.data.annotate.job import Job, Tally
from seg_env.data.annotate.stages import DecodedImage, Found
from seg_env.data.export import run_lengths
from seg_env.data.readers.hub import require
from seg_env.geometry.overlap import iou_batch
from seg_env.grammar import decode, encode


class _Writer:
    """Writes the records of a shard into an empty folder; names start with the shard's."""

    def __init__(self, folder: Path, job: Job, shard: str, tally: Tally) -> None:
        self._folder, self._job, self._shard, self._tally = folder, job, shard, tally

    def write(self, number: int, image: DecodedImage, objects: Sequence[Found]) -> None:
        """Write the objects of the image at a place in the shard."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def _outline(self, found: Found) -> tuple[str, float]:
        """Count a record; returns its outline as text, and the IoU of that with its mask."""
        tally, rle = self._tally, found.target.rle
        text = encode(found.target.outline(self._job.epsilon), self._job.decimals)
        rings = decode(text).rings
        outline_iou = float(iou_batch([rings], rle)[0])
        tally.written += 1
        tally.observe("area", rle.area / (rle.size[0] * rle.size[1]))
        tally.observe("score", found.detection.score)
        tally.observe("outline_iou", outline_iou)
        tally.observe("vertices", sum(map(len, rings)))
        tally.observe("words", len(found.expression.split()))
        return text, round(outline_iou, 4)


class _JsonLinesWriter(_Writer):
    """Lines as `seg_env.data.readers.jsonlines.JsonLines` reads them, and images beside them."""

    def __init__(self, folder: Path, job: Job, shard: str, tally: Tally) -> None:
        super().__init__(folder, job, shard, tally)
        (folder / "images").mkdir()
        self._file = (folder / f"{job.split}.jsonl").open("w", encoding="utf-8")

    def write(self, number: int, image: DecodedImage, objects: Sequence[Found]) -> None:
        # Readers tell images apart by the names of files, whatever folder these are in.
        name = f"{self._shard}-{number:06d}"
        place = f"images/{name}{image.suffix}"
        (self._folder / place).write_bytes(image.data)
        for k, found in enumerate(objects):
            text, outline_iou = self._outline(found)
            exact = self._job.form == "rle"
            mask = {"rle": run_lengths(found.target.rle)} if exact else {"rings": json.loads(text)}
            record = {
                "id": f"{name}-{k}",
                "image": place,
                "expression": found.expression,
                "size": list(image.size),
                **mask,
                "metadata": {
                    **image.metadata,
                    "key": clean_text(image.key),
                    "label": clean_text(found.detection.label),
                    "score": round(found.detection.score, 4),
                    "mask_score": round(found.segment.score, 4) if found.segment else None,
                    "box": [round(side, 1) for side in found.detection.box],
                    "outline_iou": outline_iou,
                },
            }
            line = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            self._file.write(line + "\n")

    def close(self) -> None:
        self._file.close()


class _ParquetWriter(_Writer):
    """Rows as `Parquet` reads them (``moondream/refcoco-m``), exact masks."""

    def __init__(self, folder: Path, job: Job, shard: str, tally: Tally) -> None:
        super().__init__(folder, job, shard, tally)
        arrow = require("pyarrow")
        text = arrow.string()
        mask = arrow.struct([("size", arrow.list_(arrow.int64())), ("counts", text)])
        sample = arrow.struct(
            [
                ("id", text),
                ("image_id", text),
                ("category", text),
                ("sentences", arrow.list_(text)),
                ("bbox", arrow.list_(arrow.float64())),
                ("mask", mask),
            ]
        )
        self._schema = arrow.schema(
            [
                ("image", arrow.struct([("bytes", arrow.binary()), ("path", text)])),
                ("image_id", text),
                ("file_name", text),
                ("samples", arrow.list_(sample)),
            ]
        )
        self._table = arrow.Table
        self._rows: list[dict[str, Any]] = []
        path = folder / f"{job.split}.parquet"
        self._file = require("pyarrow.parquet").ParquetWriter(path, self._schema)

    def write(self, number: int, image: DecodedImage, objects: Sequence[Found]) -> None:
        name, key = f"{self._shard}-{number:06d}", clean_text(image.key)
        samples = []
        for k, found in enumerate(objects):
            self._outline(found)
            x0, y0, x1, y1 = found.target.rle.bbox
            samples.append(
                {
                    "id": f"{name}-{k}",
                    "image_id": key,
                    "category": clean_text(found.detection.label),
                    "sentences": [found.expression],
                    "bbox": [float(value) for value in (x0, y0, x1 - x0, y1 - y0)],
                    "mask": run_lengths(found.target.rle),
                }
            )
        encoded = {"bytes": image.data, "path": f"{name}{image.suffix}"}
        self._rows.append(
            {"image": encoded, "image_id": key, "file_name": encoded["path"], "samples": samples}
        )
        if len(self._rows) == 32:  # a row group
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._file.write_table(self._table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def close(self) -> None:
        self._flush()
        self._file.close()


WRITERS: dict[str, type[_Writer]] = {"jsonl": _JsonLinesWriter, "parquet": _ParquetWriter}
"""Writers by container."""
