"""gRefCOCO as it lies on disk: several targets, and none."""

import json
import pickle

import numpy as np
import pytest
from data_trees import (
    BESIDE,
    BOTH_MASK,
    FAR,
    PHOTO,
    SQUARE,
    SQUARE_MASK,
    annotation,
    assert_protocol,
    instances,
    reference,
    write_json,
    write_photo,
)

from seg_env.data import GRefCoco, RecordError, open_dataset

REFS = [
    reference(1, [500], ["the left one"], category_id=[3]),
    reference(2, [500, 501], ["both of them", "the two"], category_id=[3, 4]),
    reference(3, [-1], ["the zebra"], category_id=[-1]),
    reference(4, [500], ["train only"], split="train", category_id=[3]),
]
TABLES = instances(annotation(500, [SQUARE]), annotation(501, [BESIDE], category_id=4))


@pytest.fixture
def tree(tmp_path):
    def write(refs=REFS, tables=TABLES, file="grefs(unc).json"):
        write_json(tmp_path / "grefcoco/instances.json", tables)
        encoded = pickle.dumps(refs, 2) if file.endswith(".p") else json.dumps(refs).encode()
        (tmp_path / "grefcoco" / file).write_bytes(encoded)
        write_photo(tmp_path / "images/train2014" / PHOTO)
        return tmp_path

    return write


@pytest.mark.parametrize("file", ["grefs(unc).json", "grefs(unc).p"])
def test_one_several_and_no_target(tree, file):
    dataset = GRefCoco(tree(file=file), "val")
    assert_protocol(dataset, 4)
    assert (dataset.name, dataset.split, dataset.split_by) == ("grefcoco", "val", "unc")
    expected = [SQUARE_MASK, BOTH_MASK, BOTH_MASK, np.zeros_like(SQUARE_MASK)]
    for sample, mask in zip(dataset, expected, strict=True):
        np.testing.assert_array_equal(sample.target.mask(), mask, err_msg=sample.expression)
    assert dataset[3].target.rings == ()


def test_metadata_says_what_is_there(tree):
    dataset = open_dataset("grefcoco", split="val", data_root=tree())
    several, nothing = dataset[1].metadata, dataset[3].metadata
    assert several["ann_id"] == [500, 501]
    assert several["category"] == ["person", "dog"]
    assert (several["no_target"], nothing["no_target"]) == (False, True)
    assert nothing["ann_id"] == nothing["category"] == []


def test_others_are_what_is_not_asked_for(tree):
    dataset = GRefCoco(tree(), "val")
    assert [len(dataset.others(index)) for index in range(4)] == [1, 0, 0, 2]


def test_an_ann_id_of_another_form_is_named(tree):
    assert GRefCoco(tree([reference(1, 500, ["a"])]), "val")[0].metadata["ann_id"] == [500]
    for wrong in ({"id": 500}, [], [[500]], [1.5]):
        root = tree([reference(1, wrong, ["a"])])
        with pytest.raises(ValueError, match=r"grefs\(unc\)\.json: record 0: 'ann_id' must be"):
            GRefCoco(root, "val")
    with pytest.raises(ValueError, match="names annotation 7 of image 9"):
        GRefCoco(tree([reference(1, [500, 7], ["a"])]), "val")


def test_broken_records_are_errors_or_counted(tree):
    refs = [*REFS, reference(5, [777], ["a", "b"]), reference(6, [502], ["c"]), {"split": "val"}]
    tables = instances(*TABLES["annotations"], annotation(502, [FAR]))
    root = tree(refs, tables)
    dataset = GRefCoco(root, "val", on_error="skip")
    assert_protocol(dataset, 4)
    assert dataset.skipped == {"malformed record": 3, "polygon outside the image": 1}
    only_far = GRefCoco(tree([refs[5]], tables), "val")
    with pytest.raises(RecordError, match=r"instances\.json: annotation 502: .*x 70 to 90"):
        only_far[0]
