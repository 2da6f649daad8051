"""Images of any depth as 8-bit RGB; TIFF, GeoTIFF and 16-bit PNG are read by rasterio."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from seg_env.data.records import RecordError
from seg_env.geometry.limits import check_limit

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

Stretch = Literal["full", "percentiles"]
"""How numbers that are not bytes become bytes.

``"full"``: all bands alike, so that the darkest and the brightest stay apart. Whole numbers are
scaled from 0 to the largest number of the bits they need (8, 10, 12, 14 or 16), floating-point
numbers between 0 and 1 from 0 to 1, all others from their minimum to their maximum. Bytes stay as
they are.

``"percentiles"``: each band separately, bytes too, from its 2nd to its 98th percentile.
"""
WHITES = (1, 255, 1023, 4095, 16383, 65535)
"""Candidates for white among whole numbers: the smallest that they do not exceed is taken."""
LOSSY = ("JPEG", "WEBP", "JPEG2000")
"""Compressions of TIFF that may not keep values."""


def raster_driver(source: Path | bytes) -> str | None:
    """Rasterio's driver for a file that rasterio is to read; None for the others."""
    if isinstance(source, bytes):
        start = source[:25]
    else:
        with source.open("rb") as stream:
            start = stream.read(25)
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "GTiff"
    return "PNG" if start[:4] == b"\x89PNG" and start[24:] == b"\x10" else None


def open_raster(source: Path | bytes, driver: str) -> DatasetReader:
    """Open an image of one format with rasterio, without a warning if it has no coordinates."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        place = io.BytesIO(source) if isinstance(source, bytes) else source.absolute()
        return rasterio.open(place, driver=driver)


def raster_to_rgb(
    file: DatasetReader, stretch: Stretch, bands: Sequence[int] | None, name: str
) -> NDArray[np.uint8]:
    """Read an open image as RGB, see `seg_env.data.images.read_image`."""
    kinds = [kind.name for kind in file.colorinterp]
    inks = [kinds.index(each) for each in ("cyan", "magenta", "yellow", "black") if each in kinds]
    lights = [kinds.index(each) for each in ("red", "green", "blue") if each in kinds]
    numbers = [number for number, kind in enumerate(kinds) if kind != "alpha"]
    if bands is not None:
        numbers = chosen_bands(bands, len(kinds), name)
    elif len(inks) == 4 or len(lights) == 3:
        numbers = inks if len(inks) == 4 else lights
    else:
        numbers = numbers[: 3 if len(numbers) >= 3 else 1]
    layers, valid = zip(*(read_band(file, number + 1, name) for number in numbers), strict=True)
    if bands is None and kinds[numbers[0]] == "palette":
        table = np.zeros((1 << 16, 3), dtype=np.uint8)
        for index, color in file.colormap(numbers[0] + 1).items():
            table[index] = color[:3]
        layers, valid = tuple(np.moveaxis(table[layers[0]], -1, 0)), valid * 3
    stated = file.tags(numbers[0] + 1, ns="IMAGE_STRUCTURE").get("NBITS")
    white = 2 ** int(stated) - 1 if stated and layers[0].dtype.kind == "u" else None
    image = to_bytes(layers, valid, stretch, white)
    if bands is None and "alpha" in kinds:
        alpha = read_band(file, kinds.index("alpha") + 1, name)[0]
        opaque = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1
        share = np.interp(alpha, (0, opaque), (0, 1))[..., None]
        image = np.rint(255 + share * (image.astype(np.float64) - 255)).astype(np.uint8)
    return image


def chosen_bands(bands: Sequence[int] | None, count: int, name: str) -> list[int]:
    """Indices from 0 of the bands asked for, by default the first three."""
    numbers = [band - 1 for band in ((1, 2, 3) if bands is None else bands)]
    if len(numbers) not in (1, 3) or not all(0 <= number < count for number in numbers):
        raise RecordError(
            f"{name} has {count} bands, but bands={tuple(bands or ())} were asked for; name one or "
            f"three of 1 to {count}"
        )
    return numbers


def read_band(
    file: DatasetReader, number: int, name: str
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The numbers of a band, and where they are valid: finite, and not nodata."""
    from rasterio.enums import MaskFlags

    kind = file.dtypes[number - 1]
    if kind.startswith("complex"):
        raise RecordError(f"{name} holds complex numbers; write their magnitude as a TIFF")
    # A block is decoded whole, however little of it the image takes.
    block = max(height * width for height, width in file.block_shapes)
    block *= 1 if file.interleaving and file.interleaving.name == "band" else file.count
    needed = max(block, 3 * file.height * file.width) * np.dtype(kind).itemsize
    # The limit in bytes is that of the largest image of three 8-bit bands.
    what = f"{file.width} x {file.height} pixels of {kind} take {needed} bytes; cut it into tiles"
    check_limit("pixels", needed // 3, what)
    values = file.read(number)
    valid = np.isfinite(values)
    if MaskFlags.alpha not in file.mask_flag_enums[number - 1]:
        valid &= file.read_masks(number) > 0
    return values, valid


def to_bytes(
    layers: Sequence[NDArray[Any]],
    valid: Sequence[NDArray[np.bool_]],
    stretch: Stretch,
    white: int | None = None,
) -> NDArray[np.uint8]:
    """8-bit RGB from one layer (gray), three (RGB) or four (CMYK), each ``(H, W)``.

    ``white`` is the largest whole number, if the file states it.
    """
    pairs = list(zip(layers, valid, strict=True))
    ranges: list[Sequence[float]]
    if stretch == "percentiles":
        found = [layer[known].astype(np.float64) for layer, known in pairs]
        ranges = [
            np.percentile(each, (2, 98)).tolist() if each.size else [0, 255] for each in found
        ]
    else:
        ranges = [_full_range(pairs, white)] * len(pairs)
    channels = []
    for (layer, known), (low, high) in zip(pairs, ranges, strict=True):
        scaled = layer
        if layer.dtype != np.uint8 or (low, high) != (0, 255):
            high = max(high, low + 1e-9 * max(1, abs(low)))  # if all values are equal
            scaled = np.rint(np.interp(np.where(known, layer, low), (low, high), (0, 255)))
        channels.append(np.where(known, scaled, 0).astype(np.uint8))
    if len(channels) == 4:
        cyan, magenta, yellow, black = (255 - each.astype(np.float64) for each in channels)
        channels = [np.rint(ink * black / 255).astype(np.uint8) for ink in (cyan, magenta, yellow)]
    return np.stack(channels * (3 if len(channels) == 1 else 1), axis=-1)


def _full_range(
    pairs: Sequence[tuple[NDArray[Any], NDArray[np.bool_]]], white: int | None
) -> tuple[float, float]:
    """The numbers that become 0 and 255, see `Stretch`."""
    kind = pairs[0][0].dtype
    found = [layer[known] for layer, known in pairs if known.any()]
    if kind == np.uint8 or not found:
        return 0, white or 255
    low = min(float(each.min()) for each in found)
    high = max(float(each.max()) for each in found)
    whites = (1,) if kind.kind == "f" else WHITES if white is None else (white,)
    if low < 0 or high > whites[-1]:
        return low, high
    return 0, next(each for each in whites if each >= high)
