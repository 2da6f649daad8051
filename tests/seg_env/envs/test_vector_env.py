"""The vector environment gives what single environments give, in fewer calls."""

import warnings
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor

from rewards import Reward, RewardSum
from seg_env.envs.core import ReferringCore
from seg_env.envs.referring import ReferringSegmentationEnv
from seg_env.envs.vector import ReferringSegmentationVectorEnv
from seg_env.grammar import encode

SCENES = "SimpleSeg-Scenes-v0"
RESULTS = {"iou", "valid", "issues", "num_vertices"}


class Counting(Reward):
    """The number of answers scored, noting how it is called."""

    name = "counting"

    def __init__(self):
        self.calls = []

    def __call__(self, predictions, targets):
        self.calls.append((len(predictions), len({id(target) for target in targets})))
        return np.zeros(len(predictions))


def answers_to(dataset, indices, generator):
    """Honest outlines, each moved a little, with some rubbish among them."""
    texts = []
    for number, index in enumerate(indices):
        shift = generator.normal(0, 0.03, 2)
        text = encode([ring + shift for ring in dataset[index].target.outline(0.01)])
        texts.append(("nothing", text[:-9], text)[min(number % 7, 2)])
    return texts


def pair(dataset, mode, number=5, **arguments):
    """Our vector environment, and Gymnasium's over single environments."""
    ours = ReferringSegmentationVectorEnv(
        dataset, num_envs=number, autoreset_mode=mode, **arguments
    )
    singles = [lambda: ReferringSegmentationEnv(dataset, **arguments)] * number
    return ours, SyncVectorEnv(singles, autoreset_mode=mode)


def assert_equal_on(reference, infos):
    """All that Gymnasium reports is there and equal; ours may say more."""
    assert reference.keys() <= infos.keys()
    for key, expected in reference.items():
        if isinstance(expected, dict):
            assert infos[key].keys() == expected.keys()
        assert data_equivalence(infos[key], expected, exact=True), key


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
@pytest.mark.parametrize("image_size", [None, 48], ids=["native", "letterboxed"])
@pytest.mark.parametrize("source", ["scenes", "pictures"])
def test_it_equals_gymnasiums_vector_of_single_environments(request, source, image_size, mode):
    dataset = request.getfixturevalue(source)
    ours, reference = pair(dataset, mode, image_size=image_size)
    assert ours.observation_space == reference.observation_space
    assert ours.action_space == reference.action_space
    generator = np.random.default_rng(0)
    observations, infos = ours.reset(seed=11)
    expected_observations, expected_infos = reference.reset(seed=11)
    for _ in range(4):
        assert data_equivalence(observations, expected_observations, exact=True)
        assert observations in ours.observation_space
        assert_equal_on(expected_infos, infos)
        actions = answers_to(dataset, infos["index"], generator)
        observations, *numbers, infos = ours.step(actions)
        expected_observations, *expected_numbers, expected_infos = reference.step(actions)
        assert data_equivalence(numbers, expected_numbers, exact=True)
        if mode == "Disabled":
            assert data_equivalence(observations, expected_observations, exact=True)
            assert_equal_on(expected_infos, infos)
            observations, infos = ours.reset()
            expected_observations, expected_infos = reference.reset()


@pytest.mark.parametrize("seed", [3, [5, 5, 9], [1, None, 2]], ids=str)
def test_seeds_are_given_as_to_gymnasiums_vector(scenes, seed):
    ours, reference = pair(scenes, "SameStep", number=3)
    for environment in (ours, reference):
        environment.reset(seed=[7, 8, 9])
    assert_equal_on(reference.reset(seed=seed)[1], ours.reset(seed=seed)[1])


