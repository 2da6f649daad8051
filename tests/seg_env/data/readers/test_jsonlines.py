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


def coloured_splits(root, names=("0001.png",), splits=("train", "val")):
    """LabelMe folders of one root whose images have equal names and a colour of their own."""
    for k, split in enumerate(splits):
        for m, name in enumerate(names):
            folder = root / split / str(m)
            shapes = [{"label": f"cup {m}", "points": [[10, 10], [30, 10], [30, 30]]}]
            labelled = {"imagePath": name, "imageHeight": HEIGHT, "imageWidth": WIDTH}
            write_json(folder / "label.json", labelled | {"shapes": shapes})
            write_photo(folder / name, colour=(100 * k + 20, 10 * m, 0))
    return [LabelMe(root, split) for split in splits]


@pytest.mark.parametrize("form", ["rle", "mask"])
@pytest.mark.parametrize(
    "names",
    [
        ("0001.png",),
        ("0001.png", "0001.png", "0001.png"),
        ("1-0001.png", "0001.png", "0001.png"),
        ("no ending", "12:30:00.png", "a\\b.png", "a\udcffb.png", "\u00e9" * 120 + ".png"),
        ("val-0.png", "train-0.png"),
    ],
)
def test_equal_names_never_meet_in_one_folder(tmp_path, names, form):
    named = [name if "." in name else name + ".png" for name in names]
    if "\\" in "".join(named):  # LabelMe itself takes them for folders
        named = [name.replace("\\", "") for name in named]
    sources = coloured_splits(tmp_path / "source", named)
    for k in (0, 1, 0, 1, 1, 0):  # any number of calls, in any order
        export_jsonlines(sources[k], tmp_path / "out", form=form)
    for source in sources:
        copy = JsonLines(tmp_path / "out", source.split)
        assert len(copy) == len(names)
        for original, read in zip(source, copy, strict=True):
            np.testing.assert_array_equal(original.image, read.image)
            np.testing.assert_array_equal(original.target.mask(), read.target.mask())
    files = list((tmp_path / "out/images").iterdir())
    assert len(files) == 2 * len(names), "once more is the same file"


def test_images_in_memory_and_masks_of_one_split_never_meet(tmp_path):
    easy, hard = (Scenes("val", level, length=2, size=64) for level in ("easy", "hard"))
    first = export_jsonlines(easy, tmp_path, form="mask").rename(tmp_path / "easy.jsonl")
    second = export_jsonlines(hard, tmp_path, form="mask")
    for source, path in ((easy, first), (hard, second)):
        for original, read in zip(source, JsonLines(path), strict=True):
            np.testing.assert_array_equal(original.image, read.image)
            np.testing.assert_array_equal(original.target.mask(), read.target.mask())


def test_a_lone_surrogate_leaves_expressions_and_stays_in_metadata(tmp_path, write):
    record = line(expression="a \ud800 b", metadata={"note": "\ud800"})
    sample = JsonLines(export_jsonlines(JsonLines(write(record), "val"), tmp_path / "out"))[0]
    assert (sample.expression, sample.metadata["note"]) == ("a ? b", "\ud800")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_lines_in_unicode_of_any_kind(write, encoding):
    root = write()
    text = "\n".join(
        json.dumps(line(expression=each), ensure_ascii=False) for each in "\u010a\u4e2d"
    )
    (root / "val.jsonl").write_bytes(text.encode(encoding))
    dataset = JsonLines(root, "val")
    assert_protocol(dataset, 2)
    assert [sample.expression for sample in dataset] == ["\u010a", "\u4e2d"]


def test_lines_in_another_encoding_are_an_error_or_named(write):
    root = write()
    text = json.dumps(line(expression="\u676f\u5b50"), ensure_ascii=False)
    (root / "val.jsonl").write_bytes(text.encode("gbk"))
    with pytest.raises(ValueError, match=r"val\.jsonl: line 1 is not text in UTF-8; .*--encoding"):
        JsonLines(root, "val")[0]
    named = open_dataset(str(root / "val.jsonl"), encoding="gbk")
    assert named[0].expression == "\u676f\u5b50"
    with pytest.raises(ValueError, match=r"is not text in UTF-8 or ascii"):
        JsonLines(root, "val", encoding="ascii")[0]
    for unknown in ("gkb", "hex", "undefined"):
        with pytest.raises(ValueError, match=f"encoding='{unknown}' is unknown"):
            JsonLines(root, "val", encoding=unknown)
    with pytest.raises(ValueError, match="encoding='gbk' cannot be used with"):
        open_dataset("parquet", data_root=root, encoding="gbk")


def test_noise_of_a_jpeg_is_no_part_of_a_mask(write):
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[7:27, 13:43] = 255
    root = write()
    for quality in (30, 75, 95):
        Image.fromarray(mask).save(root / "m.jpg", quality=quality)
        write({"image": "images/a.jpg", "expression": "", "mask": "m.jpg"})
        np.testing.assert_array_equal(JsonLines(root, "val")[0].target.mask(), mask > 0)
    for wrong in (mask // 255, mask // 2, mask // 255 * 200):
        Image.fromarray(wrong).save(root / "m.jpg")
        with pytest.raises(ValueError, match=r"m\.jpg is a JPEG and not black and white"):
            JsonLines(root, "val")[0]
    Image.fromarray(mask // 255).save(root / "m.png")
    write({"image": "images/a.jpg", "expression": "", "mask": "m.png"})
    np.testing.assert_array_equal(JsonLines(root, "val")[0].target.mask(), mask > 0)


def test_whole_numbers_may_be_floats_and_nothing_is_null(write):
    nothing = dict.fromkeys(("id", "ignore", "others", "metadata", "rings", "mask"))
    root = write(line(size=[float(HEIGHT), float(WIDTH)], **nothing))
    dataset = JsonLines(root, "val")
    assert_protocol(dataset, 1)
    assert (dataset[0].id, dataset[0].target.ignore, dataset.others(0)) == ("0", None, [])
