"""The sample that stands in for RefCOCO, and how the real data is asked for."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from embedded_sample import write_embedded
from PIL import Image

from seg_env.data.readers.refer import (
    DEFAULT_SPLIT_BY,
    EMBEDDED_NAME,
    CountWarning,
    Refer,
    embedded_root,
    load_refer,
)
from seg_env.data.sources import HELD_OUT_SPLITS

NAMES = tuple(DEFAULT_SPLIT_BY)
PARTITIONS = {key: splits for key, splits in HELD_OUT_SPLITS.items() if key[0] in NAMES}


@pytest.fixture(autouse=True)
def no_data_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIMPLESEG_DATA", raising=False)


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("embedded")
    write_embedded(root)
    return root


@pytest.mark.parametrize("name", NAMES)
def test_without_data_the_sample_is_opened_and_says_so(name: str) -> None:
    with pytest.warns(UserWarning, match=f"embedded sample .* stands in for {name}") as caught:
        dataset = load_refer(name)
    assert sum("embedded sample" in str(warning.message) for warning in caught) == 1
    assert dataset.name == EMBEDDED_NAME == "embedded-sample"
    assert all(sample.id.startswith("embedded-sample-") for sample in dataset)
    assert name not in dataset[0].id


def test_one_warning_in_a_process_however_often_it_is_opened() -> None:
    program = "from seg_env.data import load_refer\nfor _ in range(3): load_refer('refcoco')"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stderr.count("embedded sample") == 1


def test_the_users_copy_is_opened_without_a_word(
    rewritten: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", CountWarning)  # the copy is not all of RefCOCO
        assert load_refer("refcoco+", "val", data_root=rewritten).name == "refcoco+"
        monkeypatch.setenv("SIMPLESEG_DATA", str(rewritten))
        assert load_refer("refcocog", "test", "umd").name == "refcocog"


def test_a_wrong_folder_is_an_error_and_never_the_sample(
    rewritten: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"refs\(unc\)\.p is missing"):
        load_refer("refcoco", data_root=tmp_path)
    monkeypatch.setenv("SIMPLESEG_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_refer("refcoco")
    assert load_refer("refcoco", data_root=rewritten).name == "refcoco"


@pytest.mark.parametrize(
    ("name", "split_by", "split"),
    [
        (name, split_by, split)
        for (name, split_by), held_out in PARTITIONS.items()
        for split in ("train", *held_out)
    ],
)
def test_every_split_can_be_read(name: str, split_by: str, split: str) -> None:
    dataset = Refer(embedded_root(), name, split, split_by)
    samples = list(dataset)
    assert len(samples) >= 4
    assert len({sample.id for sample in samples}) == len(samples)
    for sample in samples:
        assert sample.image.shape == (*sample.target.size, 3)
        assert 0 < sample.target.area < 0.6 * sample.image[..., 0].size
    assert len(pickle.loads(pickle.dumps(dataset))) == len(dataset)


@pytest.mark.parametrize(("name", "split_by"), PARTITIONS)
def test_no_image_is_in_two_splits(name: str, split_by: str) -> None:
    splits = ("train", *PARTITIONS[name, split_by])
    images = [
        {sample.metadata["image_id"] for sample in Refer(embedded_root(), name, split, split_by)}
        for split in splits
    ]
    assert sum(map(len, images)) == len(set.union(*images))


def test_it_looks_like_the_real_thing() -> None:
    dataset = Refer(embedded_root(), "refcoco", "train")
    targets = [sample.target for sample in dataset]
    assert any(height != width for height, width in (target.size for target in targets))
    assert any(len(target.rings) > 1 for target in targets), "some objects have parts or holes"
    assert dataset[0].metadata["ref_id"] == dataset[1].metadata["ref_id"], "two sentences each"
    plus = {sample.expression for sample in Refer(embedded_root(), "refcoco+", "train")}
    assert plus < {sample.expression for sample in dataset}
    assert not any("left" in text or "above" in text for text in plus)


def test_polygons_and_run_lengths_of_the_same_object_agree(rewritten: Path) -> None:
    # The polygons are slightly simplified and have slits to their holes; run lengths are exact.
    polygons = json.loads((rewritten / "refcoco" / "instances.json").read_text())["annotations"]
    dataset = Refer(rewritten, "refcoco", "train")
    areas = {sample.metadata["ann_id"]: sample.target.area for sample in dataset}
    for annotation in polygons:
        if annotation["id"] in areas:
            assert areas[annotation["id"]] == pytest.approx(annotation["area"], rel=0.06)


def test_the_writer_still_writes_what_is_shipped(rewritten: Path) -> None:
    def files(root: Path) -> list[Path]:
        return sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())

    shipped = embedded_root()
    assert files(rewritten) == files(shipped)
    for path in files(shipped):
        old, new = shipped / path, rewritten / path
        if path.suffix == ".json":
            same = json.loads(old.read_text()) == json.loads(new.read_text())
        else:  # JPEG encoders differ by a rounding step
            pixels = [np.asarray(Image.open(file), dtype=float) for file in (old, new)]
            same = pixels[0].shape == pixels[1].shape and np.abs(pixels[0] - pixels[1]).mean() < 2
        assert same, f"{path} differs; run tests/embedded_sample.py if that is meant"


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in embedded_root().rglob("*.*")) < 600_000
