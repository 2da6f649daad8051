"""Small JSON files, one for each picture, as LabelMe and ReasonSeg have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seg_env.data.faults import RecordError
from seg_env.data.images import SUFFIXES
from seg_env.data.readers.instances import describe

MAX_BYTES = 1 << 28
"""Largest file that is read; LabelMe may keep the picture itself in it."""


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object, in UTF-8 or, as a few of ReasonSeg's files are, in Windows-1252.

    Raises:
        FileNotFoundError: There is no such file.
        RecordError: It is too large, truncated, or something else; names the file.
    """
    if path.stat().st_size > MAX_BYTES:
        raise RecordError(f"{path} has more than {MAX_BYTES} bytes, which is not read")
    data = path.read_bytes()
    try:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252")
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise RecordError(f"{path}: expected an object {{...}}, got {describe(record)}")
    return record


def shapes_of(record: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """The entries of ``shapes``, each with a ``label`` that is a string.

    Raises:
        RecordError: There is no such list; names file and entry.
    """
    shapes = record.get("shapes")
    if not isinstance(shapes, list):
        raise RecordError(f"{path}: 'shapes' must be a list, got {describe(shapes)}")
    for number, shape in enumerate(shapes):
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
            raise RecordError(f"{path}: shape {number} must be an object with a 'label'")
    return shapes


def points_of(shape: dict[str, Any], where: str) -> NDArray[np.float64]:
    """``(V, 2)`` the ``points`` of a shape, in pixels.

    Raises:
        RecordError: They are not a list of pairs of finite numbers; starts with ``where``.
    """
    listed = shape.get("points")
    try:
        points = np.array(listed, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.zeros(0)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise RecordError(f"{where}: 'points' must be a list of finite pairs [x, y]")
    return points


def split_folder(root: Path, split: str, names: tuple[str, ...] = ("",)) -> Path:
    """The folder of a split: ``<root>/<name>/<split>`` for the first of ``names`` that has it.

    Raises:
        FileNotFoundError: None has; says where it was looked for.
    """
    folders = [root / name / split for name in names]
    for folder in folders:
        if folder.is_dir():
            return folder
    looked = ", ".join(str(folder) for folder in folders)
    raise FileNotFoundError(f"there is no folder of the split {split!r}; looked for {looked}")


def photo_beside(path: Path) -> Path:
    """The picture of the same name as an annotation file; one that is missing if there is none."""
    for suffix in SUFFIXES:
        for candidate in (path.with_suffix(suffix), path.with_suffix(suffix.upper())):
            if candidate.is_file():
                return candidate
    return path.with_suffix(SUFFIXES[0])
