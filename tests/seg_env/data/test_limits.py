"""Files that claim, or unfold to, far more than they hold are refused before memory is taken."""

import json
import pickle
import time
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_trees import PHOTO, SQUARE, annotation, instances, reference, write_json, write_photo
from PIL import Image

from seg_env.data import Coco, GRefCoco, JsonLines, LabelMe, ReasonSeg, Refer, open_dataset
from seg_env.data.__main__ import command_line
from seg_env.data.readers.hub import Parquet
from seg_env.errors import ExplainedError, WrongOptionError
from seg_env.geometry.contour import trace
from seg_env.geometry.limits import VARIABLE, Limits, limits, set_limits
from seg_env.geometry.raster import rasterize
from seg_env.geometry.rle import Rle
from seg_env.types import Target

SIDE = 4096
ZIGZAG = [[SIDE * (k % 2), k * SIDE / 100_000] for k in range(100_000)]


@pytest.fixture(autouse=True)
def default_limits(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    limits.cache_clear()
    yield
    monkeypatch.undo()
    limits.cache_clear()


@pytest.fixture
def cheap():
    """Refusing takes little time and memory."""
    tracemalloc.start()
    began = time.thread_time()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Where limits are missing, this takes minutes or does not end; traced, files cost a second.
    assert time.thread_time() - began < 20
    assert peak < 64_000_000  # of which a zigzag's JSON is a third


def lines(folder, **record):
    line = {"image": "images/a.png", "expression": "a", "rings": []} | record
    return JsonLines(write_json(folder / "train.jsonl", line).parent)


def labelme(folder, points, size):
    shape = {"label": "a", "points": points, "shape_type": "polygon"}
    record = {"imagePath": "a.png", "imageHeight": size[0], "imageWidth": size[1]}
    write_json(folder / "a.json", record | {"shapes": [shape]})
    return LabelMe(folder)


def coco(folder, *annotations, size):
    tables = instances(*annotations)
    tables["images"][0] |= {"height": size[0], "width": size[1]}
    write_photo(folder / "images" / PHOTO)
    return Coco(write_json(folder / "instances.json", tables).parent)


TRIANGLE = [[0, 0], [1, 0], [1, 1]]


def test_sizes_that_files_claim(cheap, tmp_path):
    huge = 1_000_000_000
    with pytest.raises(ValueError, match=r"train.jsonl: line 1: .*limit is 178956970 pixels"):
        lines(tmp_path, size=[huge, huge], rings=[TRIANGLE])[0]
    with pytest.raises(ValueError, match=r"a.json: imageHeight .* 178956970 pixels"):
        labelme(tmp_path, TRIANGLE, (1, 1 << 28))[0]
    with pytest.raises(ValueError, match=r"a.json: imageHeight .* 131072 side"):
        labelme(tmp_path, TRIANGLE, (1, 1 << 27))[0]
    with pytest.raises(ValueError, match=r"record 0 of 'images': height .* 178956970 pixels"):
        coco(tmp_path, annotation(1, [SQUARE]), size=(huge, huge))[0]
    Image.new("1", (1, 140_000)).save(tmp_path / "long.png")
    with pytest.raises(ValueError, match=r"long.png: 1 x 140000 pixels .* 131072 side"):
        lines(tmp_path, image="long.png")[0]


def test_a_zigzag_over_all_columns(cheap, tmp_path):
    size, flat = (SIDE, SIDE), [number for point in ZIGZAG for number in point]
    passed = r".*edges pass 409\d+ columns; the limit is 16777216 crossings"
    rings = [[[x / SIDE, y / SIDE] for x, y in ZIGZAG]]
    with pytest.raises(ValueError, match=r"train.jsonl: line 1" + passed):
        lines(tmp_path / "lines", size=size, rings=rings)[0]
    with pytest.raises(ValueError, match=r"a.json: shape 0" + passed):
        labelme(tmp_path / "labelme", ZIGZAG, size)[0]
    with pytest.raises(ValueError, match=r"annotation 1: part 0" + passed):
        coco(tmp_path / "coco", annotation(1, [flat]), size=size)[0]
    shapes = [{"label": "a", "points": ZIGZAG}]
    write_json(tmp_path / "val/a.json", {"text": "a", "shapes": shapes})
    write_photo(tmp_path / "val/a.jpg", (SIDE, SIDE))
    with pytest.raises(ValueError, match=r"a.json: shape 0" + passed):
        ReasonSeg(tmp_path)[0]


def test_many_shapes_on_a_large_image(cheap, tmp_path):
    shapes = [{"label": "a", "points": TRIANGLE}] * 300
    write_json(tmp_path / "val/a.json", {"text": "a", "shapes": shapes})
    write_photo(tmp_path / "val/a.jpg", (SIDE, SIDE))
    with pytest.raises(ValueError, match=r"a.json: 300 shapes on .* limit is 4294967296 painted"):
        ReasonSeg(tmp_path)[0]


def test_many_parts_of_one_record(cheap, tmp_path):
    wide = [0.0, 0.0, 16000.0, 0.0, 8000.0, 9.0]
    with pytest.raises(ValueError, match=r"annotation 1: the segmentation: a mask of .* runs"):
        coco(tmp_path, annotation(1, [wide] * 1000), size=(10_000, 16_000))[0]
    each = [annotation(number, [wide]) for number in range(1, 1000)]
    with pytest.raises(ValueError, match=r"image 9: a mask of .* limit is 1048576 runs"):
        coco(tmp_path, *each, size=(10_000, 16_000))[0]


def test_skipping_counts_what_is_over_a_limit(tmp_path):
    tables = instances(annotation(1, [SQUARE]), annotation(2, [SQUARE], image_id=10))
    tables["images"].append({"id": 10, "file_name": "b.jpg", "height": 10**9, "width": 10**9})
    write_photo(tmp_path / "images" / PHOTO)
    dataset = Coco(write_json(tmp_path / "instances.json", tables).parent, on_error="skip")
    assert len(dataset) == 1
    assert dataset.skipped["exceeded limit"] == 1


def test_parquet_that_unfolds(cheap, tmp_path):
    rows, word = 1_000_000, "x" * 2300
    answer = pa.array([[word]] * 1000)
    table = pa.table(
        {
            "question_id": ["1"] * 1000,
            "image": pa.array([b""] * 1000),
            "answer": answer,
            "segmentation": pa.array([None] * 1000, pa.list_(pa.float64())),
        }
    )
    path = tmp_path / "val-0.parquet"
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        writer.write_table(pa.concat_tables([table] * (rows // 1000 // 10)), row_group_size=rows)
    assert path.stat().st_size < 40_000
    before = pa.total_allocated_bytes()
    with pytest.raises(ValueError, match=r"row group 0 .* limit is 64 inflation"):
        Parquet(tmp_path)
    assert pa.total_allocated_bytes() - before < 1 << 22


def test_a_parquet_file_of_many_rows(tmp_path):
    table = pa.table({"image": [b""] * 1001, "samples": [[]] * 1001})
    pq.write_table(table, tmp_path / "val-0.parquet")
    set_limits("rows=1000")
    with pytest.raises(ValueError, match=r"row group 0 has 1001 rows; the limit is 1000 rows"):
        Parquet(tmp_path)


@pytest.mark.parametrize("program", [b"]" * 5_000_000, b"}" * 5_000_000, b"(l" * 5_000_000])
def test_a_pickle_of_empty_containers(cheap, tmp_path, program):
    path = tmp_path / "refcoco/refs(unc).p"
    write_json(tmp_path / "refcoco/instances.json", instances())
    path.write_bytes(b"(" + program + b"l.")
    with pytest.raises(ValueError, match=r"refs\(unc\).p: about 50000\d+ .* 4194304 containers"):
        Refer(tmp_path)


def test_a_list_of_objects_that_many_references_share(cheap, tmp_path):
    shared = list(range(900))
    refs = [reference(n, shared, ["a"], category_id=[]) for n in range(2000)]
    write_json(tmp_path / "grefcoco/instances.json", instances())
    path = tmp_path / "grefcoco/grefs(unc).p"
    path.write_bytes(pickle.dumps(refs, 2))
    with pytest.raises(ValueError, match=r"grefs.* record \d+: the file unfolds .* 8 times"):
        GRefCoco(tmp_path, "val", on_error="skip")


def checkerboard(side):
    return np.indices((side, side)).sum(axis=0) % 2 == 0


def test_outlines_of_checkerboards():
    mask = checkerboard(64)
    np.testing.assert_array_equal(rasterize(trace(mask), mask.shape), mask)
    assert len(trace(checkerboard(180))) == 16_200
    began = time.thread_time()
    for size, limit in ((512, r"limit is 16384 rings"), (3000, r"limit is 1048576 runs")):
        target = Target(Rle.from_mask(checkerboard(size)), record="a.jsonl: line 7")
        for outline in (target.outline, lambda target=target: target.rings):
            with pytest.raises(ExplainedError, match=r"a.jsonl: line 7: .*" + limit):
                outline()
    assert time.thread_time() - began < 20


def test_a_sample_s_outline_names_its_record(tmp_path):
    rle = Rle.from_mask(checkerboard(200))
    mask = {"size": list(rle.size), "counts": rle.counts.tolist()}
    line = {"id": "board", "image": "a.png", "expression": "a", "rle": mask, "size": [200, 200]}
    dataset = JsonLines(write_json(tmp_path / "train.jsonl", line).parent)
    with pytest.raises(ExplainedError, match=r"board: an outline of at least"):
        dataset[0].target.outline()


def test_a_limit_is_an_option(tmp_path, capsys, monkeypatch):
    write_photo(tmp_path / "images/a.png", (60, 40))
    dataset = lines(tmp_path, size=[40, 60], rings=[TRIANGLE])
    set_limits("pixels=2e3 rings=7")
    assert limits() == Limits(pixels=2000, rings=7)
    with pytest.raises(ValueError, match=r"limit is 2000 pixels, which SIMPLESEG_LIMITS='pixels="):
        dataset[0]
    given = ["check", "--dataset", "jsonl", "--data-root", str(tmp_path), "--split", "train"]
    assert command_line([*given, "--limits", "pixels=2000"]) == 0
    assert "left out for exceeded limit: 1" in capsys.readouterr().out
    assert command_line([*given, "--limits", "pixels=2401"]) == 0
    assert "1 samples" in capsys.readouterr().out
    for wrong in ("pixel=3", "pixels", "pixels=nan", "pixels=0", "rings=1e400"):
        with pytest.raises(WrongOptionError, match=r"is no limit; write NAME=NUMBER"):
            set_limits(wrong)
    assert command_line([*given, "--limits", "pixel=3"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_raised_limit_reads_what_was_refused(tmp_path):
    Image.MAX_IMAGE_PIXELS, before = 100, Image.MAX_IMAGE_PIXELS  # as if images were huge
    try:
        write_photo(tmp_path / "images/a.png", (60, 40))
        set_limits("pixels=2000")
        dataset = lines(tmp_path)
        with pytest.raises(ValueError, match=r"limit is 2000 pixels"):
            dataset[0]
        set_limits("pixels=2400")
        assert dataset[0].image.shape == (40, 60, 3)
    finally:
        Image.MAX_IMAGE_PIXELS = before


def test_limits_are_in_the_way_of_nothing_usual(tmp_path):
    write_photo(tmp_path / "images/a.png", (4000, 3000))
    generator = np.random.default_rng(0)
    mask = generator.random((3000, 4000)) < 0.5
    mask[:, 200:] = False
    rle = Rle.from_mask(mask)
    line = {"image": "images/a.png", "expression": "a", "rle": {"size": [3000, 4000]}}
    line["rle"]["counts"] = rle.to_string().decode()
    (tmp_path / "train.jsonl").write_text(json.dumps(line))
    dataset = open_dataset("jsonl", data_root=tmp_path, split="train")
    np.testing.assert_array_equal(dataset[0].target.mask(), mask)
