"""Outlines drawn vertex by vertex earn what they earn as one answer."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from absent_scenes import SomeAbsent
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import seg_env
from seg_env.envs.core import ReferringCore
from seg_env.envs.referring import ReferringSegmentationEnv
from seg_env.envs.vector import ReferringSegmentationVectorEnv
from seg_env.envs.vertex import VertexText, vertex_credit
from seg_env.frames import PERMILLE, UNIT, pixel_frame
from seg_env.grammar import decode, encode

SCENES = "SimpleSeg-Scenes-v0"
TRIANGLE = ["[0.1,0.1]", "[0.9,0.1]", "[0.5,0.8]"]
REWARDS = [
    "mask_iou=1.0 centroid_distance=0.2 format=0.1",
    "mask_iou=1.0 format=gate",
    "format=1 length_penalty=0.3 mask_iou=-0.5",
]


@pytest.fixture(scope="module")
def data():
    return SomeAbsent()


def make(dataset, **arguments):
    return ReferringSegmentationEnv(dataset, step_mode="vertex", **arguments)


def make_vector(dataset, number, mode="Disabled", **arguments):
    return ReferringSegmentationVectorEnv(
        dataset, num_envs=number, autoreset_mode=mode, step_mode="vertex", **arguments
    )


def actions_of(text):
    """The actions that write a well-formed answer."""
    if text == "[]":
        return ["]"]
    rings = text[3:-3].split("]],[[")
    vertices = [[f"[{pair}]" for pair in ring.split("],[")] for ring in rings]
    return [*vertices[0], *(one for ring in vertices[1:] for one in ["],[", *ring]), "]"]


def random_actions(generator):
    """An outline, good or bad, with faults among its actions, and the answer that it amounts to."""
    rings, actions = [], []
    for _ in range(generator.choice([0, 1, 1, 1, 2, 3])):
        low, high = ([(0, 1)] * 7 + [(-0.5, 1.5), (0, 900)])[generator.integers(9)]
        points = generator.uniform(low, high, (int(generator.integers(2, 9)), 2)).round(2)
        written = [f"[{x},{y}]" for x, y in points.tolist()]
        rings.append("[" + ",".join(written) + "]")
        actions += ["],["] * (len(actions) > 0) + written
    actions += [["]"], ["],[", "]"]][generator.integers(2) if rings else 0]
    for _ in range(generator.integers(0, 3)):
        fault = ["", "[0.1", "[nan,1]", "]]", "hello", "[1e3,0]", "[[0.1,0.1]]"]
        actions.insert(generator.integers(len(actions)), fault[generator.integers(len(fault))])
    return actions, "[" + ",".join(rings) + "]"


def play(env, actions):
    """Rewards of an episode, and its last step."""
    rewards = []
    for action in actions:
        step = env.step(action)
        rewards.append(step[1])
    return rewards, step


@pytest.mark.parametrize("identifier", seg_env.ENVIRONMENT_IDS)
@pytest.mark.parametrize("render_mode", ["rgb_array", "ansi"])
def test_gymnasium_finds_nothing_to_object_to(identifier, render_mode, monkeypatch):
    monkeypatch.delenv("SIMPLESEG_DATA", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*embedded")
        env = gym.make(identifier, step_mode="vertex", render_mode=render_mode)
        check_env(env.unwrapped)


@pytest.mark.parametrize(
    "arguments",
    [{"render_outline": True}, {"image_size": [48, 30], "frame": "permille", "max_vertices": 5}],
    ids=str,
)
def test_gymnasium_finds_nothing_to_object_to_with_images_of_all_sizes(pictures, arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(SCENES, dataset=pictures, step_mode="vertex", **arguments)
        check_env(env.unwrapped)


@pytest.mark.parametrize("rewards", REWARDS)
def test_the_return_is_the_reward_of_the_whole_answer(data, rewards):
    """1,000 outlines for each of the rewards, malformed ones and absent targets included."""
    generator = np.random.default_rng(0)
    envs, core = make_vector(data, 250, rewards=rewards), ReferringCore(data, rewards=rewards)
    questions = [core.ask(index) for index in range(16)]
    returns, validity = set(), set()
    for seed in range(4):
        episodes = [random_actions(generator) for _ in range(250)]
        _, asked = envs.reset(seed=1000 * seed)
        earned, ended = np.zeros(250), np.zeros(250, dtype=bool)
        for step in range(100):
            actions = [
                None if end else one[step] for end, (one, _) in zip(ended, episodes, strict=True)
            ]
            _, rewards_of_step, ended, truncated, _ = envs.step(actions)
            assert not truncated.any()
            earned += rewards_of_step
            if ended.all():
                break
        scores = core.score(
            [text for _, text in episodes], [questions[index] for index in asked["index"]]
        )
        np.testing.assert_allclose(earned, scores.total, rtol=0, atol=1e-9)
        returns.update(earned.round(9))
        validity.update(prediction.valid for prediction in scores.predictions)
    assert len(returns) > 100
    assert validity == {True, False}


def test_an_action_earns_what_it_changed(data):
    """Checked against scoring each beginning of the answer by itself."""
    env, core = make(data), ReferringCore(data)
    generator = np.random.default_rng(1)
    for number in range(30):
        actions, _ = random_actions(generator)
        env.reset(options={"index": number % 16})
        before = 0.0
        for action in actions:
            observation, reward, terminated, _, info = env.step(action)
            text = observation["outline"]
            closed = text + "]" * (text.count("[") - text.count("]"))
            closed = closed.replace(",[]", "") or "[]"
            worth = core.score([closed], [core.ask(number % 16)]).total[0]
            after = before if info["fault"] else worth
            assert reward == pytest.approx(after - before, abs=1e-12)
            before = after
        assert terminated


def test_saying_at_once_that_nothing_is_there_is_an_answer(data):
    env = make(data, rewards="mask_iou=1")
    for index, worth in ((0, 0.0), (1, 1.0)):
        env.reset(options={"index": index})
        _, reward, terminated, truncated, info = env.step("]")
        assert (reward, terminated, truncated) == (worth, True, False)
        assert info["valid"]
        assert info["num_vertices"] == 0


def test_being_right_about_nothing_is_earned_by_saying_so_only(data):
    """An empty outline that is still open is worth nothing, though "[]" would be worth 1."""
    env = make(data, rewards="mask_iou=1")
    env.reset(options={"index": 1})
    assert env.step("what?")[1] == 0.0
    assert env.step("],[")[1] == 0.0
    rewards, _ = play(env, ["[0.1,0.1]", "]"])
    assert sum(rewards) == 0.0


def test_rewards_are_those_of_vertex_credit(data):
    env, core = make(data), ReferringCore(data)
    for index in range(0, 16, 2):
        rings = [
            data[index].target.outline(0.02)[0],
            np.array([[0.1, 0.1], [0.3, 0.1], [0.2, 0.3]]),
        ]
        text = encode(rings)
        (credit,) = vertex_credit(core, [core.ask(index)], [text])
        env.reset(options={"index": index})
        rewards, _ = play(env, actions_of(text))
        del rewards[len(rings[0])]  # "],[" belongs to no vertex
        np.testing.assert_allclose(rewards, credit.rewards, rtol=0, atol=1e-12)


def test_the_outline_so_far_is_observed_as_text(data):
    env = make(data)
    observation, _ = env.reset(seed=0)
    seen = [observation["outline"]]
    for action in [*TRIANGLE, "],[", " [0.2, 0.3] ", "]"]:
        observation, *_ = env.step(action)
        assert observation in env.observation_space
        seen.append(observation["outline"])
    triangle = "[[[0.1,0.1],[0.9,0.1],[0.5,0.8]"
    assert seen == [
        "",
        "[[[0.1,0.1]",
        "[[[0.1,0.1],[0.9,0.1]",
        triangle,
        triangle + "],[",
        triangle + "],[[0.2,0.3]",
        triangle + "],[[0.2,0.3]",
    ]


@pytest.mark.parametrize("image_size", [None, (40, 70)])
def test_the_outline_so_far_is_drawn_where_it_is_asked_for(pictures, image_size):
    plain = make(pictures, image_size=image_size)
    drawn = make(pictures, image_size=image_size, render_outline=True)
    for env in (plain, drawn):
        env.reset(options={"index": 3})
    for action in ["[0.5,0.5]", "[0.9,0.5]"]:
        expected, seen = plain.step(action)[0]["image"], drawn.step(action)[0]["image"]
    changed = np.argwhere((expected != seen).any(axis=2))
    height, width = seen.shape[:2]
    assert np.ptp(changed[:, 1]) == pytest.approx(0.4 * width, abs=4)
    assert changed[:, 0].mean() == pytest.approx(0.5 * height, abs=2)
    # What is asked about is not drawn upon.
    np.testing.assert_array_equal(drawn.reset(options={"index": 3})[0]["image"], expected)


def test_actions_that_make_sense_are_named(data):
    env = make(data, max_vertices=9)
    info = env.reset(seed=0)[1]
    seen = [(info["can_close"], info["can_start_ring"], info["vertices_left"])]
    for action in [*TRIANGLE, "],[", "[0.1,0.2]", "oops"]:
        info = env.step(action)[4]
        seen.append((info["can_close"], info["can_start_ring"], info["vertices_left"]))
    assert seen == [
        (True, False, 9),
        (False, False, 8),
        (False, False, 7),
        (True, True, 6),
        (True, False, 5),
        (False, False, 4),
        (False, False, 3),
    ]
    assert all(type(value) in (str, bool, int, float) for value in info.values())


def test_closing_when_the_ring_is_too_small_ends_in_a_malformed_answer(data):
    env = make(data)
    env.reset(seed=0)
    _, (_, _, terminated, _, info) = play(env, ["[0.1,0.1]", "[0.2,0.2]", "]"])
    assert terminated
    assert info["issues"] == "too_few_vertices"


def test_an_outline_that_is_never_closed_is_cut_off_and_scored_as_it_stands(data):
    env, core = make(data, max_vertices=3), ReferringCore(data)
    env.reset(options={"index": 0})
    rewards, (_, _, terminated, truncated, info) = play(env, TRIANGLE)
    assert (terminated, truncated) == (False, True)
    assert info["vertices_left"] == 0
    whole = core.score([f"[[{','.join(TRIANGLE)}]]"], [core.ask(0)]).total[0]
    assert sum(rewards) == pytest.approx(whole, abs=1e-12)
    with pytest.raises(ResetNeeded, match="ended with its closing bracket or the last vertex"):
        env.step("]")


@pytest.mark.parametrize(
    ("action", "fault"),
    [
        ("", "unreadable"),
        ("[", "unreadable"),
        ("]]", "unreadable"),
        ("[0.1,0.2],[0.3,0.4]", "unreadable"),
        ("[0.1;0.2]", "unreadable"),
        ("[NaN,0]", "unreadable"),
        ("[1e308,0]", "unreadable"),
        ("[٣,0]", "unreadable"),
        ("[0.1,0.2,0.3]", "unreadable"),
        ("[" + "9" * 500_000 + ",1]", "unreadable"),
        ("[" * 1_000_000, "unreadable"),
        ("],[", "no_ring"),
        (" [ 0.5 , 0.25 ]\n", ""),
        ("[-0.5,7]", ""),
    ],
    ids=lambda text: text[:12],
)
def test_what_cannot_be_read_costs_the_step_only(data, action, fault):
    env = make(data)
    env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(action)
    assert info["fault"] == fault
    assert (terminated, truncated) == (False, False)
    if fault:
        assert reward == 0.0
        assert observation["outline"] == ""
        assert info["vertices_left"] == 127


def test_steps_are_bounded_whatever_is_answered(data):
    env = make(data, max_vertices=10)
    env.reset(seed=0)
    ends = [env.step("hm")[2:4] for _ in range(10)]
    assert ends == [(False, False)] * 9 + [(False, True)]


def test_the_outline_so_far_is_rendered(data):
    env = make(data, render_mode="ansi")
    env.reset(seed=0)
    assert "waiting" in env.render()
    play(env, TRIANGLE)
    assert "3 vertices" in env.render()


@pytest.mark.parametrize("frame", [UNIT, PERMILLE, pixel_frame(640, 480)], ids=lambda f: f.name)
def test_sampled_actions_are_legal(frame):
    space = VertexText(frame=frame, seed=5)
    samples = [space.sample() for _ in range(300)]
    again = VertexText(frame=frame, seed=5)
    assert [again.sample() for _ in range(300)] == samples
    assert space == again != VertexText(frame=pixel_frame(9, 9), seed=5)
    vertices = [text for text in samples if text not in ("]", "],[")]
    assert 200 < len(vertices) < 290
    assert {"]", "],["} < set(samples)
    for start in range(0, 190, 5):
        assert decode(f"[[{','.join(vertices[start : start + 5])}]]", frame).valid
    with pytest.raises(ValueError, match="takes no mask"):
        space.sample(mask=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_mode": "token"}, "step_mode='token' is unknown.*'answer', 'vertex'"),
        ({"step_mode": "vertex", "max_vertices": 2}, "max_vertices=2; use 3 to 4096"),
        ({"step_mode": "vertex", "max_vertices": 1e3}, "max_vertices=1000.0; use a whole number"),
        ({"max_vertices": 20}, "max_vertices=20 needs step_mode='vertex'"),
        ({"render_outline": True}, "render_outline=True needs step_mode='vertex'"),
    ],
    ids=str,
)
def test_wrong_arguments_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReferringSegmentationEnv(**arguments)


def test_reference_policies_rank_as_they_should(data):
    """Drawing the truth earns what the representation allows, random drawing less."""
    env, core = make(data), ReferringCore(data)
    env.action_space.seed(0)
    for index in range(0, 16, 2):
        env.reset(options={"index": index})
        oracle = encode(data[index].target.rings, decimals=9)
        rewards, step = play(env, actions_of(oracle))
        assert step[4]["iou"] == 1.0
        ceiling = core.score([oracle], [core.ask(index)]).total[0]
        assert sum(rewards) == pytest.approx(ceiling, abs=1e-9)
        env.reset(options={"index": index})
        earned, ended = 0.0, False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            earned, ended = earned + reward, terminated or truncated
        assert earned < sum(rewards)
