"""Folders annotated with LabelMe."""

import base64
import io
import json

import numpy as np
import pytest
from data_trees import (
    BOTH_MASK,
    HEIGHT,
    SQUARE_MASK,
    WIDTH,
    assert_protocol,
    write_json,
    write_photo,
)
from PIL import Image

from seg_env.data import LabelMe, open_dataset

SQUARE = [[10, 10], [30, 10], [30, 30], [10, 30]]
BESIDE = [[25, 20], [45, 20], [45, 35], [25, 35]]


def shape(label, points, kind="polygon", group_id=None, **more):
    return {
        "label": label,
        "points": points,
        "group_id": group_id,
        "shape_type": kind,
        "flags": {},
        **more,
    }


def record(*shapes, image="desk.jpg", **changes):
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": image,
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
        **changes,
    }


@pytest.fixture
def write(tmp_path):
    def write(*shapes, name="train/desk", image=True, **changes):
        write_json(tmp_path / f"{name}.json", record(*shapes, **changes))
        if image:
            write_photo((tmp_path / name).with_name("desk.jpg"))
        return tmp_path

    return write


def test_all_of_a_label_is_one_target(write):
    root = write(shape("cup", SQUARE), shape("lamp", BESIDE), shape("cup", BESIDE))
    dataset = LabelMe(root, "train")
    assert_protocol(dataset, 2)
    assert [sample.expression for sample in dataset] == ["cup", "lamp"]
    np.testing.assert_array_equal(dataset[0].target.mask(), BOTH_MASK)
    assert len(dataset.others(0)) == 1
    assert dataset[0].metadata == {"file_name": "train/desk.jpg", "label": "cup", "shapes": [0, 2]}


def test_each_object_on_its_own_with_groups_together(write):
    root = write(
        shape("cup", SQUARE),
        shape("cup", SQUARE, group_id=1),
        shape("cup", BESIDE, group_id=1),
        shape("note", [[1, 1]], "point"),
    )
    dataset = LabelMe(root, per_annotation=True)
    assert_protocol(dataset, 2)
    np.testing.assert_array_equal(dataset[0].target.mask(), SQUARE_MASK)
    np.testing.assert_array_equal(dataset[1].target.mask(), BOTH_MASK)


def test_rectangles_circles_and_descriptions(write):
    root = write(
        shape("cup", [[30, 30], [10, 10]], "rectangle", description="the red cup"),
        shape("ball", [[30, 20], [40, 20]], "circle"),
    )
    rectangle, circle = LabelMe(root)
    assert rectangle.expression == "the red cup"
    assert rectangle.metadata["label"] == "cup"
    np.testing.assert_array_equal(rectangle.target.mask(), SQUARE_MASK)
    assert circle.target.area == pytest.approx(np.pi * 100, rel=0.03)


def test_one_folder_without_splits(write):
    root = write(shape("cup", SQUARE), name="desk")
    assert_protocol(open_dataset("labelme", split="val", data_root=root), 1)


def test_an_image_within_the_file_or_renamed_beside_it(write, tmp_path):
    data = write_photo(tmp_path / "elsewhere.png", colour=(1, 2, 3)).read_bytes()
    encoded = base64.b64encode(data).decode()
    root = write(shape("cup", SQUARE), image=False, imageData=encoded)
    dataset = LabelMe(root)
    assert_protocol(dataset, 1)
    assert dataset.image_path(0) is None
    assert dataset[0].image[0, 0].tolist() == [1, 2, 3]
    write_photo(root / "train/desk.png", colour=(4, 5, 6))
    assert LabelMe(root)[0].image[0, 0].tolist() == [4, 5, 6]


def test_an_image_path_may_go_up_but_not_out(write):
    root = write(shape("cup", SQUARE), name="labels/a/desk", image=False)
    write_json(root / "labels/a/desk.json", record(shape("cup", SQUARE), image="..\\..\\x.png"))
    write_photo(root / "x.png")
    assert LabelMe(root)[0].metadata["file_name"] == "x.png"
    for path in ("../../../secret.png", "/etc/secret.png", ""):
        write_json(root / "labels/a/desk.json", record(shape("cup", SQUARE), image=path))
        with pytest.raises(ValueError, match=r"desk\.json: .*imagePath"):
            LabelMe(root)


def test_broken_records_are_errors_or_counted(write):
    far = [[200, 5], [300, 5], [300, 30]]
    root = write(shape("cup", SQUARE), shape("far", far), shape("line", [[5, 5], [5, 5], [5, 5]]))
    write(shape("odd", [[1, 2, 3]]), shape("box", SQUARE[:3], "rectangle"), name="train/odd")
    write(shape("tall", SQUARE), name="train/tall", imageHeight=HEIGHT + 9)
    write(shape("gone", SQUARE), name="train/gone", image=False, imagePath="gone.jpg")
    (root / "train/cut.json").write_text("{")
    with pytest.raises(ValueError, match=r"cut\.json is not valid JSON"):
        LabelMe(root)
    dataset = LabelMe(root, on_error="skip")
    assert_protocol(dataset, 1)
    assert dataset.skipped == {
        "malformed record": 3,
        "polygon outside the image": 1,
        "empty segmentation": 1,
        "size mismatch": 1,
        "missing photo": 1,
    }
    (root / "train/cut.json").unlink()
    unchecked = LabelMe(root)
    with pytest.raises(ValueError, match=r"desk\.json: shape 1: a polygon outside the image"):
        unchecked[1]


