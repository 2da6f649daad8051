"""The RefCOCO family as it lies on disk."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_trees import BESIDE, BOTH_MASK, HEIGHT, SQUARE, WIDTH
from PIL import Image

from seg_env.data.base import Dataset
from seg_env.data.readers.refer import Refer

PHOTOS = "images/mscoco/images/train2014"

Tree = Callable[..., Path]


def instances(segmentation: Any = (SQUARE, BESIDE), **annotation: Any) -> dict[str, Any]:
    record = {"id": 500, "image_id": 9, "category_id": 3, "segmentation": segmentation}
    other = dict(record, id=501, segmentation=[SQUARE])
    image = {"id": 9, "file_name": "COCO_train2014_9.jpg", "height": HEIGHT, "width": WIDTH}
    return {
        "info": {"description": 'braces } ] and "quotes" in a string', "nested": [[1], {}]},
        "images": [image],
        "licenses": [],
        "annotations": [record | annotation, other],
        "categories": [{"id": 3, "name": "café", "supercategory": "place"}],
    }


def reference(ref_id: int = 77, split: str = "train", **changes: Any) -> dict[str, Any]:
    sentences = [
        {"sent_id": 10 * ref_id + k, "sent": text, "raw": text.upper(), "tokens": text.split()}
        for k, text in enumerate(("the café", "left one"))
    ]
    record = {
        "ref_id": ref_id,
        "ann_id": 500,
        "image_id": 9,
        "category_id": 3,
        "split": split,
        "file_name": f"COCO_train2014_9_{ref_id}.jpg",
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "sentences": sentences,
    }
    return record | changes


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Write a data set; arguments replace what would be there."""

    def write(
        refs: Any = None,
        annotations: Any = None,
        name: str = "refcoco",
        file: str = "refs(unc).p",
        images: str = PHOTOS,
        image_size: tuple[int, int] = (WIDTH, HEIGHT),
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        refs = [reference(), reference(78, "val")] if refs is None else refs
        encoded = json.dumps(refs).encode() if file.endswith("json") else pickle.dumps(refs, 2)
        (folder / file).write_bytes(encoded)
        (folder / "instances.json").write_text(json.dumps(annotations or instances()))
        (tmp_path / images).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", image_size, (10, 200, 30)).save(tmp_path / images / "COCO_train2014_9.jpg")
        return tmp_path

    return write


def test_one_sample_for_each_sentence(tree: Tree) -> None:
    dataset = Refer(tree(), "refcoco", "train")
    assert isinstance(dataset, Dataset)
    assert (dataset.name, dataset.split, dataset.split_by) == ("refcoco", "train", "unc")
    assert [sample.id for sample in dataset] == [
        "refcoco-unc-train-77-770",
        "refcoco-unc-train-77-771",
    ]
    assert [sample.expression for sample in dataset] == ["the café", "left one"]
    assert dataset[-1].expression == dataset[np.int64(1)].expression == "left one"
    for index in (2, -3):
        with pytest.raises(IndexError):
            dataset[index]


def test_a_sample_knows_where_it_comes_from(tree: Tree) -> None:
    metadata = Refer(tree(), "refcoco", "val")[0].metadata
    assert metadata == {
        "ref_id": 78,
        "ann_id": 500,
        "sent_id": 780,
        "image_id": 9,
        "category_id": 3,
        "category": "café",
        "file_name": "COCO_train2014_9.jpg",
        "image_ann_ids": [500, 501],
    }
    assert json.loads(json.dumps(metadata)) == metadata


def test_images_are_rgb_and_read_when_asked_for(tree: Tree) -> None:
    root = tree()
    sample = Refer(root)[0]
    assert sample.image.shape == (HEIGHT, WIDTH, 3)
    assert sample.image.dtype == np.uint8
    Image.new("L", (WIDTH, HEIGHT), 99).save(root / PHOTOS / "COCO_train2014_9.jpg")
    assert (Refer(root)[0].image == 99).all()


def test_an_image_of_another_size_is_an_error(tree: Tree) -> None:
    sample = Refer(tree(image_size=(WIDTH + 1, HEIGHT)))[0]
    with pytest.raises(ValueError, match=r"COCO_train2014_9\.jpg is 61 x 40 .* 60 x 40"):
        sample.load_image()


def test_exif_orientation_is_ignored(tree: Tree) -> None:
    root = tree()
    image = Image.new("RGB", (WIDTH, HEIGHT))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    image.save(root / PHOTOS / "COCO_train2014_9.jpg", exif=exif)
    assert Refer(root)[0].image.shape == (HEIGHT, WIDTH, 3)


def test_a_damaged_image_is_named(tree: Tree) -> None:
    root = tree()
    path = root / PHOTOS / "COCO_train2014_9.jpg"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"COCO_train2014_9\.jpg cannot be read"):
        Refer(root)[0].load_image()
    path.unlink()
    dataset_opened_before = Refer(tree())
    path.unlink()
    with pytest.raises(FileNotFoundError, match="COCO_train2014_9"):
        dataset_opened_before[0].load_image()


