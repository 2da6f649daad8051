"""The truth of scenes as stages, and the noise that makes it worse: measured, and repeatable."""

from dataclasses import replace

import numpy as np
import pytest
from annotate_fixtures import TRUTH

from seg_env.data.annotate import load_stage, write_scene_shards
from seg_env.data.annotate.filters import mask_iou
from seg_env.data.annotate.sources import Files, open_image
from seg_env.data.annotate.stages import Describer, Detection, Detector, Found, Segmenter
from seg_env.data.annotate.truth import scene_of
from seg_env.data.scenes import Scenes


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    write_scene_shards(folder, 12, per_shard=5, size=64, difficulty="medium", seed=3)
    source = Files(str(folder))
    return [open_image(raw) for shard in source.shards() for raw in source.read(shard)]


def flat(lists):
    return [each for some in lists for each in some]


def noisy(name, stage, **options):
    listed = "".join(f', "{key}": {value}' for key, value in options.items())
    return f'{name}{{"stage": "{stage}"{listed}}}'


def through(images, detector=TRUTH[0], segmenter=TRUTH[1], describer=TRUTH[2]):
    """Boxes of each image, masks and expressions of all objects of all images."""
    boxes = load_stage(detector, Detector).detect(images)
    objects = [Found(image, box) for image, some in zip(images, boxes, strict=True) for box in some]
    masks = load_stage(segmenter, Segmenter).segment(objects)
    objects = [replace(found, segment=mask) for found, mask in zip(objects, masks, strict=True)]
    return boxes, masks, load_stage(describer, Describer).describe(objects)


def test_archives_hold_the_scenes(images):
    scenes = Scenes("train", "medium", seed=3, size=64)
    assert len(images) == 12
    for number, image in enumerate(images):
        np.testing.assert_array_equal(image.image, scenes[number].image)


def test_archives_that_are_there_stay(tmp_path):
    paths = write_scene_shards(tmp_path, 5, per_shard=2, size=32)
    before = [path.read_bytes() for path in paths]
    stamps = [path.stat().st_mtime_ns for path in paths]
    paths[1].unlink()
    assert write_scene_shards(tmp_path, 5, per_shard=2, size=32) == paths
    assert [path.read_bytes() for path in paths] == before
    assert [path.stat().st_mtime_ns for path in (paths[0], paths[2])] == [stamps[0], stamps[2]]
    assert len(Files(str(tmp_path)).shards()) == 3


def test_the_truth_is_that_of_the_scenes(images):
    scenes = Scenes("train", "medium", seed=3, size=64)
    _, masks, texts = through(images)
    samples = [each for number in range(12) for each in scenes.samples_of(number)]
    assert [mask.rle for mask in masks] == [each.target.rle for each in samples]
    assert texts == [each.expression for each in samples]


@pytest.mark.parametrize(
    "key",
    [
        "",
        "dog",
        "scenes-odd-train-000000-seed0-size64",
        "scenes-easy-train-000000-seed0-size9999999",
    ],
)
def test_other_images_have_no_truth(key):
    assert scene_of(key, (64, 64)) is None
    assert scene_of("scenes-easy-train-000000-seed0-size64", (64, 65)) is None


def test_a_box_beside_everything_has_no_mask(images):
    beside = Found(images[0], Detection((-9.0, -9.0, -1.0, -1.0), 1.0))
    assert load_stage(TRUTH[1], Segmenter).segment([beside]) == [None]


def test_boxes_jitter_by_the_share_asked_for(images):
    plain, _, _ = through(images)
    jittered, _, _ = through(images, noisy("jittered_boxes", TRUTH[0], sigma=0.1))
    moves = []
    for ours, theirs in zip(flat(plain), flat(jittered), strict=True):
        x0, y0, x1, y1 = ours.box
        scale = np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0])
        moves.append((np.array(theirs.box) - ours.box) / scale)
        assert (theirs.score, theirs.label) == (ours.score, ours.label)
    assert np.std(moves) == pytest.approx(0.1, rel=0.2)
    assert abs(np.mean(moves)) < 0.03


def test_masks_fray_by_whole_pixels_at_most(images):
    _, plain, _ = through(images)
    _, frayed, _ = through(images, segmenter=noisy("frayed_masks", TRUTH[1], most=2))
    pairs = list(zip(plain, frayed, strict=True))
    overlaps = [mask_iou(ours.rle, theirs.rle) for ours, theirs in pairs]
    assert 0.5 < np.mean(overlaps) < 0.95
    grown = {bool((b.rle.to_mask() & ~a.rle.to_mask()).any()) for a, b in pairs}
    assert grown == {True, False}
    for ours, theirs in pairs:
        wide, narrow = sorted((ours.rle, theirs.rle), key=lambda rle: -rle.area)
        assert not (narrow.to_mask() & ~wide.to_mask()).any()
        if narrow.area:
            assert np.abs(np.subtract(wide.bbox, narrow.bbox)).max() <= 2 or narrow is theirs.rle


def test_expressions_are_wrong_as_often_as_asked_for(images):
    _, _, plain = through(images)
    for share in (0.0, 0.5, 1.0):
        name = noisy("mixed_up_expressions", TRUTH[2], share=share)
        _, _, mixed = through(images, describer=name)
        wrong = [a != b for a, b in zip(plain, mixed, strict=True)]
        assert np.mean(wrong) == pytest.approx(share, abs=0.2 if 0 < share < 1 else 0)
        assert set(mixed) <= set(plain)


@pytest.mark.parametrize("name", ["jittered_boxes", "frayed_masks"])
def test_noise_is_a_matter_of_seed_and_image(images, name):
    place = {"jittered_boxes": 0, "frayed_masks": 1}[name]
    kind = {"jittered_boxes": "detector", "frayed_masks": "segmenter"}[name]

    def noise(seed, some):
        stage = noisy(name, TRUTH[place], seed=seed)
        found = through(some, **{kind: stage})[place]
        return [each.box for each in flat(found)] if place == 0 else [each.rle for each in found]

    once, again, other = noise(1, images), noise(1, images), noise(2, images)
    assert once == again
    assert once != other
    assert once == noise(1, images[:5]) + noise(1, images[5:])


def test_noise_wraps_noise(images):
    inner = noisy("jittered_boxes", TRUTH[0]).replace('"', '\\"')
    boxes, _, _ = through(images, noisy("jittered_boxes", inner, seed=7))
    assert boxes != through(images, noisy("jittered_boxes", TRUTH[0], seed=7))[0]


@pytest.mark.parametrize(
    ("name", "place", "option", "accepted"),
    [
        ("jittered_boxes", 0, {"sigma": -1}, "a number from 0 to 10"),
        ("frayed_masks", 1, {"most": -2}, "a whole number from 0"),
        ("frayed_masks", 1, {"most": 1.5}, "a whole number from 0"),
        ("mixed_up_expressions", 2, {"share": 3}, "a number from 0 to 1"),
        ("mixed_up_expressions", 2, {"seed": -1}, "a whole number from 0"),
    ],
)
def test_noise_out_of_range_is_refused(name, place, option, accepted):
    ((key, value),) = option.items()
    with pytest.raises(ValueError, match=f"{key}={value}; use {accepted}"):
        load_stage(noisy(name, TRUTH[place], **option), (Detector, Segmenter, Describer)[place])
