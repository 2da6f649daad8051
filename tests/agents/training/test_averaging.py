"""The moving average of weights: its arithmetic, what is measured and saved, and resuming."""

import pytest
import torch
from agents_fixtures import parameters_of, scene_demonstrations, small_policy
from torch import nn

from agents.behavior_cloning import BehaviorCloning, BehaviorCloningConfig
from agents.training.averaging import WeightAverage


def test_by_hand():
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 1.0)
    average = WeightAverage(module, 0.5)
    nn.init.constant_(module.weight, 2.0)
    average.follow()  # decay 1 / 10
    with average.applied():
        assert module.weight.item() == pytest.approx(0.1 * 1 + 0.9 * 2)
    assert module.weight.item() == 2.0
    for _ in range(20):
        average.follow()
    nn.init.constant_(module.weight, 4.0)
    average.follow()  # decay 22 / 31, and so the one that was given
    with average.applied():
        assert module.weight.item() == pytest.approx(3.0, abs=1e-4)


def test_weights_come_back_after_an_error():
    module = nn.Linear(2, 2)
    average = WeightAverage(module, 0.9)
    own = module.weight
    nn.init.constant_(module.weight, 3.0)
    with pytest.raises(KeyError), average.applied():
        raise KeyError
    assert module.weight is own
    assert (module.weight == 3).all()


def test_frozen_weights_are_left_alone():
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    assert list(WeightAverage(module, 0.9).state_dict()["weights"]) == ["weight"]


@pytest.mark.parametrize("decay", [1.0, -0.1, 1.5])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=f"average={decay}"):
        WeightAverage(nn.Linear(1, 1), decay)


def make_agent(average=0.8):
    policy = small_policy()
    shown = scene_demonstrations(policy.processor, 4)
    config = BehaviorCloningConfig(
        batch_size=2, average=average, points_until=0.0, boxes_until=0.0, outline_share=1.0
    )
    return BehaviorCloning(policy, shown, config)


def test_training_itself_is_the_same_and_the_average_is_measured():
    plain, averaged = make_agent(0.0), make_agent()
    for agent in (plain, averaged):
        agent.learn(3)
    for name, value in parameters_of(plain.policy).items():
        assert torch.equal(value, parameters_of(averaged.policy)[name]), name
    last = parameters_of(averaged.policy)
    with averaged.measured_weights():
        measured = parameters_of(averaged.policy)
    assert any(not torch.equal(measured[name], last[name]) for name in last)


def test_a_resumed_run_has_the_same_average(tmp_path):
    whole = make_agent()
    whole.learn(4)
    first, second = make_agent(), make_agent()
    first.learn(2)
    first.save(tmp_path / "checkpoint")
    second.load(tmp_path / "checkpoint")
    second.learn(4)
    with whole.measured_weights(), second.measured_weights():
        for name, value in parameters_of(whole.policy).items():
            assert torch.equal(value, parameters_of(second.policy)[name]), name
