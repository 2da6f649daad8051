"""Reading images that come from outside."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seg_env.data.records import Fault, RecordError, located
from seg_env.geometry.limits import LimitError, check_limit, check_size, limits

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
    return next((folder for folder in folders if os.path.isfile(folder / file)), None)


@contextmanager
def _opened(
    source: Path | bytes, size: tuple[int, int] | None, name: str = ""
) -> Iterator[Image.Image]:
    """Open an image; with ``size`` it must have that one."""
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    name = name or str(stream)
    # Pillow itself refuses above twice this number.
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, limits().pixels // 2 + 1)
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
            check_size(found)
            yield image
    except (FileNotFoundError, RecordError):
        raise
    except LimitError as error:
        raise RecordError(f"{name}: {error}", Fault.LIMIT) from error
    except Image.DecompressionBombError as error:
        with located(name):
            check_limit("pixels", limits().pixels + 1, str(error))
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
        raise RecordError(
            f"{name} cannot be read as an image: {error}", Fault.UNREADABLE_IMAGE
        ) from error
