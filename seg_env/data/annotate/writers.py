"""Writing annotated images in the forms that the data sets of this project read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from seg_env.data.annotate.describing import clean_text
from seg_env.data.annotate.job import Job
from seg_env.data.annotate.stages import Found
from seg_env.data.annotate.tally import Tally
from seg_env.data.export import run_lengths
from seg_env.geometry.overlap import iou_batch
from seg_env.grammar import decode, encode

Annotated = tuple[str, Sequence[Found]]
"""A name that no other image of the run has, and the objects of the image, at least one."""


def write_json_lines(folder: Path, job: Job, images: Iterator[Annotated], tally: Tally) -> None:
    """Write lines as `seg_env.data.readers.jsonlines.JsonLines` reads them, images beside them."""
    (folder / "images").mkdir()
    with (folder / f"{job.split}.jsonl").open("w", encoding="utf-8") as file:
        for name, objects in images:
            image = objects[0].image
            with tally.timed("write"):
                # Readers tell images apart by their file names, whatever the folder.
                place = f"images/{name}{image.suffix}"
                (folder / place).write_bytes(image.data)
                for k, found in enumerate(objects):
                    outline, outline_iou = _write_outline(found, job, tally)
                    rle = found.target.rle
                    record = {
                        "id": f"{name}-{k}",
                        "image": place,
                        "expression": found.expression,
                        "size": list(image.size),
                        job.form: run_lengths(rle) if job.form == "rle" else json.loads(outline),
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
                    file.write(to_line(record))


def to_line(record: dict[str, Any]) -> str:
    """A record as a line of JSON."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"


EXAMPLE_ROW = {
    "image": {"bytes": b"", "path": ""},
    "image_id": "",
    "file_name": "",
    "samples": [
        {
            "id": "",
            "image_id": "",
            "category": "",
            "sentences": [""],
            "bbox": [0.0],
            "mask": {"size": [0], "counts": ""},
        }
    ],
}
"""A row with the types of the columns."""


def write_parquet(folder: Path, job: Job, images: Iterator[Annotated], tally: Tally) -> None:
    """Write rows as `Parquet` reads them (``moondream/refcoco-m``), with exact masks."""
    import pyarrow as arrow
    from pyarrow.parquet import ParquetWriter

    schema = arrow.Table.from_pylist([EXAMPLE_ROW]).schema
    path = folder / f"{job.split}.parquet"
    with ParquetWriter(path, schema) as file:
        while group := list(islice(images, 32)):
            with tally.timed("write"):
                rows = [_row(*each, job, tally) for each in group]
                file.write_table(arrow.Table.from_pylist(rows, schema=schema))


def _row(name: str, objects: Sequence[Found], job: Job, tally: Tally) -> dict[str, Any]:
    image = objects[0].image
    key = clean_text(image.key)
    samples = []
    for k, found in enumerate(objects):
        _write_outline(found, job, tally)
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
    file_name = f"{name}{image.suffix}"
    return {
        "image": {"bytes": image.data, "path": file_name},
        "image_id": key,
        "file_name": file_name,
        "samples": samples,
    }


def _write_outline(found: Found, job: Job, tally: Tally) -> tuple[str, float]:
    """Count a record; returns its outline as text, and the IoU of this text with its mask."""
    rle = found.target.rle
    text = encode(found.target.outline(job.epsilon), job.decimals)
    rings = decode(text).rings
    outline_iou = float(iou_batch([rings], rle)[0])
    tally.objects["written"] += 1
    tally.observe("area", rle.area / (rle.size[0] * rle.size[1]))
    tally.observe("score", found.detection.score)
    tally.observe("outline_iou", outline_iou)
    tally.observe("vertices", sum(map(len, rings)))
    tally.observe("words", len(found.expression.split()))
    return text, round(outline_iou, 4)
