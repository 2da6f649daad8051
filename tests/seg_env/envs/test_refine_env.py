"""Outlines are improved over several turns, by new outlines or by edits."""

import re
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import DEFAULT_REWARDS, RewardSum
from seg_env.data.scenes import Scenes
from seg_env.envs.referring import ReferringSegmentationEnv
from seg_env.envs.refine import (
    MAX_EDITS,
    Edit,
    apply_edits,
    parse_edits,
    split_outline,
    write_outline,
)
from seg_env.envs.vector import ReferringSegmentationVectorEnv
from seg_env.frames import PERMILLE
from seg_env.grammar import decode, encode
from seg_env.registration import REFINE_IDS
from seg_env.tasks import box_of

SCENES = "SimpleSegRefine-Scenes-v0"
SQUARE = "[[[0.2,0.2],[0.7,0.2],[0.7,0.7],[0.2,0.7]]]"
DATA = Scenes(split="val", length=16, size=48)


def scores_of(texts, samples, rewards=DEFAULT_REWARDS):
    targets = [sample.target for sample in samples]
    return RewardSum.from_spec(rewards).score([decode(text) for text in texts], targets)


def refine_env(dataset=DATA, **arguments):
    return ReferringSegmentationEnv(dataset, step_mode="refine", **arguments)


def started(text=SQUARE, index=3, dataset=DATA, **arguments):
    """An environment in which one outline has been given."""
    env = refine_env(dataset, **arguments)
    env.reset(options={"index": index})
    return env, env.step(text)


