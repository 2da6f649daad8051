"""TorchRL's wrapper steps our vector environment: texts come through, resets are partial."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensordict import NonTensorStack, TensorDict
from torchrl.envs import GymWrapper

import seg_env  # noqa: F401  (registers the environments)

ANSWERS = ["[[[0.1,0.1],[0.6,0.1],[0.6,0.7]]]", "[]", "no"]


def vector(**arguments):
    return gym.make_vec(
        "SimpleSeg-Scenes-v0", num_envs=3, split="val", size=64, rewards="mask_iou=1 format=0.1",
        autoreset_mode="Disabled", **arguments,
    )  # fmt: skip


@pytest.mark.parametrize("answers", [ANSWERS, ["[]"] * 3])
def test_it_gives_what_the_environment_gives(answers):
    ours, wrapped = vector(), GymWrapper(vector())
    wrapped.set_seed(7)  # which asks, too
    ours.reset(seed=7)
    for _ in range(2):
        asked = wrapped.reset()
        asked["action"] = NonTensorStack(*answers)
        found = wrapped.step(asked)["next"]
        observations, _ = ours.reset()
        assert list(asked["prompt"]) == list(observations["prompt"])
        assert (asked["image"].numpy() == observations["image"]).all()
        _, rewards, terminated, _, _ = ours.step(answers)
        assert found["reward"][:, 0].numpy() == pytest.approx(rewards.astype(np.float32))
        assert found["terminated"][:, 0].tolist() == terminated.tolist()


def test_only_episodes_that_have_ended_are_reset():
    wrapped = GymWrapper(vector(step_mode="vertex"))
    wrapped.set_seed(1)
    asked = wrapped.reset()
    asked["action"] = NonTensorStack("]", "[0.1,0.1]", "[0.2,0.1]")
    after = wrapped.step(asked)["next"]
    assert after["done"][:, 0].tolist() == [True, False, False]
    rows = TensorDict({"_reset": torch.tensor([[True], [False], [False]])}, batch_size=[3])
    again = wrapped.reset(after.exclude("reward").update(rows))
    assert list(again["prompt"])[1:] == list(asked["prompt"])[1:]
    assert [text.count(".") > 0 for text in again["outline"]] == [False, True, True]
