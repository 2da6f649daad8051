"""Sound files, damaged at random: readers give samples or a `ValueError` that names the file.

Bytes are changed, cut, doubled and swapped in any file of a data set, images too, and values of its
JSON are replaced by others, with both ways of dealing with broken records.
"""

import base64
import io
import json
import pickle
import resource
import time
import warnings
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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
    instances,
    reference,
    write_json,
    write_photo,
)
from hostile_text import SCALE, SEED
from PIL import Image

from seg_env.data import open_dataset
from seg_env.data.export import run_lengths
from seg_env.geometry.rle import Rle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
TRIES = int(3000 * SCALE)
"""Of each reader."""
TABLES = instances(
    annotation(500, [SQUARE]),
    annotation(501, [SQUARE, BESIDE], category_id=4),
    annotation(502, run_lengths(Rle.from_mask(BOTH_MASK))),
    annotation(503, {"size": [HEIGHT, WIDTH], "counts": Rle.from_mask(BOTH_MASK).counts.tolist()}),
)
REFS = [reference(1, 500, ["left", "the left one"]), reference(2, 501, ["both"], category_id=4)]
GREFS = [
    reference(1, [500, 501], ["both"], category_id=[3, 4]),
    reference(2, [-1], ["none"], category_id=[-1]),
]
RING = [[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]
PAIRS = [SQUARE[k : k + 2] for k in range(0, len(SQUARE), 2)]


def write_refer(root, refs=REFS, file="refcoco/refs(unc).p"):
    path = root / file
    write_json(path.parent / "instances.json", TABLES)
    path.write_bytes(pickle.dumps(refs, 2) if file.endswith(".p") else json.dumps(refs).encode())
    write_photo(root / "images/train2014" / PHOTO)


def write_coco(root):
    write_json(root / "instances.json", TABLES)
    write_photo(root / "images" / PHOTO)


def write_labelme(root):
    photo = base64.b64encode(write_photo(root / "a.jpg").read_bytes()).decode()
    shapes = [
        {"label": "a", "points": PAIRS, "shape_type": "polygon", "group_id": 1},
        {"label": "b", "points": PAIRS[:2], "shape_type": "circle", "description": "round"},
        {"label": "a", "points": PAIRS[::2], "shape_type": "rectangle", "group_id": None},
    ]
    for name, data in (("a", None), ("b", photo)):
        record = {"imagePath": f"{name}.jpg", "imageHeight": HEIGHT, "imageWidth": WIDTH}
        write_json(root / f"{name}.json", record | {"imageData": data, "shapes": shapes})


def write_reasonseg(root):
    shapes = [{"label": "target", "points": PAIRS}, {"label": "ignore", "points": PAIRS[:3]}]
    write_json(root / "val/a.json", {"text": ["a", "b"], "is_sentence": True, "shapes": shapes})
    write_photo(root / "val/a.jpg")


def write_jsonlines(root):
    write_photo(root / "images/a.png")
    (root / "masks").mkdir()
    Image.fromarray(SQUARE_MASK.astype(np.uint8) * 255).save(root / "masks/a.png")
    rle = run_lengths(Rle.from_mask(SQUARE_MASK))
    line = {"image": "images/a.png", "expression": "a", "metadata": {"k": 1}}
    forms = [
        {"rle": rle, "ignore": rle, "others": [rle]},
        {"rings": [RING]},
        {"mask": "masks/a.png"},
    ]
    sized = [{**form, "size": [HEIGHT, WIDTH]} for form in forms]
    text = "\n".join(json.dumps(line | form) for form in (*forms, *sized))
    (root / "train.jsonl").write_text(text)


def write_parquet(root):
    photo = write_photo(root / "a.png").read_bytes()
    sample = {"id": 1, "category": "a", "sentences": ["a", "b"], "bbox": [1.0, 2.0, 3.0, 4.0]}
    sample["mask"] = run_lengths(Rle.from_mask(SQUARE_MASK))
    row = {"image": {"bytes": photo, "path": "a"}, "file_name": "a.png", "samples": [sample] * 2}
    pq.write_table(pa.Table.from_pylist([row] * 3), root / "val-0.parquet")
    (root / "a.png").unlink()


def write_yolo(root):
    write_photo(root / "images/train/a.jpg")
    (root / "labels/train").mkdir(parents=True)
    numbers = " ".join(str(round(number, 3)) for number in np.ravel(RING))
    (root / "labels/train/a.txt").write_text(f"0 {numbers}\n1 {numbers}\n\n1 .5 .5 .2 .2\n")
    (root / "data.yaml").write_text("names: {0: cat, 1: a dog}\ntrain: images/train\n")


def write_masks(root, suffix=".png"):
    deep = SQUARE_MASK.astype(np.uint16) * 300
    for name, values in (("a", SQUARE_MASK.astype(np.uint8)), ("b", deep)):
        write_photo(root / f"images/train/{name}.png")
        (root / "masks/train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(root / f"masks/train/{name}{suffix}")
    (root / "names.txt").write_text("1 cat\n300 a dog\n")


READERS = {
    "refcoco": (write_refer, {"split": "val"}),
    "refcoco in JSON": (
        lambda root: write_refer(root, file="refcoco/refs(unc).json"),
        {"split": "val"},
    ),
    "grefcoco": (
        lambda root: write_refer(root, GREFS, "grefcoco/grefs(unc).json"),
        {"split": "val"},
    ),
    "coco": (write_coco, {"split": "train"}),
    "labelme": (write_labelme, {}),
    "reasonseg": (write_reasonseg, {"split": "val"}),
    "jsonl": (write_jsonlines, {"split": "train"}),
    "parquet": (write_parquet, {"split": "val"}),
    "yolo": (write_yolo, {}),
    "masks": (write_masks, {}),
    "masks in TIFF": (lambda root: write_masks(root, ".tif"), {}),
}
VALUES = [
    *(None, True, 0, -1, 1, 60.0, 0.5, 2**31, 2**63, -(2**64), 10**400, 1e308, float("nan")),
    *(
        float("inf"),
        "",
        "a",
        "60",
        "\ud800",
        "\x00",
        "../../a.png",
        "/etc/passwd",
        "C:\\a",
        "é" * 500,
    ),
    *([], {}, [[]], [[[]]], [0], [1e300, -1e300] * 4, {"size": [1, 1]}, ["a"], [10**9, 10**9]),
    {"size": [10**9, 10**9], "counts": [10**18]},
    {"size": [HEIGHT, WIDTH], "counts": "0" * 99},
]


def changed_bytes(data, generator):
    """Some bytes changed, a piece left out, doubled or put elsewhere, or the end cut off."""
    start, stop = sorted(generator.integers(len(data) + 1, size=2).tolist())
    stop = min(stop, start + 40)
    match int(generator.integers(5)):
        case 0:
            changed = bytearray(data)
            for place in generator.integers(len(data), size=int(generator.integers(1, 9))):
                changed[place] = int(generator.integers(256))
            return bytes(changed)
        case 1:
            return data[:start] + data[stop:]
        case 2:
            return data[:stop] + data[start:]
        case 3:
            return data[stop:] + data[:stop]
        case _:
            return data[:start]


def changed_values(value, generator):
    """A value of JSON in which one value, somewhere, is another one, gone, or there twice."""
    inner = value if isinstance(value, dict | list) and len(value) else None
    if inner is None or generator.random() < 0.1:
        return VALUES[int(generator.integers(len(VALUES)))]
    keys = list(inner) if isinstance(inner, dict) else range(len(inner))
    key, copy = keys[int(generator.integers(len(keys)))], inner.copy()
    match int(generator.integers(12)):
        case 0:
            del copy[key]
        case 1 if isinstance(copy, list):
            copy.append(copy[key])
        case 2 if isinstance(copy, list):
            copy += [copy[key]] * 30
        case _:
            copy[key] = changed_values(copy[key], generator)
    return copy


def changed_file(path, data, generator):
    """One file of a data set, damaged in its bytes or in its values."""
    if generator.random() < 0.3 or path.suffix not in (".json", ".jsonl", ".p", ".parquet"):
        return changed_bytes(data, generator)
    match path.suffix:
        case ".json":
            return json.dumps(changed_values(json.loads(data), generator)).encode()
        case ".jsonl":
            lines = [json.loads(line) for line in data.splitlines()]
            place = int(generator.integers(len(lines)))
            lines[place] = changed_values(lines[place], generator)
            return "\n".join(map(json.dumps, lines)).encode()
        case ".p":
            return pickle.dumps(changed_values(pickle.loads(data), generator), 2)
        case _:
            rows = pq.read_table(io.BytesIO(data)).to_pylist()
            stream = io.BytesIO()
            try:
                pq.write_table(pa.Table.from_pylist(changed_values(rows, generator)), stream)
            except Exception:
                return changed_bytes(data, generator)  # no table can hold such values
            return stream.getvalue()


def read_all(name, root, on_error, options):
    """Everything that a data set gives; the errors of samples, which leave the others readable."""
    dataset = open_dataset(name.split()[0], data_root=root, on_error=on_error, **options)
    errors = []
    for index in range(min(len(dataset), 50)):
        try:
            sample = dataset[index]
            assert sample.image.shape == (*sample.target.size, 3)
            assert sample.target.mask().shape == sample.target.size
            str(sample.metadata)
            dataset.others(index)
        except (ValueError, FileNotFoundError) as error:
            errors.append(error)
    return errors


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_named(tmp_path, name):
    write, options = READERS[name]
    write(tmp_path)
    files = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    generator = np.random.default_rng(SEED)
    outcomes = Counter()
    slowest = 0.0
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    warnings.simplefilter("ignore")  # this copy is no published one; broken images
    assert read_all(name, tmp_path, "raise", options) == []
    for number in range(TRIES):
        path = list(files)[int(generator.integers(len(files)))]
        damaged = changed_file(path, files[path], generator)
        path.write_bytes(damaged)
        start = time.thread_time()
        try:
            errors = read_all(name, tmp_path, ("raise", "skip")[number % 2], options)
            outcomes["samples refused" if errors else "read"] += 1
        except (ValueError, FileNotFoundError) as error:
            errors = [error]
            outcomes["refused"] += 1
        slowest = max(slowest, time.thread_time() - start)
        for error in errors:
            assert str(tmp_path) in str(error), (path, damaged[:2000], repr(error))
            assert len(str(error)) < 3000, (path, damaged[:2000])
        path.write_bytes(files[path])
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(
        f"\n{name}: {TRIES} damaged data sets, seed {SEED}: "
        + ", ".join(f"{count} {what}" for what, count in sorted(outcomes.items()))
        + f"; slowest {1000 * slowest:.0f} ms, {time.monotonic() - began:.0f} s in all, "
        f"memory {before} to {after} MB"
    )
    assert slowest < 5
    assert after - before < 500
    assert 0.05 * TRIES < outcomes["read"] < 0.95 * TRIES
