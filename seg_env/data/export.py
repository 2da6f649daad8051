"""Writing any data set as JSON lines, which `seg_env.data.readers.jsonlines.JsonLines` reads."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from seg_env.data.base import Dataset
from seg_env.data.readers.annotated_images import AnnotatedImages
from seg_env.geometry.drawing import as_png
from seg_env.geometry.rle import Rle
from seg_env.types import Sample, Target

TargetForm = Literal["rle", "rings", "mask"]
_UNREADABLE = re.compile(r"[:\\\x00-\x1f\ud800-\udfff]")
"""Characters of file names that `seg_env.data.records.Record.path` or UTF-8 does not take."""


def export_jsonlines(
    dataset: Dataset,
    folder: str | os.PathLike[str],
    *,
    form: TargetForm = "rle",
    others: bool = False,
    limit: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Path:
    """Write ``<split>.jsonl``, ``images/`` and, for masks, ``masks/`` into a folder.

    An image file is copied unchanged, once for all its questions; any other image, or one that is
    read turned by its EXIF data, is saved as PNG. Nothing in the folder is overwritten except the
    file of lines, whose path is returned; it gets its name once it is complete.

    Args:
        dataset: Any data set.
        folder: Where to write.
        form: Targets as run lengths, exact outlines or images; all read back as the same pixels.
        others: Also write the other objects of each image, where the data set knows them.
        limit: Number of samples, by default all.
        progress: Called with the number written so far and in all.

    Raises:
        ValueError: ``form`` is none of `TargetForm`, or a record of the data set is broken.
    """
    if form not in get_args(TargetForm):
        raise ValueError(f"form={form!r} is unknown; use one of {', '.join(get_args(TargetForm))}")
    root = Path(folder).expanduser()
    (root / "images").mkdir(parents=True, exist_ok=True)
    count = len(dataset) if limit is None else min(limit, len(dataset))
    path = root / f"{dataset.split}.jsonl"
    unfinished = path.with_suffix(".jsonl.part")
    copied: dict[Path, str] = {}
    # Lone surrogates, which a JSON file may hold, go out as they came in: ``\ud800``.
    with unfinished.open("w", encoding="utf-8", errors="backslashreplace") as stream:
        for index in range(count):
            sample = dataset[index]
            record: dict[str, Any] = {
                "id": sample.id,
                "image": _write_image(dataset, index, sample, root, copied),
                "expression": sample.expression,
                **besides_the_mask(sample.target),
                form: _encode_target(sample.target, form, root, f"{dataset.split}-{index}"),
            }
            if others and hasattr(dataset, "others"):
                record["others"] = [run_lengths(other.rle) for other in dataset.others(index)]
            if sample.metadata:
                record["metadata"] = dict(sample.metadata)
            stream.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
            if progress is not None:
                progress(index + 1, count)
    os.replace(unfinished, path)
    return path


def run_lengths(rle: Rle) -> dict[str, Any]:
    """COCO's compressed form of a mask, ready for JSON."""
    return {"size": list(rle.size), "counts": rle.to_string().decode("ascii")}


def besides_the_mask(target: Target) -> dict[str, Any]:
    """The fields of a target other than its mask: size, annotated box and void pixels."""
    said: dict[str, Any] = {"size": list(target.size)}
    if target.box is not None:
        said["box"] = list(target.box)
    if target.ignore is not None:
        said["ignore"] = run_lengths(target.ignore)
    return said


def _encode_target(target: Target, form: TargetForm, root: Path, name: str) -> Any:
    if form == "rle":
        return run_lengths(target.rle)
    if form == "rings":
        return [ring.tolist() for ring in target.rings]
    return _store(root, "masks", f"{name}.png", as_png(target.mask().astype(np.uint8) * 255))


def _write_image(
    dataset: Dataset, index: int, sample: Sample, root: Path, copied: dict[Path, str]
) -> str:
    """Copy or save the image; returns its path relative to the root."""
    source: Path | None = dataset.image_path(index) if hasattr(dataset, "image_path") else None
    if source is None:
        return _store(root, "images", f"{dataset.split}-{index}.png", as_png(sample.image))
    if source not in copied:
        if isinstance(dataset, AnnotatedImages) and dataset.is_turned(index):
            name, data = f"{source.stem}.png", as_png(sample.image)
        else:
            name, data = source.name, source.read_bytes()
        copied[source] = _store(root, "images", name, data)
    return copied[source]


def _store(root: Path, folder: str, name: str, data: bytes) -> str:
    """Write a file unless it is there; returns its path relative to the root.

    If a different file has its name, from this data set or an earlier one, a hash of the content is
    added to the name: equal files are stored once, different ones never collide.
    """
    (root / folder).mkdir(exist_ok=True)
    place = f"{folder}/{_UNREADABLE.sub('_', name)}"  # lines that name such files are refused
    if (root / place).exists() and (root / place).read_bytes() != data:
        stem, dot, ending = place.rpartition(".")
        stem = stem.encode()[:150].decode("utf-8", "ignore")
        place = f"{stem}-{hashlib.sha256(data).hexdigest()[:16]}{dot}{ending}"
    (root / place).write_bytes(data)
    return place
