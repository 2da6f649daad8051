"""Which image annotations are drawn on: the stored one, or the one that EXIF data turn upright."""

import base64

import numpy as np
import pytest
from data_trees import (
    HEIGHT,
    PHOTO,
    SQUARE,
    SQUARE_MASK,
    WIDTH,
    annotation,
    instances,
    reference,
    write_json,
    write_photo,
    write_turned,
)
from PIL import Image

from seg_env.data import (
    Coco,
    JsonLines,
    LabelMe,
    Masks,
    ReasonSeg,
    Refer,
    Yolo,
    export_jsonlines,
)

CORNERS = np.reshape(SQUARE, (-1, 2)).tolist()
UPRIGHT, STORED = (HEIGHT, WIDTH), (WIDTH, HEIGHT)


def labelme(root, size=UPRIGHT, orientation=6, points=CORNERS, **more):
    shapes = [{"label": "cup", "points": points, "shape_type": "polygon"}]
    sides = {"imageHeight": size[0], "imageWidth": size[1]}
    write_json(root / "a.json", {"imagePath": "a.jpg", "shapes": shapes, **sides, **more})
    write_turned(root / "a.jpg", orientation)
    return LabelMe(root)


def coco(root, size, orientation, segmentation):
    tables = instances(annotation(500, [segmentation]))
    tables["images"][0] |= {"height": size[0], "width": size[1]}
    write_json(root / "val.json", tables)
    write_turned(root / PHOTO, orientation)
    return Coco(root, "val")


def outlines_red(sample):
    """Whether the target is what is red."""
    red = sample.image[:, :, 1] < 128
    return red.shape == sample.target.size and (red ^ sample.target.mask()).mean() < 0.01


def turned_back(points, orientation):
    """Corners on the upright image as they lie on the stored one."""
    back = [(WIDTH - x, HEIGHT - y) if orientation == 3 else (y, WIDTH - x) for x, y in points]
    return np.ravel(back).tolist()


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_labelme_and_reasonseg_are_drawn_upright(tmp_path, orientation, recwarn):
    dataset = labelme(tmp_path / "labelme", orientation=orientation)
    assert outlines_red(dataset[0])
    record = {"text": ["the cup"], "shapes": [{"label": "cup", "points": CORNERS}]}
    write_json(tmp_path / "val/a.json", record)
    write_turned(tmp_path / "val/a.jpg", orientation)
    sample = ReasonSeg(tmp_path, "val")[0]
    assert sample.target.size == UPRIGHT
    assert sample.image.shape[:2] == UPRIGHT
    red = sample.image[:, :, 1] < 128
    assert (red & ~sample.target.mask()).sum() == 0
    assert not recwarn


@pytest.mark.parametrize("orientation", [3, 6])
def test_coco_refcoco_and_json_lines_are_drawn_as_stored(tmp_path, orientation, recwarn):
    size = UPRIGHT if orientation == 3 else STORED
    segmentation = turned_back(CORNERS, orientation)
    dataset = coco(tmp_path, size, orientation, segmentation)
    assert outlines_red(dataset[0])
    path = export_jsonlines(dataset, tmp_path / "out")
    assert outlines_red(JsonLines(path)[0])
    assert (tmp_path / "out/images" / PHOTO).read_bytes() == (tmp_path / PHOTO).read_bytes()
    tables = instances(annotation(500, [segmentation]))
    tables["images"][0] |= {"height": size[0], "width": size[1]}
    write_json(tmp_path / "refcoco/instances.json", tables)
    write_json(tmp_path / "refcoco/refs(unc).json", [reference(1, 500, ["one"])])
    write_turned(tmp_path / "train2014" / PHOTO, orientation)
    assert outlines_red(Refer(tmp_path, "refcoco", "val")[0])
    assert not [each for each in recwarn if "upright" in str(each.message)]


