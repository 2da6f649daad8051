"""Procedural scenes: repeatable, exact masks, expressions that name exactly one object."""

import json
import pickle
import re

import numpy as np
import pytest

from seg_env.data import Dataset, Scenes
from seg_env.data.scenes.dataset import Scene
from seg_env.data.scenes.language import Extension, establish
from seg_env.data.scenes.layout import SceneObject
from seg_env.data.scenes.paint import PALETTE
from seg_env.data.scenes.shapes import SHAPES
from seg_env.data.sources import open_dataset
from seg_env.geometry.polygon import ring_area

DIFFICULTIES = ("easy", "medium", "hard")
SCENES_PER_TEST = 40


@pytest.fixture(params=DIFFICULTIES)
def scenes(request):
    return Scenes("val", request.param)


# --- a data set ---------------------------------------------------------------------------------


def test_is_a_dataset(scenes):
    assert isinstance(scenes, Dataset)
    assert scenes.name == f"scenes-{scenes.difficulty}"
    assert len(scenes) == 4096
    assert len(Scenes("train")) == 1_000_000


def test_a_scene_depends_on_nothing_but_its_key(scenes):
    first = scenes[7]
    scenes[8].image  # noqa: B018 - looking elsewhere must not change anything
    for copy in (Scenes("val", scenes.difficulty), pickle.loads(pickle.dumps(scenes))):
        again = copy[7]
        assert (again.id, again.expression, again.metadata) == (
            first.id,
            first.expression,
            first.metadata,
        )
        assert np.array_equal(again.target.mask(), first.target.mask())
        assert np.array_equal(again.image, first.image)


def test_every_split_seed_difficulty_and_index_is_another_scene():
    sources = [
        Scenes(split, difficulty, seed=seed)
        for split in ("train", "val", "test")
        for difficulty in DIFFICULTIES
        for seed in (0, 1, 2**32)
    ]
    images = [source[index].image.tobytes() for source in sources for index in range(3)]
    assert len(set(images)) == len(images)


def test_indices_count_from_both_ends_and_stop():
    scenes = Scenes("val", length=3)
    assert [sample.id for sample in scenes] == [scenes[k].id for k in (0, 1, 2)]
    assert scenes[-1].id == scenes[2].id == scenes[np.int64(2)].id == "scenes-easy-val-000002"
    for index in (3, -4):
        with pytest.raises(IndexError, match=str(index)):
            scenes[index]
        with pytest.raises(IndexError, match=str(index)):
            scenes.samples_of(index)


@pytest.mark.parametrize(
    "wrong",
    [{"split": "testA"}, {"difficulty": "harder"}, {"seed": -1}, {"length": 0}, {"size": 8}],
)
def test_wrong_arguments_are_named(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=rf"{name}='?{value}"):
        Scenes(**wrong)


@pytest.mark.parametrize("size", [32, 96, 200])
def test_images_and_masks_have_the_size_asked_for(size):
    for difficulty in DIFFICULTIES:
        sample = Scenes("val", difficulty, size=size)[0]
        assert sample.image.shape == (size, size, 3)
        assert sample.image.dtype == np.uint8
        assert sample.target.size == (size, size)


def test_samples_survive_pickling_and_metadata_is_json(scenes):
    sample = scenes[3]
    copy = pickle.loads(pickle.dumps(sample))
    assert np.array_equal(copy.image, sample.image)
    assert json.loads(json.dumps(sample.metadata)) == sample.metadata


def test_samples_of_asks_for_every_object_of_the_same_image(scenes):
    for index in range(SCENES_PER_TEST):
        own, samples = scenes[index], scenes.samples_of(index)
        assert len({sample.id for sample in samples}) == len(samples)
        (same,) = [sample for sample in samples if sample.id == own.id]
        assert same.expression == own.expression
        assert np.array_equal(same.target.mask(), own.target.mask())
        others = [s.expression for s in samples if s.id != own.id]
        assert [other["expression"] for other in own.metadata["others"]] == others
        assert sum(sample.target.mask().astype(int) for sample in samples).max() == 1
        assert all(np.array_equal(sample.image, own.image) for sample in samples[:2])


