"""Decoding pictures from the web, which may be anything."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from seg_env.data.annotate.nouns import Picture, RawPicture, Reason, Rejected
from seg_env.data.images import FORMATS

SUFFIX_OF = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp"}
"""Endings of files by Pillow's name of the format."""
ORIENTATION = 0x0112
"""EXIF tag that says how a picture is to be turned."""


@dataclass(frozen=True)
class Limits:
    """What is read at most."""

    least_side: int = 32
    """Pictures with a shorter side are left out."""
    most_pixels: int = 1 << 25
    """Pictures with more pixels are not decoded; 2**25 take 100 MB."""


def open_picture(raw: RawPicture, limits: Limits) -> Picture | Rejected:
    """Decode a picture.

    The size is read first: nothing is allocated for a picture that claims too many pixels. A
    picture that its EXIF data say is to be turned is turned and encoded anew, because data sets
    read pixels as they are stored; all others keep their bytes.

    Args:
        raw: As the source has it.
        limits: What is read at most.

    Returns:
        The picture, or why it is none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _decode(raw, limits)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return Rejected(Reason.TOO_MANY_PIXELS)
    except MemoryError:
        raise
    except Exception:  # decoders raise OSError, SyntaxError, struct.error, ...
        return Rejected(Reason.UNREADABLE)


def _decode(raw: RawPicture, limits: Limits) -> Picture | Rejected:
    with Image.open(io.BytesIO(raw.data), formats=FORMATS) as file:
        if file.width * file.height > limits.most_pixels:
            return Rejected(Reason.TOO_MANY_PIXELS)
        if min(file.width, file.height) < limits.least_side:
            return Rejected(Reason.TOO_SMALL)
        suffix = SUFFIX_OF[str(file.format)]
        turned = _orientation(file) in range(2, 9)
        data = _turn(file) if turned else raw.data
        pixels = None if turned else np.array(file.convert("RGB"))
    if pixels is None:
        suffix = ".jpg"
        with Image.open(io.BytesIO(data)) as file:
            pixels = np.array(file.convert("RGB"))
    return Picture(raw.key, data, suffix, pixels, raw.text, raw.metadata)


def _orientation(file: Image.Image) -> int:
    try:
        return int(file.getexif().get(ORIENTATION, 1))
    except Exception:  # a picture with damaged EXIF data is still a picture
        return 1


def _turn(file: Image.Image) -> bytes:
    upright = ImageOps.exif_transpose(file).convert("RGB")
    upright.info.clear()  # what would be saved with it: EXIF data, perhaps a place
    buffer = io.BytesIO()
    upright.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
