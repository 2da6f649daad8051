"""Vertex credit takes an answer's reward apart without changing it."""

import time
from functools import lru_cache

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Reward
from seg_env.data.scenes import Scenes
from seg_env.envs.core import ReferringCore
from seg_env.envs.vector import ReferringSegmentationVectorEnv
from seg_env.envs.vertex import MAX_ENTRIES, vertex_credit
from seg_env.frames import PERMILLE, UNIT, pixel_frame
from seg_env.grammar import decode, encode

SQUARE = "[[[0.2,0.2],[0.7,0.2],[0.7,0.7],[0.2,0.7]]]"
REWARDS = "mask_iou=1.0 centroid_distance=0.2 format=0.1 length_penalty=0.05"
DATA = Scenes(split="val", length=32, size=48)

# Few enough numbers that vertices are repeated and rings touch.
number = st.integers(0, 9).map(lambda value: f"{value / 10:g}")
vertex = st.tuples(number, number).map(lambda pair: f"[{pair[0]},{pair[1]}]")
ring = st.lists(vertex, min_size=1, max_size=7).map(lambda vertices: f"[{','.join(vertices)}]")
outline = st.lists(ring, max_size=3).map(lambda rings: f"[{','.join(rings)}]")
answer = st.one_of(
    outline,
    outline.map(lambda text: f"It is at {text}."),
    outline.map(lambda text: text.replace(",", ", ")),
    outline.flatmap(lambda text: st.integers(0, len(text)).map(lambda cut: text[:cut])),
    st.text("[],.0123456789 e-", max_size=40),
)


@lru_cache
def core_of(rewards):
    return ReferringCore(DATA, rewards=rewards)


def credit_of(core, text, index=0):
    question = core.ask(index)
    (credit,) = vertex_credit(core, [question], [text])
    return credit, core.score([text], [question])


@pytest.mark.parametrize("rewards", [REWARDS, "mask_iou=1 format=gate", "boundary_iou=1"])
@settings(max_examples=40)
@given(texts=st.lists(answer, min_size=1, max_size=6))
def test_credits_sum_to_the_reward_and_to_the_iou(rewards, texts):
    core = core_of(rewards)
    questions = [core.ask(index % 2) for index in range(len(texts))]
    scores = core.score(texts, questions)
    for row, credit in enumerate(vertex_credit(core, questions, texts)):
        assert credit.ends.shape == credit.rewards.shape == credit.iou.shape
        assert credit.rewards.sum() == pytest.approx(scores.total[row], abs=1e-9)
        assert credit.iou.sum() == pytest.approx(scores.iou[row], abs=1e-9)
        assert credit.ends[-1] == len(texts[row])
        assert (np.diff(credit.ends) >= 0).all()


class Reading(Reward):
    """A number that any difference in what was read would change."""

    name = "reading"

    def __call__(self, predictions, targets):
        return np.array([hash(self._all(one)) % 1000 / 7 for one in predictions])

    @staticmethod
    def _all(prediction):
        rings = tuple(ring.tobytes() for ring in prediction.rings)
        return rings, prediction.issues, prediction.text


@pytest.mark.parametrize("frame", [UNIT, PERMILLE, pixel_frame(90, 50)], ids=lambda f: f.name)
@pytest.mark.parametrize("image_size", [None, (40, 64)])
@settings(max_examples=40)
@given(text=answer)
def test_a_vertex_earns_what_it_adds_to_the_text_closed_behind_it(frame, image_size, text):
    if frame.integer:
        text = text.replace("0.", "")
    core = ReferringCore(DATA, frame=frame, image_size=image_size, rewards=[(Reading(), 1.0)])
    credit, scores = credit_of(core, text)
    if len(credit.ends) == 1:
        prediction = scores.predictions[0]
        assert not prediction.valid or not prediction.rings
        return
    prefixes = [text[:end] + "]]" for end in credit.ends[:-1]]
    expected = core.score([*prefixes, text], [core.ask(0)] * len(credit.ends)).total
    np.testing.assert_array_equal(credit.rewards, np.diff(expected, prepend=0.0))


def test_entries_are_the_vertices_and_the_closing():
    core = ReferringCore(DATA, rewards="mask_iou=1 format=0.1")
    text = "[[[0.1,0.1],[0.9,0.1],[0.9,0.9]],[[0.2,0.5],[0.3,0.5],[0.3,0.6]]]"
    credit, _ = credit_of(core, text)
    read = [text[:end] for end in credit.ends]
    assert [part[-9:] for part in read[:-1]] == [
        "[0.1,0.1]",
        "[0.9,0.1]",
        "[0.9,0.9]",
        "[0.2,0.5]",
        "[0.3,0.5]",
        "[0.3,0.6]",
    ]
    assert read[-1] == text
    assert credit.rewards[:2].tolist() == [0.0, 0.0]  # two vertices are nothing yet
    assert credit.rewards[3] == pytest.approx(-0.1)  # a second ring of one vertex is a fault
    assert credit.rewards[-1] == 0.0


