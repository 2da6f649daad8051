"""The pipeline: nothing lost, nothing doubled, whatever stops it; what it writes is read back."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from agents_fixtures import demonstration_rows
from annotate_fixtures import TRUTH, encoded, scene_job, tar_bytes, tar_source

from seg_env.data import JsonLines, Scenes, images_of, open_dataset
from seg_env.data.annotate import Job, annotate, load_stage
from seg_env.data.annotate.job import parse_part
from seg_env.data.annotate.stages import Detector
from seg_env.data.annotate.tally import Tally
from seg_env.geometry.overlap import iou_batch

BOXES = (
    "annotate_fixtures:OneBox",
    "annotate_fixtures:FillBox",
    'label{"template": "the {label}"}',
)


def records(folder):
    return (Path(folder) / "train.jsonl").read_bytes()


def counts(manifest):
    """A manifest without what depends on the clock."""
    return {key: value for key, value in manifest.items() if key != "seconds"}


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """Scenes in archives, and what annotating them without interruption writes."""
    folder = tmp_path_factory.mktemp("web")
    job = scene_job(folder / "web")
    manifest = annotate(job, folder / "out")
    return job, folder / "out", manifest


def test_records_are_the_scenes(web):
    _, folder, manifest = web
    scenes = Scenes("train", "easy", size=48)
    expected = [sample for number in range(12) for sample in scenes.samples_of(number)]
    dataset = open_dataset(str(folder / "train.jsonl"))
    assert isinstance(dataset, JsonLines)
    assert len(dataset) == manifest["objects"]["written"] == len(expected)
    for sample, truth in zip(dataset, expected, strict=True):
        assert sample.expression == truth.expression
        np.testing.assert_array_equal(sample.image, truth.image)
        assert iou_batch([sample.target.rings], truth.target.rle)[0] >= 0.95
        assert sample.metadata["outline_iou"] >= 0.95
        assert sample.metadata["license"] == "CC0-1.0"
    assert len({sample.id for sample in dataset}) == len(dataset)
    assert len(images_of([dataset])) == 12
    assert manifest["complete"]
    assert manifest["objects"]["dropped"] == {}


def test_each_shard_is_a_data_set_of_its_own(web):
    _, folder, manifest = web
    parts = [open_dataset(str(each)) for each in sorted(folder.glob("shards/*/train.jsonl"))]
    assert len(parts) == 4
    assert sum(map(len, parts)) == manifest["objects"]["written"]
    assert parts[3][0].image.shape == (48, 48, 3)


def test_training_reads_the_records(web):
    rows = demonstration_rows(open_dataset(str(web[1] / "train.jsonl")), "mask=1")
    row = rows[0]
    assert row["prompt"][0]["content"].startswith("Output the polygon coordinates of the ")
    assert row["completion"][0]["content"].startswith("[[[")
    assert row["images"][0].shape == (48, 48, 3)


@pytest.mark.parametrize(("container", "form"), [("jsonl", "rle"), ("parquet", "rings")])
def test_exact_masks(web, tmp_path, container, form):
    job = Job(web[0].source, *TRUTH, container=container, form=form, split="extra")
    manifest = annotate(job, tmp_path)
    name = "parquet" if container == "parquet" else "jsonl"
    dataset = open_dataset(name, data_root=tmp_path, split="extra")
    scenes = Scenes("train", "easy", size=48)
    expected = [sample for number in range(12) for sample in scenes.samples_of(number)]
    assert len(dataset) == len(expected)
    for index, truth in enumerate(expected):
        assert dataset[index].target.rle == truth.target.rle
        assert dataset[index].expression == truth.expression
        np.testing.assert_array_equal(dataset[index].image, truth.image)
    assert counts(manifest)["histograms"] == web[2]["histograms"]


@pytest.mark.parametrize("text", ["1/1", "-1/2", "1", "0/0", "a/b", "1/2/3", "٣/٤", ""])
def test_parts_are_checked(text):
    assert parse_part("2/3") == (2, 3)
    with pytest.raises(ValueError, match="not i/n"):
        parse_part(text)


def test_machines_agree(web, tmp_path):
    """Three machines on one folder, and three on folders of their own that are put together."""
    job, folder, manifest = web
    seen = [annotate(job, tmp_path / "shared", part=(part, 3)) for part in (2, 0, 1)]
    assert [each["complete"] for each in seen] == [False, False, True]
    assert counts(seen[-1]) == counts(manifest)
    for part in range(3):
        annotate(job, tmp_path / f"{part}", part=(part, 3))
        for each in (tmp_path / f"{part}" / "shards").iterdir():
            shutil.copytree(each, tmp_path / "together/shards" / each.name)
    assert counts(annotate(job, tmp_path / "together")) == counts(manifest)
    for place in ("shared", "together"):
        assert records(tmp_path / place) == records(folder)


def test_several_workers_write_the_same(web, tmp_path):
    job, folder, manifest = web
    seen = []
    found = annotate(job, tmp_path, workers=2, on_progress=lambda *now: seen.append(now))
    assert counts(found) == counts(manifest)
    assert records(tmp_path) == records(folder)
    assert seen[-1] == (4, 4, 12)


KILLED = """
import json, sys
from seg_env.data.annotate import Job, annotate
if __name__ == "__main__":
    stages, output, workers = sys.argv[1:]
    job = Job(*json.loads(stages), batch_size=2, filters=())
    annotate(job, output, workers=int(workers))
