"""Reading images that come from outside."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from seg_env.data.records import Fault, RecordError
from seg_env.geometry.rle import MAX_PIXELS

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""Formats that are read; the MPO of some cameras is read as JPEG."""
UPRIGHT_WARNING, STORED_WARNING = (
    f"the sizes of annotations fit images {used}, while annotations of this form are drawn on them "
    f"{usual}; images with such sizes are read {used}. Of square images and of those turned by 180 "
    "degrees sizes say nothing: look at their outlines, or save all images upright, without EXIF "
    "orientation"
    for used, usual in (
        ("turned upright as their EXIF data say", "as they are stored"),
        ("as they are stored", "turned upright as their EXIF data say"),
    )
)


def read_image(
    source: Path | bytes, size: tuple[int, int], name: str = "", *, upright: bool = False
) -> NDArray[np.uint8]:
    """Read an image as RGB, ``(H, W, 3) uint8``: as stored, or ``upright``, as EXIF data turn it.

    It must be the one that the annotations are drawn on. Where their size fits the other one only,
    the other one is read, and a warning says so.
    The size that the annotations say, ``(H, W)``, is compared before a pixel is decoded, which also
    bounds what a file can make allocate. ``source`` is a file or its content; errors call it
    ``name``, by default the path.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not an image of one of `FORMATS`, damaged, or of another size.
    """
    with _opened(source, size, name, upright) as (image, _, turned):
        return np.array((ImageOps.exif_transpose(image) if turned else image).convert("RGB"))


def read_mask(source: Path | bytes, size: tuple[int, int], name: str = "") -> NDArray[np.bool_]:
    """Read a mask of ``size`` from an image of one channel; every value but 0 belongs to it.

    JPEG does not keep values: there white belongs to it, and grey is noise along the border.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not an image, of several channels, of another size, or a JPEG that is not black
            and white.
    """
    with _opened(source, size, name) as (image, _, _):
        name = name or str(source)
        if len(image.getbands()) > 1:
            raise RecordError(
                f"{name} has the channels {image.getbands()}; a mask has one, 0 outside of the "
                "object"
            )
        values = np.array(image)
        if image.format not in ("JPEG", "MPO"):
            return np.asarray(values != 0, dtype=np.bool_)
        darker, grey = (np.count_nonzero((values > low) & (values < 224)) for low in (0, 31))
        white = np.count_nonzero(values >= 224)
        if grey > white or (darker and not white):
            raise RecordError(
                f"{name} is a JPEG and not black and white: {grey} of its pixels are grey, {white} "
                "white, and JPEG does not keep their values; save masks as PNG"
            )
        return np.asarray(values >= 128, dtype=np.bool_)


def image_size(
    source: Path | bytes,
    name: str = "",
    expected: tuple[int, int] | None = None,
    *,
    upright: bool = False,
) -> tuple[int, int]:
    """Height and width, stored or ``upright``, from an image's header; no pixel is decoded.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not an image of one of `FORMATS`, of more pixels than are ever read, or not of
            the size ``expected``.
    """
    with _opened(source, expected, name, upright) as (_, size, _):
        return size


def is_turned(
    source: Path | bytes, size: tuple[int, int] | None = None, *, upright: bool = True
) -> bool:
    """Whether `read_image` turns an image, so that its stored pixels are not what is read."""
    with _opened(source, size, "", upright) as (_, _, turned):
        return turned


def orientation(image: Image.Image) -> int:
    """How EXIF data say that an image is to be turned, 1 (not at all) to 8; nothing is decoded."""
    try:
        # That of a PNG decodes it to look for data behind its pixels.
        turn = int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except Exception:  # an image with damaged EXIF data is still an image
        return 1
    return turn if turn in range(2, 9) else 1


def first_existing(root: Path, places: Sequence[str], what: str) -> Path:
    """The first of some files or folders that is there; a `FileNotFoundError` if none is."""
    for place in places:
        if (root / place).exists():
            return root / place
    raise FileNotFoundError(f"there is no {what} below {root}; looked for {', '.join(places)}")


def folder_of(files: Iterable[str], folders: Sequence[Path]) -> Path | None:
    """The first of some folders that has one of some files; None if none has."""
    places = ((folder, file) for file in files for folder in folders)
    return next((folder for folder, file in places if (folder / file).is_file()), None)


@contextmanager
def _opened(
    source: Path | bytes, size: tuple[int, int] | None, name: str = "", upright: bool = False
) -> Iterator[tuple[Image.Image, tuple[int, int], bool]]:
    """Open an image, its size as it is to be read, and whether it is turned for that.

    With ``size`` it must have that one, stored or upright.
    """
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    name = name or str(stream)
    try:
        with Image.open(stream, formats=FORMATS) as image:
            turn = orientation(image)
            stored = image.height, image.width
            sizes = stored, stored[::-1] if turn >= 5 else stored
            found = sizes[upright]
            if size is not None and size not in sizes:
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
            if size is not None and found != size:
                warnings.warn(UPRIGHT_WARNING if not upright else STORED_WARNING, stacklevel=4)
                upright, found = not upright, size
            yield image, found, upright and turn > 1
    except (FileNotFoundError, RecordError):
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
        raise RecordError(
            f"{name} cannot be read as an image: {error}", Fault.UNREADABLE_IMAGE
        ) from error