def test_images_are_not_shared_between_samples(scenes):
    one, two, *_ = (s for s in map(scenes.samples_of, range(9)) if len(s) > 1).__next__()
    one.image[:] = 0
    assert two.image.any()


def test_every_object_is_asked_for_sooner_or_later():
    scenes = Scenes("val", "medium")
    chosen = [scenes.scene(k).chosen for k in range(60)]
    assert {0, 1, 2} <= set(chosen)


# --- images and masks -------------------------------------------------------------------------


def test_mask_of_an_easy_object_is_where_the_image_has_its_color():
    scenes = Scenes("val")
    for index in range(SCENES_PER_TEST):
        samples = scenes.samples_of(index)
        image = samples[0].image.astype(float)
        masks = [sample.target.mask() for sample in samples]
        ground = np.median(image[~np.any(masks, axis=0)], axis=0)
        tones = [np.median(image[mask], axis=0) for mask in masks]
        distances = [np.abs(image - tone).sum(axis=2) for tone in (ground, *tones)]
        found, covered = np.argmin(distances, axis=0) > 0, np.any(masks, axis=0)
        assert (found & covered).sum() / (found | covered).sum() > 0.95
        shown = [_nearest_color(tone) for tone in tones]
        assert shown == [sample.metadata["color"] for sample in samples]


def test_plain_medium_objects_show_the_color_they_are_named_by():
    scenes = Scenes("val", "medium")
    plain = [
        sample
        for index in range(SCENES_PER_TEST)
        for sample in scenes.samples_of(index)
        if sample.metadata["texture"] == "plain"
    ]
    shown = [_nearest_color(np.median(it.image[it.target.mask()], axis=0)) for it in plain]
    assert shown == [sample.metadata["color"] for sample in plain]


def test_easy_objects_are_large_inside_and_apart():
    scenes = Scenes("val")
    pairs_sharing_a_word = pairs = 0
    for index in range(300):
        scene = scenes.scene(index)
        assert 1 <= len(scene.objects) <= 2
        assert all(0.15 <= thing.radius <= 0.275 for thing in scene.objects)
        covered = scene.masks.any(axis=0)
        assert not covered[[0, -1]].any()
        assert not covered[:, [0, -1]].any()
        if len(scene.objects) == 2:
            one, two = scene.objects
            pairs += 1
            pairs_sharing_a_word += one.color == two.color or one.shape == two.shape
            assert not (_grown(scene.masks[0]) & _grown(scene.masks[1])).any()
    assert 0.4 < pairs / 300 < 0.8
    assert 0.35 < pairs_sharing_a_word / pairs < 0.65


@pytest.mark.parametrize("difficulty", ["medium", "hard"])
def test_enough_of_every_object_is_visible_in_parts_that_matter(difficulty):
    scenes = Scenes("val", difficulty)
    for index in range(SCENES_PER_TEST):
        for sample in scenes.samples_of(index):
            assert sample.target.area >= 0.01 * 128 * 128
            assert min(abs(ring_area(ring)) for ring in sample.target.rings) >= 4 / 128**2


def test_a_ring_has_a_hole():
    scenes = Scenes("val", "medium")
    rings = [
        sample
        for index in range(SCENES_PER_TEST)
        for sample in scenes.samples_of(index)
        if sample.metadata["shape"] == "ring"
    ]
    signs = [sorted(np.sign(ring_area(ring)) for ring in ring_.target.rings) for ring_ in rings]
    assert [-1.0, 1.0] in signs


def test_hard_objects_come_in_several_parts():
    scenes = Scenes("val", "hard")
    parts = [
        sum(ring_area(ring) > 0 for ring in sample.target.rings)
        for index in range(SCENES_PER_TEST)
        for sample in scenes.samples_of(index)
    ]
    assert np.mean(np.array(parts) > 1) > 0.08


# --- expressions --------------------------------------------------------------------------------


