"""One way to name a data set: layouts that are recognised, parts, and functions in Python."""

import json
import re

import pytest
from data_trees import PHOTO, SQUARE, annotation, instances, write_json, write_photo

from seg_env.data import open_dataset
from seg_env.data.readers.annotated_images import image_key
from seg_env.data.sources import has_split, kind_of

RINGS = [[[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]]]


def write_lines(path, images=20, questions=2):
    """JSON lines about some images, each of which is asked about more than once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(images):
        write_photo(path.parent / f"{number}.jpg", (12, 10))
        record = {"image": f"{number}.jpg", "size": [10, 12], "rings": RINGS}
        lines += [json.dumps(record | {"expression": f"the {k}"}) for k in range(questions)]
    path.write_text("\n".join(lines))
    return path


def test_a_folder_is_read_by_its_layout(tmp_path):
    write_lines(tmp_path / "lines/train.jsonl")
    write_json(tmp_path / "coco/instances_train.json", instances(annotation(1, [SQUARE])))
    write_photo(tmp_path / "coco/train" / PHOTO)
    write_json(tmp_path / "labelme/train/a.json", {"shapes": []})
    write_json(tmp_path / "labelme2/a.json", {"version": "5.5", "shapes": []})
    for name in ("masks/masks/a.png", "yolo/labels/a.txt", "tables/data/val-00000-of-1.parquet"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    found = {path.name: kind_of(str(path)) for path in sorted(tmp_path.iterdir())}
    assert found == {
        "coco": "coco",
        "labelme": "labelme",
        "labelme2": "labelme",
        "lines": "jsonl",
        "masks": "masks",
        "tables": "parquet",
        "yolo": "yolo",
    }
    (tmp_path / "coco/instances_train.json").rename(tmp_path / "coco/train.json")
    assert kind_of(str(tmp_path / "coco")) == "coco"
    assert len(open_dataset(str(tmp_path / "lines"), split="train")) == 40
    assert len(open_dataset(str(tmp_path / "coco"), split="train")) == 1
    assert len(open_dataset(str(tmp_path / "coco/train.json"))) == 1


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "grefcoco"])
def test_a_folder_of_refcoco_is_told_how_it_is_named(tmp_path, name):
    write_json(tmp_path / name / "instances.json", {})
    with pytest.raises(ValueError, match=rf"\(--dataset {re.escape(name)} --data-root /"):
        kind_of(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("./nowhere", "there is no ./nowhere"),
        ("nowhere", "dataset='nowhere' is unknown"),
        ("no_such_module:make", "No module named 'no_such_module'"),
        ("seg_env.data:no_such_name", "no_such_name"),
        ("builtins:dict", "dict"),
    ],
)
def test_what_is_no_data_set_is_said(name, told):
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        open_dataset(name, split="train")


def test_a_folder_of_nothing_known_names_the_layouts(tmp_path):
    with pytest.raises(ValueError, match="yolo, jsonl, parquet, masks, coco, labelme"):
        open_dataset(str(tmp_path))


def test_a_function_makes_a_data_set(tmp_path, monkeypatch):
    (tmp_path / "own_package.py").write_text(
        "from seg_env.data import Scenes\n"
        "def make(split='train'):\n    return Scenes(split, length=3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    dataset = open_dataset("own_package:make", split="val", on_error="skip")
    assert (len(dataset), dataset.split) == (3, "val")
    with pytest.raises(ValueError, match="image_root='x' cannot be used"):
        open_dataset("own_package:make", image_root="x")


def test_parts_share_no_image_and_are_always_the_same(tmp_path):
    path = str(write_lines(tmp_path / "mine.jsonl"))
    parts = [open_dataset(path, part=part) for part in ("train", "held-out", "held-out")]
    names = [{image_key(name) for name in part.image_names()} for part in parts]
    assert (len(parts[0]), len(parts[1])) == (36, 4)  # two questions about each image
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 20
    assert names[1] == names[2]
    assert parts[1].split == "mine, held-out images"


def test_one_image_has_no_parts(tmp_path):
    path = write_lines(tmp_path / "mine.jsonl", images=1)
    with pytest.raises(ValueError, match="has 1 image; two parts need two"):
        open_dataset(str(path), part="train")


def test_splits_are_known_without_reading(tmp_path):
    write_lines(tmp_path / "train.jsonl")
    assert has_split(str(tmp_path), "train")
    assert not has_split(str(tmp_path), "val")
    assert not has_split(str(tmp_path / "train.jsonl"), "train")
    assert has_split("refcoco", "val")


def test_a_configuration_that_validates_on_what_it_trains_on_has_no_split(tmp_path):
    write_photo(tmp_path / "images/all/a.jpg")
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: images/all\nval: images/all\n")
    assert has_split(str(tmp_path), "train")
    assert not has_split(str(tmp_path), "val")
