"""Annotations in COCO's form, asked for by category."""

import json

import gymnasium
import numpy as np
import pytest
from data_trees import (
    BESIDE,
    BOTH_MASK,
    FAR,
    HEIGHT,
    PHOTO,
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


def test_crowds_and_bare_images_are_counted_and_an_empty_data_set_says_why(tmp_path):
    crowds = [annotation(500 + k, CROWD, iscrowd=1) for k in range(3)]
    root = write(tmp_path, instances(*crowds, images=(9, 10)))
    dataset = Coco(root, "val2017", per_annotation=True)
    assert dataset.unused == {"crowds (iscrowd)": 3, "images without annotations": 1}
    assert Coco(root, "val2017").unused == {"images without annotations": 1}
    with pytest.raises(ValueError, match=r"no sample to ask about: .*3 not used, crowds"):
        gymnasium.make("seg_env:SimpleSeg-RefCOCO-v0", dataset=dataset)


def test_what_is_not_used_is_not_judged(tmp_path):
    odd = {"area": float("nan"), "bbox": [None], "iscrowd": None}
    part_on_the_edge = [0.0, 5.0, 0.0, 8.0, 0.0, 6.0]
    edges = [part_on_the_edge, [60.0, 5.0, 60.0, 8.0, 60, 6], [5, 0, 9, 0, 7, 0], [0.0, 0.0]]
    dataset = Coco(write(tmp_path, instances(annotation(500, [SQUARE, *edges], **odd))), "val2017")
    np.testing.assert_array_equal(dataset[0].target.mask(), SQUARE_MASK)
    beside = [-5.0, 5.0, 0.0, 8.0, -5.0, 9.0]
    dataset = Coco(write(tmp_path, instances(annotation(500, [SQUARE, beside]))), "val2017")
    with pytest.raises(ValueError, match=r"annotation 500: part 1 .* outside the image: x -5 to 0"):
        dataset[0]


@pytest.mark.parametrize("ids", [("9", 3.0, "500"), (9.0, "3", 500.0), ("desk", "cup", "a-1")])
def test_ids_may_be_text_or_floats(tmp_path, ids):
    image_id, category_id, number = ids
    tables = instances(
        annotation(number, [SQUARE], category_id, image_id), annotation(501, [BESIDE])
    )
    tables["images"] += [tables["images"][0] | {"id": image_id, "width": float(WIDTH)}]
    tables["categories"] = [{"id": 3, "name": "person"}, {"id": category_id, "name": "person"}]
    dataset = Coco(write(tmp_path, tables), "val2017")
    assert_protocol(dataset, 2 if image_id == "desk" else 1)
    np.testing.assert_array_equal(
        dataset[-1].target.mask(), SQUARE_MASK if image_id == "desk" else BOTH_MASK
    )


def test_two_categories_of_one_name_are_asked_for_together(tmp_path):
    tables = instances(annotation(500, [SQUARE]), annotation(501, [BESIDE], category_id=4))
    tables["categories"] = [{"id": 3, "name": "cup"}, {"id": 4, "name": "cup"}]
    dataset = Coco(write(tmp_path, tables), "val2017")
    assert_protocol(dataset, 1)
    np.testing.assert_array_equal(dataset[0].target.mask(), BOTH_MASK)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"category_id": None}, r"annotation 501: 'category_id' is missing"),
        ({"category_id": 7}, r"annotation 501: 'category_id' is 7, which is not in 'categories'"),
        ({"category_id": [3]}, r"record 1 of 'annotations': 'category_id' must be .* type list"),
        ({"id": None}, r"record 1 of 'annotations': 'id' must be an integer, got nothing"),
        ({"id": 2.5}, r"record 1 of 'annotations': 'id' must be an integer, got 2\.5"),
        ({"id": ""}, r"record 1 of 'annotations': 'id' must be an integer, got the string ''"),
        (
            {"segmentation": [SQUARE, [1, 2, 3, float("nan"), 5, 6]]},
            r"annotation 501: part 1 of the segmentation: .* got nan at place 3",
        ),
        (
            {"segmentation": [[1, 2, 3, 4, "five", 6]]},
            r"annotation 501: part 0 .* got the string 'five' at place 4",
        ),
    ],
)
def test_what_is_refused_is_named_and_its_category_with_it(tmp_path, change, problem):
    other = annotation(502, [BESIDE], category_id=4)
    tables = instances(annotation(500, [SQUARE]), annotation(501, [BESIDE]) | change, other)
    root = write(tmp_path, tables)
    with pytest.raises(ValueError, match=rf"instances_val2017\.json: {problem}"):
        list(Coco(root, "val2017"))
    dataset = Coco(root, "val2017", on_error="skip")
    for sample in dataset:  # a target is never made of half its parts
        is_whole = change.get("category_id", 7) in (None, 7) and "category_id" in change
        assert sample.expression == "dog" or is_whole
    assert dataset.skipped


def test_images_of_one_id_that_differ_are_refused(tmp_path):
    tables = instances(annotation(500, [SQUARE]))
    again = tables["images"][0] | {"file_name": "other.jpg"}
    root = write(tmp_path, tables | {"images": [*tables["images"], again, *tables["images"]]})
    with pytest.raises(ValueError, match=r"record 1 of 'images': the id 9 appears twice"):
        Coco(root, "val2017")
    assert len(Coco(root, "val2017", on_error="skip")) == 0


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "gbk"])
def test_names_of_categories_in_any_encoding(tmp_path, encoding):
    tables = TABLES | {"categories": [{"id": k, "name": "\u676f\u5b50"} for k in (3, 4)]}
    root = write(tmp_path)
    path = root / "annotations/instances_val2017.json"
    path.write_bytes(json.dumps(tables, ensure_ascii=False).encode(encoding))
    if encoding == "gbk":
        with pytest.raises(ValueError, match=r"instances_val2017\.json is not text in UTF-8"):
            Coco(root, "val2017")
    assert Coco(root, "val2017", encoding="gbk")[0].expression == "\u676f\u5b50"


def test_one_missing_image_does_not_hide_the_folder_of_the_others(tmp_path):
    root = write(tmp_path)
    (root / "val2017" / PHOTO).unlink()
    dataset = Coco(root / "annotations/instances_val2017.json", "val2017")
    assert dataset.image_root == root / "val2017"
