"""Opening the data set that an environment's arguments name."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, cast

from seg_env.data.base import Dataset

DATASET_NAMES = ("scenes", "refcoco", "refcoco+", "refcocog", "refclef")


def open_dataset(
    dataset: str | Dataset,
    *,
    split: str | None = None,
    split_by: str | None = None,
    data_root: str | PathLike[str] | None = None,
    difficulty: str | None = None,
    data_seed: int | None = None,
    size: int | None = None,
) -> Dataset:
    """Build a data set from its name, or pass a ready one through.

    Args:
        dataset: One of `DATASET_NAMES`, or a data set object; the object is used as it is.
        split: Part of the data set, ``"train"`` by default.
        split_by: Whose split of a RefCOCO data set: ``"unc"``, ``"google"``, ``"umd"``,
            ``"berkeley"``.
        data_root: Folder of a RefCOCO data set.
        difficulty: Of scenes: ``"easy"``, ``"medium"`` or ``"hard"``.
        data_seed: Of scenes: the number that all of them depend on.
        size: Of scenes: side of the square pictures in pixels.

    Raises:
        ValueError: The name is unknown, or an argument does not apply to that data set.
        FileNotFoundError: A ``data_root`` was given and something is missing in it.
    """
    of_refer = {"split_by": split_by, "data_root": data_root}
    of_scenes = {"difficulty": difficulty, "data_seed": data_seed, "size": size}
    if not isinstance(dataset, str):
        _reject({"split": split, **of_refer, **of_scenes}, "a data set object", "the object itself")
        return dataset
    if dataset not in DATASET_NAMES:
        raise ValueError(
            f"dataset={dataset!r} is unknown; use one of {', '.join(DATASET_NAMES)}, or pass an "
            f"object with __len__, __getitem__, name and split"
        )
    if dataset == "scenes":
        _reject(of_refer, "dataset='scenes'", "a RefCOCO environment")
        return _open_scenes(split or "train", difficulty, data_seed, size)
    _reject(of_scenes, f"dataset={dataset!r}", "the Scenes environment")
    # Loaders are imported when needed: most runs use one of them.
    from seg_env.data.refer import load_refer

    return load_refer(dataset, split or "train", split_by, data_root)


def _open_scenes(
    split: str, difficulty: str | None, data_seed: int | None, size: int | None
) -> Dataset:
    from seg_env.data.scenes import Scenes

    given = {"difficulty": difficulty, "seed": data_seed, "size": size}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    # Scenes checks its arguments itself, and says which splits and difficulties there are.
    return cast("Dataset", Scenes(split=cast("Any", split), **chosen))


def _reject(arguments: Mapping[str, object], what: str, where: str) -> None:
    """Refuse arguments that would be ignored silently."""
    given = [f"{name}={value!r}" for name, value in arguments.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)} cannot be used with {what}; it belongs to {where}")