@pytest.mark.parametrize("segmentation", [[[1, 2, 3]], [[1, 2, 3, 4, 5, float("nan")]], None, "a"])
def test_a_malformed_segmentation_names_file_and_annotation(tree: Tree, segmentation: Any) -> None:
    dataset = Refer(tree(annotations=instances(segmentation)))
    with pytest.raises(ValueError, match=r"instances\.json: annotation 500: "):
        dataset[0]


def test_other_objects_of_an_image_have_masks_too(tree: Tree) -> None:
    dataset = Refer(tree())
    first, second = (dataset.object_target(9, ann_id) for ann_id in (500, 501))
    assert second.area == 400
    assert first.area == BOTH_MASK.sum()
    with pytest.raises(ValueError, match="image 9 has no annotation 502"):
        dataset.object_target(9, 502)


@pytest.mark.parametrize("images", [PHOTOS, "images/coco_2014/train2014", "images/train2014"])
def test_images_are_found_in_the_usual_places(tree: Tree, images: str) -> None:
    root = tree(images=images)
    (root / "train2014").mkdir()  # an empty folder of a usual name does not hide the full one
    assert Refer(root)[0].image.shape == (HEIGHT, WIDTH, 3)


def test_images_anywhere_else_need_image_root(tree: Tree) -> None:
    root = tree(images="elsewhere")
    with pytest.raises(FileNotFoundError, match=r"COCO_train2014_9\.jpg is missing\. Looked in"):
        Refer(root)
    assert Refer(root, image_root=root / "elsewhere")[0].image.shape == (HEIGHT, WIDTH, 3)


def test_refclef_has_images_of_its_own(tree: Tree) -> None:
    root = tree(name="refclef", file="refs(berkeley).p", images="images/saiapr_tc-12")
    dataset = Refer(root, "refclef")
    assert dataset.split_by == "berkeley"
    assert dataset[0].id == "refclef-berkeley-train-77-770"
    assert dataset[0].image.shape == (HEIGHT, WIDTH, 3)


def test_json_beside_or_instead_of_a_pickle(tree: Tree) -> None:
    root = tree(refs=[reference(1)], file="refs(unc).json")
    assert Refer(root)[0].metadata["ref_id"] == 1
    tree(refs=[reference(2)], file="refs(unc).p")
    assert Refer(root)[0].metadata["ref_id"] == 1


def test_split_by_default_and_the_only_file_there_is(tree: Tree) -> None:
    root = tree(name="refcocog", file="refs(google).p")
    assert Refer(root, "refcocog").split_by == "google"
    tree(name="refcocog", file="refs(umd).p")
    assert Refer(root, "refcocog").split_by == "umd"
    assert Refer(root, "refcocog", split_by="google").split_by == "google"
    with pytest.raises(FileNotFoundError, match=r"refs\(unc\)\.p.*split_by can be google, umd"):
        Refer(root, "refcocog", split_by="unc")


@pytest.mark.parametrize("missing", ["refcoco/instances.json", "refcoco/refs(unc).p"])
def test_a_wrong_root_names_the_missing_file_and_the_layout(tree: Tree, missing: str) -> None:
    root = tree()
    (root / missing).unlink()
    with pytest.raises(FileNotFoundError) as raised:
        Refer(root)
    message = str(raised.value)
    assert message.startswith(f"{root / missing} is missing")
    for line in ("<data_root>/", "  refcoco/", "    instances.json", f"  {PHOTOS}/"):
        assert line in message.splitlines()


def test_unknown_names_and_splits_say_what_there_is(tree: Tree) -> None:
    root = tree()
    with pytest.raises(ValueError, match=r"no split 'testA'; it has 'train' .*'val'"):
        Refer(root, split="testA")
    with pytest.raises(ValueError, match=r"unknown data set 'coco'; .*refcoco\+"):
        Refer(root, "coco")


