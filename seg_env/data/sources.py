"""Opening the data set that a name, or a path, stands for."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, cast

from seg_env.data.base import Dataset
from seg_env.data.faults import OnError

REFER_NAMES = ("refcoco", "refcoco+", "refcocog", "refclef")
FILE_NAMES = ("grefcoco", "reasonseg", "coco", "labelme", "parquet", "jsonl")
DATASET_NAMES = ("scenes", *REFER_NAMES, *FILE_NAMES)
"""Names that `open_dataset` knows."""

FILE_ENDINGS = {".jsonl": "jsonl", ".parquet": "parquet"}
"""What a path in place of a name is read as."""


def open_dataset(
    dataset: str | Dataset,
    *,
    split: str | None = None,
    split_by: str | None = None,
    data_root: str | PathLike[str] | None = None,
    image_root: str | PathLike[str] | None = None,
    per_reference: bool | None = None,
    per_annotation: bool | None = None,
    exclude_images: Collection[str | int] | None = None,
    on_error: OnError | None = None,
    difficulty: str | None = None,
    data_seed: int | None = None,
    size: int | None = None,
    negatives: float | None = None,
) -> Dataset:
    """Build a data set from its name, or pass a ready one through.

    Arguments that are None take the default of the data set. One that does not apply to it is an
    error, for it would be ignored silently.

    Args:
        dataset: One of `DATASET_NAMES`, the path of a ``.jsonl`` or ``.parquet`` file, or a data
            set object; the object is used as it is.
        split: Part of the data set, mostly ``"train"`` by default.
        split_by: Whose split of a RefCOCO data set: ``"unc"``, ``"google"``, ``"umd"``,
            ``"berkeley"``.
        data_root: Folder of a data set in files, by default what the variable ``SIMPLESEG_DATA``
            names. Without either, an embedded sample stands in for the RefCOCO family, see
            `seg_env.data.readers.refer.load_refer`. For ``"parquet"`` also an id on the hub.
        image_root: Folder of pictures, where it is not the usual one.
        per_reference: One sample for each reference instead of each sentence.
        per_annotation: One sample for each object instead of each category.
        exclude_images: Pictures to leave out, see `seg_env.data.leakage`.
        on_error: ``"raise"`` or ``"skip"``, see `seg_env.data.faults.OnError`.
        difficulty: Of scenes: ``"easy"``, ``"medium"`` or ``"hard"``.
        data_seed: Of scenes: the number that all of them depend on.
        size: Of scenes: side of the square pictures in pixels.
        negatives: Of scenes: share of questions about an object that is not there.

    Raises:
        ValueError: The name is unknown, or an argument does not apply to that data set.
        FileNotFoundError: A ``data_root`` was given and something is missing in it.
    """
    of_scenes = {
        "difficulty": difficulty,
        "data_seed": data_seed,
        "size": size,
        "negatives": negatives,
    }
    of_files = {
        "split_by": split_by,
        "data_root": data_root,
        "image_root": image_root,
        "per_reference": per_reference,
        "per_annotation": per_annotation,
        "exclude_images": exclude_images,
        "on_error": on_error,
    }
    if not isinstance(dataset, str):
        _reject({"split": split, **of_files, **of_scenes}, "a data set object", "the object itself")
        return dataset
    if dataset == "scenes":
        _reject(of_files, "dataset='scenes'", "a data set in files, such as RefCOCO")
        return _open_scenes(split or "train", of_scenes)
    _reject(of_scenes, f"dataset={dataset!r}", "the Scenes environment")
    given: dict[str, Any] = {name: each for name, each in of_files.items() if each is not None}
    if split is not None:
        given["split"] = split
    if dataset in REFER_NAMES:
        _reject({"per_annotation": per_annotation}, f"dataset={dataset!r}", "'coco' and 'labelme'")
        # Loaders are imported when needed: most runs use one of them.
        from seg_env.data.readers.refer import load_refer

        return load_refer(dataset, **given)
    return _open_files(dataset, given)


def _open_scenes(split: str, given: Mapping[str, object]) -> Dataset:
    from seg_env.data.scenes import Scenes

    names = {"data_seed": "seed"}
    chosen: dict[str, Any] = {
        names.get(name, name): value for name, value in given.items() if value is not None
    }
    # Scenes checks its arguments itself, and says which splits and difficulties there are.
    return cast("Dataset", Scenes(split=cast("Any", split), **chosen))


def _open_files(dataset: str, given: dict[str, Any]) -> Dataset:
    """Open a data set that lies in files, by name or by path."""
    kind = FILE_ENDINGS.get(Path(dataset).suffix)
    if kind is not None:
        _reject({"data_root": given.get("data_root")}, f"dataset={dataset!r}", "a name")
        given["data_root"] = dataset
        given.setdefault("split", Path(dataset).stem)
    elif dataset not in FILE_NAMES:
        raise ValueError(
            f"dataset={dataset!r} is unknown; use one of {', '.join(DATASET_NAMES)}, the path of a "
            f"{' or '.join(FILE_ENDINGS)} file, or pass an object with __len__, __getitem__, name "
            "and split"
        )
    given.setdefault("data_root", os.environ.get("SIMPLESEG_DATA"))
    if not given["data_root"]:
        raise ValueError(f"dataset={dataset!r} needs data_root=, or the variable SIMPLESEG_DATA")
    loader, options = _loader(kind or dataset)
    unknown = {name: value for name, value in given.items() if name not in options}
    _reject(unknown, f"dataset={dataset!r}", "another data set")
    return cast("Dataset", loader(**given))


def _loader(kind: str) -> tuple[Any, tuple[str, ...]]:
    """A class of data sets and the arguments that it has."""
    common = ("data_root", "split", "exclude_images", "on_error")
    match kind:
        case "grefcoco":
            from seg_env.data.readers.grefcoco import GRefCoco

            return GRefCoco, (*common, "split_by", "image_root", "per_reference")
        case "reasonseg":
            from seg_env.data.readers.reasonseg import ReasonSeg

            return ReasonSeg, (*common, "per_reference")
        case "coco":
            from seg_env.data.readers.coco import Coco

            return Coco, (*common, "image_root", "per_annotation")
        case "labelme":
            from seg_env.data.readers.labelme import LabelMe

            return LabelMe, (*common, "per_annotation")
        case "parquet":
            from seg_env.data.readers.hub import Parquet

            return Parquet, (*common, "image_root", "per_reference")
        case _:
            from seg_env.data.readers.jsonlines import JsonLines

            return JsonLines, (*common, "image_root")


def _reject(arguments: Mapping[str, object], what: str, where: str) -> None:
    """Refuse arguments that would be ignored silently."""
    given = [f"{name}={value!r}" for name, value in arguments.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)} cannot be used with {what}; it belongs to {where}")
