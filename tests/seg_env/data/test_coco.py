"""Annotations in COCO's form, asked for by category."""

import numpy as np
import pytest
from data_trees import (
    BESIDE,
    BOTH_MASK,
    FAR,
    HEIGHT,
    SQUARE,
    SQUARE_MASK,
    WIDTH,
    annotation,
    assert_protocol,
    box_mask,
    instances,
    write_json,
    write_photo,
)

from seg_env.data import Coco, open_dataset
from seg_env.geometry.rle import Rle

CROWD = {
    "size": [HEIGHT, WIDTH],
    "counts": Rle.from_mask(box_mask((50, 0, 60, 10))).counts.tolist(),
}
TABLES = instances(
    annotation(500, [SQUARE]),
    annotation(501, [BESIDE]),
    annotation(502, CROWD, iscrowd=1),
    annotation(503, [BESIDE], category_id=4),
    annotation(504, [SQUARE], category_id=4, image_id=10),
    images=(9, 10),
)


def write(root, tables=TABLES, annotations="annotations/instances_val2017.json", images="val2017"):
    write_json(root / annotations, tables)
    for image in tables["images"]:
        write_photo(root / images / image["file_name"])
    return root


def test_all_of_a_category_is_one_target(tmp_path):
    dataset = Coco(write(tmp_path), "val2017")
    assert_protocol(dataset, 3)
    assert [(sample.id, sample.expression) for sample in dataset] == [
        ("coco-val2017-9-3", "person"),
        ("coco-val2017-9-4", "dog"),
        ("coco-val2017-10-4", "dog"),
    ]
    expected = BOTH_MASK | box_mask((50, 0, 60, 10))
    np.testing.assert_array_equal(dataset[0].target.mask(), expected)
    assert dataset[0].metadata["ann_id"] == [500, 501, 502]
    assert [len(dataset.others(index)) for index in range(3)] == [1, 3, 0]


def test_each_object_on_its_own_without_crowds(tmp_path):
    dataset = Coco(write(tmp_path), "val2017", per_annotation=True)
    assert_protocol(dataset, 4)
    np.testing.assert_array_equal(dataset[0].target.mask(), SQUARE_MASK)
    assert [sample.metadata["ann_id"] for sample in dataset] == [[500], [501], [503], [504]]
    assert len(dataset.others(0)) == 3


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_val2017.json", "images/val2017"),
        ("val2017/_annotations.coco.json", "val2017"),
        ("instances.json", "images"),
        ("val2017.json", "."),
    ],
)
def test_places_of_files(tmp_path, annotations, images):
    root = write(tmp_path, annotations=annotations, images=images)
    assert_protocol(open_dataset("coco", split="val2017", data_root=root), 3)
    assert_protocol(Coco(root / annotations, "val2017", root / images), 3)


def test_a_missing_file_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"looked for annotations/instances_val\.json"):
        Coco(tmp_path, "val")


def test_images_of_another_data_set_are_left_out(tmp_path):
    root = write(tmp_path)
    for exclude in ({9}, {"000000000009.jpg"}, {"COCO_train2014_000000000009_4.jpg"}):
        dataset = Coco(root, "val2017", exclude_images=exclude)
        assert [sample.metadata["image_id"] for sample in dataset] == [10]
        assert dataset.excluded == 2


def test_broken_records_are_errors_or_counted(tmp_path):
    more = [
        annotation(510, [], image_id=10),
        annotation(511, [FAR], image_id=10, category_id=5),
        annotation(512, [SQUARE], image_id=99),
        {"id": 513, "segmentation": []},
    ]
    tables = TABLES | {"annotations": TABLES["annotations"] + more}
    root = write(tmp_path, tables)
    with pytest.raises(
        ValueError, match=r"instances_val2017\.json: record 8 of 'annotations': 'image_id'"
    ):
        Coco(root, "val2017")
    dataset = Coco(root, "val2017", on_error="skip")
    assert_protocol(dataset, 3)
    assert dataset.skipped == {"malformed record": 3, "empty segmentation": 1}
    write(tmp_path, TABLES | {"annotations": [more[0]]})
    with pytest.raises(ValueError, match="annotation 510: the segmentation is empty"):
        Coco(root, "val2017")[0]
    write(tmp_path, TABLES | {"annotations": [more[2]]})
    with pytest.raises(ValueError, match="annotation 512 belongs to image 99"):
        Coco(root, "val2017")


def test_images_that_are_missing_or_of_another_size_are_counted(tmp_path):
    root = write(tmp_path)
    write_photo(root / "val2017/COCO_train2014_000000000009.jpg", (WIDTH, HEIGHT + 1))
    (root / "val2017/COCO_train2014_000000000010.jpg").unlink()
    assert Coco(root, "val2017", on_error="skip").skipped == {
        "size mismatch": 2,
        "missing photo": 1,
    }


def test_two_annotations_of_one_id_are_named_or_the_second_is_counted(tmp_path):
    again = annotation(500, [BESIDE])
    root = write(tmp_path, TABLES | {"annotations": [*TABLES["annotations"], again]})
    with pytest.raises(ValueError, match=r"record 5 of 'annotations': the id 500 appears twice"):
        Coco(root, "val2017")
    dataset = Coco(root, "val2017", per_annotation=True, on_error="skip")
    np.testing.assert_array_equal(dataset[0].target.mask(), SQUARE_MASK)
    assert dataset.skipped == {"malformed record": 1}
