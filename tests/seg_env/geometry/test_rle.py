"""Run lengths: COCO's order and strings, and what is refused."""

import numpy as np
import pycocotools.mask as coco
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seg_env.geometry.limits import Limits
from seg_env.geometry.rle import Rle

masks = hnp.arrays(np.bool_, st.tuples(st.integers(0, 9), st.integers(0, 9)))


@given(masks)
def test_mask_round_trip(mask):
    rle = Rle.from_mask(mask)
    assert rle.size == mask.shape
    assert rle.area == mask.sum()
    np.testing.assert_array_equal(rle.to_mask(), mask)
    assert Rle.from_string(rle.size, rle.to_string()) == rle
    assert Rle.from_counts(rle.size, rle.counts.tolist()) == rle


@given(masks)
def test_bbox_is_the_tight_box(mask):
    rows, columns = np.nonzero(mask)
    box = (
        (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        if len(rows)
        else (0, 0, 0, 0)
    )
    assert Rle.from_mask(mask).bbox == box


@given(st.lists(hnp.arrays(np.bool_, (4, 5)), min_size=1, max_size=4))
def test_union(parts):
    union = Rle.union_of(Rle.from_mask(mask) for mask in parts)
    np.testing.assert_array_equal(union.to_mask(), np.any(parts, axis=0))


def test_strings_are_pycocotools_strings():
    rng = np.random.default_rng(0)
    for density in (0.0, 0.01, 0.3, 0.9, 1.0):
        for size in ((1, 1), (7, 5), (48, 64), (300, 2)):
            mask = rng.random(size) < density
            theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            ours = Rle.from_mask(mask)
            assert ours.to_string() == theirs["counts"]
            assert Rle.from_string(theirs["size"], theirs["counts"].decode()) == ours


def test_runs_are_column_major_and_start_with_background():
    mask = np.array([[0, 1], [0, 1], [1, 0]], dtype=bool)
    assert Rle.from_mask(mask).counts.tolist() == [2, 3, 1]
    assert Rle.from_mask(~mask).counts.tolist() == [0, 2, 3, 1]


def test_other_ways_of_writing_a_mask_are_equal():
    plain = Rle.from_counts((2, 3), [2, 3, 1])
    longer = Rle.from_counts((2, 3), [1, 0, 1, 2, 0, 1, 1, 0, 0])
    assert longer == plain
    assert hash(longer) == hash(plain)
    assert longer.counts.tolist() == [2, 3, 1]
    assert plain != Rle.from_counts((3, 2), [2, 3, 1])


def test_counts_cannot_be_changed_behind_the_cache():
    with pytest.raises(ValueError, match="read-only"):
        Rle.from_mask(np.eye(3, dtype=bool)).counts[0] = 5


@pytest.mark.parametrize(
    ("size", "counts", "message"),
    [
        ((2, 3), [2, 3], r"sum to 5.*\(2, 3\) has 6"),
        ((2, 3), [-1, 7], "length -1"),
        ((2, 3), [2.0, 4.0], "integers"),
        ((2, 3), [[2, 4]], "flat list"),
        ((2, 3), [2, [3], 1], "flat list"),
        ((2, 3), [2**70, 1], "integers"),
        ((2, 3), [2**63 - 1, 2**63 - 1, 8], "length"),
        ((-2, 3), [], "size"),
        ((2.0, 3), [6], "size"),
        ((2, 3, 1), [6], "size"),
        ((1 << 20, 1 << 20), [1 << 40], f"{Limits().pixels} pixels"),
    ],
)
def test_wrong_runs_are_refused(size, counts, message):
    with pytest.raises(ValueError, match=message):
        Rle.from_counts(size, counts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2 4", "character b' ' at position 1"),
        ("2ü", "at position 1"),
        ("o", "inside a number"),
        ("o" * 1000, "at position 7"),
        ("24", None),
        ("2N4", None),
    ],
)
def test_wrong_strings_are_refused(text, message):
    if text == "24":
        assert Rle.from_string((2, 3), text).counts.tolist() == [2, 4]
    else:
        with pytest.raises(ValueError, match=message):
            Rle.from_string((2, 3), text)


def test_masks_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(H, W\), got \(2, 3, 1\)"):
        Rle.from_mask(np.zeros((2, 3, 1), dtype=bool))
    with pytest.raises(ValueError, match="different sizes"):
        Rle.union_of([Rle.from_counts((2, 3), [6]), Rle.from_counts((3, 2), [6])])
    with pytest.raises(ValueError, match="at least one"):
        Rle.union_of([])