@pytest.mark.parametrize("identifier", REFINE_IDS)
@pytest.mark.parametrize("render_mode", ["rgb_array", "ansi"])
def test_gymnasium_finds_nothing_to_object_to(identifier, render_mode, monkeypatch):
    monkeypatch.delenv("SIMPLESEG_DATA", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*embedded")
        env = gym.make(identifier, render_mode=render_mode)
        check_env(env.unwrapped)
        assert env.spec.max_episode_steps is None


def test_there_is_one_for_each_data_set():
    assert REFINE_IDS == (
        "SimpleSegRefine-Scenes-v0",
        "SimpleSegRefine-RefCOCO-v0",
        "SimpleSegRefine-RefCOCOPlus-v0",
        "SimpleSegRefine-RefCOCOg-v0",
        "SimpleSegRefine-RefCLEF-v0",
    )


def test_a_turn_earns_what_it_improves():
    env = refine_env(DATA, rewards="mask_iou=1.0 format=0.1")
    env.reset(options={"index": 3})
    answers = [SQUARE, encode(DATA[3].target.outline(0.02)), "[[[0,0],[0.1,0],[0,0.1]]]"]
    expected = np.diff(
        scores_of(answers, [DATA[3]] * 3, "mask_iou=1.0 format=0.1").total, prepend=0.0
    )
    for turn, (answer, improvement) in enumerate(zip(answers, expected, strict=True), start=1):
        _, reward, terminated, truncated, info = env.step(answer)
        assert reward == pytest.approx(improvement, abs=1e-12)
        assert (terminated, truncated) == (turn == 3, False)
        assert (info["turn"], info["turns_left"]) == (turn, 3 - turn)
    with pytest.raises(ResetNeeded, match="ended with its last turn"):
        env.step("done")


def test_done_ends_the_episode_and_earns_nothing():
    for word in ("done", " Done.\n"):
        env, _ = started()
        _, reward, terminated, truncated, info = env.step(word)
        assert (reward, terminated, truncated, info["fault"]) == (0.0, True, False, "")
    env = refine_env(DATA)
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step("done")
    assert (reward, terminated, info["outline"]) == (0.0, True, "")


def test_the_outline_is_drawn_and_written_for_the_next_turn():
    env = refine_env(DATA)
    first, _ = env.reset(options={"index": 3})
    question = f"Output the polygon coordinates of {DATA[3].expression} in the image."
    assert first["prompt"] == question
    np.testing.assert_array_equal(first["image"], DATA[3].image)
    second, *_, info = env.step(f"It is at {SQUARE.replace(',', ', ')}.")
    assert info["outline"] == SQUARE
    assert second["prompt"].startswith(f"{question} Your outline so far")
    assert SQUARE in second["prompt"]
    assert second["prompt"].endswith("Turn 2 of 3.")
    changed = np.argwhere((second["image"] != first["image"]).any(axis=2)) / 48
    assert changed.min() == pytest.approx(0.2, abs=0.06)
    assert changed.max() == pytest.approx(0.7, abs=0.06)
    assert second in env.observation_space
    second["image"][:] = 0
    assert env.step("done")[0]["image"].any()


@pytest.mark.parametrize("image_size", [(60, 60), (40, 120)])
def test_what_is_drawn_is_where_the_answer_meant_it(pictures, image_size):
    env = refine_env(pictures, image_size=image_size, frame=PERMILLE)
    before, _ = env.reset(options={"index": 0})
    after = env.step("[[[250,500],[750,500],[750,900]]]")[0]
    changed = np.argwhere((before["image"] != after["image"]).any(axis=2)) / image_size
    assert changed.min(axis=0) == pytest.approx([0.5, 0.25], abs=0.06)
    assert changed.max(axis=0) == pytest.approx([0.9, 0.75], abs=0.06)


@pytest.mark.parametrize(
    ("edits", "outline"),
    [
        ("move 2 0.9 0.95", "[[[0.2,0.2],[0.7,0.2],[0.9,0.95],[0.2,0.7]]]"),
        ("insert 0 0.1 0.1", "[[[0.1,0.1],[0.2,0.2],[0.7,0.2],[0.7,0.7],[0.2,0.7]]]"),
        ("insert 4 0.1 0.5", "[[[0.2,0.2],[0.7,0.2],[0.7,0.7],[0.2,0.7],[0.1,0.5]]]"),
        ("delete 1", "[[[0.2,0.2],[0.7,0.7],[0.2,0.7]]]"),
        ("delete 1; move 1 0.50 1\n insert  1 0 0;", "[[[0.2,0.2],[0,0],[0.50,1],[0.2,0.7]]]"),
        ("delete 0; delete 0", "[]"),
    ],
)
def test_edits_change_the_outline_one_after_the_other(edits, outline):
    env, (_, before, *_) = started(rewards="mask_iou=1")
    _, reward, _, _, info = env.step(edits)
    assert (info["fault"], info["outline"]) == ("", outline)
    alone = scores_of([outline], [DATA[3]], "mask_iou=1")
    assert before + reward == pytest.approx(alone.total[0], abs=1e-12)
    assert info["iou"] == alone.terms["mask_iou"][0]


@pytest.mark.parametrize(
    ("action", "fault", "issues"),
    [
        ("", "unreadable", ""),
        ("Make it bigger!", "unreadable", ""),
        ("move 1 0.5", "unreadable", ""),
        ("move one 0.5 0.5", "unreadable", ""),
        ("move 1 nan 0.5", "unreadable", ""),
        ("move 1 1e308 0.5", "unreadable", ""),
        ("move -1 0.5 0.5", "unreadable", ""),
        ("delete 1; sing", "unreadable", ""),
        ("delete 1;" * (MAX_EDITS + 1), "unreadable", ""),
        ("delete 4", "no_such_vertex", ""),
        ("insert 5 0.1 0.1", "no_such_vertex", ""),
        ("move 999999 0.1 0.1", "no_such_vertex", ""),
        ("delete 0; delete 0; delete 0", "no_such_vertex", ""),
        ("move 1 1.5 0.5", "malformed", "out_of_range"),
        ("move 1 300 200", "malformed", "wrong_frame"),
        (SQUARE[:-1], "malformed", "truncated"),
        ("[1]", "malformed", "surrounding_text,no_polygon"),
        ("[" * 1_000_000, "too_long", ""),
        ("delete 1;" * 100_000, "too_long", ""),
    ],
    ids=lambda text: text[:24],
)
def test_a_turn_with_a_fault_leaves_the_outline_and_costs_the_turn_only(action, fault, issues):
    env, (seen, *_, before) = started()
    observation, reward, terminated, truncated, info = env.step(action)
    assert (info["fault"], info["issues"], info["valid"]) == (fault, issues, False)
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info["outline"] == before["outline"] == SQUARE
    assert info["iou"] == before["iou"]
    np.testing.assert_array_equal(observation["image"], seen["image"])
    assert info["turns_left"] == 1
    assert all(type(value) in (str, bool, int, float) for value in info.values())


def test_there_is_nothing_to_edit_before_there_is_an_outline():
    env = refine_env(DATA)
    env.reset(seed=0)
    for edit in ("delete 0", "insert 0 0.1 0.1"):
        observation, reward, _, _, info = env.step(edit)
        assert (reward, info["fault"], info["outline"]) == (0.0, "no_such_vertex", "")
    assert "outline so far" not in observation["prompt"]


def test_an_outline_cannot_grow_beyond_what_is_kept():
    env, _ = started(max_characters=60, turns=9)
    assert env.step("insert 0 0.1 0.1")[4]["fault"] == ""
    observation, *_, info = env.step("insert 0 0.11111 0.1")
    assert info["fault"] == "too_long"
    assert len(info["outline"]) <= 60
    assert observation in env.observation_space


@settings(max_examples=60)
@given(actions=st.lists(st.text("[],.01 5;medltovinsr\n", max_size=60), max_size=8))
def test_no_text_raises_or_goes_on_for_ever(actions):
    env = refine_env(DATA, turns=8)
    env.reset(options={"index": 0})
    env.step(SQUARE)
    for turn, action in enumerate(actions, start=2):
        observation, reward, terminated, truncated, info = env.step(action)
        assert observation in env.observation_space
        assert np.isfinite(reward)
        assert decode(info["outline"]).valid
        assert not truncated
        if terminated:
            break
        assert turn < 8


point = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(
    lambda p: f"[{p[0] / 20},{p[1] / 20}]"
)
ring = st.lists(point, min_size=3, max_size=6).map(lambda points: f"[{','.join(points)}]")

closed = st.lists(point, min_size=3, max_size=6).map(lambda p: f"[{','.join([*p, p[0]])}]")


@given(
    rings=st.lists(ring | closed, max_size=3),
    style=st.sampled_from(
        [
            "{}",
            "It is at {}.",
            " {} ",
            "<think>not [[[0.1,0.2],[0.3,0.2],[0.3,0.4]]]</think>{}",
            "<think>[0.1,0.2]</think> <answer>{}</answer>.",
        ]
    ),
)
def test_what_is_kept_is_what_was_read(rings, style):
    prediction = decode(style.format(f"[{', '.join(rings)}]"))
    assert prediction.valid
    written = split_outline(prediction)
    assert list(map(len, written)) == list(map(len, prediction.rings))
    for one, two in zip(written, prediction.rings, strict=True):
        np.testing.assert_array_equal(np.array(one, dtype=float), two)
    assert decode(write_outline(written)).valid


def test_vertices_are_numbered_through_all_rings():
    a, b, c, d, e, f = ((name, name) for name in "abcdef")
    rings = ((a, b, c), (d, e, f))
    new = ("0.5", "1")
    move = apply_edits(rings, [Edit("move", 3, *new)])
    insert = apply_edits(rings, [Edit("insert", 3, *new)])
    last = apply_edits(rings, [Edit("insert", 6, *new)])
    assert move == ((a, b, c), (new, e, f))
    assert insert == ((a, b, c), (new, d, e, f))
    assert last == ((a, b, c), (d, e, f, new))
    assert apply_edits(rings, [Edit("delete", 1)]) == ((d, e, f),)
    assert apply_edits(rings, [Edit("move", 6, *new)]) is None
    assert parse_edits("delete 3") == (Edit("delete", 3),)


def test_seeds_choose_the_question():
    env = refine_env(DATA)
    drawn = [env.reset(seed=4)[1]["index"], env.reset()[1]["index"]]
    assert [env.reset(seed=4)[1]["index"], env.reset()[1]["index"]] == drawn


def scripted(generator, number):
    """Turns of all kinds."""
    kinds = [SQUARE, "delete 0", "move 0 0.1 0.15", "insert 2 0.5 0.5", "done", "hm", SQUARE[:-1]]
    return [kinds[index] for index in generator.integers(len(kinds), size=number)]


@pytest.mark.parametrize("image_size", [None, 40])
def test_it_equals_gymnasiums_vector_of_single_environments(image_size):
    ours = ReferringSegmentationVectorEnv(
        DATA, step_mode="refine", num_envs=5, image_size=image_size
    )
    singles = [lambda: refine_env(DATA, image_size=image_size)] * 5
    reference = SyncVectorEnv(singles, autoreset_mode="SameStep")
    assert ours.observation_space == reference.observation_space
    assert data_equivalence(ours.reset(seed=2), reference.reset(seed=2), exact=True)
    generator = np.random.default_rng(0)
    for _ in range(12):
        actions = scripted(generator, 5)
        observations, *numbers, infos = ours.step(actions)
        expected_observations, *expected_numbers, expected = reference.step(actions)
        assert data_equivalence(observations, expected_observations, exact=True)
        assert data_equivalence(numbers, expected_numbers, exact=True)
        for key in ("final_info", "final_obs", "turn", "outline", "sample_id"):
            assert data_equivalence(infos.get(key), expected.get(key), exact=True), key


def test_trainers_step_until_all_episodes_have_ended():
    envs = ReferringSegmentationVectorEnv(
        DATA, step_mode="refine", num_envs=4, autoreset_mode="Disabled", rewards="mask_iou=1"
    )
    _, asked = envs.reset(options={"indices": [3, 3, 5, 5]})
    assert asked["index"].tolist() == [3, 3, 5, 5]
    generator = np.random.default_rng(1)
    returns, ended, steps = np.zeros(4), np.zeros(4, dtype=bool), 0
    final = np.zeros(4)
    while not ended.all():
        scripted_turns = [SQUARE] * 4 if steps == 0 else scripted(generator, 4)
        if steps == 1:
            scripted_turns[2] = "done"
        actions = [None if end else text for end, text in zip(ended, scripted_turns, strict=True)]
        observations, rewards, now_ended, truncated, infos = envs.step(actions)
        assert (now_ended >= ended).all()
        assert not truncated.any()
        assert not rewards[ended].any()
        assert infos["_iou"].tolist() == (~ended).tolist()
        final[~ended] = infos["iou"][~ended]
        returns, ended, steps = returns + rewards, now_ended, steps + 1
        going_on = [
            text for text, end in zip(observations["prompt"], ended, strict=True) if not end
        ]
        assert all(f"Turn {steps + 1} of 3" in text for text in going_on)
    assert steps == 3
    np.testing.assert_allclose(returns, final, atol=1e-12)


def test_make_finds_both():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(SCENES, turns=5, size=32)
        envs = gym.make_vec(SCENES, num_envs=2, turns=2, size=32)
    assert type(env.unwrapped) is ReferringSegmentationEnv
    assert type(envs.unwrapped) is ReferringSegmentationVectorEnv
    assert env.reset(seed=0)[1]["turns_left"] == 5
    envs.reset(seed=0)
    assert envs.step(envs.action_space.sample())[2].tolist() == [False, False]
    assert envs.step(envs.action_space.sample())[2].tolist() == [True, True]


def test_the_outline_is_rendered():
    env, _ = started(render_mode="ansi")
    assert "4 vertices" in env.render()
    env.step("delete 0")
    assert "3 vertices" in env.render()
    env = refine_env(DATA, render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape[2] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"turns": 0}, "turns=0; use a whole number from 1 to 64"),
        ({"turns": 2.5}, "turns=2.5"),
        ({"max_characters": 1 << 30}, "max_characters=1073741824"),
        ({"refine_template": "{question} Better?"}, r"lacks \{outline\}"),
    ],
    ids=str,
)
def test_wrong_arguments_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        refine_env(DATA, **arguments)