"""


def processes(*selection):
    """Numbers of processes that `ps` selects, but for those that have ended."""
    command = ["ps", "-o", "pid=,stat=", *selection]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    rows = [line.split() for line in found.splitlines()]
    return [number for number, state in rows if not state.startswith("Z")]


def test_killed_at_any_moment_and_resumed(tmp_path):
    """Five times by kill -9, somewhere between the first record and the last."""
    job = scene_job(tmp_path / "web", count=480, per_shard=4, batch_size=2, filters=())
    annotate(job, tmp_path / "whole")
    script = tmp_path / "annotate.py"
    script.write_text(KILLED)
    output = tmp_path / "out"
    rng = np.random.default_rng()
    sizes = []
    for attempt in range(5):
        stages = json.dumps([job.source, *TRUTH])
        command = [sys.executable, str(script), stages, str(output), str(1 + attempt % 2)]
        running = subprocess.Popen(command, cwd=Path(__file__).parents[4])
        done = len(list(output.glob("shards/??????")))
        deadline = time.monotonic() + 60
        while len(list(output.glob("shards/??????"))) <= done and running.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        workers = processes("--ppid", str(running.pid))
        running.send_signal(signal.SIGKILL)
        running.wait()
        while workers and processes("-p", ",".join(workers)):
            assert time.monotonic() < deadline, "workers outlive the process that started them"
            time.sleep(0.01)
        for folder in output.glob("shards/??????"):  # whole, or absent
            assert (folder / "manifest.json").exists()
            assert (folder / "train.jsonl").read_bytes().endswith(b"\n")
        sizes.append(len(list(output.glob("shards/??????"))))
    assert 0 < sizes[0] < sizes[-1] < 120  # it was killed on the way, and went on
    manifest = annotate(job, output)
    assert records(output) == records(tmp_path / "whole")
    assert manifest["pictures"]["read"] == 480
    names = [json.loads(line)["id"] for line in records(output).splitlines()]
    assert len(set(names)) == len(names)
    assert not list(output.rglob("*partial*"))


def test_broken_images_and_archives_are_counted(tmp_path):
    web = tmp_path / "web"
    web.mkdir()
    good = [(f"{n}.png", encoded(seed=n)) for n in range(4)]
    broken = [("a.png", b"<html>"), ("b.jpg", encoded(form="JPEG")[:200]), ("c.png", b"")]
    (web / "0.tar").write_bytes(tar_bytes([*good[:2], *broken, *good[2:]]))
    whole = tar_bytes(good)
    (web / "1.tar").write_bytes(whole[: len(whole) // 4])
    (web / "2.tar").write_bytes(b"rubbish" * 1000)
    (web / "3.tar").write_bytes(tar_bytes(good[:1]))
    manifest = annotate(Job(tar_source(web), *BOXES), tmp_path / "out")
    assert manifest["pictures"]["rejected"] == {
        "corrupt archive": 1,
        "truncated archive": 1,
        "unreadable picture": 3,
    }
    dataset = open_dataset(str(tmp_path / "out/train.jsonl"), on_error="skip")
    assert not dataset.skipped
    shards = Counter(sample.id.partition("-")[0] for sample in dataset)
    assert (shards["000000"], shards["000002"], shards["000003"]) == (4, 0, 1)
    assert manifest["pictures"]["read"] == len(dataset) == manifest["pictures"]["annotated"]


def test_hostile_names_and_texts_come_out_harmless(tmp_path):
    web = tmp_path / "web"
    web.mkdir()
    record = {"url": "http://x\x00\u202e/<|im_end|>" + "y" * 5000, "license": ["not", "text"]}
    members = [("a\u202e\n$.png", encoded()), ("a\u202e\n$.json", json.dumps(record).encode())]
    (web / "0.tar").write_bytes(tar_bytes(members))
    annotate(Job(tar_source(web), *BOXES), tmp_path / "out")
    (sample,) = open_dataset(str(tmp_path / "out/train.jsonl"))
    assert sample.metadata["file_name"] == "shards/000000/images/000000-000000.png"
    assert len(sample.metadata["url"]) <= 300
    assert all(str(value).isprintable() for value in sample.metadata.values())
    assert "license" not in sample.metadata


def test_a_failing_stage_stops_the_run_and_loses_nothing(tmp_path):
    web = tmp_path / "web"
    web.mkdir()
    for number in range(3):
        (web / f"{number}.tar").write_bytes(tar_bytes([("a.png", encoded(seed=number))]))
    failing = Job(tar_source(web), BOXES[0], "annotate_fixtures:Failing", BOXES[2])
    with pytest.raises(RuntimeError, match="out of memory"):
        annotate(failing, tmp_path / "out")
    assert [each.name for each in (tmp_path / "out/shards").glob("??????")] == ["000000"]
    again = annotate(failing, tmp_path / "out", part=(1, 3))  # a new process would go on, too
    assert again["shards"] == {"done": 2, "of": 3}


def test_a_worker_that_cannot_begin_says_why(web, tmp_path):
    job = Job(web[0].source, *TRUTH[:2], "annotate_fixtures:Nothing")
    with pytest.raises(ValueError, match="cannot be built"):
        annotate(job, tmp_path, workers=2)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_mistyped_stage_does_not_claim_the_folder(web, tmp_path, workers):
    mistyped = Job(web[0].source, "no_such_package:Class", *TRUTH[1:])
    with pytest.raises(ValueError, match="cannot be imported"):
        annotate(mistyped, tmp_path / "out", workers=workers)
    assert annotate(web[0], tmp_path / "out")["complete"]


def test_workers_are_checked(web, tmp_path):
    with pytest.raises(ValueError, match="workers=0; use a whole number from 1"):
        annotate(web[0], tmp_path, workers=0)


def test_another_job_or_source_is_refused(web, tmp_path):
    job = scene_job(tmp_path / "web", count=4, per_shard=2)
    annotate(job, tmp_path / "out")
    other = Job(job.source, *TRUTH, filters=('score{"least": 0.9}',), epsilon=0.01)
    with pytest.raises(ValueError, match="other values of filters, epsilon"):
        annotate(other, tmp_path / "out")
    scene_job(tmp_path / "web", count=6, per_shard=2)
    with pytest.raises(ValueError, match=r"source of .* has changed"):
        annotate(job, tmp_path / "out")
    shutil.move(tmp_path / "web/scenes-000002.tar", tmp_path)
    shutil.move(tmp_path / "web", tmp_path / "elsewhere")  # the same files at another place
    assert annotate(Job(tar_source(tmp_path / "elsewhere"), *TRUTH), tmp_path / "out")["complete"]


def test_objects_are_bounded_and_boxes_checked(tmp_path):
    web = tmp_path / "web"
    web.mkdir()
    (web / "0.tar").write_bytes(tar_bytes([("a.png", encoded())]))
    strange = "test_annotate:StrangeBoxes"
    manifest = annotate(
        Job(tar_source(web), strange, *BOXES[1:], filters=(), most_objects=6), tmp_path
    )
    assert manifest["objects"] == {
        "detected": 8,
        "written": 2,
        "dropped": {"no box within the picture": 3, "no mask": 1, "too many objects": 2},
    }


class StrangeBoxes:
    """Boxes of every kind that a model may give."""

    def detect(self, images):
        from seg_env.data.annotate.stages import Detection

        nan, inf = float("nan"), float("inf")
        boxes = [
            ((10, 10, 30, 30), 0.9),
            ((-1e9, 5, 1e9, 20), 0.8),
            ((nan, 0, 5, 5), 0.7),
            ((inf, inf, inf, inf), 0.6),
            ((30, 30, 10, 10), 0.5),
            ((0, 0, 0.1, 0.1), 0.4),
            ((1, 1, 20, 20), 0.3),
            ((1, 1, 20, 20), nan),
        ]
        return [[Detection(box, score, "thing") for box, score in boxes] for _ in images]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("true_boxis", "names no stage"),
        ("os:system", "cannot be built"),
        ("collections:Counter", "no Detector"),
        ("no_such_package:Class", "cannot be imported"),
        ("annotate_fixtures:Nothing", "cannot be built"),
        ("annotate_fixtures:FillBox", "no Detector"),
        ('true_boxes{"a": 1}', "cannot be built"),
        ("true_boxes{rubbish", "cannot be built"),
        ("", "names no stage"),
    ],
)
def test_stages_are_checked(text, message):
    with pytest.raises(ValueError, match=message):
        load_stage(text, Detector)


@pytest.mark.parametrize(
    "options",
    [
        {"container": "csv"},
        {"form": "mask"},
        {"split": "../train"},
        {"batch_size": 0},
        {"decimals": 0},
        {"epsilon": -1},
    ],
)
def test_jobs_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Job("tar", *TRUTH, **options)


def test_tallies_add_up_in_any_order():
    tallies = []
    for number in range(3):
        tally = Tally()
        tally.images["read"], tally.objects["written"] = number, 2 * number
        tally.dropped["duplicate"] = number
        tally.observe("score", 0.35 + number / 5)
        tally.observe("vertices", 10.0**number * 4)
        tallies.append(tally)
    forward, backward = Tally(), Tally()
    for tally in tallies:
        forward.add(json.loads(json.dumps(tally.to_json())))
    for tally in reversed(tallies):
        backward.add(tally.to_json())
    assert forward.to_json() == backward.to_json()
    assert forward.to_json()["histograms"]["score"] == [0, 0, 1, 0, 1, 0, 1, 0, 0]
    assert forward.to_json()["objects"]["dropped"] == {"duplicate": 3}