def test_easy_expressions_are_color_and_shape():
    scenes = Scenes("val")
    for index in range(SCENES_PER_TEST):
        for sample in scenes.samples_of(index):
            meta = sample.metadata
            assert sample.expression == f"the {meta['color']} {meta['shape']}"


def test_expressions_name_exactly_one_object(scenes):
    for index in range(2 * SCENES_PER_TEST):
        scene = scenes.scene(index)
        for number, expression in enumerate(scene.expressions):
            assert _denotation(expression, scene) == {number}, (index, expression)


@pytest.mark.parametrize(
    ("word", "difficulty"), [("topmost", "medium"), ("behind", "hard"), ("left of", "hard")]
)
def test_harder_scenes_use_richer_words(word, difficulty):
    scenes = Scenes("val", difficulty)
    texts = [text for index in range(SCENES_PER_TEST) for text in scenes.scene(index).expressions]
    assert any(word in text for text in texts)


def test_borderline_cases_are_not_certain():
    facts = _facts(
        SceneObject("circle", "red", (0.50, 0.25), 0.1, 0.0),
        SceneObject("circle", "red", (0.53, 0.75), 0.1, 0.0),
    )
    both = facts.words["circle"]
    assert facts.superlative("leftmost", both) == Extension(0b00, 0b11)
    assert facts.superlative("topmost", both) == Extension(0b01, 0b01)
    assert facts.words["at the top"] == Extension(0b01, 0b01)
    assert facts.relations["left of", 1] == Extension(0b00, 0b11)
    assert facts.relations["above", 1] == Extension(0b01, 0b11)


def test_behind_means_partly_hidden():
    facts = _facts(
        SceneObject("circle", "red", (0.5, 0.5), 0.2, 0.0),
        SceneObject("star", "blue", (0.15, 0.15), 0.1, 0.0),
        SceneObject("bar", "green", (0.5, 0.5), 0.4, 0.3),
    )
    assert facts.relations["behind", 2] == Extension(0b001, 0b001)
    assert facts.relations["in front of", 0] == Extension(0b100, 0b100)


# --- an independent reading of expressions ------------------------------------------------------


def _denotation(text: str, scene: Scene) -> set[int]:
    """Objects that an expression names, read from its words and the visible pixels alone."""
    text = text.removeprefix("the ")
    related = re.fullmatch(
        r"(.+?) (left of|right of|above|below|behind|in front of) the (.+)", text
    )
    if related:
        head, relation, rest = related.groups()
        (anchor,) = _denotation(rest, scene)
        return {
            k
            for k in _denotation(head, scene)
            if k != anchor and _stands(k, relation, anchor, scene)
        }
    placed = re.fullmatch(r"(.+) (on the left|on the right|at the top|at the bottom|in .+)", text)
    if placed:
        return {k for k in _denotation(placed[1], scene) if _lies(k, placed[2], scene)}
    first, _, rest = text.partition(" ")
    if first.endswith("most") or first in ("largest", "smallest"):
        among = sorted(_denotation(rest, scene))
        assert len(among) > 1, "a superlative compares"
        return {max(among, key=lambda k: _degree(k, first, scene))}
    return {
        k
        for k, it in enumerate(scene.objects)
        if set(text.split()) <= {it.shape, it.color, it.size, it.texture, "object"}
    }


def _middle(k: int, scene: Scene) -> tuple[float, float]:
    rows, columns = np.nonzero(scene.masks[k])
    return float(columns.mean() / 128), float(rows.mean() / 128)


def _degree(k: int, word: str, scene: Scene) -> float:
    (x, y), area = _middle(k, scene), float(scene.masks[k].sum())
    return {
        "leftmost": -x,
        "rightmost": x,
        "topmost": -y,
        "bottommost": y,
        "largest": area,
        "smallest": -area,
    }[word]


