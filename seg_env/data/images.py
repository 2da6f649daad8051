"""Reading images that come from outside.

Whatever a file holds becomes RGB of 8 bits here. TIFF, and PNG of 16 bits, of which Pillow keeps a
part only, are read by rasterio.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from seg_env.data.records import Fault, RecordError, located
from seg_env.geometry.limits import LimitError, check_limit, check_size, limits

if TYPE_CHECKING:
    from rasterio.crs import CRS
    from rasterio.io import DatasetReader
    from rasterio.transform import Affine

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""Formats that are read beside TIFF; the MPO of some cameras is read as JPEG."""
Stretch = Literal["full", "percentiles"]
"""How numbers that are no bytes become bytes.

``"full"``: all bands alike, so that the darkest and the brightest stay apart. Whole numbers count
from 0 to the largest number of the bits they need (8, 10, 12, 14 or 16), floating point numbers
between 0 and 1 from 0 to 1, all others from their minimum to their maximum. Bytes stay as they are.

``"percentiles"``: each band by itself, bytes too, from its 2nd to its 98th percentile.
"""
WHITES = (1, 255, 1023, 4095, 16383, 65535)
"""What may be white among whole numbers; the least that they do not exceed is."""
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

    Palettes and CMYK become RGB, what is transparent lies on white, nodata and numbers that are not
    finite are black. Of a TIFF the first page is read, and of its bands those it calls red, green
    and blue, else the first three, of fewer the first as gray.

    It must be the one that the annotations are drawn on. Where their size fits the other one only,
    the other one is read, and a warning says so.
    The size that the annotations say, ``(H, W)``, is compared before a pixel is decoded, which also
    bounds what a file can make allocate.

    Args:
        source: A file or its content.
        size: ``(H, W)`` that the annotations say.
        name: What errors call it, by default the path.
        upright: Whether annotations are drawn on the image as EXIF data turn it.
        stretch: How deep images become bytes, see `Stretch`.
        bands: Numbers of one or three bands, from 1, to be read as gray or as red, green and blue;
            transparency is then left aside.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not an image of one of `FORMATS` or TIFF, damaged, of another size, or without
            the ``bands``.
    """
    name = name or (str(source) if isinstance(source, Path) else "the image")
    with _opened(source, size, name, upright) as (image, _, turn):
        if not isinstance(image, Image.Image):
            rgb = _raster_to_rgb(image, stretch, bands, name)
        else:
            rgb = _to_rgb(image)
            if stretch != "full" or bands is not None:
                layers = [rgb[..., band] for band in _chosen(bands, 3, name)]
                known = [np.ones(rgb.shape[:2], dtype=np.bool_)] * len(layers)
                rgb = _to_bytes(layers, known, stretch)
        if turn == 1:
            return rgb
        turned = Image.fromarray(rgb)
        turned.getexif()[ExifTags.Base.Orientation] = turn
        return np.array(ImageOps.exif_transpose(turned))


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """An image of at most 8 bits in RGB; what is transparent lies on white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


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
        channels = image.getbands() if isinstance(image, Image.Image) else image.indexes
        if len(channels) > 1:
            raise RecordError(
                f"{name} has the channels {channels}; a mask has one, 0 outside of the object"
            )
        if not isinstance(image, Image.Image):
            values, known = _read_band(image, 1, name)
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
    """How EXIF data say that an image is to be turned, 1 (not at all) to 8; nothing is decoded."""
    try:
        # That of a PNG decodes it to look for data behind its pixels.
        turn = int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except Exception:  # an image with damaged EXIF data is still an image
        return 1
    return turn if turn in range(2, 9) else 1


def georeference(path: Path, size: tuple[int, int]) -> tuple[Affine, CRS]:
    """What leads from the pixels of a GeoTIFF to its map, and the map's coordinate system.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It says no such thing, or is not of the size ``(H, W)``.
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


def first_existing(root: Path, places: Sequence[str], what: str) -> Path:
    """The first of some files or folders that is there; a `FileNotFoundError` if none is."""
    for place in places:
        if (root / place).exists():
            return root / place
    raise FileNotFoundError(f"there is no {what} below {root}; looked for {', '.join(places)}")


def folder_of(files: Iterable[str], folders: Sequence[Path]) -> Path | None:
    """The first of some folders that has one of some files; None if none has."""
    places = ((folder, file) for file in files for folder in folders)
    # os.path's, which takes a name that is too long for one that is not there.
    return next((folder for folder, file in places if os.path.isfile(folder / file)), None)


@contextmanager
def _opened(
    source: Path | bytes, size: tuple[int, int] | None, name: str = "", upright: bool = False
) -> Iterator[tuple[Image.Image | DatasetReader, tuple[int, int], int]]:
    """Open an image, its size as it is to be read, and how it is turned for that, 1 (not) to 8.

    With ``size`` it must have that one, stored or upright.
    """
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    name = name or str(stream)
    # Pillow itself refuses above twice this number.
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, limits().pixels // 2 + 1)
    try:
        driver = _raster_driver(source)
        opened = _open_raster(source, driver) if driver else Image.open(stream, formats=FORMATS)
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
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
        raise RecordError(
            f"{name} cannot be read as an image: {error.__cause__ or error}",
            Fault.UNREADABLE_IMAGE,
        ) from error


def _raster_driver(source: Path | bytes) -> str | None:
    """Rasterio's driver for a file that it reads here; None for the others."""
    if isinstance(source, bytes):
        start = source[:25]
    else:
        with source.open("rb") as stream:
            start = stream.read(25)
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "GTiff"
    return "PNG" if start[:4] == b"\x89PNG" and start[24:] == b"\x10" else None


