"""Our own JSON lines, and writing them from any data set."""

import json

import numpy as np
import pytest
from data_trees import (
    BESIDE,
    BOTH_MASK,
    HEIGHT,
    PHOTO,
    SQUARE,
    SQUARE_MASK,
    WIDTH,
    annotation,
    assert_protocol,
    instances,
    reference,
    write_json,
    write_photo,
)
from PIL import Image

from seg_env.data import (
    GRefCoco,
    JsonLines,
    LabelMe,
    ReasonSeg,
    Refer,
    Scenes,
    export_jsonlines,
    open_dataset,
)
from seg_env.data.__main__ import command_line
from seg_env.data.export import run_lengths
from seg_env.geometry.contour import trace
from seg_env.geometry.rle import Rle

RUNS = run_lengths(Rle.from_mask(SQUARE_MASK))


@pytest.fixture
def write(tmp_path):
    def write(*records, file="val.jsonl"):
        lines = [each if isinstance(each, str) else json.dumps(each) for each in records]
        (tmp_path / file).write_text("\n".join(lines) + "\n", "utf-8")
        write_photo(tmp_path / "images/a.jpg")
        return tmp_path

    return write


def line(**changes):
    return {"image": "images/a.jpg", "expression": "the café", "rle": RUNS} | changes


def test_run_lengths_rings_and_images_of_masks(write, tmp_path):
    ring_of_hole = np.zeros_like(SQUARE_MASK)
    ring_of_hole[5:35, 5:35] = True
    ring_of_hole[10:20, 10:20] = False
    rings = [ring.tolist() for ring in trace(ring_of_hole)]
    Image.fromarray(BOTH_MASK).save(write() / "m.png")
    raw = {"size": [HEIGHT, WIDTH], "counts": Rle.from_mask(SQUARE_MASK).counts.tolist()}
    forms = [{"rle": RUNS}, {"rle": raw}, {"rings": rings}, {"mask": "m.png"}, {"rings": []}]
    write(
        *({"image": "images/a.jpg", "expression": f"number {k}"} | f for k, f in enumerate(forms))
    )
    dataset = JsonLines(tmp_path, "val")
    assert_protocol(dataset, 5)
    expected = [SQUARE_MASK, SQUARE_MASK, ring_of_hole, BOTH_MASK, np.zeros_like(SQUARE_MASK)]
    for sample, mask in zip(dataset, expected, strict=True):
        np.testing.assert_array_equal(sample.target.mask(), mask, err_msg=sample.expression)


def test_optional_fields(write):
    void = Rle.from_mask(BOTH_MASK & ~SQUARE_MASK)
    root = write(
        line(id="q1", ignore=run_lengths(void), others=[RUNS], metadata={"source": "mine"}),
        "",
        line(size=[HEIGHT, WIDTH]),
    )
    dataset = open_dataset(str(root / "val.jsonl"))
    assert_protocol(dataset, 2)
    assert (dataset.name, dataset.split) == ("jsonl", "val")
    assert [sample.id for sample in dataset] == ["q1", "2"]
    assert dataset[0].target.ignore == void
    assert dataset[1].target.ignore is None
    assert dataset[0].metadata == {"source": "mine", "file_name": "images/a.jpg"}
    assert [len(dataset.others(index)) for index in range(2)] == [1, 0]


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ('{"image": "images/a.jp', "is not valid JSON"),
        ("[1]", "expected an object"),
        (line(image=5), "'image' must be a string"),
        (line(image="../../secret.png"), "leads out of the image folder"),
        (line(rings=[]), r"expected one of 'rle', 'rings' and 'mask', got \['rle', 'rings'\]"),
        (line(rle={"size": [1, 1], "counts": [1]}), "'size' must be the"),
        (line(rle={"size": [HEIGHT, WIDTH], "counts": [5]}), "RLE counts sum to 5"),
        (line(size=[-1, 4]), "'size' must be"),
        (line(others=3, metadata=3), "'metadata' must be an object"),
        ({"image": "images/a.jpg", "expression": "", "rings": [[[0, 0], [1, 1]]]}, "ring 0"),
    ],
)
def test_a_broken_line_is_named_or_counted(write, broken, problem):
    root = write(line(), broken)
    dataset = JsonLines(root, "val")
    with pytest.raises(ValueError, match=rf"val\.jsonl: line 2.*{problem}"):
        dataset[1]
    sound = JsonLines(root, "val", on_error="skip")
    assert_protocol(sound, 1)
    assert sound.skipped == {"malformed record": 1}


