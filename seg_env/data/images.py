"""Reading pictures that come from outside."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seg_env.data.faults import Fault, RecordError
from seg_env.geometry.rle import MAX_PIXELS

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""Formats that are read; the MPO of some cameras is read as JPEG."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""How the names of such files end, in lower case."""


def read_image(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Read a picture as RGB, exactly as stored: the EXIF orientation is not applied.

    Annotations are drawn on the stored pixels, so turning a picture would move it away from them.
    The size is compared before a pixel is decoded, which also bounds what a file can make allocate.

    Args:
        path: The file.
        size: ``(H, W)`` that the annotations say.

    Returns:
        ``(H, W, 3) uint8``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not a picture of one of `FORMATS`, damaged, or of another size.
    """
    return _read(path, size, str(path))


def read_image_bytes(data: bytes, size: tuple[int, int], name: str) -> NDArray[np.uint8]:
    """Read a picture from memory; otherwise as `read_image`, errors call it ``name``."""
    return _read(io.BytesIO(data), size, name)


def image_size(source: Path | bytes, name: str = "") -> tuple[int, int]:
    """Height and width from the header of a picture; no pixel is decoded.

    Args:
        source: The file, or its content.
        name: What errors call it, by default the path.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not a picture of one of `FORMATS`, or of more pixels than are ever read.
    """
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    name = name or str(stream)
    with _opened(stream, name) as picture:
        size = (picture.height, picture.width)
    if size[0] * size[1] > MAX_PIXELS:
        raise RecordError(
            f"{name} has {size[1]} x {size[0]} pixels; at most {MAX_PIXELS} are read",
            Fault.UNREADABLE_PHOTO,
        )
    return size


def read_mask(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """Read a mask from a picture of one channel; every value but 0 belongs to it.

    Args:
        path: The file.
        size: ``(H, W)`` it must have.

    Returns:
        ``(H, W) bool``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not a picture, of several channels, or of another size.
    """
    expected = size or image_size(path)
    with _opened(path, str(path)) as picture:
        _check_size((picture.height, picture.width), expected, str(path))
        if len(picture.getbands()) > 1:
            raise RecordError(
                f"{path} has the channels {picture.getbands()}; a mask has one, 0 outside of the "
                "object"
            )
        return np.asarray(np.array(picture) != 0, dtype=np.bool_)


def check_image(path: Path, size: tuple[int, int]) -> None:
    """Raise what `read_image` would raise, as far as the file's header tells."""
    _check_size(image_size(path), size, str(path))


def _read(source: Any, size: tuple[int, int], name: str) -> NDArray[np.uint8]:
    with _opened(source, name) as picture:
        _check_size((picture.height, picture.width), size, name)
        return np.array(picture.convert("RGB"))


@contextmanager
def _opened(source: Any, name: str) -> Iterator[Any]:
    from PIL import Image  # a tenth of a second that `import seg_env` need not pay

    try:
        with Image.open(source, formats=FORMATS) as picture:
            yield picture
    except (FileNotFoundError, RecordError):
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
        raise RecordError(
            f"{name} cannot be read as a picture: {error}", Fault.UNREADABLE_PHOTO
        ) from error


def _check_size(found: tuple[int, int], size: tuple[int, int], name: str) -> None:
    if found != size:
        raise RecordError(
            f"{name} is {found[1]} x {found[0]} pixels (width x height), but its annotations say "
            f"{size[1]} x {size[0]}; use the pictures that the annotations were made on, not "
            "resized or turned",
            Fault.SIZE_MISMATCH,
        )
