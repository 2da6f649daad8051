"""What the page asks and what answers are worth, without a browser."""

import base64
import io
import json
from itertools import pairwise

import numpy as np
import pytest
from agents_fixtures import small_policy
from PIL import Image

from experiments.demo.__main__ import command_line
from experiments.demo.questions import (
    Demo,
    coco_json,
    geojson,
    image_address,
    mask_png,
    read_rings,
    read_upload,
)
from rewards.composite import DEFAULT_REWARDS, RewardSum
from seg_env.data import export_jsonlines, open_dataset
from seg_env.data.scenes import Scenes
from seg_env.envs.referring import open_questions
from seg_env.tasks import box_of

SQUARE = "[[[0.1,0.1],[0.6,0.1],[0.6,0.7],[0.1,0.7]]]"
RING = "[[[0.1,0.1],[0.9,0.1],[0.9,0.9],[0.1,0.9]],[[0.4,0.4],[0.4,0.6],[0.6,0.6],[0.6,0.4]]]"


def make_demo(dataset=None, **settings):
    settings = {"max_new_tokens": 8, **settings}
    dataset = Scenes("val") if dataset is None else dataset
    return Demo(
        {"small": small_policy()}, RewardSum.from_spec(DEFAULT_REWARDS), dataset, **settings
    )


@pytest.fixture(scope="module")
def demo():
    return make_demo()


@pytest.fixture(scope="module")
def shown(demo):
    return demo.show("easy", 3)


def asked_by_text(demo, shown, task="text->mask"):
    return demo.ask_by_text(shown, "small", task, shown.samples[0].expression)


def test_an_answer_is_scored_as_the_environment_scores_it(demo, shown):
    core = open_questions("SimpleSeg-Scenes-v0", split="val")
    question = core.ask(3)
    asked = demo.ask_by_text(shown, "small", "text->mask", question.sample.expression)
    assert asked.question.prompt == question.prompt
    (answer,) = demo.read(asked, [SQUARE])
    (outcome,) = core.step([core.begin(question)], [SQUARE])
    assert answer.scored.terms == outcome.answer.terms
    assert (answer.scored.iou, answer.scored.total) == (outcome.answer.iou, outcome.answer.total)


def test_answers_come_token_by_token_and_as_many_as_asked_for(demo, shown):
    asked = asked_by_text(demo, shown)
    for temperature, count, expected in ((0, 1, 1), (1, 4, 4), (0, 4, 1)):
        parts = list(demo.answers(asked, temperature=temperature, count=count))
        assert {len(texts) for texts in parts} == {expected}
        for before, after in pairwise(parts):
            assert all(map(str.startswith, after, before))


def test_a_visitor_who_leaves_ends_the_answer(shown):
    demo = make_demo(max_new_tokens=100_000)
    demo.policies["small"].forbidden[demo.policies["small"].end_ids] = True  # it never ends itself
    answers = demo.answers(asked_by_text(demo, shown), temperature=1, count=1)
    next(answers)
    answers.close()
    assert demo.lock.acquire(timeout=60)


def test_a_click_asks_for_the_object_there_and_a_box_for_the_one_in_it(demo):
    shown = next(
        shown for index in range(20) if len((shown := demo.show("medium", index)).samples) > 2
    )
    for sample in shown.samples:
        height, width = sample.target.size
        row, column = np.argwhere(sample.target.mask())[0]
        point = np.array([[(column + 0.5) / width, (row + 0.5) / height]])
        asked = demo.ask_by_place(shown, "small", "point->mask", point)
        assert asked.is_known
        assert asked.question.sample is sample
        assert "the object at [" in asked.question.prompt
        corners = box_of(sample.target).reshape(2, 2)
        for drawn in (corners, corners[::-1]):  # from either corner
            asked = demo.ask_by_place(shown, "small", "bbox->mask", drawn)
            assert asked.question.sample is sample
    asked = demo.ask_by_place(shown, "small", "bbox->mask", np.array([[0, 0], [0.01, 0.01]]))
    assert not asked.is_known
    assert demo.read(asked, [SQUARE])[0].scored is None


def test_a_place_is_asked_for_in_the_words_that_policies_learn(demo, shown):
    core = open_questions("SimpleSeg-Scenes-v0", split="val", task="point->mask")
    learned = core.ask(3, "point->mask", query_seed=1)
    x, y = json.loads(learned.prompt[learned.prompt.index("[") : learned.prompt.index("]") + 1])
    asked = demo.ask_by_place(shown, "small", "point->mask", np.array([[x, y]]))
    assert asked.question.prompt == learned.prompt


@pytest.mark.parametrize("place", [[[2, 0.5]], [[np.nan, 0.5]], [], [[0, 0], [1, 1], [1, 0]]])
def test_a_place_outside_the_image_is_refused(demo, shown, place):
    with pytest.raises(ValueError, match="is no place in the image"):
        demo.ask_by_place(shown, "small", "point->mask", np.array(place).reshape(-1, 2))


def test_a_dragged_outline_is_scored_as_its_text(demo, shown):
    asked = asked_by_text(demo, shown)
    target = asked.question.sample.target
    written = demo.write(asked, read_rings([ring.tolist() for ring in target.outline(0.001)]))
    (answer,) = demo.read(asked, [written])
    assert answer.scored.iou > 0.95
    assert not answer.issues


@pytest.mark.parametrize(
    "rings", [None, [], "x", [[0.1, 0.2]], [[[0.1, 0.2, 0.3]]], [[[1e999, 0]]]]
)
def test_other_things_than_outlines_are_refused(rings):
    with pytest.raises(ValueError, match="the outline that was sent"):
        read_rings(rings)


