"""Keeping pictures of one data set's evaluation out of another's training.

RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO are drawn from the same pictures of COCO and partition them
differently: a third of what one evaluates on, another trains on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath
from typing import Protocol, cast

from seg_env.data.readers.refer_layout import default_split_by

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
"""What is for evaluation, by data set and by who made the partition."""

_COCO_NAME = re.compile(r"(?:coco_(?:train|val|test)\d{4}_)?(\d{12})(?:_\d+)?")


class HasImageNames(Protocol):
    """A data set that can list the files of its pictures."""

    def image_names(self) -> frozenset[str]:
        """Names of the files of all pictures."""
        ...


def image_key(name: str | int) -> str:
    """What two names of one picture have in common: the file's name without folder and ending.

    Of COCO's names only the number is left: ``COCO_train2014_000000581857.jpg``, the same with an
    object's number behind (as the files of references are named), ``000000581857.jpg`` of 2017, and
    the image id ``581857`` itself are one picture.
    """
    if isinstance(name, int):
        return str(name)
    stem = PurePosixPath(name.replace("\\", "/")).stem.casefold()
    match = _COCO_NAME.fullmatch(stem)
    return str(int(match[1])) if match else stem


def keys_of(images: Collection[str | int]) -> frozenset[str]:
    """The keys of some names of files and image ids."""
    return frozenset(image_key(image) for image in images)


def images_of(datasets: Iterable[HasImageNames]) -> frozenset[str]:
    """The keys of all pictures of some data sets, for ``exclude_images=``."""
    return frozenset(image_key(name) for each in datasets for name in each.image_names())


def held_out_images(
    dataset: str,
    splits: Collection[str] | None = None,
    *,
    data_root: str | os.PathLike[str],
    split_by: str | None = None,
) -> frozenset[str]:
    """The pictures that a data set on disk evaluates on, for another's ``exclude_images=``.

    Args:
        dataset: A name that `seg_env.data.sources.open_dataset` knows.
        splits: Which splits to collect; by default those of `HELD_OUT_SPLITS`.
        data_root: Its folder.
        split_by: Whose split, for the RefCOCO family.

    Raises:
        FileNotFoundError: Something is missing in the folder.
        ValueError: The data set has no such split, or its splits have to be named.
    """
    from seg_env.data.sources import open_dataset

    if splits is None:
        splits = HELD_OUT_SPLITS.get((dataset, split_by or default_split_by(dataset)))
        if splits is None:
            raise ValueError(
                f"which splits of {dataset!r} ({split_by or 'default'}) are for evaluation is not "
                "known; name them by splits="
            )
    # A generator: of each split only the names stay in memory.
    opened = (
        open_dataset(dataset, split=split, split_by=split_by, data_root=data_root)
        for split in splits
    )
    return images_of(cast("Iterable[HasImageNames]", opened))