def test_a_size_that_fits_the_other_image_only_is_used_and_said(tmp_path):
    with pytest.warns(UserWarning, match="read turned upright as their EXIF data say"):
        assert outlines_red(coco(tmp_path / "coco", UPRIGHT, 6, SQUARE)[0])
    points = np.reshape(turned_back(CORNERS, 6), (-1, 2)).tolist()
    stored = labelme(tmp_path / "labelme", STORED, points=points)
    with pytest.warns(UserWarning, match="are read as they are stored"):
        assert outlines_red(stored[0])


def test_a_size_that_fits_neither_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="but its annotations say 60 x 41"):
        _ = labelme(tmp_path, (HEIGHT + 1, WIDTH))[0].image


@pytest.mark.parametrize("orientation", [3, 6])
def test_what_is_read_turned_is_exported_turned(tmp_path, orientation):
    dataset = labelme(tmp_path, orientation=orientation)
    path = export_jsonlines(dataset, tmp_path / "out")
    assert (tmp_path / "out/images/a.png").exists()
    copy = JsonLines(path, "train")
    np.testing.assert_array_equal(copy[0].image, dataset[0].image)
    assert outlines_red(copy[0])


def test_the_image_in_a_labelme_file_decides_about_one_that_could_be_turned(tmp_path, recwarn):
    content = tmp_path / "content.png"
    write_photo(content, colour=(1, 2, 3))
    data = base64.b64encode(content.read_bytes()).decode()
    for orientation, colour in ((1, [255, 255, 255]), (3, [1, 2, 3]), (6, [1, 2, 3])):
        image = labelme(tmp_path, orientation=orientation, imageData=data)[0].image
        np.testing.assert_allclose(image[0, 0], colour, atol=2)
    stored = base64.b64encode(write_photo(content, STORED[::-1], (4, 5, 6)).read_bytes()).decode()
    dataset = labelme(tmp_path, STORED, imageData=stored, points=[[1, 1], [9, 1], [9, 9]])
    assert dataset[0].image[0, 0].tolist() == [4, 5, 6]
    assert not recwarn
    labelme(tmp_path, imageData=data)
    Image.open(tmp_path / "a.jpg").resize((90, 90)).save(tmp_path / "a.jpg")
    assert LabelMe(tmp_path)[0].image[0, 0].tolist() == [1, 2, 3]


def test_a_labelme_file_without_sizes_has_those_of_its_image(tmp_path):
    sizes = {"imageHeight": None, "imageWidth": None}
    assert outlines_red(labelme(tmp_path, **sizes)[0])
    np.testing.assert_array_equal(LabelMe(tmp_path)[0].target.mask(), SQUARE_MASK)


def yolo(root, orientation):
    write_turned(root / "images/train/a.jpg", orientation)
    (root / "classes.txt").write_text("cup\n")
    shares = (np.array(CORNERS) / (WIDTH, HEIGHT)).ravel()
    (root / "labels/train").mkdir(parents=True, exist_ok=True)
    (root / "labels/train/a.txt").write_text(" ".join(map(str, [0, *shares])))
    return Yolo(root)


def masks(root, orientation, mask=SQUARE_MASK):
    write_turned(root / "images/train/a.jpg", orientation)
    (root / "masks/train").mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8)).save(root / "masks/train/a.png")
    return Masks(root)


@pytest.mark.parametrize("make", [yolo, masks])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_labels_of_yolo_and_folders_of_masks_are_drawn_upright(
    tmp_path, make, orientation, recwarn
):
    dataset = make(tmp_path, orientation)
    assert outlines_red(dataset[0])
    assert outlines_red(JsonLines(export_jsonlines(dataset, tmp_path / "out"), "train")[0])
    assert not recwarn


def test_a_mask_of_the_stored_image_is_used_and_said(tmp_path):
    dataset = masks(tmp_path, 6, np.rot90(SQUARE_MASK))
    with pytest.warns(UserWarning, match="are read as they are stored"):
        assert outlines_red(dataset[0])