def _raster_orientation(source: Path | bytes) -> int:
    """The orientation that rasterio passes over, read by Pillow as far as it can."""
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    with suppress(Exception), Image.open(stream, formats=("TIFF", "PNG")) as image:
        return orientation(image)
    return 1


def _open_raster(source: Path | bytes, driver: str) -> DatasetReader:
    """Open an image by rasterio, of one format only; files without coordinates do not warn."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        place = io.BytesIO(source) if isinstance(source, bytes) else source.absolute()
        return rasterio.open(place, driver=driver)


def _raster_to_rgb(
    file: DatasetReader, stretch: Stretch, bands: Sequence[int] | None, name: str
) -> NDArray[np.uint8]:
    kinds = [kind.name for kind in file.colorinterp]
    inks = [kinds.index(each) for each in ("cyan", "magenta", "yellow", "black") if each in kinds]
    lights = [kinds.index(each) for each in ("red", "green", "blue") if each in kinds]
    numbers = [number for number, kind in enumerate(kinds) if kind != "alpha"]
    if bands is not None:
        numbers = _chosen(bands, len(kinds), name)
    elif len(inks) == 4 or len(lights) == 3:
        numbers = inks if len(inks) == 4 else lights
    else:
        numbers = numbers[: 3 if len(numbers) >= 3 else 1]
    layers, valid = zip(*(_read_band(file, number + 1, name) for number in numbers), strict=True)
    if bands is None and kinds[numbers[0]] == "palette":
        table = np.zeros((1 << 16, 3), dtype=np.uint8)
        for index, color in file.colormap(numbers[0] + 1).items():
            table[index] = color[:3]
        layers, valid = tuple(np.moveaxis(table[layers[0]], -1, 0)), valid * 3
    stated = file.tags(numbers[0] + 1, ns="IMAGE_STRUCTURE").get("NBITS")
    white = 2 ** int(stated) - 1 if stated and layers[0].dtype.kind == "u" else None
    image = _to_bytes(layers, valid, stretch, white)
    if bands is None and "alpha" in kinds:
        alpha = _read_band(file, kinds.index("alpha") + 1, name)[0]
        opaque = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1
        share = np.interp(alpha, (0, opaque), (0, 1))[..., None]
        image = np.rint(255 + share * (image.astype(np.float64) - 255)).astype(np.uint8)
    return image


def _chosen(bands: Sequence[int] | None, count: int, name: str) -> list[int]:
    """Places of the bands asked for, by default the first three."""
    numbers = [band - 1 for band in ((1, 2, 3) if bands is None else bands)]
    if len(numbers) not in (1, 3) or not all(0 <= number < count for number in numbers):
        raise RecordError(
            f"{name} has {count} bands, but bands={tuple(bands or ())} were asked for; name one or "
            f"three of 1 to {count}"
        )
    return numbers


def _read_band(
    file: DatasetReader, number: int, name: str
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Numbers of a band and where they are to be believed: finite, and not nodata."""
    from rasterio.enums import MaskFlags

    kind = file.dtypes[number - 1]
    if kind.startswith("complex"):
        raise RecordError(f"{name} holds complex numbers; write their magnitude as a TIFF")
    # A block is decoded whole, whatever size of it the file claims.
    block = max(height * width for height, width in file.block_shapes)
    block *= 1 if file.interleaving and file.interleaving.name == "band" else file.count
    needed = max(block, 3 * file.height * file.width) * np.dtype(kind).itemsize
    # As many bytes as the largest image of three bands of 8 bits has.
    what = (
        f"{file.width} x {file.height} pixels of {kind} take {needed} bytes; cut it into tiles"
    )
    check_limit("pixels", needed // 3, what)
    values = file.read(number)
    valid = np.isfinite(values)
    if MaskFlags.alpha not in file.mask_flag_enums[number - 1]:
        valid &= file.read_masks(number) > 0
    return values, valid


def _to_bytes(
    layers: Sequence[NDArray[Any]],
    valid: Sequence[NDArray[np.bool_]],
    stretch: Stretch,
    white: int | None = None,
) -> NDArray[np.uint8]:
    """RGB of 8 bits from one layer (gray), three (RGB) or four (CMYK), each ``(H, W)``.

    ``white`` is what a file says of whole numbers.
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
            high = max(high, low + 1e-9 * max(1, abs(low)))  # of one value
            scaled = np.rint(np.interp(np.where(known, layer, low), (low, high), (0, 255)))
        channels.append(np.where(known, scaled, 0).astype(np.uint8))
    if len(channels) == 4:
        cyan, magenta, yellow, black = (255 - each.astype(np.float64) for each in channels)
        channels = [np.rint(ink * black / 255).astype(np.uint8) for ink in (cyan, magenta, yellow)]
    return np.stack(channels * (3 if len(channels) == 1 else 1), axis=-1)


def _full_range(
    pairs: Sequence[tuple[NDArray[Any], NDArray[np.bool_]]], white: int | None
) -> tuple[float, float]:
    """What becomes 0 and 255, see `Stretch`."""
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
