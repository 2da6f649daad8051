"""Where data sets keep their images, and the files about them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Endings of the files that count as images when a folder is searched."""


def first_existing(root: Path, places: Sequence[str], what: str) -> Path:
    """The first of some files or folders that exists; a `FileNotFoundError` if none does."""
    for place in places:
        if (root / place).exists():
            return root / place
    raise FileNotFoundError(f"there is no {what} below {root}; looked for {', '.join(places)}")


def folder_of(files: Iterable[str], folders: Sequence[Path]) -> Path | None:
    """The first of some folders that has one of some files; None if none has."""
    places = ((folder, file) for file in files for folder in folders)
    # os.path's isfile treats a name that is too long as a missing file.
    return next((folder for folder, file in places if os.path.isfile(folder / file)), None)


def images_in(folder: Path, *, deep: bool = True) -> list[Path]:
    """The files below a folder, or in it, that are named like images, in order."""
    found = folder.rglob("*") if deep else folder.glob("*")
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES)


def image_folder(root: Path, split: str, stated: Sequence[str] = ()) -> Path:
    """The folder of a split's images: one of ``stated``, or a folder ``images``.

    Raises:
        FileNotFoundError: There is none; the message lists where it was looked for.
    """
    places = [*stated, f"images/{split}", f"{split}/images", "images"]
    for place in places:
        # A folder ``images`` with nothing but other splits is not what was asked for.
        if (root / place).is_dir() and (place != "images" or images_in(root / place, deep=False)):
            return root / place
    looked = ", ".join(places)
    raise FileNotFoundError(f"{root} has no images of the split {split!r}; looked in {looked}")


def counterpart(root: Path, image: str, folder: str, suffix: str) -> Path:
    """The file about an image (a path below ``root``): in ``folder`` instead of ``images``."""
    parts = list(PurePosixPath(image).parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = folder
    return root.joinpath(*parts).with_suffix(suffix)
