"""Folders annotated with LabelMe."""

import base64

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
