"""Opening the data set that a name, or a path, stands for."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, cast

from seg_env.data.base import Dataset
from seg_env.data.images import Stretch
from seg_env.data.readers.annotated_images import AnnotatedImages, images_of
from seg_env.data.readers.coco import Coco
from seg_env.data.readers.hub import Parquet
from seg_env.data.readers.jsonlines import JsonLines
from seg_env.data.readers.labelme import LabelMe
from seg_env.data.readers.reasonseg import ReasonSeg
from seg_env.data.readers.refer import DEFAULT_SPLIT_BY, GRefCoco, load_refer
from seg_env.data.records import OnError
from seg_env.data.scenes import Scenes

_OF_TABLES = ("split", "data_root", "exclude_images", "on_error", "stretch", "bands")
_OF_FILES = (*_OF_TABLES, "encoding")
_OF_REFER = (*_OF_FILES, "split_by", "image_root", "per_reference")
_READERS: dict[str, tuple[Callable[..., Dataset], tuple[str, ...]]] = {
    "scenes": (Scenes, ("split", "difficulty", "data_seed", "size", "negatives")),
    **{name: (partial(load_refer, name), _OF_REFER) for name in DEFAULT_SPLIT_BY},
    "grefcoco": (GRefCoco, _OF_REFER),
    "reasonseg": (ReasonSeg, (*_OF_FILES, "per_reference")),
    "coco": (Coco, (*_OF_FILES, "image_root", "per_annotation")),
    "labelme": (LabelMe, (*_OF_FILES, "per_annotation")),
    "parquet": (Parquet, (*_OF_TABLES, "image_root", "per_reference")),
    "jsonl": (JsonLines, (*_OF_FILES, "image_root")),
}
"""What opens each data set, and which arguments of `open_dataset` it takes."""
DATASET_NAMES = tuple(_READERS)
FILE_ENDINGS = {".jsonl": "jsonl", ".parquet": "parquet"}
"""What a path in place of a name is read as."""
HELD_OUT_SPLITS: dict[tuple[str, str], tuple[str, ...]] = {
    ("refcoco", "unc"): ("val", "testA", "testB"),
    ("refcoco", "google"): ("val", "test"),
    ("refcoco+", "unc"): ("val", "testA", "testB"),
    ("refcocog", "umd"): ("val", "test"),
    ("refcocog", "google"): ("val",),
    ("refclef", "unc"): ("val", "testA", "testB", "testC"),
    ("refclef", "berkeley"): ("val", "test"),
    ("grefcoco", "unc"): ("val", "testA", "testB"),
}
"""What is for evaluation, by data set and by who made the partition.

RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO are drawn from the same images of COCO and partition them
differently: a third of what one evaluates on, another trains on.
"""


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
    encoding: str | None = None,
    stretch: Stretch | None = None,
    bands: Sequence[int] | None = None,
    difficulty: str | None = None,
    data_seed: int | None = None,
    size: int | None = None,
    negatives: float | None = None,
) -> Dataset:
    """Build a data set from its name, or pass a ready one through.

    Arguments that are None take the default of the data set; one that does not apply is an error.

    Args:
        dataset: One of `DATASET_NAMES`, the path of a ``.jsonl`` or ``.parquet`` file, or a data
            set object; the object is used as it is.
        split: Part of the data set, mostly ``"train"`` by default.
        split_by: Whose split of RefCOCO: ``"unc"``, ``"google"``, ``"umd"``, ``"berkeley"``.
        data_root: Folder of a data set in files, by default what the variable ``SIMPLESEG_DATA``
            names. Without either, an embedded sample stands in for the RefCOCO family, see
            `seg_env.data.readers.refer.load_refer`. For ``"parquet"`` also an id on the hub.
        image_root: Folder of images, where it is not the usual one.
        per_reference: One sample for each reference instead of each sentence.
        per_annotation: One sample for each object instead of each category.
        exclude_images: Images to leave out, see `held_out_images`.
        on_error: ``"raise"`` or ``"skip"``, see `seg_env.data.records.OnError`.
        encoding: Of annotation files that are neither UTF-8 nor UTF-16, such as ``"gbk"``; without
            it they are an error.
        stretch: How images deeper than 8 bits become bytes, ``"full"`` or ``"percentiles"``, see
            `seg_env.data.images.Stretch`.
        bands: One or three bands, from 1, to read images by, see `seg_env.data.images.read_image`.
        difficulty: ``"easy"``, ``"medium"`` or ``"hard"`` scenes.
        data_seed: Seed of all scenes.
        size: Side of the square images of scenes in pixels.
        negatives: Share of the questions about scenes that ask for an object that is not there.

    Raises:
        ValueError: The name is unknown, or an argument does not apply to that data set.
        FileNotFoundError: A ``data_root`` was given and something is missing in it.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    given.pop("dataset", None)
    if not isinstance(dataset, str):
        _refuse_unused(given, (), "a data set object")
        return dataset
    kind = FILE_ENDINGS.get(Path(dataset).suffix, dataset)
    if kind not in _READERS:
        raise ValueError(
            f"{dataset=} is unknown; use one of {', '.join(DATASET_NAMES)}, the path of a "
            f"{' or '.join(FILE_ENDINGS)} file, or pass an object with __len__, __getitem__, name "
            "and split"
        )
    reader, taken = _READERS[kind]
    is_path = kind != dataset
    _refuse_unused(
        given, [name for name in taken if not (is_path and name == "data_root")], f"{dataset=}"
    )
    if is_path:
        given = {"split": Path(dataset).stem, **given, "data_root": dataset}
    if kind == "scenes":
        given["seed"] = given.pop("data_seed", 0)
    elif kind not in DEFAULT_SPLIT_BY:
        given.setdefault("data_root", os.environ.get("SIMPLESEG_DATA"))
        if not given["data_root"]:
            raise ValueError(f"{dataset=} needs data_root=, or the variable SIMPLESEG_DATA")
    return reader(**given)


def _refuse_unused(given: dict[str, Any], taken: Collection[str], what: str) -> None:
    """Refuse arguments that would be ignored silently."""
    others = [f"{name}={value!r}" for name, value in given.items() if name not in taken]
    if others:
        takes = f"; it takes {', '.join(taken)}" if taken else ", which is used as it is"
        raise ValueError(f"{', '.join(others)} cannot be used with {what}{takes}")


def held_out_images(
    dataset: str,
    splits: Collection[str] | None = None,
    *,
    data_root: str | PathLike[str],
    split_by: str | None = None,
) -> frozenset[str]:
    """The images that a data set on disk evaluates on, for another's ``exclude_images=``.

    Arguments are those of `open_dataset`; ``splits`` are by default those of `HELD_OUT_SPLITS`.

    Raises:
        FileNotFoundError: Something is missing in the folder.
        ValueError: The data set has no such split, or its splits have to be named.
    """
    if splits is None:
        splits = HELD_OUT_SPLITS.get((dataset, split_by or DEFAULT_SPLIT_BY.get(dataset, "unc")))
        if splits is None:
            raise ValueError(
                f"which splits of {dataset!r} ({split_by or 'default'}) are for evaluation is not "
                "known; name them by splits="
            )
    opened = (  # a generator: of each split only the names stay in memory
        open_dataset(dataset, split=split, split_by=split_by, data_root=data_root)
        for split in splits
    )
    return images_of(cast("AnnotatedImages[Any]", each) for each in opened)
