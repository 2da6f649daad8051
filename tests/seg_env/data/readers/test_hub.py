"""Tables of the hub as parquet files."""

import json
from fnmatch import fnmatch

import huggingface_hub
import numpy as np
import pyarrow
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
    assert_protocol,
    box_mask,
    write_photo,
)
from pyarrow import parquet

from seg_env.data import Parquet, open_dataset
from seg_env.data.export import run_lengths
from seg_env.geometry.rle import Rle


def encoded_image(tmp_path, **how):
    data = write_photo(tmp_path / "image.png", **how).read_bytes()
    return {"bytes": data, "path": "image.png"}


def write(path, rows, row_group_size=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=row_group_size)


def lmms_row(image, number, answers, segmentation=SQUARE):
    return {
        "question_id": str(number),
        "image": image,
        "question": "Please carefully observe the area ... and come up with a caption.",
        "answer": answers,
        "segmentation": segmentation,
        "bbox": [10.0, 10.0, 20.0, 20.0],
        "iscrowd": 0,
        "file_name": f"COCO_train2014_{number:012d}_0.jpg",
    }


def test_lmms_lab(tmp_path):
    image = encoded_image(tmp_path)
    rows = [lmms_row(image, k, [f"a{k}", f"b{k}"]) for k in range(7)]
    for part in range(2):
        write(tmp_path / f"data/val-0000{part}-of-00002.parquet", rows[4 * part : 4 * part + 4])
    dataset = Parquet(tmp_path, "val")
    assert_protocol(dataset, 14)
    assert [sample.expression for sample in dataset][:4] == ["a0", "b0", "a1", "b1"]
    np.testing.assert_array_equal(dataset[13].target.mask(), SQUARE_MASK)
    assert dataset[9].metadata["file_name"] == "COCO_train2014_000000000004_0.jpg"
    assert len(Parquet(tmp_path, "val", per_reference=True)) == 7
    left = open_dataset("parquet", split="val", data_root=tmp_path, exclude_images={4, 5})
    assert (len(left), left.excluded) == (10, 4)


def raw_row(number, texts, segmentation=(SQUARE, BESIDE)):
    annotation = {"id": number, "image_id": 9, "segmentation": list(segmentation), "area": 1.0}
    info = {"id": 9, "file_name": PHOTO, "height": HEIGHT, "width": WIDTH}
    sentences = [{"raw": t, "sent": t, "sent_id": k, "tokens": [t]} for k, t in enumerate(texts)]
    return {
        "sent_ids": list(range(len(texts))),
        "file_name": f"COCO_train2014_000000000009_{number}.jpg",
        "ann_id": number,
        "ref_id": number,
        "image_id": 9,
        "split": "testA",
        "sentences": sentences,
        "category_id": 3,
        "raw_anns": json.dumps(annotation),
        "raw_image_info": json.dumps(info),
        "raw_sentences": json.dumps(sentences),
        "image_path": f"coco/train2014/{PHOTO}",
        "bbox": [10.0, 10.0, 45.0, 35.0],
        "captions": list(texts),
        "global_image_id": "coco.9",
        "anns_id": f"coco.{number}",
    }


def test_jxu124_finds_images_in_the_usual_places(tmp_path):
    write(
        tmp_path / "data/test-00000-of-00001.parquet", [raw_row(1, ["x", "y"]), raw_row(2, ["z"])]
    )
    write_photo(tmp_path / "train2014" / PHOTO)
    dataset = Parquet(tmp_path, "test")
    assert_protocol(dataset, 3)
    np.testing.assert_array_equal(dataset[0].target.mask(), BOTH_MASK)
    assert dataset[2].metadata["ref_id"] == 2
    assert dataset.image_path(0) == tmp_path / "train2014" / PHOTO


def moondream_row(image, *masks):
    samples = [
        {
            "id": k,
            "image_id": 9,
            "category": "person",
            "supercategory": "person",
            "label": "person",
            "sentences": [f"s{k}", f"t{k}"],
            "bbox": [10.0, 10.0, 20.0, 20.0],
            "mask": run_lengths(Rle.from_mask(mask)),
        }
        for k, mask in enumerate(masks)
    ]
    return {"image": image, "image_id": 9, "file_name": PHOTO, "samples": samples}


