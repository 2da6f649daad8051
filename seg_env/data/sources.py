"""Opening data sets by name or path."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Collection, Sequence
from functools import partial
from importlib import import_module
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast

from seg_env.data.base import Dataset
from seg_env.data.rasters import Stretch
from seg_env.data.readers.annotated_images import AnnotatedImages, image_key, images_of
from seg_env.data.readers.coco import Coco
from seg_env.data.readers.hub import Parquet
from seg_env.data.readers.jsonlines import JsonLines
from seg_env.data.readers.labelme import LabelMe
from seg_env.data.readers.masks import Masks
from seg_env.data.readers.reasonseg import ReasonSeg
from seg_env.data.readers.refer import DEFAULT_SPLIT_BY, GRefCoco, load_refer
from seg_env.data.readers.yolo import Yolo, read_config
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
    "yolo": (Yolo, (*_OF_FILES, "per_annotation")),
    "masks": (Masks, _OF_FILES),
    "parquet": (Parquet, (*_OF_TABLES, "image_root", "per_reference")),
    "jsonl": (JsonLines, (*_OF_FILES, "image_root")),
}
"""The reader of each data set, and the arguments of `open_dataset` that it takes."""
DATASET_NAMES = tuple(_READERS)
FILE_ENDINGS = {
    ".jsonl": "jsonl",
    ".parquet": "parquet",
    ".json": "coco",
    ".yaml": "yolo",
    ".yml": "yolo",
}
"""The data set that reads a file, by its ending, if a path is given instead of a name."""
LAYOUTS: dict[str, tuple[str, ...]] = {
    "yolo": ("*.yaml", "*.yml", "classes.txt", "labels"),
    "jsonl": ("{}.jsonl",),
    "parquet": ("data/{}-*.parquet", "{}-*.parquet", "{}.parquet", "default/{}/*.parquet"),
    "masks": ("masks", "*/masks"),
    "coco": (
        *("annotations/instances_{}.json", "instances_{}.json", "annotations/{}.json"),
        *("{}.json", "{}/_annotations.coco.json"),
    ),
    "labelme": ("{}/*.json", "*.json", "*/**/*.json"),
}
"""Files by which a folder is recognised: the first match decides, and ``{}`` is any split."""
_PYTHON_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
Part = Literal["train", "held-out"]
"""Nine tenths of the images of data that have no splits, or the other tenth."""
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
"""The splits for evaluation, by data set and by who made the partition.

RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO are drawn from the same images of COCO and partition them
differently: a third of the images that one evaluates on, another trains on.
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
    part: Part | None = None,
    difficulty: str | None = None,
    data_seed: int | None = None,
    size: int | None = None,
    negatives: float | None = None,
) -> Dataset:
    """Build a data set from its name, or pass a ready one through.

    Arguments that are None take the default of the data set; one that does not apply is an error.

    Args:
        dataset: One of `DATASET_NAMES`; a file (see `FILE_ENDINGS`) or a folder (see `LAYOUTS`); an
            id on the hub, ``"moondream/refcoco-m"``; a function in Python, ``"my_pkg.data:make"``,
            which is called with the other arguments given and returns a data set; or a data set
            object, which is used as it is.
        split: Part of the data set, mostly ``"train"`` by default.
        split_by: Whose split of RefCOCO: ``"unc"``, ``"google"``, ``"umd"``, ``"berkeley"``.
        data_root: Folder of a data set in files, by default that of the variable
            ``SIMPLESEG_DATA``. Without either, an embedded sample stands in for the RefCOCO family,
            see `seg_env.data.readers.refer.load_refer`. For ``"parquet"`` also an id on the hub.
        image_root: Folder of images, where it is not the usual one.
        per_reference: One sample for each reference instead of each sentence.
        per_annotation: One sample for each object instead of each category.
        exclude_images: Images to leave out, see `held_out_images`.
        on_error: ``"raise"`` or ``"skip"``, see `seg_env.data.records.OnError`.
        encoding: Of annotation files that are neither UTF-8 nor UTF-16, such as ``"gbk"``; without
            it they are an error.
        stretch: How images deeper than 8 bits become bytes, ``"full"`` or ``"percentiles"``, see
            `seg_env.data.rasters.Stretch`.
        bands: One or three bands to read from images, counted from 1, see
            `seg_env.data.images.read_image`.
        part: Only nine tenths of the images, or only the other tenth, for data that have no splits;
            which images those are follows from their names.
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
    given.pop("part", None)
    if names_code(dataset):
        return take_part(_call(dataset, given), part)
    kind = kind_of(dataset)
    reader, taken = _READERS[kind]
    is_path = kind != dataset
    _refuse_unused(
        given, [name for name in taken if not (is_path and name == "data_root")], f"{dataset=}"
    )
    if is_path:
        if Path(dataset).is_file():
            given = {"split": Path(dataset).stem, **given}
        given["data_root"] = dataset
    if kind == "scenes":
        given["seed"] = given.pop("data_seed", 0)
    elif kind not in DEFAULT_SPLIT_BY:
        given.setdefault("data_root", os.environ.get("SIMPLESEG_DATA"))
        if not given["data_root"]:
            raise ValueError(f"{dataset=} needs data_root=, or the variable SIMPLESEG_DATA")
    return take_part(reader(**given), part)


def kind_of(dataset: str) -> str:
    """Which of `DATASET_NAMES` reads a name or a path.

    Raises:
        FileNotFoundError: It is a path, and nothing is there.
        ValueError: None of them does.
    """
    path = Path(dataset).expanduser()
    if dataset in _READERS:
        return dataset
    if path.suffix in FILE_ENDINGS and not path.is_dir():
        return FILE_ENDINGS[path.suffix]
    if path.is_dir():
        for name in (*DEFAULT_SPLIT_BY, "grefcoco"):
            if (path / name / "instances.json").is_file():
                raise ValueError(
                    f"{dataset} has RefCOCO's layout: name the data set {name}, and this folder as "
                    f"its data_root (--dataset {name} --data-root {dataset})"
                )
        for kind, patterns in LAYOUTS.items():
            files = (file for each in patterns for file in path.glob(each.format("*")))
            if (found := next(files, None)) and not (kind == "coco" and _is_labelme(found)):
                return kind
        raise ValueError(
            f"{dataset} has no layout that is known ({', '.join(LAYOUTS)}); docs/own_data.md shows "
            "them"
        )
    if path.exists():
        raise ValueError(f"{dataset} is no {', '.join(FILE_ENDINGS)} file and no folder")
    if dataset.startswith((".", "/", "~")) or dataset.count("/") > 1:
        raise FileNotFoundError(f"there is no {dataset}")
    if "/" in dataset:
        return "parquet"
    raise ValueError(
        f"{dataset=} is unknown, and no file or folder here; use one of "
        f"{', '.join(DATASET_NAMES)}, the path of a folder or of a {', '.join(FILE_ENDINGS)} file, "
        "an id on the hub, a function 'my_pkg.data:make', or pass an object "
        "with __len__, __getitem__, name and split"
    )


def _is_labelme(path: Path) -> bool:
    """Whether a file of JSON begins as LabelMe writes it."""
    with path.open("rb") as stream:
        return b'"shapes"' in stream.read(4096)


def names_code(dataset: str) -> bool:
    """Whether a name stands for a function in Python, which is called to open the data."""
    return _PYTHON_PATH.fullmatch(dataset) is not None


def has_split(dataset: str, split: str) -> bool:
    """Whether data have a split apart from the rest; names other than paths are assumed to."""
    root = Path(dataset).expanduser()
    if names_code(dataset) or dataset in _READERS or not root.exists():
        return True
    kind, folders = kind_of(dataset), [f"images/{split}", f"{split}/images"]
    if kind == "yolo":
        root, _, stated = read_config(root, split)
        return any((root / place).is_dir() for place in (*stated, *folders))
    if root.is_file():
        return False
    patterns = {"masks": folders, "labelme": [split]}.get(kind)
    patterns = patterns or [each.format(split) for each in LAYOUTS[kind] if "{}" in each]
    return any(next(root.glob(each), None) for each in patterns)


def take_part(dataset: Dataset, part: Part | None) -> Dataset:
    """Keep a part of the images, see `Part`; the same image is always in the same part.

    Raises:
        ValueError: There are fewer than two images.
    """
    if part is None:
        return dataset
    if not isinstance(dataset, AnnotatedImages):
        raise ValueError(f"{part=} is of images in files; {dataset.name!r} makes its own splits")
    images = {image_key(name) for name in dataset.image_names()}
    ordered = sorted(images, key=lambda name: (zlib.crc32(name.encode()), name))
    if len(ordered) < 2:
        raise ValueError(f"{dataset.name!r} has {len(ordered)} image; two parts need two or more")
    held_out = set(ordered[: max(1, len(ordered) // 10)])
    dataset.keep_images(held_out if part == "held-out" else images - held_out)
    dataset.split += f", {part} images"
    return dataset


def _call(path: str, given: dict[str, Any]) -> Dataset:
    """The data set that a function makes."""
    module, _, name = path.partition(":")
    try:
        make = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"dataset={path!r}: {error}; its folder must be on PYTHONPATH") from error
    taken = signature(make).parameters
    if not any(each.kind is each.VAR_KEYWORD for each in taken.values()):
        if "on_error" not in taken:
            given.pop("on_error", None)
        _refuse_unused(given, taken, f"dataset={path!r}")
    made = make(**given)
    if not isinstance(made, Dataset):
        raise ValueError(
            f"dataset={path!r} returned {type(made).__name__}; it must return an object with "
            "__len__, __getitem__, name and split"
        )
    return made


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
