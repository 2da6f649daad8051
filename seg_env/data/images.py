"""Reading pictures that come from outside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP")
"""Formats that are read; MPO is the JPEG of some cameras."""


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
    from PIL import Image  # a tenth of a second that `import seg_env` need not pay

    try:
        with Image.open(path, formats=FORMATS) as picture:
            found = (picture.height, picture.width)
            if found == size:
                return np.array(picture.convert("RGB"))
    except FileNotFoundError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    raise ValueError(
        f"{path} is {found[1]} x {found[0]} pixels (width x height), but its annotations say "
        f"{size[1]} x {size[0]}; use the pictures that the annotations were made on, not resized "
        "or turned"
    )