def test_moondream_has_several_objects_a_row(tmp_path):
    image = encoded_image(tmp_path)
    path = tmp_path / "data/validation-00000-of-00001.parquet"
    write(path, [moondream_row(image, SQUARE_MASK, BOTH_MASK), moondream_row(image, BOTH_MASK)])
    dataset = open_dataset(str(path))
    assert_protocol(dataset, 6)
    assert [sample.expression for sample in dataset] == ["s0", "t0", "s1", "t1", "s0", "t0"]
    np.testing.assert_array_equal(dataset[2].target.mask(), BOTH_MASK)
    assert [len(dataset.others(index)) for index in (0, 4)] == [1, 0]
    np.testing.assert_array_equal(dataset.others(2)[0].mask(), SQUARE_MASK)


def test_broken_rows_are_errors_or_counted(tmp_path):
    image = encoded_image(tmp_path)
    small = encoded_image(tmp_path, size=(4, 4))
    empty = box_mask()
    rows = [
        moondream_row(image, SQUARE_MASK, empty),
        moondream_row(small, SQUARE_MASK),
        moondream_row({"bytes": b"no image", "path": "x"}, SQUARE_MASK),
    ]
    write(tmp_path / "validation.parquet", rows)
    dataset = Parquet(tmp_path, "validation")
    with pytest.raises(ValueError, match=r"validation\.parquet: row 0, sample 1: .*is empty"):
        dataset[2]
    with pytest.raises(ValueError, match=r"row 2: image cannot be read as an image"):
        dataset[6]
    sound = Parquet(tmp_path, "validation", on_error="skip")
    assert_protocol(sound, 2)
    assert sound.skipped == {
        "empty segmentation": 2,
        "malformed record": 2,
        "unreadable photo": 2,
    }


def test_raw_annotations_that_are_broken_are_named(tmp_path):
    rows = [raw_row(1, ["x"], [FAR]), raw_row(2, ["y"]) | {"raw_anns": '{"segmentation": [[1'}]
    write(tmp_path / "test.parquet", rows)
    dataset = Parquet(tmp_path, "test")
    for index, problem in ((0, "polygon outside the image"), (1, "raw_anns is not valid JSON")):
        with pytest.raises(ValueError, match=rf"test\.parquet: row {index}.*{problem}"):
            dataset[index]
    assert Parquet(tmp_path, "test", on_error="skip").skipped == {
        "polygon outside the image": 1,
        "malformed record": 1,
    }


def test_a_table_of_another_form_or_no_table_is_refused(tmp_path):
    write(tmp_path / "train.parquet", [{"a": 1}])
    with pytest.raises(ValueError, match="has the columns a; known layouts are lmms-lab"):
        Parquet(tmp_path, "train")
    (tmp_path / "val.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(ValueError, match=r"val\.parquet cannot be read as parquet"):
        Parquet(tmp_path, "val")
    with pytest.raises(FileNotFoundError, match=r"no testA-\*\.parquet"):
        Parquet(tmp_path, "testA")


def test_through_the_hub(tmp_path, monkeypatch):
    rows = [moondream_row(encoded_image(tmp_path), SQUARE_MASK)]
    write(tmp_path / "data/validation-00000-of-00001.parquet", rows)

    # The hub itself cannot be reached from here: what it would leave on disk is put in its place.
    def download(name, *, repo_type, allow_patterns):
        assert (name, repo_type) == ("moondream/refcoco-m", "dataset")
        assert fnmatch("data/validation-00000-of-00001.parquet", *allow_patterns)
        assert not fnmatch("data/train-00000-of-00001.parquet", *allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    dataset = Parquet("moondream/refcoco-m", "validation")
    assert dataset.name == "moondream/refcoco-m"
    assert_protocol(dataset, 2)
    np.testing.assert_array_equal(dataset[0].target.mask(), SQUARE_MASK)


def test_objects_without_a_sentence_are_counted_and_nan_is_not_judged(tmp_path):
    row = moondream_row(encoded_image(tmp_path), SQUARE_MASK, BOTH_MASK)
    row["samples"][0] |= {"sentences": [], "bbox": [float("nan")] * 4}
    write(tmp_path / "validation.parquet", [row])
    dataset = Parquet(tmp_path, "validation")
    assert len(dataset) == 2
    assert dataset.unused == {"references without a sentence": 1}
    np.testing.assert_array_equal(dataset[0].target.mask(), BOTH_MASK)