# Reference policies. They are given the sample; what they answer is text like any other.


def play(policy, index, turns=12):
    """Return of an episode, and the rewards of its turns."""
    env = refine_env(DATA, turns=turns)
    env.action_space.seed(index)
    info = env.reset(options={"index": index})[1]
    rewards, terminated = [], False
    while not terminated:
        action = policy(DATA[index], info["outline"], env)
        _, reward, terminated, _, info = env.step(action)
        rewards.append(reward)
    return sum(rewards), rewards


def random_policy(sample, outline, env):
    return env.action_space.sample()


def oracle_policy(sample, outline, env):
    exact = encode(sample.target.rings, decimals=9)
    return exact if outline != exact else "done"


def greedy_policy(sample, outline, env):
    """Begins with a box twice too large, then makes the best single edit it can find."""
    if not outline:
        x0, y0, x1, y1 = box_of(sample.target)
        x, y, dx, dy = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) * 0.7, (y1 - y0) * 0.7
        box = [[x - dx, y - dy], [x + dx, y - dy], [x + dx, y + dy], [x - dx, y + dy]]
        return encode([np.clip(box, 0, 1)])
    written = split_outline(decode(outline))
    corners = sample.target.outline(0.01)[0]
    edits = [f"delete {vertex}" for vertex in range(len(written[0]))]
    for vertex, place in enumerate(decode(outline).rings[0]):
        near = corners[np.argsort(np.hypot(*(corners - place).T))[:4]]
        edits += [
            f"{verb} {vertex} {x:.3f} {y:.3f}" for x, y in near for verb in ("move", "insert")
        ]
    outcomes = [write_outline(apply_edits(written, parse_edits(edit))) for edit in edits]
    worth = scores_of([outline, *outcomes], [sample] * (len(edits) + 1)).total
    best = int(worth.argmax())
    return "done" if best == 0 else edits[best - 1]


@pytest.mark.parametrize("index", range(0, 16, 3))
def test_reference_policies_rank_as_they_should(index):
    chance, _ = play(random_policy, index)
    climbing, steps = play(greedy_policy, index)
    ceiling, turns = play(oracle_policy, index)
    assert chance <= climbing <= ceiling
    assert turns == [ceiling, 0.0]
    assert (np.array(steps[1:]) >= 0).all()
    assert climbing > steps[0] + 0.1


def test_the_prompt_shows_placeholders_of_an_expression_as_they_are(pictures):
    pictures.wording = "the {{outline}} of {}"
    observation = started(dataset=pictures, index=1)[1][0]
    assert re.search(r"the \{outline\} of 1 in the image", observation["prompt"])