@pytest.mark.parametrize(
    ("refs", "problem"),
    [
        ({}, "expected a list of references"),
        ([5], "record 0: 'split' must be a string"),
        ([reference(), reference()], "record 1: ref_id 77 appears twice"),
        ([reference(ann_id=[500, 501])], "record 0: 'ann_id' must be an integer"),
        ([reference(image_id=True)], "'image_id' must be an integer, got True"),
        ([reference() | {"ref_id": 2**63 - 1}], "'ref_id' must be an integer"),
        ([reference(sentences="all")], "'sentences' must be a list, got the string 'all'"),
        ([reference(sentences=[{"sent_id": 1}])], "'sent' must be a string, got nothing"),
        ([reference(sentences=[{"sent_id": 1, "sent": "a"}] * 2)], "a sent_id appears twice"),
        ([reference(ann_id=4)], r"ref_id 77 names annotation 4 of image 9, which is not in"),
        ([reference(image_id=4)], r"ref_id 77 names annotation 500 of image 4"),
    ],
)
@pytest.mark.parametrize("suffix", ["json", "p"])
def test_a_malformed_reference_names_file_and_record(
    tree: Tree, refs: Any, problem: str, suffix: str
) -> None:
    with pytest.raises(ValueError, match=rf"refs\(unc\)\.{suffix}: .*{problem}"):
        Refer(tree(refs=refs, file=f"refs(unc).{suffix}"))


def test_a_pickle_that_names_one_list_a_million_times_is_refused(tree: Tree) -> None:
    sentences = [{"sent_id": number, "sent": "a" * 50} for number in range(200)]
    refs = [reference(number, sentences=sentences) for number in range(200)]
    with pytest.raises(ValueError, match="unfolds to more than 8 times its own size"):
        Refer(tree(refs=refs))


def test_a_list_that_contains_itself_is_refused(tree: Tree) -> None:
    refs: list[Any] = []
    refs.append(refs)
    with pytest.raises(ValueError, match="record 0: 'split' must be a string"):
        Refer(tree(refs=refs))
    with pytest.raises(ValueError, match=r"'sentences' must be a list|'sent' must be"):
        Refer(tree(refs=[reference(sentences=refs)]))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"annotations": [{"image_id": 9}]}, "record 0 of 'annotations': 'id' must be an integer"),
        ({"annotations": [5]}, "record 0 of 'annotations': 'image_id' must be an integer"),
        ({"images": [{"id": 9, "height": 4}]}, "record 0 of 'images': 'width' must be an integer"),
        ({"categories": [{"id": 9}]}, "record 0 of 'categories': 'name' must be a string"),
        (
            {"images": [{"id": 9, "file_name": "a", "height": 10**6, "width": 10**6}]},
            "height and width are",
        ),
        *(
            (
                {"images": [{"id": 9, "file_name": path, "height": 4, "width": 4}]},
                "leads out of the image folder",
            )
            for path in ("../../secret.jpg", "/etc/secret.jpg", "a/..\\..\\b.jpg", "C:\\b.jpg")
        ),
    ],
)
def test_a_malformed_instances_file_names_file_and_record(
    tree: Tree, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=rf"instances\.json: .*{problem}"):
        Refer(tree(annotations=instances() | changes))


@pytest.mark.parametrize("damage", ["{", "[", "5", "", "{}", '{"images": [', '{"images" 5}', "{5:"])
def test_a_damaged_instances_file_is_a_value_error(tree: Tree, damage: str) -> None:
    root = tree()
    path = root / "refcoco" / "instances.json"
    path.write_text(damage)
    with pytest.raises(ValueError, match=r"instances\.json"):
        Refer(root)
    path.write_text(json.dumps(instances())[:-100])
    with pytest.raises(ValueError, match=r"instances\.json is not valid JSON: .*char \d+"):
        Refer(root)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="not valid JSON"):
        Refer(root)


def test_annotations_with_nested_records_and_any_layout_of_the_text(tree: Tree) -> None:
    record = instances()["annotations"][0]
    nested = dict(record, id=502, attributes={"id": 1, "note": 'a "}" and "id": 9'})
    noted = {"note": 'escaped \\" and "id": 4', **dict(record, id=503, label="id")}
    named = dict(record, id=504, label="id", other="image_id")
    refs = [reference(77 + k, ann_id=500 + k) for k in range(5)]
    root = tree(refs=refs, annotations=instances() | {"annotations": []})
    everything = [*instances()["annotations"], nested, noted, named]
    tables = instances() | {"annotations": everything}
    text = json.dumps(tables, indent=3, ensure_ascii=False, separators=("\n,", "\t:\r\n"))
    (root / "refcoco" / "instances.json").write_text("\ufeff" + text, "utf-8")
    assert {sample.target.area for sample in Refer(root)} == {BOTH_MASK.sum(), 400}


def test_pickling_takes_no_images_and_no_open_files_along(tree: Tree) -> None:
    dataset = Refer(tree())
    data = pickle.dumps(dataset)
    assert len(data) < 4000
    copy = pickle.loads(data)
    assert [sample.id for sample in copy] == [sample.id for sample in dataset]
    np.testing.assert_array_equal(copy[0].image, dataset[0].image)
