"""Where data sets keep their images, and the files about them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Of files that are taken for images where a folder is searched."""


def first_existing(root: Path, places: Sequence[str], what: str) -> Path:
    """The first of some files or folders that is there; a `FileNotFoundError` if none is."""
    for place in places:
        if (root / place).exists():
            return root / place
    raise FileNotFoundError(f"there is no {what} below {root}; looked for {', '.join(places)}")


def folder_of(files: Iterable[str], folders: Sequence[Path]) -> Path | None:
    """The first of some folders that has one of some files; None if none has."""
    places = ((folder, file) for file in files for folder in folders)
    # os.path's, which takes a name that is too long for one that is not there.
    return next((folder for folder, file in places if os.path.isfile(folder / file)), None)


def images_in(folder: Path, *, deep: bool = True) -> list[Path]:
    """The files below a folder, or in it, that are named like images, in order."""
    found = folder.rglob("*") if deep else folder.glob("*")
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES)


def image_folder(root: Path, split: str, stated: Sequence[str] = ()) -> Path:
    """Where a split has its images: as ``stated``, or in the folder ``images`` of the split.

    Raises:
        FileNotFoundError: Nowhere; says where was looked.
    """
    places = [*stated, f"images/{split}", f"{split}/images", "images"]
    for place in places:
        # Splits that have other names are not what was asked for.
        if (root / place).is_dir() and (place != "images" or images_in(root / place, deep=False)):
            return root / place
    looked = ", ".join(places)
    raise FileNotFoundError(f"{root} has no images of the split {split!r}; looked in {looked}")


def counterpart(root: Path, image: str, folder: str, suffix: str) -> Path:
    """The file about an image, given below ``root``: in ``folder`` in place of ``images``."""
    parts = list(PurePosixPath(image).parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = folder
    return root.joinpath(*parts).with_suffix(suffix)