def encoded(mask, form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, form)
    return base64.b64encode(buffer.getvalue()).decode()


def mask_shape(label, corner, mask, **more):
    """A mask as LabelMe's brush and its models write it: a box, end included, and an image."""
    x, y = corner
    points = [[x, y], [x + mask.shape[1] - 1, y + mask.shape[0] - 1]]
    return shape(label, points, "mask", mask=encoded(mask), **more)


def test_masks_are_parts_alone_and_beside_a_polygon(write):
    disc = np.hypot(*np.mgrid[-7:8, -10:11]) < 8
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[20:35, 25:46] = disc
    alone = LabelMe(write(mask_shape("cup", (25, 20), disc)))
    assert_protocol(alone, 1)
    np.testing.assert_array_equal(alone[0].target.mask(), expected)
    beside = LabelMe(write(shape("cup", SQUARE), mask_shape("cup", (25, 20), np.uint8(disc) * 255)))
    np.testing.assert_array_equal(beside[0].target.mask(), expected | SQUARE_MASK)
    assert not beside.unused


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"points": [[50, 30], [70, 44]]}, "a mask has the corners of a box within 60 x 40"),
        ({"points": [[25, 20], [45, 34], [1, 1]]}, "a mask has the corners of a box"),
        ({"points": [[25, 20], [44, 34]]}, r"mask is 21 x 15 pixels .* say 20 x 15"),
        ({"points": [[25, 20], [float("nan"), 34]]}, "finite pairs"),
        ({"mask": None}, "'mask' must be a string, got nothing"),
        ({"mask": "?"}, "mask is not base64"),
        ({"mask": "aGVsbG8="}, "mask cannot be read as an image"),
        ({"shape_type": "ellipse"}, "'shape_type' must be one of polygon, .*got the string 'elli"),
    ],
)
def test_a_target_is_never_made_of_half_its_parts(write, change, problem):
    odd = mask_shape("cup", (25, 20), np.ones((15, 21), dtype=bool)) | change
    root = write(shape("cup", SQUARE), odd, shape("lamp", BESIDE))
    with pytest.raises(ValueError, match=rf"desk\.json: shape 1: .*{problem}"):
        LabelMe(root)[0]
    dataset = LabelMe(root, on_error="skip")
    assert [sample.expression for sample in dataset] == ["lamp"]
    assert sum(dataset.skipped.values()) == 1


def test_what_outlines_nothing_is_counted_by_its_kind(write):
    lines = [("point", 1), ("points", 2), ("line", 2), ("linestrip", 3), ("point", 1)]
    root = write(shape("cup", SQUARE), *(shape("cup", SQUARE[:n], kind) for kind, n in lines))
    write(shape("cup", SQUARE[:1], "point"), name="train/bare", imagePath="../../elsewhere.png")
    dataset = LabelMe(root)
    assert_protocol(dataset, 1)
    assert dataset.unused == {
        "point shapes": 3, "points shapes": 1, "line shapes": 1, "linestrip shapes": 1,
        "images without annotations": 1,
    }  # fmt: skip
    unlabelled = write(shape("cup", SQUARE), shape(None, [[5, 5]], "point"))
    assert len(LabelMe(unlabelled)) == 1, "what is not used is not judged"


def test_rectangles_of_four_points(write):
    root = write(
        shape("cup", SQUARE, "rectangle"),
        shape("lamp", [[20, 5], [30, 15], [20, 25], [10, 15]], "oriented_rectangle"),
        shape("old", SQUARE, None),
    )
    cup, lamp, old = LabelMe(root)
    np.testing.assert_array_equal(cup.target.mask(), SQUARE_MASK)
    np.testing.assert_array_equal(old.target.mask(), SQUARE_MASK)
    assert lamp.target.area == pytest.approx(200, abs=15)


@pytest.mark.parametrize("per_annotation", [False, True])
def test_parts_of_an_object_stay_together_when_one_of_them_is_described(write, per_annotation):
    root = write(
        shape("cup", SQUARE, group_id=1),
        shape("cup", BESIDE, group_id=1, description="the red cup"),
    )
    dataset = LabelMe(root, per_annotation=per_annotation)
    assert_protocol(dataset, 1)
    assert dataset[0].expression == "the red cup"
    np.testing.assert_array_equal(dataset[0].target.mask(), BOTH_MASK)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_labels_in_unicode_of_any_kind(write, encoding):
    root = write(shape("cup", SQUARE))
    text = json.dumps(record(shape("\u676f\u5b50", SQUARE)), ensure_ascii=False)
    (root / "train/desk.json").write_bytes(text.encode(encoding))
    assert LabelMe(root)[0].expression == "\u676f\u5b50"


@pytest.mark.parametrize("encoding", ["gbk", "shift_jis", "cp1252"])
def test_labels_in_another_encoding_are_an_error_or_named(write, encoding):
    label = "caf\u00e9" if encoding == "cp1252" else "\u676f\u5b50"
    root = write(shape("cup", SQUARE))
    text = json.dumps(record(shape(label, SQUARE)), ensure_ascii=False)
    (root / "train/desk.json").write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=r"desk\.json is not text in UTF-8; .*--encoding"):
        LabelMe(root)
    assert LabelMe(root, on_error="skip").skipped == {"malformed record": 1}
    write(shape("\u676f", SQUARE), name="train/other")
    dataset = open_dataset("labelme", data_root=root, encoding=encoding)
    assert [sample.expression for sample in dataset] == [label, "\u676f"]
