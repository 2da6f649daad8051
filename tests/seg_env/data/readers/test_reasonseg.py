"""ReasonSeg as it lies on disk: void regions, several sentences, its own fill rule."""

import json

import cv2
import numpy as np
import pytest
from data_trees import HEIGHT, WIDTH, assert_protocol, write_json, write_photo
from hypothesis import given
from hypothesis import strategies as st

from seg_env.data import ReasonSeg, open_dataset
from seg_env.data.readers.reasonseg import fill_inclusive

OUTER = [[5, 5], [40, 5], [40, 30], [5, 30]]
INNER = [[10, 10], [20, 10], [20, 20], [10, 20]]


def shape(label, points):
    return {
        "label": label,
        "labels": [label],
        "shape_type": "polygon",
        "image_name": "a.jpg",
        "points": points,
        "group_id": None,
        "group_ids": [None],
        "flags": {},
    }


def record(*shapes, text=("what barks?", "the animal on the sofa"), is_sentence=True):
    return {"text": list(text), "is_sentence": is_sentence, "shapes": list(shapes)}


@pytest.fixture
def write(tmp_path):
    def write(folder="ReasonSeg/val", image=True, **records):
        for name, content in records.items():
            write_json(tmp_path / folder / f"{name}.json", content)
            if image:
                write_photo(tmp_path / folder / f"{name}.jpg")
        return tmp_path

    return write


def test_one_sample_for_each_sentence_or_each_image(write):
    root = write(b=record(shape("target", OUTER)), a=record(shape("t", INNER), text=["one"]))
    dataset = ReasonSeg(root, "val")
    assert_protocol(dataset, 3)
    assert dataset.name == "reasonseg"
    assert [sample.expression for sample in dataset] == [
        "one",
        "what barks?",
        "the animal on the sofa",
    ]
    assert dataset[0].metadata == {"file_name": "a.jpg", "is_sentence": True, "sentence": 0}
    by_image = ReasonSeg(root, "val", per_reference=True)
    assert_protocol(by_image, 2)
    assert by_image[1].metadata["sentences"] == ["what barks?", "the animal on the sofa"]


def test_borders_are_filled_and_flags_passed_over(write):
    root = write(a=record(shape("target", INNER), shape("flag", [[0, 0], [3, 3], [5, 0]])))
    mask = ReasonSeg(root, "val")[0].target.mask()
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[10:21, 10:21] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("turned", [False, True])
def test_a_small_target_within_a_large_void_region_is_kept(write, turned):
    shapes = [shape("target", INNER), shape("Ignore1", OUTER)]
    target = ReasonSeg(write(a=record(*shapes[:: -1 if turned else 1])), "val")[0].target
    assert target.area == 11 * 11
    assert target.ignore is not None
    assert target.ignore.area == 36 * 26 - 11 * 11
    assert not (target.ignore.to_mask() & target.mask()).any()


def test_a_small_void_region_within_a_target(write):
    target = ReasonSeg(write(a=record(shape("t", OUTER), shape("ignore", INNER))), "val")[0].target
    assert target.ignore is not None
    assert (target.area, target.ignore.area) == (36 * 26 - 11 * 11, 11 * 11)


def test_only_void_means_no_target_as_in_the_published_evaluation(write):
    target = ReasonSeg(write(a=record(shape("ignore", OUTER))), "val")[0].target
    assert target.area == 0


def test_splits_without_the_folder_and_files_of_windows(write):
    content = record(shape("t", OUTER), text=["caf\u00e9"])
    root = write("train", a=content)
    path = root / "train" / "a.json"
    path.write_bytes(json.dumps(content, ensure_ascii=False).encode("cp1252"))
    assert open_dataset("reasonseg", split="train", data_root=root)[0].expression == "café"
    with pytest.raises(FileNotFoundError, match=r"split .test. below .*; looked for ReasonSeg/"):
        ReasonSeg(root, "test")


def test_broken_files_are_errors_or_counted(write):
    root = write(
        cut=record(shape("t", OUTER)),
        far=record(shape("t", [[200, 5], [300, 5], [300, 30]])),
        fine=record(shape("t", OUTER)),
        none=record(),
        text=record(shape("t", OUTER), text=[5]),
    )
    write(image=False, lost=record(shape("t", OUTER)))
    cut = root / "ReasonSeg/val/cut.json"
    cut.write_text(cut.read_text()[:-9])
    with pytest.raises(ValueError, match=r"cut\.json is not valid JSON"):
        ReasonSeg(root, "val")
    dataset = ReasonSeg(root, "val", on_error="skip")
    assert_protocol(dataset, 2)
    assert dataset.skipped == {
        "malformed record": 2,
        "polygon outside the image": 2,
        "missing photo": 2,
        "empty segmentation": 2,
    }


def test_each_kind_of_broken_file_is_named(write):
    root = write(far=record(shape("t", [[200, 5], [300, 5], [300, 30]]), text=["q"]))
    with pytest.raises(ValueError, match=r"far\.json: shape 0: a polygon outside the image"):
        ReasonSeg(root, "val")[0]
    write(far=record({"label": "t", "points": [[1, 2, 3]]}, text=["q"]))
    with pytest.raises(ValueError, match=r"far\.json: shape 0: 'points': expected a list of"):
        ReasonSeg(root, "val")[0]
    (root / "ReasonSeg/val/far.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"far\.jpg"):
        ReasonSeg(root, "val")[0]


corners = st.tuples(st.floats(0, WIDTH - 1), st.floats(0, HEIGHT - 1))


@given(st.lists(corners, min_size=1, max_size=12))
def test_the_fill_rule_is_that_of_opencv(points):
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    polygon = np.array([points], dtype=np.int32)
    cv2.polylines(expected, polygon, isClosed=True, color=1, thickness=1)
    cv2.fillPoly(expected, polygon, 1)
    np.testing.assert_array_equal(fill_inclusive(np.array(points), (HEIGHT, WIDTH)), expected > 0)


def test_a_polygon_that_reaches_out_is_cut_off():
    points = np.array([[-20.0, -20.0], [1e12, -20.0], [1e12, 10.0], [-20.0, 10.0]])
    mask = fill_inclusive(points, (HEIGHT, WIDTH))
    assert mask[:11].all()
    assert not mask[11:].any()


def test_flags_are_counted(write):
    root = write(a=record(shape("t", OUTER), shape("flag", INNER), shape("Flag", INNER)))
    assert ReasonSeg(root, "val").unused == {"flag shapes": 2}
