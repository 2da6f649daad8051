"""Whatever a file holds becomes RGB of 8 bits."""

import io
import json
import warnings

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp

from seg_env.data import LabelMe, RecordError, open_dataset
from seg_env.data.annotate.sources import open_image
from seg_env.data.annotate.stages import RawImage
from seg_env.data.images import image_size, read_image, read_mask

SIDE = 32
SIZE = SIDE, SIDE
RAMP = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)  # 0 to 1023


def write_raster(path, bands, driver="GTiff", interpretation=None, colormap=None, **profile):
    bands = np.asarray(bands)
    count, height, width = bands.shape
    profile |= {"driver": driver, "dtype": bands.dtype, "count": count}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", height=height, width=width, **profile) as file:
            file.write(bands)
            if interpretation:
                file.colorinterp = interpretation
            if colormap:
                file.write_colormap(1, colormap)
    return path


def gray_of(image):
    assert image.dtype == np.uint8
    assert (image == image[..., :1]).all()
    return image[..., 0]


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def test_a_16_bit_gray_png_keeps_its_tones(tmp_path):
    Image.fromarray((RAMP * 64).astype(np.uint16)).save(tmp_path / "a.png")
    gray = gray_of(read_image(tmp_path / "a.png", SIZE))
    assert (gray == np.rint(RAMP * 64 * 255 / 65535)).all()
    assert len(np.unique(gray)) == 256


@pytest.mark.parametrize("driver", ["PNG", "GTiff"])
def test_16_bit_rgb_is_the_image_it_was_made_from(tmp_path, photo, driver):
    path = write_raster(tmp_path / "a", np.moveaxis(photo, -1, 0).astype(np.uint16) * 257, driver)
    assert (read_image(path, SIZE) == photo).all()
    assert (read_image(path.read_bytes(), SIZE) == photo).all()
    assert image_size(path) == SIZE


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_a_sensor_of_fewer_bits_spans_all_tones(tmp_path, bits):
    values = (RAMP * 2 ** (bits - 10)).astype(np.uint16)
    gray = gray_of(read_image(write_raster(tmp_path / "a.tif", [values]), SIZE))
    assert (gray == np.rint(values * (255 / (2**bits - 1)))).all()
    assert gray.max() >= 254