def test_faults_of_images_and_polygons_have_their_own_names(write):
    outside = {"image": "images/a.jpg", "expression": "", "rings": [[[2, 2], [3, 2], [3, 3]]]}
    root = write(line(), outside, line(image="no.jpg"), line(size=[5, 5], rle=small()), "{")
    dataset = JsonLines(root, "val", on_error="skip")
    assert dataset.skipped == {
        "polygon outside the image": 1,
        "missing photo": 1,
        "size mismatch": 1,
        "malformed record": 1,
    }
    leaving_out = JsonLines(root, "val", on_error="skip", exclude_images={"no.jpg"})
    assert (len(leaving_out), leaving_out.excluded) == (1, 1)


def small():
    return {"size": [5, 5], "counts": [5, 5, 15]}


def mixed_sources(root):
    """One small data set of each loader, and procedural scenes."""
    tables = instances(annotation(500, [SQUARE]), annotation(501, [BESIDE], category_id=4))
    for name, file in (("refcoco", "refs(unc).json"), ("grefcoco", "grefs(unc).json")):
        write_json(root / name / "instances.json", tables)
        several = name == "grefcoco"
        refs = [reference(1, [500, 501] if several else 500, ["one", "two"])]
        refs += [reference(2, [-1], ["none"])] if several else []
        write_json(root / name / file, refs)
    write_photo(root / "train2014" / PHOTO)
    shapes = [
        {"label": "target", "points": [[10, 10], [30, 10], [30, 30]]},
        {"label": "ignore", "points": [[40, 20], [50, 20], [50, 30]]},
    ]
    write_json(
        root / "ReasonSeg/val/a.json", {"text": ["q"], "is_sentence": True, "shapes": shapes}
    )
    write_photo(root / "ReasonSeg/val/a.jpg")
    labelled = {"imagePath": "a.jpg", "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": shapes}
    write_json(root / "labelled/a.json", labelled)
    write_photo(root / "labelled/a.jpg")
    return [
        Refer(root, "refcoco", "val"),
        GRefCoco(root, "val"),
        ReasonSeg(root, "val"),
        LabelMe(root / "labelled"),
        Scenes(split="val", difficulty="medium", length=3, size=64),
    ]


@pytest.mark.parametrize("form", ["rle", "rings", "mask"])
@pytest.mark.filterwarnings("ignore::seg_env.data.readers.refer.CountWarning")
def test_what_is_exported_reads_back_the_same(tmp_path, form):
    for number, source in enumerate(mixed_sources(tmp_path / "source")):
        path = export_jsonlines(source, tmp_path / f"{number}", form=form, others=True)
        copy = JsonLines(path, source.split)
        assert_protocol(copy, len(source))
        for index, (original, read) in enumerate(zip(source, copy, strict=True)):
            assert (original.id, original.expression) == (read.id, read.expression)
            np.testing.assert_array_equal(original.target.mask(), read.target.mask())
            np.testing.assert_array_equal(original.image, read.image)
            assert original.target.ignore == read.target.ignore
            others = source.others(index), copy.others(index)
            assert [each.rle for each in others[0]] == [each.rle for each in others[1]]


def test_one_image_of_many_questions_is_copied_once(tmp_path):
    source = mixed_sources(tmp_path / "source")[1]
    export_jsonlines(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out/images").iterdir()] == [PHOTO]


@pytest.mark.filterwarnings("ignore::seg_env.data.readers.refer.CountWarning")
def test_the_command_line_checks_and_exports(tmp_path, capsys):
    root, out = tmp_path / "source", tmp_path / "out"
    mixed_sources(root)
    where = ["--dataset", "refcoco", "--data-root", str(root), "--split", "val"]
    assert (
        command_line(["export", *where, "--output", str(out), "--limit", "1", "--form", "mask"])
        == 0
    )
    assert len(JsonLines(out, "val")) == 1
    (root / "train2014" / PHOTO).unlink()
    write_photo(root / "train2014" / PHOTO, (5, 5))
    assert command_line(["check", *where]) == 0
    printed = capsys.readouterr().out
    assert "refcoco val: 2 samples" in printed
    assert "left out for size mismatch: 2" in printed
    assert command_line(["check", "--dataset", "coco", "--data-root", str(tmp_path)]) == 2
    assert "there is no annotation file of the split" in capsys.readouterr().err
    excluding = ["--exclude-images", "grefcoco:val"]
    assert command_line(["check", *where, *excluding]) == 0
    assert "left out for their image: 2" in capsys.readouterr().out
