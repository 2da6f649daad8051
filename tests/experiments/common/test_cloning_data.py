"""What behaviour cloning learns from: scenes, and annotated images in files."""

import json
from dataclasses import replace

import numpy as np
import pytest
from agents_fixtures import SMALL
from PIL import Image
from rich.console import Console

from agents.embedded.tiny import build_processor
from experiments import run_bc
from experiments.common.cloning_data import (
    JoinedImages,
    LookalikeScenes,
    MirroredImages,
    RecordedImages,
    demonstrate_images,
    mirror,
)
from seg_env.data.annotate import Job, annotate, write_scene_shards
from seg_env.data.scenes import Scenes
from seg_env.envs.left_out import LeftOut
from seg_env.errors import WrongOptionError
from seg_env.frames import UNIT_ANSWERS
from seg_env.tasks import TEXT_TASKS
from seg_env.tasks.queries import QueryStyle

SCENES = 6
PROCESSOR = build_processor(SMALL)
SETTINGS = {
    "tasks": TEXT_TASKS,
    "queries": QueryStyle(),
    "epsilon": 0.02,
    "decimals": 2,
    "workers": 1,
    "console": Console(quiet=True),
    "left_out": LeftOut("error"),
    "frame": UNIT_ANSWERS,
}
TRUTH = ("true_boxes", "true_masks", "true_expressions")


@pytest.fixture(scope="module", params=["jsonl", "parquet"])
def records(request, tmp_path_factory):
    """A folder of annotated scenes, with exact masks."""
    folder = tmp_path_factory.mktemp(request.param)
    write_scene_shards(folder / "web", SCENES, per_shard=4, difficulty="medium", size=64)
    source = "tar" + json.dumps({"path": str(folder / "web")})
    job = Job(source, *TRUTH, filters=(), container=request.param, form="rle")
    annotate(job, folder / "out")
    return folder / "out"


def test_records_of_an_image_come_together_with_their_truth(records):
    images = RecordedImages(str(records))
    scenes = Scenes("train", "medium", length=SCENES, size=64)
    assert 0 < len(images) <= SCENES
    for index in range(len(images)):
        found = images.samples_of(index)
        truth = scenes.samples_of(index)
        assert [sample.expression for sample in found] == [each.expression for each in truth]
        for sample, each in zip(found, truth, strict=True):
            assert (sample.image == each.image).all()
            assert (sample.target.mask() == each.target.mask()).all()


def test_records_teach_what_scenes_teach(records):
    images = RecordedImages(str(records), most=2)
    assert len(images) == 2
    found = demonstrate_images(images, PROCESSOR, **SETTINGS)
    scenes = Scenes("train", "medium", length=2, size=64)
    wanted = demonstrate_images(scenes, PROCESSOR, **SETTINGS)
    assert [one.dialogues for one in found] == [one.dialogues for one in wanted]
    tokens = PROCESSOR.tokenizer
    assert len(found[0].dialogues) == len(TEXT_TASKS) * len(scenes.samples_of(0))
    assert scenes.samples_of(0)[0].expression in tokens.decode(found[0].dialogues[0].tokens)


def test_what_is_not_there_is_not_asked_for(tmp_path):
    """Nobody can point at an absent object; an image of nothing else teaches nothing."""
    scene = Scenes("train", size=64)[0]
    Image.fromarray(scene.image).save(tmp_path / "a.png")
    Image.fromarray(scene.image).save(tmp_path / "b.png")
    rings = [ring.tolist() for ring in scene.target.rings]
    rows = [("a.png", "the star", rings), ("b.png", "a dragon", []), ("a.png", "a dragon", [])]
    lines = [{"image": name, "expression": said, "rings": drawn} for name, said, drawn in rows]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    images = RecordedImages(str(path))
    assert [[s.expression for s in images.samples_of(i)] for i in (0, 1)] == [["the star"], []]
    found = demonstrate_images(images, PROCESSOR, **SETTINGS)
    assert len(found) == 1


def test_too_few_images_for_a_batch_are_an_error(records, tmp_path):
    args = run_bc.Args(model=SMALL, data=str(records), output_dir=tmp_path / "run")
    with pytest.raises(ValueError, match=f"{records.name} have .* a smaller --cloning.batch-size"):
        run_bc.main(args)


