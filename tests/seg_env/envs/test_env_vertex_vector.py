"""Many outlines drawn vertex by vertex, each episode as long as it wants."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from absent_scenes import SomeAbsent
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import SyncVectorEnv

from rewards import Reward, RewardSum
from seg_env.envs.referring import ReferringSegmentationEnv
from seg_env.envs.vector import ReferringSegmentationVectorEnv

SCENES = "SimpleSeg-Scenes-v0"
TRIANGLE = ["[0.1,0.1]", "[0.9,0.1]", "[0.5,0.8]"]


@pytest.fixture(scope="module")
def data():
    return SomeAbsent()


def make_vector(dataset, number, mode="Disabled", **arguments):
    return ReferringSegmentationVectorEnv(
        dataset, num_envs=number, autoreset_mode=mode, step_mode="vertex", **arguments
    )


@pytest.mark.parametrize("image_size", [None, 40])
def test_it_equals_gymnasiums_vector_of_single_environments(data, image_size):
    arguments = {"step_mode": "vertex", "max_vertices": 6, "image_size": image_size}
    ours = make_vector(data, 5, "SameStep", max_vertices=6, image_size=image_size)
    singles = [lambda: ReferringSegmentationEnv(data, **arguments)] * 5
    reference = SyncVectorEnv(singles, autoreset_mode="SameStep")
    assert ours.observation_space == reference.observation_space
    assert ours.action_space == reference.action_space
    reference.action_space.seed(3)
    found, expected = ours.reset(seed=11), reference.reset(seed=11)
    assert data_equivalence(found, expected, exact=True)
    ends = 0
    for _ in range(25):
        actions = reference.action_space.sample()
        observations, *numbers, infos = ours.step(actions)
        expected_observations, *expected_numbers, expected_infos = reference.step(actions)
        assert observations in ours.observation_space
        assert data_equivalence(observations, expected_observations, exact=True)
        assert data_equivalence(numbers, expected_numbers, exact=True)
        assert_says_as_much(expected_infos, infos)
        ends += "final_obs" in infos
    assert ends > 3


def assert_says_as_much(reference, infos):
    """All that Gymnasium reports is there and equal; ours may say more about what ended."""
    for key in [key for key in reference if not key.startswith("_")]:
        holds = reference[f"_{key}"]
        assert (infos[f"_{key}"] >= holds).all(), key
        if isinstance(reference[key], dict):
            assert data_equivalence(infos[key], reference[key], exact=True)
        else:
            assert data_equivalence(infos[key][holds], reference[key][holds], exact=True), key
    assert ("final_obs" in infos) == ("final_obs" in reference)


def test_episodes_that_ended_wait_for_the_others(data):
    envs = make_vector(data, 3)
    first, asked = envs.reset(options={"indices": [0, 2, 4]})
    envs.step(["]", *TRIANGLE[:2]])
    with pytest.raises(ResetNeeded, match=r"\[0\]"):
        envs.step(TRIANGLE)
    with pytest.raises(TypeError, match="answer 1 is a NoneType"):
        envs.step([None, None, "]"])
    observations, rewards, terminated, truncated, infos = envs.step([None, "[0.3,0.2]", "]"])
    np.testing.assert_array_equal(observations["image"][0], first["image"][0])
    assert rewards[0] == 0.0
    assert terminated.tolist() == [True, False, True]
    assert truncated.tolist() == [False] * 3
    assert infos["_iou"].tolist() == infos["_fault"].tolist() == [False, True, True]
    assert infos["vertices_left"][1] == 126
    envs.step([None, "]", None])
    with pytest.raises(ResetNeeded, match=r"\[0, 1, 2\]"):
        envs.step([None] * 3)
    again = envs.reset(options={"reset_mask": np.array([True, False, False]), "indices": [2, 2, 2]})
    assert again[1]["_index"].tolist() == [True, False, False]
    assert envs.step(["]", None, None])[2].all()
    assert asked["vertices_left"].tolist() == [128] * 3


def test_one_reward_call_scores_the_whole_batch(data):
    class Counting(Reward):
        name = "counting"
        calls = ()

        def __call__(self, predictions, targets):
            self.calls += (len(predictions),)
            return np.zeros(len(predictions))

    counting = Counting()
    envs = make_vector(data, 4, rewards=RewardSum.from_spec([(counting, 1.0)]))
    envs.reset(seed=0)
    envs.step(["]", *TRIANGLE])
    envs.step([None, *TRIANGLE])
    assert counting.calls == (4, 3)


def test_make_finds_it_with_the_vector_version():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(SCENES, step_mode="vertex", max_vertices=7, size=32)
        envs = gym.make_vec(SCENES, num_envs=2, step_mode="vertex", size=32)
    assert env.reset(seed=0)[1]["vertices_left"] == 7
    assert type(envs.unwrapped) is ReferringSegmentationVectorEnv
    observations, _ = envs.reset(seed=0)
    assert observations["outline"] == ("", "")
    assert envs.step(envs.action_space.sample())[1].shape == (2,)