def test_the_vertex_that_finds_the_object_gets_the_credit():
    core = ReferringCore(DATA, rewards="mask_iou=1")
    rings = DATA[3].target.outline(0.02)
    credit, scores = credit_of(core, encode(rings), index=3)
    assert scores.iou[0] > 0.9
    assert credit.iou[:2].tolist() == [0.0, 0.0]
    assert (credit.iou[2 : len(rings[0])] > 0).all()
    np.testing.assert_array_equal(credit.rewards, credit.iou)


@pytest.mark.parametrize(
    "text", ["", "[]", "no idea", SQUARE[:-1], SQUARE + " and more", "[[[0.1,0.2],[0.3,0.4]]]"]
)
def test_text_without_an_outline_or_with_faults_has_one_entry_at_its_end(text):
    credit, scores = credit_of(ReferringCore(DATA), text)
    assert credit.ends.tolist() == [len(text)]
    assert credit.rewards.tolist() == scores.total.tolist()
    assert credit.iou.tolist() == scores.iou.tolist()


def test_a_ring_that_is_closed_by_its_first_vertex_is_read_as_such():
    core = ReferringCore(DATA, rewards="mask_iou=1 format=0.1")
    closed = SQUARE[:-2] + ",[0.2,0.2]]]"
    assert len(decode(closed).rings[0]) == 4
    credit, _ = credit_of(core, closed, index=3)
    without, _ = credit_of(core, SQUARE, index=3)
    np.testing.assert_array_equal(credit.rewards[:4], without.rewards[:4])
    assert credit.rewards[4] == 0.0


def test_numbers_that_look_like_another_frame_at_first_are_judged_as_they_were_read():
    core = ReferringCore(DATA, frame="permille", rewards="mask_iou=1 format=0.1")
    text = "[[[0.5,0],[1,0],[1,1],[0,999],[800,900],[0,1]]]"
    credit, _ = credit_of(core, text)
    looks_wrong = core.score([text[: credit.ends[2]] + "]]"], [core.ask(0)])
    assert looks_wrong.predictions[0].issues
    assert credit.rewards[:3].sum() == looks_wrong.total[0] == 0.0


def test_very_long_answers_are_credited_several_vertices_at_a_time():
    generator = np.random.default_rng(0)
    text = encode([generator.random((4000, 2))], decimals=9)
    core = ReferringCore(DATA)
    credit, scores = credit_of(core, text)
    assert len(credit.ends) <= MAX_ENTRIES + 1
    assert credit.rewards.sum() == pytest.approx(scores.total[0], abs=1e-9)


def test_every_question_needs_its_answer():
    core = ReferringCore(DATA)
    with pytest.raises(ValueError, match="2 answers to 1 questions"):
        vertex_credit(core, [core.ask(0)], [SQUARE, SQUARE])
    assert vertex_credit(core, [], []) == []


def test_a_trainer_asks_the_vector_environment_before_or_after_the_step():
    envs = ReferringSegmentationVectorEnv(DATA, num_envs=4, autoreset_mode="Disabled")
    envs.reset(options={"indices": [5, 5, 9, 9]})
    texts = [SQUARE, "nothing", encode(DATA[9].target.rings), "[]"]
    before = envs.vertex_credit(texts)
    rewards = envs.step(texts)[1]
    after = envs.vertex_credit(texts)
    for row in range(4):
        assert before[row].rewards.sum() == pytest.approx(rewards[row], abs=1e-9)
        np.testing.assert_array_equal(before[row].rewards, after[row].rewards)


def test_an_update_of_256_answers_takes_less_than_a_second():
    envs = gym.make_vec(
        "SimpleSeg-Scenes-v0", num_envs=256, split="val", autoreset_mode="Disabled"
    ).unwrapped
    generator = np.random.default_rng(0)
    indices = np.repeat(generator.integers(len(envs.dataset), size=32), 8)
    envs.reset(options={"indices": indices})
    texts = [encode([generator.random((15, 2)) * 0.5 + generator.random(2) * 0.5]) for _ in indices]
    envs.vertex_credit(texts[:1] * 256)
    start = time.process_time()
    credits = envs.vertex_credit(texts)
    assert time.process_time() - start < 1.0
    assert sum(len(credit.ends) for credit in credits) == 256 * 16