@pytest.mark.parametrize(
    "wrong",
    [
        {"difficulty": "hrad"},
        {"task": "text->outline"},
        {"negatives": 2.0},
        {"policy": "./nowhere"},
        {"data": "nowhere.jsonl"},
        {"scenes": 3},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_wrong_option_leaves_no_folder_that_the_right_one_is_refused(wrong, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError)):
        run_bc.main(run_bc.Args(model=SMALL, output_dir=tmp_path / "run", **wrong))
    assert not (tmp_path / "run").exists()


def test_the_shipped_policy_is_made_by_the_defaults():
    args = run_bc.Args()
    assert (args.policy, args.data, args.evaluation.split) == (None, None, "val")
    assert (args.updates, args.scenes, args.evaluation.questions) == (1600, 20_000, 512)


def test_outlines_too_long_to_answer_are_coarsened_or_left_out_and_counted(tmp_path):
    """A circle is fine with fewer corners; of 25 squares none may go."""
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    circle = [[[0.5 + 0.4 * np.cos(a), 0.5 + 0.4 * np.sin(a)] for a in angles]]
    dots = [
        [[x, y], [x + 0.05, y], [x + 0.05, y + 0.05], [x, y + 0.05]]
        for x in np.arange(0.05, 0.9, 0.2)
        for y in np.arange(0.05, 0.9, 0.2)
    ]
    Image.new("RGB", (200, 200)).save(tmp_path / "a.png")
    records = [
        {"id": name, "image": "a.png", "size": [200, 200], "expression": "it", "rings": rings}
        for name, rings in (("circle", circle), ("dots", dots))
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    left_out = LeftOut()
    settings = SETTINGS | {"epsilon": 0.001, "left_out": left_out}
    lengths = {}
    for longest in (None, 128):
        images = RecordedImages(str(path))
        (found,) = demonstrate_images(images, PROCESSOR, **settings, longest=longest)
        outlines = [one for one in found.dialogues if one.task == "text->mask"]
        lengths[longest] = [len(one.tokens) - one.answer_start for one in outlines]
    assert len(lengths[None]) == 2
    assert min(lengths[None]) > 128
    assert len(lengths[128]) == 1
    assert lengths[128][0] <= 128
    assert left_out.reasons == {"dots": "no outline of it fits in 128 tokens"}


def test_sets_are_joined_in_a_row():
    parts = [Scenes("train", kind, length=3, size=64) for kind in ("easy", "medium")]
    images = JoinedImages(parts)
    assert len(images) == 6
    names = [images.name_of(index) for index in range(6)]
    assert names == [part.name_of(index) for part in parts for index in range(3)]
    for index, (part, own) in enumerate([(each, k) for each in parts for k in range(3)]):
        found, truth = images.samples_of(index), part.samples_of(own)
        assert [sample.id for sample in found] == [sample.id for sample in truth]
    with pytest.raises(IndexError, match="image 6 is beyond the last one"):
        images.samples_of(6)


@pytest.mark.parametrize(
    ("words", "mirrored"),
    [
        ("the red star on the left", "the red star on the right"),
        ("the Leftmost bar", "the rightmost bar"),
        ("the star right of the cleft", "the star left of the cleft"),
        ("the star above the bar", "the star above the bar"),
    ],
)
def test_words_are_mirrored_with_the_image(words, mirrored):
    sample = Scenes("train", "medium", size=64)[0]
    sample = replace(sample, expression=words)
    found = mirror(sample)
    assert found.expression == mirrored
    assert (found.image == sample.image[:, ::-1]).all()
    assert (found.target.mask() == sample.target.mask()[:, ::-1]).all()
    again = mirror(found)
    assert (again.image == sample.image).all()


def test_objects_of_lookalike_scenes_differ_by_colour_alone():
    images = LookalikeScenes(3)
    assert len(images) == 3
    found = [images.samples_of(index) for index in range(3)]
    for one, other in found:
        assert one.metadata["shape"] == other.metadata["shape"]
        assert one.metadata["color"] != other.metadata["color"]
    assert len({one.id for one, _ in found}) == 3
    with pytest.raises(IndexError, match="image 3 is beyond the last one"):
        images.samples_of(3)


def test_mirrored_images_come_after_all_the_others():
    plain = Scenes("train", "medium", length=2, size=64)
    images = MirroredImages(plain)
    assert len(images) == 4
    assert images.name_of(3) == plain.name_of(1)
    same, other = images.samples_of(1)[0], images.samples_of(3)[0]
    assert same.id == plain.samples_of(1)[0].id
    assert (other.target.mask() == same.target.mask()[:, ::-1]).all()


def test_shares_of_difficulties():
    assert run_bc.read_shares("easy=1 hard=3") == {"easy": 0.25, "hard": 0.75}
    images = run_bc.open_images(run_bc.Args(scenes=8, mixture="easy=1 hard=3", mirror=True))
    assert len(images) == 16
    assert [images.name_of(k).split()[0] for k in (1, 2, 7)] == [
        "scenes-easy",
        *["scenes-hard"] * 2,
    ]


@pytest.mark.parametrize(
    "mixture", ["easy", "simple=1", "easy=-1", "easy=nan", "easy=x", "easy=inf"]
)
def test_shares_that_are_none_are_refused(mixture):
    with pytest.raises(WrongOptionError, match="is no share; write easy, alike, medium or hard"):
        run_bc.read_shares(mixture)


def test_a_mixture_of_nothing_is_refused():
    with pytest.raises(WrongOptionError, match="has no share above 0"):
        run_bc.read_shares("easy=0")