def test_some_environments_can_be_reset_alone(scenes):
    ours, reference = pair(scenes, "Disabled", number=4)
    mask = np.array([True, False, False, True])
    for environment in (ours, reference):
        environment.reset(seed=1)
        environment.step(["[]"] * 4)
    partial = ours.reset(seed=4, options={"reset_mask": mask})
    expected = reference.reset(seed=4, options={"reset_mask": mask.copy()})
    assert data_equivalence(partial, expected, exact=True)
    with pytest.raises(ResetNeeded, match=r"\[1, 2\]"):
        ours.step(["[]"] * 4)


def test_what_was_answered_and_what_is_asked_next_are_told_apart(scenes):
    envs = ReferringSegmentationVectorEnv(scenes, num_envs=3, rewards="mask_iou=1 format=0")
    _, asked = envs.reset(seed=0)
    exact = [encode(scenes[index].target.rings, decimals=9) for index in asked["index"]]
    observations, rewards, terminated, truncated, infos = envs.step([exact[0], "[]", exact[2]])
    assert (
        rewards.tolist() == infos["iou"].tolist() == infos["reward/mask_iou"].tolist() == [1, 0, 1]
    )
    assert infos["reward/format"].tolist() == [1.0, 0.0, 1.0]  # something is there to outline
    assert rewards.dtype == np.float64
    assert terminated.tolist() == [True] * 3
    assert truncated.tolist() == [False] * 3
    assert infos["final_info"]["sample_id"].tolist() == asked["sample_id"].tolist()
    assert infos["final_info"]["iou"].tolist() == [1, 0, 1]
    next_ones = [scenes[index] for index in infos["index"]]
    assert infos["sample_id"].tolist() == [sample.id for sample in next_ones]
    for row, sample in enumerate(next_ones):
        np.testing.assert_array_equal(observations["image"][row], sample.image)
        np.testing.assert_array_equal(
            infos["final_obs"][row]["image"], scenes[asked["index"][row]].image
        )


def test_64_answers_scored_together_equal_64_scored_alone(scenes):
    generator = np.random.default_rng(5)
    indices = generator.integers(len(scenes), size=64)
    texts = answers_to(scenes, indices, generator)
    rewards = "mask_iou=1.0 centroid_distance=0.2 format=0.1"
    envs = ReferringSegmentationVectorEnv(
        scenes, num_envs=64, autoreset_mode="Disabled", rewards=rewards
    )
    envs.reset(options={"indices": indices})
    _, together, _, _, infos = envs.step(texts)
    env = ReferringSegmentationEnv(scenes, rewards=rewards)
    for row, (index, text) in enumerate(zip(indices, texts, strict=True)):
        env.reset(options={"index": index})
        _, alone, _, _, info = env.step(text)
        assert together[row] == alone
        assert {key: infos[key][row] for key in info} == info
    core = ReferringCore(scenes, rewards=rewards)
    scores = core.score(texts, [core.ask(index) for index in indices])
    assert scores.total.tolist() == together.tolist()
    assert scores.iou.tolist() == infos["iou"].tolist()
    assert len(set(together)) > 30  # the answers are not all alike


def test_a_question_asked_many_times_is_loaded_once_and_scored_in_one_call(pictures):
    counting = Counting()
    envs = ReferringSegmentationVectorEnv(
        pictures,
        num_envs=8,
        autoreset_mode="Disabled",
        rewards=RewardSum.from_spec([(counting, 1.0)]),
    )
    observations, _ = envs.reset(options={"indices": [1, 1, 1, 1, 3, 3, 3, 3]})
    assert pictures.loaded == [1, 3]
    envs.step(["[]"] * 8)
    assert counting.calls == [(8, 2)]
    assert pictures.loaded == [1, 3]
    assert not np.shares_memory(observations["image"][0], observations["image"][1])


def test_a_mode_that_resets_within_the_step_loads_the_next_questions(pictures):
    envs = ReferringSegmentationVectorEnv(pictures, num_envs=4)
    envs.reset(options={"indices": [0, 1, 2, 3]})
    envs.step(["[]"] * 4)
    assert len(pictures.loaded) > 4