def test_bits_that_the_file_states_count(tmp_path):
    dark = write_raster(tmp_path / "a.tif", [(RAMP // 16).astype(np.uint16)], nbits=12)
    assert gray_of(read_image(dark, SIZE)).max() == round(63 * 255 / 4095)
    four = write_raster(tmp_path / "b.tif", [(RAMP // 64).astype(np.uint8)], nbits=4)
    assert (gray_of(read_image(four, SIZE)) == RAMP // 64 * 17).all()


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ((RAMP / 2046).astype(np.float32), 0, 1),  # shares of 1
        ((RAMP / 1e3).astype(np.float32), 0, 1.023),  # reflectances, some above 1
        ((RAMP * 2.0 - 300), -300, 1746),  # heights
        ((RAMP * 5 - 99).astype(np.int16), -99, 5016),
        ((RAMP * 4000).astype(np.uint32), 0, 1023 * 4000),
    ],
)
def test_floats_and_signed_numbers_keep_their_order_and_ends(tmp_path, values, low, high):
    gray = gray_of(read_image(write_raster(tmp_path / "a.tif", [values]), SIZE))
    expected = (values.astype(np.float64) - low) * 255 / (high - low)
    assert np.abs(gray - expected).max() <= 0.501


def test_percentiles_take_each_band_by_itself(tmp_path):
    dim = np.stack([RAMP + 100, RAMP * 2 + 5000, RAMP * 0 + 7]).astype(np.uint16)
    dim[:, 0, 0] = 65535  # one hot pixel
    path = write_raster(tmp_path / "a.tif", dim)
    image = read_image(path, SIZE, stretch="percentiles")
    assert np.percentile(image[..., 0], (1, 50, 99)).round() == pytest.approx([0, 128, 255], abs=1)
    assert np.abs(image[..., 0].astype(int) - image[..., 1])[1:].max() <= 1
    assert (image[1:, :, 2] == 0).all()
    Image.fromarray(np.uint8(100 + RAMP // 64)).save(tmp_path / "b.png")
    assert np.ptp(read_image(tmp_path / "b.png", SIZE, stretch="percentiles")) == 255
    assert np.ptp(read_image(tmp_path / "b.png", SIZE)) == 15


def test_nodata_is_black_and_does_not_stretch(tmp_path):
    heights = RAMP.astype(np.float32)
    heights[:4] = -9999
    heights[4, :3] = np.nan, np.inf, -np.inf
    gray = gray_of(read_image(write_raster(tmp_path / "a.tif", [heights], nodata=-9999), SIZE))
    assert (gray[:4] == 0).all()
    assert (gray[4, :3] == 0).all()
    low = RAMP[4, 3]
    assert (gray[5:] == np.rint((RAMP[5:] - low) * 255 / (1023 - low))).all()
    whole = write_raster(tmp_path / "b.tif", [np.full(SIZE, 7.0)], nodata=7)
    assert not read_image(whole, SIZE).any()


def test_nodata_of_one_band_leaves_the_others(tmp_path, photo):
    photo[0, 0] = 255, 0, 0
    path = write_raster(tmp_path / "a.tif", np.moveaxis(photo, -1, 0), nodata=0)
    assert (read_image(path, SIZE) == photo).all()


def test_of_many_bands_the_colours_are_found(tmp_path, photo):
    red, green, blue = np.moveaxis(photo, -1, 0)
    infrared = 255 - red
    named = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined]
    path = write_raster(tmp_path / "a.tif", [blue, green, red, infrared], interpretation=named)
    assert (read_image(path, SIZE) == photo).all()
    assert (gray_of(read_image(path, SIZE, bands=[4])) == infrared).all()
    assert (read_image(path, SIZE, bands=[4, 3, 2]) == np.dstack([infrared, red, green])).all()
    unnamed = write_raster(
        tmp_path / "b.tif", [red, green, blue, infrared, red], photometric="MINISBLACK"
    )
    assert (read_image(unnamed, SIZE) == photo).all()
    two = write_raster(tmp_path / "c.tif", [red, green], photometric="MINISBLACK", alpha="NO")
    assert (gray_of(read_image(two, SIZE)) == red).all()


@pytest.mark.parametrize("bands", [[], [0], [5], [1, 2], [1, 2, 3, 4]])
def test_bands_that_are_not_there_are_named(tmp_path, bands):
    path = write_raster(tmp_path / "a.tif", np.zeros((4, *SIZE), np.uint8))
    with pytest.raises(RecordError, match=r"a\.tif has 4 bands.*name one or three of 1 to 4"):
        read_image(path, SIZE, bands=bands)
    Image.new("RGB", SIZE).save(tmp_path / "b.png")
    with pytest.raises(RecordError, match=r"b\.png has 3 bands"):
        read_image(tmp_path / "b.png", SIZE, bands=[4, 3, 2])


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_palette_is_looked_up(tmp_path, ending):
    image = Image.new("P", SIZE, 1)
    image.putpalette([0, 0, 0, 250, 120, 30])
    image.save(tmp_path / f"a.{ending}")
    assert (read_image(tmp_path / f"a.{ending}", SIZE) == (250, 120, 30)).all()


@pytest.mark.parametrize("ending", ["jpg", "tif"])
def test_inks_become_light(tmp_path, ending):
    Image.new("CMYK", SIZE, (0, 255, 255, 0)).save(tmp_path / f"a.{ending}")
    assert np.abs(read_image(tmp_path / f"a.{ending}", SIZE).astype(int) - (255, 0, 0)).max() <= 2


def test_inks_of_16_bits(tmp_path):
    inks = np.zeros((4, *SIZE), np.uint16)
    inks[1], inks[3] = 65535, 32768
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(1, 0, 5, 0, -1, 5)}
    path = write_raster(tmp_path / "a.tif", inks, photometric="CMYK", **place)
    with rasterio.open(path) as file:
        assert file.colorinterp[0] is ColorInterp.cyan
    assert np.abs(read_image(path, SIZE).astype(int) - (127, 0, 127)).max() <= 1


@pytest.mark.parametrize("ending", ["png", "webp", "tif"])
def test_what_is_transparent_lies_on_white(tmp_path, ending):
    pixels = np.zeros((*SIZE, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[:16, :, 3], pixels[16, :, 3] = 255, 51
    options = {"lossless": True, "exact": True} if ending == "webp" else {}
    Image.fromarray(pixels).save(tmp_path / f"a.{ending}", **options)
    image = read_image(tmp_path / f"a.{ending}", SIZE)
    assert (image[:16] == (200, 0, 0)).all()
    assert (image[16] == (244, 204, 204)).all()
    assert (image[17:] == 255).all()


def test_transparency_of_16_bits_and_of_a_palette(tmp_path, photo):
    deep = np.concatenate([np.moveaxis(photo, -1, 0), np.full((1, *SIZE), 255)]) * 257
    deep[3, 0] = 0
    path = write_raster(tmp_path / "a.png", deep.astype(np.uint16), "PNG")
    image = read_image(path, SIZE)
    assert (image[1:] == photo[1:]).all()
    assert (image[0] == 255).all()
    indexed = Image.new("P", SIZE, 1)
    indexed.putpalette([0, 0, 0, 250, 120, 30])
    indexed.save(tmp_path / "b.png", transparency=1)
    assert (read_image(tmp_path / "b.png", SIZE) == 255).all()


@pytest.mark.parametrize(
    ("mode", "color", "shown"),
    [("1", 1, 255), ("L", 90, 90), ("RGB", (9, 8, 7), (9, 8, 7)), ("YCbCr", (120, 130, 140), None)],
)
def test_tiffs_of_each_colour_space_look_as_pillow_shows_them(tmp_path, mode, color, shown):
    image = Image.new(mode, SIZE, color)
    image.save(tmp_path / "a.tif")
    expected = np.array(image.convert("RGB")).astype(int)
    assert shown is None or (expected == shown).all()
    assert np.abs(read_image(tmp_path / "a.tif", SIZE) - expected).max() <= (mode == "YCbCr")


def test_white_may_be_zero(tmp_path):
    Image.fromarray(np.uint8(RAMP // 4)).save(tmp_path / "a.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "a.tif") as image:
        expected = np.array(image)
    assert (gray_of(read_image(tmp_path / "a.tif", SIZE)) == expected).all()


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_deep_images_are_turned_like_all_others(tmp_path, ending):
    wide = (RAMP[:20] * 64).astype(np.uint16)
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(wide).save(tmp_path / f"a.{ending}", exif=turned)
    stored = read_image(tmp_path / f"a.{ending}", (20, SIDE))
    upright = read_image(tmp_path / f"a.{ending}", (SIDE, 20), upright=True)
    assert (upright == np.rot90(stored, -1)).all()
    with pytest.warns(UserWarning, match="read turned upright"):
        assert (read_image(tmp_path / f"a.{ending}", (SIDE, 20)) == upright).all()


def test_bytes_stay_as_they_are(tmp_path, photo):
    path = write_raster(tmp_path / "a.tif", np.moveaxis(photo, -1, 0) // 4, tiled=True)
    assert (read_image(path, SIZE) == photo // 4).all()


def test_damage_size_and_content_are_told_in_one_sentence(tmp_path):
    path = write_raster(tmp_path / "a.tif", [RAMP.astype(np.uint16)], compress="deflate")
    with pytest.raises(RecordError, match=r"a\.tif is 32 x 32 pixels"):
        read_image(path, (16, 16))
    data = path.read_bytes()
    for damaged in (data[:8] + b"\xff" * 40, data[: len(data) // 2], b"II*\0", data[:60]):
        with pytest.raises(RecordError, match="it cannot be read as an image"):
            read_image(damaged, SIZE, "it")
    complex_numbers = write_raster(tmp_path / "b.tif", [RAMP.astype(np.complex64)])
    with pytest.raises(RecordError, match=r"b\.tif holds complex numbers"):
        read_image(complex_numbers, SIZE)


def test_a_small_file_cannot_claim_much_memory(tmp_path):
    size = 13000, 13000
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=size[0], width=size[1], count=1, dtype="float64",
        sparse_ok=True, tiled=True, crs="EPSG:32633", transform=rasterio.Affine(1, 0, 5, 0, -1, 5),
    ):  # fmt: skip
        pass
    assert path.stat().st_size < 1 << 20
    with pytest.raises(RecordError, match=r"a\.tif: .* take \d+ bytes.*the limit is"):
        read_image(path, size)


def test_masks_of_any_depth(tmp_path):
    expected = RAMP > 500
    for number, (driver, kind) in enumerate([("PNG", "uint16"), ("GTiff", "float32")]):
        path = write_raster(tmp_path / f"{number}", [(expected * 300).astype(kind)], driver)
        assert (read_mask(path, SIZE) == expected).all()
    unknown = np.where(expected, 1, 255).astype(np.uint8)
    assert (read_mask(write_raster(tmp_path / "c", [unknown], nodata=255), SIZE) == expected).all()
    with pytest.raises(RecordError, match="a mask has one"):
        read_mask(write_raster(tmp_path / "d", np.zeros((3, *SIZE), np.uint8)), SIZE)


def test_data_sets_take_both_options(tmp_path, photo):
    bands = np.moveaxis(photo, -1, 0).astype(np.uint16) * 16 + 100
    write_raster(tmp_path / "field.tif", bands)
    square = [[4, 4], [20, 4], [20, 20], [4, 20]]
    record = {
        "imagePath": "gone.jpg",  # renamed, as LabelMe's files are
        "imageHeight": SIDE,
        "imageWidth": SIDE,
        "imageData": None,
        "shapes": [{"label": "field", "points": square, "shape_type": "polygon"}],
    }
    (tmp_path / "field.json").write_text(json.dumps(record))
    plain = open_dataset("labelme", data_root=tmp_path)[0]
    swapped = open_dataset("labelme", data_root=tmp_path, bands=[3, 2, 1])[0]
    assert (swapped.image == plain.image[..., ::-1]).all()
    assert np.abs(plain.image - (photo * 16.0 + 100) * 255 / 16383).max() <= 0.501
    stretched = LabelMe(tmp_path, stretch="percentiles")[0].image
    assert np.ptp(stretched) == 255
    with pytest.raises(ValueError, match="stretch='most' is unknown; use one of full, percentiles"):
        LabelMe(tmp_path, stretch="most")


def test_images_from_the_web_are_read_by_the_same_rules(photo):
    def encoded(image, **options):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", **options)
        return RawImage("key", buffer.getvalue())

    deep = Image.fromarray((RAMP * 64).astype(np.uint16))
    assert (open_image(encoded(deep)).image[..., 0] == np.rint(RAMP * 64 * 255 / 65535)).all()
    turned = Image.Exif()
    turned[274] = 3
    found = open_image(encoded(deep, exif=turned)).image[..., 0].astype(int)
    assert np.abs(found - np.rint(RAMP * 64 * 255 / 65535)[::-1, ::-1]).max() <= 6
    clear = Image.fromarray(np.dstack([photo, np.zeros(SIZE, np.uint8)]))
    assert (open_image(encoded(clear)).image == 255).all()
