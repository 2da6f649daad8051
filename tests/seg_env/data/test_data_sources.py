"""Opening data sets by name, leaving records out, and what is checked on the way."""

import json
import os
import pickle
import warnings

import numpy as np
import pytest
from data_trees import (
    BESIDE,
    BOTH_MASK,
    FAR,
    HEIGHT,
    PHOTO,
    SQUARE,
    WIDTH,
    annotation,
    assert_protocol,
    instances,
    reference,
    write_json,
    write_photo,
)

from seg_env.data import (
    Refer,
    Scenes,
    held_out_images,
    images_of,
    load_refer,
    open_dataset,
)
from seg_env.data.__main__ import command_line
from seg_env.data.readers.annotated_images import image_key
from seg_env.data.readers.refer import OFFICIAL_COUNTS, CountWarning, check_counts, embedded_root
from seg_env.data.readers.safe_pickle import UnsafePickleError

pytestmark = pytest.mark.filterwarnings("ignore::seg_env.data.readers.refer.CountWarning")

TABLES = instances(
    annotation(500, [SQUARE]), annotation(501, [BESIDE]), annotation(502, [SQUARE], image_id=10)
) | {"images": instances(images=(9, 10))["images"]}
REFS = [
    reference(1, 500, ["the left one", "left"]),
    reference(2, 501, ["right"]),
    reference(3, 502, ["alone", "only one", "it"], image_id=10),
]


@pytest.fixture
def tree(tmp_path):
    def write(refs=REFS, tables=TABLES, name="refcoco", file="refs(unc).json"):
        write_json(tmp_path / name / "instances.json", tables)
        write_json(tmp_path / name / file, refs)
        for image in TABLES["images"]:
            write_photo(tmp_path / "train2014" / image["file_name"])
        return tmp_path

    return write


def test_per_reference_takes_the_first_sentence_and_keeps_the_others(tree):
    dataset = Refer(tree(), "refcoco", "val", per_reference=True)
    assert_protocol(dataset, 3)
    assert [sample.expression for sample in dataset] == ["the left one", "right", "alone"]
    assert dataset[0].id == "refcoco-unc-val-1"
    assert dataset[2].metadata["sentences"] == ["alone", "only one", "it"]


def test_others_are_the_other_objects_of_the_image(tree):
    dataset = Refer(tree(), "refcoco", "val")
    assert_protocol(dataset, 6)
    assert [len(dataset.others(index)) for index in range(6)] == [1, 1, 1, 0, 0, 0]
    union = dataset[0].target.mask() | dataset.others(0)[0].mask()
    np.testing.assert_array_equal(union, BOTH_MASK)


def test_scenes_know_their_other_objects():
    scenes = Scenes("val", "medium", length=5, size=64)
    for index, sample in enumerate(scenes):
        others = scenes.others(index)
        assert len(others) == len(sample.metadata["others"])
        assert sample.target.rle not in [other.rle for other in others]


def test_broken_records_are_left_out_and_counted_by_sentence(tree):
    tables = instances(*TABLES["annotations"], annotation(503, []), annotation(504, [FAR]))
    tables = tables | {"images": TABLES["images"]}
    refs = [
        *REFS,
        reference(4, 503, ["a", "b"]),
        reference(5, 504, ["c"]),
        reference(6, 999, ["d"]),
        {"split": "val", "ref_id": "x"},
    ]
    root = tree(refs, tables)
    write_photo(root / "train2014/COCO_train2014_000000000010.jpg", (WIDTH, HEIGHT - 1))
    dataset = Refer(root, "refcoco", "val", on_error="skip")
    assert_protocol(dataset, 3)
    assert dataset.skipped == {
        "empty segmentation": 2,
        "polygon outside the image": 1,
        "malformed record": 2,
        "size mismatch": 3,
    }
    with pytest.raises(ValueError, match=r"refs\(unc\)\.json: record 6: 'ref_id' must be"):
        Refer(root, "refcoco", "val")
    with pytest.raises(ValueError, match="on_error='ignore' is unknown"):
        Refer(root, "refcoco", "val", on_error="ignore")