def test_observations_belong_to_the_caller(scenes):
    envs = ReferringSegmentationVectorEnv(scenes, num_envs=2, autoreset_mode="Disabled")
    first, _ = envs.reset(options={"indices": [4, 4]})
    kept = first["image"].copy()
    first["image"][:] = 0
    second = envs.step(["[]", "[]"])[0]["image"]
    np.testing.assert_array_equal(second, kept)
    second[:] = 0
    np.testing.assert_array_equal(envs.reset(options={"indices": [4, 4]})[0]["image"], kept)


def test_make_vec_uses_it_and_its_specification_is_json():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = gym.make_vec(SCENES, num_envs=3, split="val", image_size=32)
        disabled = gym.make_vec(SCENES, num_envs=3, autoreset_mode="Disabled")
    assert type(envs.unwrapped) is ReferringSegmentationVectorEnv
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert disabled.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert envs.autoreset_mode is AutoresetMode.SAME_STEP  # where TorchRL looks
    assert disabled.autoreset_mode is AutoresetMode.DISABLED
    again = gym.make_vec(type(envs.spec).from_json(envs.spec.to_json()))
    assert again.num_envs == 3
    assert data_equivalence(again.reset(seed=1), envs.reset(seed=1), exact=True)
    assert len(envs.dataset) == 4096
    for made in (envs, disabled, again):
        made.close()
        made.close()


def test_text_is_refused_in_shared_memory_that_would_lose_it():
    with pytest.raises(ValueError, match="shared_memory=False") as caught:
        gym.make_vec(SCENES, num_envs=2, vectorization_mode="async", split="val", size=32)
    assert "all text would read '000...'" in str(caught.value.__cause__)


@pytest.mark.parametrize(("mode", "settings"), [("sync", {}), ("async", {"shared_memory": False})])
def test_gymnasiums_own_vectors_work_too(mode, settings):
    envs = gym.make_vec(
        SCENES, num_envs=2, vectorization_mode=mode, vector_kwargs=settings, split="val", size=32
    )
    observations, _ = envs.reset(seed=0)
    assert observations["image"].shape == (2, 32, 32, 3)
    assert observations["prompt"][1].startswith("Output the polygon coordinates of the ")
    assert envs.step(envs.action_space.sample())[2].all()
    envs.close()


@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
def test_vectors_of_stable_baselines3_carry_text(kind):
    make = partial(gym.make, f"seg_env:{SCENES}", split="val", size=32, rewards="format=1.0")
    envs = VecMonitor(kind([make, make]))
    single = gym.make(SCENES, split="val", size=32)
    envs.seed(5)
    observations = envs.reset()
    for row in range(2):
        expected, _ = single.reset(seed=5 + row)
        assert observations["prompt"][row] == expected["prompt"]
        assert (observations["image"][row] == expected["image"]).all()
    _, rewards, done, infos = envs.step(["[[[0.1,0.1],[0.9,0.1],[0.5,0.9]]]", "no"])
    assert (rewards.tolist(), done.tolist()) == ([1.0, 0.0], [True, True])
    assert infos[0]["episode"]["r"] == 1.0
    assert infos[0]["terminal_observation"]["prompt"] == observations["prompt"][0]
    envs.close()


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_vector_wrappers_understand_it(scenes, mode):
    envs = ReferringSegmentationVectorEnv(
        scenes, num_envs=2, autoreset_mode=mode, rewards="format=1.0"
    )
    envs = DictInfoToList(RecordEpisodeStatistics(envs))
    _, infos = envs.reset(seed=0)
    assert infos[0].keys() == {"sample_id", "dataset", "index", "task"}
    for _ in range(2):
        infos = envs.step(["[[[0.1,0.1],[0.9,0.1],[0.5,0.9]]]"] * 2)[4]
        assert [info["episode"]["r"] for info in infos] == [1.0, 1.0]
        assert [info["episode"]["l"] for info in infos] == [1, 1]
        assert infos[0].keys() >= RESULTS
        if mode == "Disabled":
            envs.reset(options={"reset_mask": np.array([True, True])})


