"""Reading images that come from outside."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seg_env.data.records import Fault, RecordError
from seg_env.geometry.rle import MAX_PIXELS

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""Formats that are read; the MPO of some cameras is read as JPEG."""


def read_image(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Read an image as RGB, ``(H, W, 3) uint8``, exactly as stored: EXIF turns are not applied.

    Annotations are drawn on the stored pixels, so turning an image would move it away from them.
    The size that the annotations say, ``(H, W)``, is compared before a pixel is decoded, which also
    bounds what a file can make allocate.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not an image of one of `FORMATS`, damaged, or of another size.
    """
    with _opened(path, size, str(path)) as image:
        return np.array(image.convert("RGB"))


def read_image_bytes(data: bytes, size: tuple[int, int], name: str) -> NDArray[np.uint8]:
    """Read an image from memory as `read_image` does; errors call it ``name``."""
    with _opened(io.BytesIO(data), size, name) as image:
        return np.array(image.convert("RGB"))


def image_size(source: Path | bytes, name: str = "") -> tuple[int, int]:
    """Height and width from the header of an image; no pixel is decoded.

    Errors call it ``name``, by default the path.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not an image of one of `FORMATS`, or of more pixels than are ever read.
    """
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    name = name or str(stream)
    with _opened(stream, None, name) as image:
        size = (image.height, image.width)
    if size[0] * size[1] > MAX_PIXELS:
        raise RecordError(
            f"{name} has {size[1]} x {size[0]} pixels; at most {MAX_PIXELS} are read",
            Fault.UNREADABLE_IMAGE,
        )
    return size


def read_mask(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Read a mask of ``size`` from an image of one channel; every value but 0 belongs to it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not an image, of several channels, or of another size.
    """
    with _opened(path, size, str(path)) as image:
        if len(image.getbands()) > 1:
            raise RecordError(
                f"{path} has the channels {image.getbands()}; a mask has one, 0 outside of the "
                "object"
            )
        return np.asarray(np.array(image) != 0, dtype=np.bool_)


def check_image(path: Path, size: tuple[int, int]) -> None:
    """Raise what `read_image` would raise, as far as the file's header tells."""
    _check_size(image_size(path), size, str(path))


@contextmanager
def _opened(
    source: Path | io.BytesIO, size: tuple[int, int] | None, name: str
) -> Iterator[Image.Image]:
    try:
        with Image.open(source, formats=FORMATS) as image:
            if size is not None:
                _check_size((image.height, image.width), size, name)
            yield image
    except (FileNotFoundError, RecordError):
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
        raise RecordError(
            f"{name} cannot be read as an image: {error}", Fault.UNREADABLE_IMAGE
        ) from error


def _check_size(found: tuple[int, int], size: tuple[int, int], name: str) -> None:
    if found != size:
        raise RecordError(
            f"{name} is {found[1]} x {found[0]} pixels (width x height), but its annotations say "
            f"{size[1]} x {size[0]}; use the images that the annotations were made on, not "
            "resized or turned",
            Fault.SIZE_MISMATCH,
        )
