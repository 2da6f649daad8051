"""Reading images that come from outside.

Whatever a file holds becomes 8-bit RGB here. TIFF and 16-bit PNG, of which Pillow keeps only a
part, are read by rasterio.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from seg_env.data.rasters import (
    LOSSY,
    Stretch,
    chosen_bands,
    open_raster,
    raster_driver,
    raster_to_rgb,
    read_band,
    to_bytes,
)
from seg_env.data.records import Fault, RecordError, located
from seg_env.geometry.drawing import as_png
from seg_env.geometry.limits import LimitError, check_limit, check_size, limits

if TYPE_CHECKING:
    from rasterio.crs import CRS
    from rasterio.io import DatasetReader
    from rasterio.transform import Affine

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""Formats that are read besides TIFF; the MPO of some cameras is read as JPEG."""
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
    source: Path | bytes,
    size: tuple[int, int],
    name: str = "",
    *,
    upright: bool = False,
    stretch: Stretch = "full",
    bands: Sequence[int] | None = None,
) -> NDArray[np.uint8]:
    """Read an image as RGB, ``(H, W, 3) uint8``: as stored, or ``upright``, as EXIF data turn it.

    Palettes and CMYK become RGB, transparent pixels are put on white, nodata and numbers that are
    not finite are black. Of a TIFF the first page is read: the bands it calls red, green and blue,
    else the first three, or the first as gray if there are fewer.

    It must be the one that the annotations are drawn on. If their size fits only the other one,
    that one is read, with a warning. Sizes are compared before any pixel is decoded, which also
    bounds the memory that a file can take.

    Args:
        source: A file or its content.
        size: ``(H, W)`` that the annotations say.
        name: Its name in errors, by default the path.
        upright: Whether annotations are drawn on the image as EXIF data turn it.
        stretch: How images deeper than 8 bits become bytes, see `Stretch`.
        bands: Numbers of one or three bands, from 1, to be read as gray or as red, green and blue;
            transparency is then ignored.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not an image of one of `FORMATS` or TIFF, damaged, of another size, or without
            the ``bands``.
    """
    name = name or (str(source) if isinstance(source, Path) else "the image")
    with _opened(source, size, name, upright) as (image, _, turn):
        if not isinstance(image, Image.Image):
            rgb = raster_to_rgb(image, stretch, bands, name)
        else:
            rgb = _to_rgb(image)
            if stretch != "full" or bands is not None:
                layers = [rgb[..., band] for band in chosen_bands(bands, 3, name)]
                known = [np.ones(rgb.shape[:2], dtype=np.bool_)] * len(layers)
                rgb = to_bytes(layers, known, stretch)
        if turn == 1:
            return rgb
        turned = Image.fromarray(rgb)
        turned.getexif()[ExifTags.Base.Orientation] = turn
        return np.array(ImageOps.exif_transpose(turned))


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Convert an image of at most 8 bits to RGB; transparent pixels are put on white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def read_mask(source: Path | bytes, size: tuple[int, int], name: str = "") -> NDArray[np.bool_]:
    """Read a mask of ``size`` from an image of one channel; every value but 0 belongs to it.

    JPEG does not keep values: there, white belongs to the mask, and grey is noise along its border.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not an image, of several channels, of another size, or a JPEG that is not black
            and white.
    """
    with _opened(source, size, name) as (image, _, _):
        name = name or str(source)
        channels = image.getbands() if isinstance(image, Image.Image) else image.indexes
        if len(channels) > 1:
            raise RecordError(
                f"{name} has the channels {channels}; a mask has one, 0 outside of the object"
            )
        if not isinstance(image, Image.Image):
            values, known = read_band(image, 1, name)
            return np.asarray(known & (values != 0))
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


