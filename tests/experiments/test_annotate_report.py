"""The experiment: scenes in, records out, compared with their truth; a report that says so."""

import json

import pytest
from annotate_fixtures import encoded, tar_bytes
from PIL import Image

from experiments.annotate import Args, build_job, find_source, main
from seg_env.data import open_dataset
from seg_env.data.annotate import load_stage
from seg_env.data.annotate.stages import Detector, ImageSource

SMALL = {"scenes": 6, "per_shard": 3, "size": 48, "workers": 1, "difficulty": "easy"}


def test_scenes_come_back_as_they_were(tmp_path):
    report = main(Args(**SMALL, output_dir=tmp_path))
    truth = report["truth"]
    assert truth["records"] == report["objects"]["written"] == report["objects"]["detected"]
    assert truth["worst_mask_iou"] >= 0.95
    assert truth["share_above_95"] == truth["right_expressions"] == truth["objects_found"] == 1
    assert report["this_run"]["pictures"] == 6
    assert json.loads((tmp_path / "report.json").read_text()) == report
    text = (tmp_path / "report.md").read_text()
    assert "6 images read" in text
    assert "2 of 2 shards done" in text
    for name in ("contact_sheet.png", "histograms.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 200
    before = (tmp_path / "train.jsonl").read_bytes()
    again = main(Args(**SMALL, output_dir=tmp_path))
    assert again["this_run"]["pictures"] == 0
    assert "This run found everything done." in (tmp_path / "report.md").read_text()
    assert (tmp_path / "train.jsonl").read_bytes() == before


def test_noise_is_seen_by_the_comparison(tmp_path):
    noise = {"box_jitter": 0.1, "mask_fray": 2, "wrong_expressions": 0.5}
    args = Args(**{**SMALL, "scenes": 12}, **noise, filters=("agreement",), output_dir=tmp_path)
    truth = main(args)["truth"]
    assert 0.5 < truth["mask_iou"] < 0.97
    assert 0.1 < truth["right_expressions"] < 0.9


def test_parts_report_what_is_there(tmp_path):
    first = main(Args(**SMALL, shard="0/2", output_dir=tmp_path))
    assert not first["complete"]
    assert len(open_dataset(str(tmp_path / "train.jsonl"))) == first["truth"]["records"]
    second = main(Args(**SMALL, shard="1/2", output_dir=tmp_path))
    assert second["complete"]
    assert second["truth"]["objects_found"] == 1


def test_a_run_without_records_has_a_report(tmp_path):
    report = main(Args(**SMALL, filters=('area{"least": 0.9}',), output_dir=tmp_path))
    assert report["objects"]["dropped"] == {"too small": report["objects"]["detected"]}
    assert "| too small |" in (tmp_path / "report.md").read_text()


def test_images_of_ones_own(tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web/0.tar").write_bytes(tar_bytes([("a.png", encoded()), ("b.png", b"rubbish")]))
    stages = {"detector": "annotate_fixtures:OneBox", "segmenter": "annotate_fixtures:FillBox"}
    args = Args(str(tmp_path / "web"), **stages, describer="label", output_dir=tmp_path / "out")
    report = main(args)
    assert report["pictures"] == {"read": 1, "annotated": 1, "rejected": {"unreadable picture": 1}}
    assert "truth" not in report
    (sample,) = open_dataset(str(tmp_path / "out/train.jsonl"))
    assert sample.expression == "the box"


def test_sources_are_recognised(tmp_path):
    for name in ("web/a.tar.gz", "tables/a.parquet", "photos/deep/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    for place, name in (
        ("web", "a.tar.gz"),
        ("web/a.tar.gz", "a.tar.gz"),
        ("web/*.tar.gz", "a.tar.gz"),
        ("tables", "a.parquet"),
        ("tables/*.parquet", "a.parquet"),
        ("photos", "files 0"),
    ):
        source = load_stage(find_source(str(tmp_path / place), per_shard=5), ImageSource)
        assert [shard.name for shard in source.shards()] == [name]
    assert find_source("my_pkg.sources:Mine", 5) == "my_pkg.sources:Mine"
    assert find_source('tar{"path": "x"}', 5) == 'tar{"path": "x"}'


def test_workers_are_checked_before_anything_is_rendered(tmp_path):
    with pytest.raises(ValueError, match="workers=-1; use a whole number from 0"):
        main(Args(**{**SMALL, "workers": -1}, output_dir=tmp_path))
    assert not list(tmp_path.iterdir())


def test_models_are_the_default_for_images(tmp_path):
    job = build_job(Args("tar{}", describer="label"), tmp_path)
    assert (job.detector, job.segmenter, job.describer) == ("grounding_dino", "sam", "label")
    with pytest.raises(ValueError, match="need a --describer"):
        build_job(Args("tar{}"), tmp_path)


def test_noise_goes_around_any_stage(tmp_path):
    detector = 'jittered_boxes{"stage": "true_boxes", "sigma": 0.1}'
    job = build_job(Args(detector=detector, box_jitter=0.2, seed=4), tmp_path)
    assert job.detector.startswith("jittered_boxes{")
    assert isinstance(load_stage(job.detector, Detector), Detector)