def test_rendering_shows_every_environment(scenes):
    envs = ReferringSegmentationVectorEnv(
        scenes, num_envs=2, autoreset_mode="Disabled", render_mode="ansi"
    )
    with pytest.raises(ResetNeeded):
        envs.render()
    envs.reset(options={"indices": [0, 1]})
    assert all("waiting" in text for text in envs.render())
    envs.step(["[]", "[[[0.1,0.1],[0.9,0.1],[0.5,0.9]]]"])
    empty, triangle = envs.render()
    assert "0 vertices" in empty
    assert "3 vertices" in triangle
    assert ReferringSegmentationVectorEnv(scenes).render() is None


def test_steps_out_of_turn_need_a_reset(scenes):
    envs = ReferringSegmentationVectorEnv(scenes, num_envs=2, autoreset_mode="Disabled")
    with pytest.raises(ResetNeeded):
        envs.step(["[]"] * 2)
    with pytest.raises(ResetNeeded, match="never been reset"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    envs.reset()
    envs.step(["[]"] * 2)
    with pytest.raises(ResetNeeded):
        envs.step(["[]"] * 2)


@pytest.mark.parametrize(
    ("actions", "error", "message"),
    [
        ("[]", TypeError, "a single str; give 2 answers"),
        (["[]"], ValueError, "1 answers for 2 environments"),
        (["[]", None], TypeError, "answer 1 is a NoneType"),
        (np.zeros(2), TypeError, "answer 0 is a float64"),
    ],
    ids=str,
)
def test_wrong_actions_are_explained(scenes, actions, error, message):
    envs = ReferringSegmentationVectorEnv(scenes, num_envs=2)
    envs.reset()
    with pytest.raises(error, match=message):
        envs.step(actions)
    envs.step(np.array(["[]", "[]"]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"indices": [1]}, ValueError, r"shape \(1,\).*2 environments"),
        ({"indices": [1, 64]}, IndexError, r'options\["indices"\]\[1\] is 64.*0 to 63'),
        ({"indices": [-1, 0]}, IndexError, "is -1"),
        ({"indices": [0.0, 1.0]}, TypeError, "whole numbers"),
        ({"indices": "ab"}, TypeError, "'ab'"),
        ({"index": 1}, ValueError, r"\['index'\].*'indices', 'reset_mask'"),
        ({"reset_mask": [True, True]}, TypeError, "numpy array of bool"),
        ({"reset_mask": np.array([True])}, ValueError, r"shape \(1,\)"),
        ({"reset_mask": np.array([False, False])}, ValueError, "at least one True"),
    ],
    ids=str,
)
def test_wrong_options_are_explained_and_change_nothing(scenes, options, error, message):
    envs = ReferringSegmentationVectorEnv(scenes, num_envs=2)
    _, before = envs.reset(seed=0)
    with pytest.raises(error, match=message):
        envs.reset(seed=1, options=options)
    assert envs.step(["[]"] * 2)[4]["final_info"]["index"].tolist() == before["index"].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs=0"),
        ({"autoreset_mode": "NextStep"}, r"'NextStep'.*'SameStep', 'Disabled'"),
        ({"task": "point->outline"}, "task='point->outline'"),
    ],
    ids=str,
)
def test_wrong_arguments_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReferringSegmentationVectorEnv(**arguments)


def test_the_number_of_seeds_must_fit(scenes):
    with pytest.raises(ValueError, match="3 seeds for 2 environments"):
        ReferringSegmentationVectorEnv(scenes, num_envs=2).reset(seed=[1, 2, 3])


def test_every_answer_has_its_question(scenes):
    core = ReferringCore(scenes)
    with pytest.raises(ValueError, match="2 answers to 1 questions"):
        core.read(["[]", "[]"], [core.ask(0)])