def read_classes(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.integer[Any]]:
    """Read a mask whose values are classes, ``(H, W)``; of a palette, its indices.

    Equal channels count as one. Lossy files are refused: they have values that nobody drew.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not such an image, or not of ``size``.
    """
    with _opened(path, size) as (image, _, _):
        if not isinstance(image, Image.Image):  # of 16 bits
            if image.count > 1 or str(image.profile.get("compress")).upper() in LOSSY:
                raise RecordError(f"{path} has several channels, or is lossy")
            values, known = read_band(image, 1, str(path))
            values = np.where(known, values, 0)
        elif image.format not in ("PNG", "BMP"):
            raise RecordError(f"{path} is lossy; masks are read from PNG and BMP")
        else:
            values = np.array(image.convert("L") if image.mode == "1" else image)
    if values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "ui":
        raise RecordError(
            f"{path} is in colours; a mask has one channel of whole numbers, 0 outside of objects"
        )
    return values


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
        ValueError: Not an image of one of `FORMATS` or TIFF, of more pixels than are ever read, or
            not of the size ``expected``.
    """
    with _opened(source, expected, name, upright) as (_, size, _):
        return size


def is_turned(
    source: Path | bytes, size: tuple[int, int] | None = None, *, upright: bool = True
) -> bool:
    """Whether `read_image` turns an image, so that its stored pixels are not what is read."""
    with _opened(source, size, "", upright) as (_, _, turn):
        return turn > 1


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image, 1 (upright) to 8; nothing is decoded."""
    try:
        # A PNG's own `getexif` would decode it, to look for data after its pixels.
        turn = int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except Exception:  # an image with damaged EXIF data is still an image
        return 1
    return turn if turn in range(2, 9) else 1


def georeference(path: Path, size: tuple[int, int]) -> tuple[Affine, CRS]:
    """The transform from the pixels of a GeoTIFF to its map, and the map's coordinate system.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not georeferenced, or not of the size ``(H, W)``.
    """
    with _opened(path, size, upright=True) as (file, _, turn):
        if isinstance(file, Image.Image) or file.driver != "GTiff":
            missing = "no place on a map, for it is no GeoTIFF"
        elif turn > 1:
            missing = "an orientation, which maps do not have; write it without one"
        elif file.crs is None:
            missing = "no coordinate system; write one with gdal_edit.py"
        elif file.transform.is_identity:
            missing = "no transform to the map; write one with gdalwarp"
        else:
            return file.transform, file.crs
    raise RecordError(f"{path} has {missing}, or use --format jsonl")


@contextmanager
def _opened(
    source: Path | bytes, size: tuple[int, int] | None, name: str = "", upright: bool = False
) -> Iterator[tuple[Image.Image | DatasetReader, tuple[int, int], int]]:
    """Open an image; yields it, its size as read, and how it is to be turned, 1 (not) to 8.

    If ``size`` is given, it must be the stored or the upright size.
    """
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    name = name or str(stream)
    # Pillow itself refuses images of more than twice this number.
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, limits().pixels // 2 + 1)
    try:
        driver = raster_driver(source)
        opened = open_raster(source, driver) if driver else Image.open(stream, formats=FORMATS)
        with opened as image:
            turn = _raster_orientation(source) if driver else orientation(image)
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
            check_size(found)
            if size is not None and found != size:
                warnings.warn(UPRIGHT_WARNING if not upright else STORED_WARNING, stacklevel=4)
                upright, found = not upright, size
            yield image, found, turn if upright else 1
    except (FileNotFoundError, RecordError, MemoryError):
        raise
    except LimitError as error:
        raise RecordError(f"{name}: {error}", Fault.LIMIT) from error
    except Image.DecompressionBombError as error:
        with located(name):
            check_limit("pixels", limits().pixels + 1, str(error))
    except UnidentifiedImageError as error:
        raise RecordError(
            f"{name} cannot be read as an image: it is of no known kind", Fault.UNREADABLE_IMAGE
        ) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
        raise RecordError(
            f"{name} cannot be read as an image: {error.__cause__ or error}",
            Fault.UNREADABLE_IMAGE,
        ) from error


def _raster_orientation(source: Path | bytes) -> int:
    """The orientation, which rasterio ignores, read by Pillow; 1 where it cannot."""
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    with suppress(Exception), Image.open(stream, formats=("TIFF", "PNG")) as image:
        return orientation(image)
    return 1


def data_url(image: NDArray[np.uint8]) -> str:
    """An image as the data URL of a PNG, for chat messages and pages."""
    return "data:image/png;base64," + base64.b64encode(as_png(image)).decode()