@pytest.mark.parametrize("segmentation", [[], [[]], [[1.0, 1.0, 2.0, 2.0]], {"size": [40, 60]}])
def test_an_object_that_fills_nothing_is_named(tree, segmentation):
    if isinstance(segmentation, dict):
        segmentation["counts"] = [HEIGHT * WIDTH]
    root = tree(REFS[:1], TABLES | {"annotations": [annotation(500, segmentation)]})
    dataset = Refer(root, "refcoco", "val")
    with pytest.raises(ValueError, match=r"instances\.json: annotation 500: .*fills not one pixel"):
        dataset[0]


def test_files_that_everything_hangs_on_are_errors_either_way(tree):
    root = tree()
    path = root / "refcoco/refs(unc).json"

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(root / "executed"),)

    path.unlink()
    pickled = path.with_suffix(".p")
    pickled.write_bytes(pickle.dumps([Harmful()]))
    with pytest.raises(UnsafePickleError, match="Nothing has been executed"):
        Refer(root, "refcoco", "val", on_error="skip")
    assert not (root / "executed").exists()
    tables = tree() / "refcoco/instances.json"
    tables.write_text(tables.read_text()[:-50])
    with pytest.raises(ValueError, match=r"instances\.json is not valid JSON: .*char \d+"):
        Refer(root, "refcoco", "val", on_error="skip")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("COCO_train2014_000000581857.jpg", "581857"),
        ("COCO_train2014_000000581857_16.jpg", "581857"),
        ("train2017/000000581857.jpg", "581857"),
        (581857, "581857"),
        ("38\\images\\38685.jpg", "38685"),
        ("Desk.JPG", "desk"),
    ],
)
def test_one_image_has_one_key_whatever_it_is_called(name, key):
    assert image_key(name) == key


def test_images_of_another_data_sets_evaluation_are_left_out(tree):
    root = tree()
    tree([reference(1, 502, ["x"], image_id=10)], name="refcoco+", file="refs(unc).json")
    assert images_of([Refer(root, "refcoco+", "val")]) == {"10"}
    excluded = held_out_images("refcoco+", ["val"], data_root=root)
    dataset = open_dataset("refcoco", split="val", data_root=root, exclude_images=excluded)
    assert {sample.metadata["image_id"] for sample in dataset} == {9}
    assert (len(dataset), dataset.excluded) == (3, 3)
    assert dataset.image_names() == {PHOTO}


def test_what_is_held_out_is_known_or_has_to_be_named(tree):
    with pytest.raises(ValueError, match="no split 'testA'"):  # never taken for "nothing held out"
        held_out_images("refcoco", data_root=tree())
    with pytest.raises(ValueError, match="name them by splits="):
        held_out_images("labelme", data_root=".")


def test_a_partial_copy_of_a_published_split_warns(tree):
    root = tree()
    with pytest.warns(CountWarning, match="3811 references and 10834 .* this copy has 3 and 6"):
        Refer(root, "refcoco", "val")
    with pytest.warns(CountWarning, match="this copy has 3 and 6"):
        open_dataset("refcoco", split="val", data_root=root, exclude_images={9})


def test_the_whole_split_and_the_embedded_sample_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error", CountWarning)
        Refer(embedded_root(), "refcoco", "val")
        for (name, split_by, split), (references, sentences) in OFFICIAL_COUNTS.items():
            check_counts(name, split_by, split, references, sentences or 1)
        check_counts("refclef", "unc", "val", 1, 1)
    with pytest.warns(CountWarning, match="published with 3811 references and 10834 sentences"):
        check_counts("refcoco", "unc", "val", 3811, 10833)


