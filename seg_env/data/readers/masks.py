"""A folder of images beside a folder of masks."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np

from seg_env.data.folders import counterpart, image_folder, images_in
from seg_env.data.images import read_classes
from seg_env.data.readers.annotated_images import AnnotatedImages, Entry, Options
from seg_env.data.records import Fault, Record, RecordError, located, read_text
from seg_env.geometry.rle import Rle
from seg_env.types import Target

VOID = 255
"""The value of void pixels in masks of several classes, unless it is given a name."""


class Masks(AnnotatedImages[tuple[str, int]]):
    """Images beside masks of their size: one sample for each image and class in it.

    On disk::

        <data_root>/
          names.txt             1 cat
          images/train/0.jpg    or train/images/0.jpg, or images/0.jpg if there are no splits
          masks/train/0.png     one channel of .png, .tif or .bmp: 0 where there is nothing

    ``names.txt`` has a value and its name on each line; ``names.json`` maps them. If it has one
    name, or there is none, masks are binary: all that is not 0 is the object, which is asked for by
    that name, or as "the object". With several names, 255 is void if it has no name, and counts
    neither for nor against an answer; other values without a name are an error.

    Masks are drawn on the image as EXIF data turn it; if their size fits only the stored image,
    that one is read. Images without a mask, and empty masks, are skipped and counted.

    Metadata holds ``file_name``, ``category`` and ``value``.
    """

    def __init__(
        self, data_root: str | os.PathLike[str], split: str = "train", **options: Unpack[Options]
    ) -> None:
        """Read the values of every mask."""
        super().__init__("masks", split, **options)
        self.image_root = Path(data_root).expanduser().absolute()
        self._names = read_names(self.image_root, self._encoding)
        for path in images_in(image_folder(self.image_root, split)):
            image = path.relative_to(self.image_root).as_posix()
            if not self._mask(image).is_file():
                self.unused["images without a mask (PNG, TIFF or BMP, in masks/)"] += 1
                continue
            with self._reading_record():
                values = self._values(image)
                if not values:
                    self.unused["masks of nothing"] += 1
                for value in values:
                    self._ask((image, value))

    def _mask(self, image: str) -> Path:
        """The mask of an image; the missing PNG if there is none."""
        places = [
            counterpart(self.image_root, image, "masks", suffix)
            for suffix in (".png", ".tif", ".tiff", ".bmp")
        ]
        return next((place for place in places if place.is_file()), places[0])

    def _values(self, image: str) -> list[int]:
        """The classes of a mask; 1 where it is binary."""
        found = np.unique(read_classes(self._mask(image))).tolist()
        values = [value for value in found if value]
        if len(self._names) > 1:
            values = [each for each in found if each in self._names or each not in (0, VOID)]
            if nameless := [value for value in values if value not in self._names]:
                problem = f"the values {nameless[:9]}, which names.txt does not name"
                raise RecordError(f"{self._mask(image)} has {problem}")
            return values
        if len(values) > 1:
            problem = f"the values {values[:9]}: name each class in names.txt, '1 cat'"
            raise RecordError(f"{self._mask(image)} has {problem}")
        return [1] if values else []

    def _read(self, key: tuple[str, int]) -> Entry:
        image, value = key
        pixels = read_classes(self._mask(image))
        size = (pixels.shape[0], pixels.shape[1])
        ignore = None
        if len(self._names) > 1:
            if VOID not in self._names and (pixels == VOID).any():
                ignore = Rle.from_mask(pixels == VOID)
            others = [each for each in self._values(image) if each != value]
            name = self._names[value]
        else:
            pixels, others = (pixels != 0).astype(np.uint8), []
            name = next(iter(self._names.values()), "the object")

        def target(value: int) -> Target:
            mask = pixels == value
            if not mask.any():
                raise RecordError(f"{self._mask(image)} has no {name!r} any more", Fault.EMPTY)
            return Target(Rle.from_mask(mask), ignore=ignore)

        return Entry(
            id=f"{self.name}-{self.split}-{image}-{value}",
            sentences={0: name},
            image=self.image_root / image,
            size=size,
            target=partial(target, value),
            metadata={"file_name": image, "category": name, "value": value},
            others=[partial(target, each) for each in others],
            upright=True,
        )

    def _image_name(self, key: tuple[str, int]) -> str:
        return key[0]


def read_names(root: Path, encoding: str | None = None) -> dict[int, str]:
    """The names of the values of masks, from ``names.txt`` or ``names.json``; empty without."""
    path = root / "names.json"
    if path.is_file():
        text = read_text(path, encoding, "config_bytes")
        given = Record.parse(text, str(path)).values.items()
    elif not (path := root / "names.txt").is_file():
        return {}
    else:
        text = read_text(path, encoding, "config_bytes")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if len(lines) == 1 and not lines[0].split()[0].isdecimal():
            return {1: lines[0]}
        given = [line.partition(" ")[::2] for line in lines]
    with located(f"{path}: expected a whole number and a name on each line, as in '1 cat'"):
        names = {int(value): str(name).strip() for value, name in given}
        if not all(names.values()):
            raise ValueError("a name is missing")
        return names