def _lies(k: int, place: str, scene: Scene) -> bool:
    x, y = _middle(k, scene)
    return {
        "on the left": x < 0.45,
        "on the right": x > 0.55,
        "at the top": y < 0.45,
        "at the bottom": y > 0.55,
        "in the middle": max(abs(x - 0.5), abs(y - 0.5)) < 0.15,
    }[place]


def _stands(k: int, relation: str, anchor: int, scene: Scene) -> bool:
    (x, y), (anchor_x, anchor_y) = _middle(k, scene), _middle(anchor, scene)
    lower, upper = min(k, anchor), max(k, anchor)
    whole = scene.objects[lower].cover(128)
    touching = ((whole.coverage >= 0.5) & scene.masks[upper][whole.window]).any()
    return {
        "left of": x < anchor_x,
        "right of": x > anchor_x,
        "above": y < anchor_y,
        "below": y > anchor_y,
        "behind": touching and k < anchor,
        "in front of": touching and k > anchor,
    }[relation]


# --- helpers ------------------------------------------------------------------------------------


def _facts(*objects: SceneObject):
    alone = np.zeros((len(objects), 128, 128), dtype=bool)
    for mask, thing in zip(alone, objects, strict=True):
        patch = thing.cover(128)
        mask[patch.window] = patch.coverage >= 0.5
    visible = np.array([mask & ~alone[k + 1 :].any(axis=0) for k, mask in enumerate(alone)])
    return establish(objects, alone, visible)


def _nearest_color(tone: np.ndarray) -> str:
    """The palette's colour of the most similar direction in colour space."""
    return max(
        PALETTE,
        key=lambda name: np.dot(tone, PALETTE[name]) / np.linalg.norm(PALETTE[name]),
    )


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and its four neighbours."""
    grown = mask.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            grown |= np.roll(mask, step, axis)
    return grown


# --- objects that are not there ------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", ["easy", "medium", "hard"])
def test_nothing_in_the_image_fits_an_absent_expression(difficulty):
    scenes = Scenes("val", difficulty, length=40, size=48, negatives=1.0)
    near = 0
    for index, sample in enumerate(scenes):
        assert sample.target.area == 0
        _, color, shape = sample.expression.split()
        things = scenes.scene(index).objects
        assert all((thing.color, thing.shape) != (color, shape) for thing in things)
        near += any(thing.color == color or thing.shape == shape for thing in things)
        assert color in PALETTE
        assert shape in SHAPES
        assert len(scenes.others(index)) == len(things) == len(sample.metadata["others"])
    assert near > 24


def test_about_the_share_asked_for_is_absent_and_all_else_stays():
    plain, some = (
        Scenes("val", length=300, size=48),
        Scenes("val", length=300, size=48, negatives=0.2),
    )
    absent = 0
    for one, other in zip(plain, some, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        if other.target.area:
            assert (one.id, one.expression) == (other.id, other.expression)
            np.testing.assert_array_equal(one.target.rle.counts, other.target.rle.counts)
        else:
            absent += 1
            assert other.id == f"{one.id}-absent"
    assert absent / 300 == pytest.approx(0.2, abs=0.08)


def test_an_absent_question_comes_after_those_about_the_objects():
    scenes = Scenes("val", length=4, size=48, negatives=1.0)
    samples = scenes.samples_of(2)
    assert [bool(sample.target.area) for sample in samples] == [True] * (len(samples) - 1) + [False]
    assert samples[-1].id == scenes[2].id
    assert len({sample.id for sample in samples}) == len(samples)


def test_the_share_is_an_argument_of_scenes_alone():
    assert open_dataset("scenes", negatives=0.5).negatives == 0.5
    with pytest.raises(ValueError, match=r"negatives=1.5 is no share; use a number from 0 to 1"):
        Scenes(negatives=1.5)
    for wrong in ("x", True, None, float("nan")):
        with pytest.raises(ValueError, match=rf"negatives='?{wrong}'? is no share"):
            Scenes(negatives=wrong)
    with pytest.raises(ValueError, match=r"negatives=0.1 cannot be used with dataset='refcoco'"):
        open_dataset("refcoco", negatives=0.1)