@pytest.mark.parametrize(
    ("name", "split_by", "references", "sentences"),
    [
        ("refcoco", "unc", 50000, 142210),
        ("refcoco+", "unc", 49856, 141564),
        ("refcocog", "umd", 49822, 95010),
        ("refcocog", "google", 49822, 95010),
    ],
)
def test_published_counts_add_up(name, split_by, references, sentences):
    counts = [count for key, count in OFFICIAL_COUNTS.items() if key[:2] == (name, split_by)]
    assert tuple(map(sum, zip(*counts, strict=True))) == (references, sentences)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            {"dataset": "voc"},
            "dataset='voc' is unknown, and no file or folder here; use one of scenes, .*jsonl",
        ),
        ({"dataset": "coco"}, "dataset='coco' needs data_root="),
        ({"dataset": "coco", "data_root": ".", "split_by": "unc"}, "split_by='unc' cannot be used"),
        ({"dataset": "refcoco", "per_annotation": True}, "per_annotation=True cannot be used"),
        ({"dataset": "scenes", "on_error": "skip"}, "on_error='skip' cannot be used"),
        ({"dataset": "labelme", "size": 64}, "size=64 cannot be used with dataset='labelme'"),
        ({"dataset": "a/b.jsonl", "data_root": "."}, "data_root='.' cannot be used"),
    ],
)
def test_arguments_that_would_be_ignored_are_errors(arguments, problem, monkeypatch):
    monkeypatch.delenv("SIMPLESEG_DATA", raising=False)
    with pytest.raises(ValueError, match=problem):
        open_dataset(**arguments)


def test_the_variable_names_the_folder(tree, monkeypatch):
    monkeypatch.setenv("SIMPLESEG_DATA", str(tree()))
    assert len(load_refer("refcoco", "val", per_reference=True)) == 3
    assert len(open_dataset("refcoco", split="val", on_error="skip")) == 6


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_references_need_no_more_than_what_is_used(tree, on_error):
    refs = [reference(1, "500", ["left", "it"]), reference(2, 501.0, ["right"]) | {"ref_id": "2"}]
    for each in refs:
        del each["category_id"]
        for sentence in each["sentences"]:
            del sentence["sent_id"]
    odd = [{"id": None, "image_id": 99, "category_id": []}, {"id": "?", "image_id": 98}]
    tables = TABLES | {
        "annotations": [
            annotation(500, [SQUARE], area=float("nan")),
            *TABLES["annotations"][1:],
            *odd,
        ],
        "images": [*TABLES["images"], {"id": 98, "height": 0}],
    }
    dataset = Refer(tree(refs, tables), "refcoco", "val", on_error=on_error)
    assert_protocol(dataset, 3)
    assert not dataset.skipped
    assert dataset[2].metadata["category"] == "person"
    assert [sample.metadata["sent_id"] for sample in dataset] == [0, 1, 0]


def test_names_of_images_and_objects_may_be_text(tree):
    tables = {
        "images": [TABLES["images"][0] | {"id": "desk"}],
        "annotations": [annotation("left", [SQUARE], "cup", "desk")],
        "categories": [{"id": "cup", "name": "cup"}],
    }
    refs = [reference(1, "left", ["left"]) | {"image_id": "desk", "category_id": "cup"}]
    refs[0]["sentences"][0]["sent_id"] = "a"
    dataset = Refer(tree(refs, tables), "refcoco", "val")
    assert_protocol(dataset, 1)
    assert dataset[0].id == "refcoco-unc-val-1-a"
    assert dataset[0].target.area == 400


def test_references_without_a_sentence_are_counted(tree, capsys):
    root = tree([*REFS, reference(4, 500, []), reference(5, 500, [])])
    assert Refer(root, "refcoco", "val").unused == {"references without a sentence": 2}
    where = ["--dataset", "refcoco", "--data-root", str(root), "--split", "val"]
    assert command_line(["check", *where]) == 0
    assert "not used, references without a sentence: 2" in capsys.readouterr().out


def test_a_missing_image_is_not_a_missing_folder(tree):
    root = tree()
    (root / "train2014" / PHOTO).unlink()
    assert len(Refer(root, "refcoco", "val")) == 6
    dataset = Refer(root, "refcoco", "val", on_error="skip")
    assert_protocol(dataset, 3)
    assert dataset.skipped == {"missing photo": 3}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gbk"])
def test_references_in_any_encoding(tree, encoding):
    root = tree([reference(1, 500, ["\u676f\u5b50"])])
    path = root / "refcoco/refs(unc).json"
    path.write_bytes(json.dumps(json.loads(path.read_text()), ensure_ascii=False).encode(encoding))
    if encoding == "gbk":
        with pytest.raises(ValueError, match=r"refs\(unc\)\.json is not text in UTF-8; .*--encod"):
            Refer(root, "refcoco", "val")
    assert Refer(root, "refcoco", "val", encoding="gbk")[0].expression == "\u676f\u5b50"
