"""Reading images that come from outside."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seg_env.data.records import Fault, RecordError
from seg_env.geometry.rle import MAX_PIXELS

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""Formats that are read; the MPO of some cameras is read as JPEG."""


def read_image(source: Path | bytes, size: tuple[int, int], name: str = "") -> NDArray[np.uint8]:
    """Read an image as RGB, ``(H, W, 3) uint8``, exactly as stored: EXIF turns are not applied.

    Annotations are drawn on the stored pixels, so turning an image would move it away from them.
    The size that the annotations say, ``(H, W)``, is compared before a pixel is decoded, which also
    bounds what a file can make allocate. ``source`` is a file or its content; errors call it
    ``name``, by default the path.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not an image of one of `FORMATS`, damaged, or of another size.
    """
    with _opened(source, size, name) as image:
        return np.array(image.convert("RGB"))


def read_mask(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Read a mask of ``size`` from an image of one channel; every value but 0 belongs to it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not an image, of several channels, or of another size.
    """
    with _opened(path, size) as image:
        if len(image.getbands()) > 1:
            raise RecordError(
                f"{path} has the channels {image.getbands()}; a mask has one, 0 outside of the "
                "object"
            )
        return np.asarray(np.array(image) != 0, dtype=np.bool_)


def read_classes(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.integer[Any]]:
    """Read a mask whose values are classes, ``(H, W)``; of a palette, its indices.

    Channels that are equal are one. A lossy file has values that nobody drew and is refused.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not such an image, or not of ``size``.
    """
    with _opened(path, size) as image:
        if image.format not in ("PNG", "BMP"):
            raise RecordError(f"{path} is lossy; masks are read from PNG and BMP")
        values = np.array(image.convert("L") if image.mode == "1" else image)
    if values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "ui":
        raise RecordError(
            f"{path} is in colours; a mask has one channel of whole numbers, 0 outside of objects"
        )
    return values


def image_size(
    source: Path | bytes, name: str = "", expected: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Height and width from the header of an image; no pixel is decoded.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not an image of one of `FORMATS`, of more pixels than are ever read, or not of
            the size ``expected``.
    """
    with _opened(source, expected, name) as image:
        return image.height, image.width


def first_existing(root: Path, places: Sequence[str], what: str) -> Path:
    """The first of some files or folders that is there; a `FileNotFoundError` if none is."""
    for place in places:
        if (root / place).exists():
            return root / place
    raise FileNotFoundError(f"there is no {what} below {root}; looked for {', '.join(places)}")


def folder_of(file: str, folders: Iterable[Path]) -> Path | None:
    """The first of some folders that has a file; None if none has."""
    return next((folder for folder in folders if (folder / file).is_file()), None)


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


@contextmanager
def _opened(
    source: Path | bytes, size: tuple[int, int] | None, name: str = ""
) -> Iterator[Image.Image]:
    """Open an image; with ``size`` it must have that one."""
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    name = name or str(stream)
    try:
        with Image.open(stream, formats=FORMATS) as image:
            found = image.height, image.width
            if size is not None and found != size:
                raise RecordError(
                    f"{name} is {found[1]} x {found[0]} pixels (width x height), but its "
                    f"annotations say {size[1]} x {size[0]}; use the images that the annotations "
                    "were made on, not resized or turned",
                    Fault.SIZE_MISMATCH,
                )
            if found[0] * found[1] > MAX_PIXELS:
                raise RecordError(
                    f"{name} has {found[1]} x {found[0]} pixels; at most {MAX_PIXELS} are read",
                    Fault.UNREADABLE_IMAGE,
                )
            yield image
    except (FileNotFoundError, RecordError):
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
        raise RecordError(
            f"{name} cannot be read as an image: {error}", Fault.UNREADABLE_IMAGE
        ) from error
