"""A folder of images beside a folder of masks."""

import numpy as np
import pytest
from data_trees import assert_protocol, write_photo
from PIL import Image

from seg_env.data import Masks, open_dataset
from seg_env.data.records import RecordError

SIZE = (20, 12)


def write(root, pixels, names=None, split="train", name="a"):
    """An image and its mask; ``pixels`` maps rectangles ``(x0, y0, x1, y1)`` to values."""
    write_photo(root / "images" / split / f"{name}.jpg", SIZE)
    mask = np.zeros(SIZE[::-1], np.uint8)
    for (x0, y0, x1, y1), value in pixels.items():
        mask[y0:y1, x0:x1] = value
    path = root / "masks" / split / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    if names is not None:
        (root / "names.txt").write_text(names)
    return path


@pytest.mark.parametrize("value", [1, 255])
def test_a_binary_mask_is_one_object(tmp_path, value):
    write(tmp_path, {(2, 3, 8, 9): value}, "polyp\n")
    (sample,) = open_dataset(str(tmp_path))
    assert (sample.expression, sample.target.area) == ("polyp", 36)
    assert sample.target.mask()[3:9, 2:8].all()


def test_a_binary_mask_needs_no_names(tmp_path):
    write(tmp_path, {(2, 3, 8, 9): 255})
    assert [sample.expression for sample in Masks(tmp_path)] == ["the object"]


def test_values_are_classes_and_255_is_void(tmp_path):
    parts = {(0, 0, 4, 4): 1, (10, 0, 20, 6): 2, (6, 6, 10, 10): 255}
    write(tmp_path, parts, "1 cat\n2 traffic light\n")
    dataset = Masks(tmp_path)
    assert_protocol(dataset, 2)
    assert [(one.expression, one.target.area) for one in dataset] == [
        ("cat", 16),
        ("traffic light", 60),
    ]
    assert dataset[0].target.ignore.area == 16
    assert [other.area for other in dataset.others(0)] == [60]


def test_255_may_be_a_class(tmp_path):
    write(tmp_path, {(0, 0, 4, 4): 1, (6, 6, 10, 10): 255}, "1 cat\n255 dog\n")
    assert [one.expression for one in Masks(tmp_path)] == ["cat", "dog"]


@pytest.mark.parametrize("names", [None, "1 cat\n2 dog\n"])
def test_values_without_a_name_are_an_error(tmp_path, names):
    write(tmp_path, {(0, 0, 4, 4): 1, (6, 6, 10, 10): 7}, names)
    with pytest.raises(RecordError, match=r"a\.png has the values \[.*7\]"):
        Masks(tmp_path)


def test_what_is_not_used_is_counted(tmp_path):
    write(tmp_path, {(2, 3, 8, 9): 255})
    write(tmp_path, {}, name="b")
    write(tmp_path, {(2, 3, 8, 9): 255}, name="c").unlink()
    dataset = Masks(tmp_path)
    assert len(dataset) == 1
    assert dataset.unused == {
        "masks of nothing": 1,
        "images without a mask (PNG, TIFF or BMP, in masks/)": 1,
    }


def test_a_mask_of_another_size_is_an_error_and_left_out(tmp_path):
    path = write(tmp_path, {(2, 3, 8, 9): 255})
    Image.open(path).resize((40, 24), Image.Resampling.NEAREST).save(path)
    with pytest.raises(RecordError, match="20 x 12 pixels"):
        Masks(tmp_path)[0].image  # noqa: B018
    assert Masks(tmp_path, on_error="skip").skipped == {"size mismatch": 1}


def test_equal_channels_and_palettes_are_read_and_others_refused(tmp_path):
    path = write(tmp_path, {(2, 3, 8, 9): 1}, "1 cat\n2 dog\n")
    mask = Image.open(path).copy()
    mask.convert("RGB").save(path)
    assert Masks(tmp_path)[0].target.area == 36
    indexed = Image.fromarray(np.asarray(mask))
    indexed.putpalette([0, 0, 0, 200, 10, 10])
    indexed.save(path)
    assert Image.open(path).mode == "P"
    assert Masks(tmp_path)[0].target.area == 36
    Image.merge("RGB", (mask, mask, Image.new("L", SIZE))).save(path)
    with pytest.raises(RecordError, match="is in colours"):
        Masks(tmp_path)
    mask.point(lambda value: 255 * value).save(path, "JPEG")
    with pytest.raises(RecordError, match="is lossy"):
        Masks(tmp_path)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_values_of_16_bits_are_classes(tmp_path, ending):
    path = write(tmp_path, {(2, 3, 8, 9): 1}, "1 cat\n1000 dog\n")
    deep = np.array(Image.open(path)).astype(np.uint16)
    deep[:, 12:] = 1000
    path.unlink()
    Image.fromarray(deep).save(path.with_suffix(f".{ending}"))
    assert [(one.expression, one.target.area) for one in Masks(tmp_path)] == [
        ("cat", 36),
        ("dog", 96),
    ]


def test_a_lossy_mask_is_refused(tmp_path):
    path = write(tmp_path, {(2, 3, 8, 9): 255})
    Image.open(path).save(path.with_suffix(".jpg"))
    path.with_suffix(".jpg").rename(path)
    with pytest.raises(RecordError, match="is lossy"):
        Masks(tmp_path)


def test_names_in_another_encoding_are_refused_or_named(tmp_path):
    write(tmp_path, {(0, 0, 4, 4): 1})
    (tmp_path / "names.txt").write_bytes("1 \u676f\u5b50\n".encode("gbk"))
    with pytest.raises(RecordError, match=r"names\.txt is not text in UTF-8.*--encoding"):
        Masks(tmp_path)
    assert Masks(tmp_path, encoding="gbk")[0].expression == "\u676f\u5b50"