def test_a_group_has_the_advantages_of_gspo(demo, shown):
    asked = asked_by_text(demo, shown)
    answers = demo.read(asked, [SQUARE, "[]", SQUARE, "nothing"])
    rewards = np.array([each.scored.total for each in answers])
    expected = (rewards - rewards.mean()) / max(0.2, rewards.std(ddof=1))
    np.testing.assert_allclose(demo.advantages(answers), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda demo, shown: demo.show("easy", 10**6), "image 1000000"),
        (lambda demo, shown: demo.show("easy", -1), "image -1"),
        (lambda demo, shown: demo.show("simple", 1), "difficulty"),
        (lambda demo, shown: demo.ask_by_text(shown, "small", "text->mask", " "), "0 characters"),
        (lambda demo, shown: demo.ask_by_text(shown, "small", "text->x", "it"), "task='text->x'"),
        (
            lambda demo, shown: demo.ask_by_text(shown, "small", "text->mask", "a" * 301),
            "301 characters",
        ),
        *(
            (
                lambda demo, shown, temperature=temperature, count=count: next(
                    demo.answers(asked_by_text(demo, shown), temperature=temperature, count=count)
                ),
                f"temperature {temperature} and {count} answers",
            )
            for temperature, count in ((3, 1), (float("nan"), 1), (1, 0), (1, 17))
        ),
    ],
)
def test_what_is_not_allowed_is_said(demo, shown, call, complaint):
    with pytest.raises((ValueError, IndexError), match=complaint):
        call(demo, shown)


def test_an_image_of_ones_own_is_not_scored(demo):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    shown = read_upload(image_address(pixels))
    assert (shown.image == pixels).all()
    asked = demo.ask_by_text(shown, "small", "text->mask", "it")
    (texts,) = list(demo.answers(asked, temperature=1, count=2))[-1:]
    assert [each.scored for each in demo.read(asked, texts)] == [None, None]


@pytest.mark.parametrize("address", ["data:image/png;base64,AAAA", "no image", "", None, "data:,%"])
def test_what_is_no_image_is_refused(address):
    with pytest.raises(ValueError, match="the image that was sent"):
        read_upload(address)


def test_a_huge_image_is_refused_before_it_is_unpacked():
    buffer = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(buffer, "PNG")
    address = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    with pytest.raises(ValueError, match="13000 x 13000 pixels; at most 16777216 are read"):
        read_upload(address)


def test_a_large_image_is_kept_as_small_as_the_page_shows_it():
    buffer = io.BytesIO()
    Image.new("RGB", (4096, 2048), (9, 200, 30)).save(buffer, "PNG")
    shown = read_upload("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())
    assert shown.image.shape == (512, 1024, 3)
    assert (shown.image == (9, 200, 30)).all()


@pytest.mark.parametrize("text", [SQUARE, RING])
def test_downloads_hold_the_answer(demo, shown, tmp_path, text):
    asked = asked_by_text(demo, shown)
    (answer,) = demo.read(asked, [text])
    mask = np.asarray(Image.open(io.BytesIO(mask_png(asked, answer)))) > 0
    # Our own reader of COCO's form finds the same mask.
    Image.fromarray(shown.image).save(tmp_path / "image.png")
    (tmp_path / "coco.json").write_text(json.dumps(coco_json(asked, answer)))
    (sample,) = open_dataset(str(tmp_path / "coco.json"), image_root=str(tmp_path))
    assert (sample.target.mask() == mask).all()
    assert sample.expression == asked.question.sample.expression
    (feature,) = geojson(asked, answer)["features"]
    assert feature["geometry"]["type"] == "MultiPolygon"
    (rings,) = feature["geometry"]["coordinates"]
    assert len(rings) == (2 if text == RING else 1)
    assert np.max(rings[0], axis=0).tolist() == [
        np.flatnonzero(mask.any(axis=0))[-1] + 1,
        np.flatnonzero(mask.any(axis=1))[-1] + 1,
    ]


def test_downloads_of_an_answer_without_an_outline_are_empty(demo, shown):
    asked = asked_by_text(demo, shown)
    (answer,) = demo.read(asked, ["nothing"])
    assert geojson(asked, answer)["features"][0]["geometry"] is None
    assert coco_json(asked, answer)["annotations"][0]["area"] == 0


def test_images_of_a_data_set_are_shown_and_scored(tmp_path):
    from experiments.common.cloning_data import RecordedImages

    dataset = open_dataset(str(export_jsonlines(Scenes("val", length=3, size=64), tmp_path)))
    demo = make_demo(dataset, images=RecordedImages(dataset))
    shown = demo.show("easy", 1)
    assert Scenes("val", length=3, size=64)[1].expression in [x.expression for x in shown.samples]
    assert demo.read(asked_by_text(demo, shown), [SQUARE])[0].scored is not None


def test_questions_and_answers_are_kept_where_a_folder_is_given(shown, tmp_path):
    demo = make_demo(output_dir=tmp_path / "kept")
    texts = list(demo.answers(asked_by_text(demo, shown), temperature=1, count=2))[-1]
    lines = (tmp_path / "kept" / "answers.jsonl").read_text().splitlines()
    rows = list(map(json.loads, lines))
    assert [row["text"] for row in rows] == texts
    assert all(0 <= row["iou"] <= 1 and row["rewards"].keys() for row in rows)


@pytest.mark.parametrize("words", [["--rewards", "no_such=1"], ["--policy", "/nowhere"]])
def test_wrong_options_end_the_command_with_a_sentence(words, capsys):
    with pytest.raises(SystemExit) as ended:
        command_line(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
