"""What is not finite is never applied, and never ends well."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from agents_fixtures import (
    OUTLINES_ONLY,
    cloned_policy,
    parameters_of,
    scene_demonstrations,
    scene_environment,
    small_inputs,
    small_policy,
)
from torch import nn

from agents.behavior_cloning import BehaviorCloning, BehaviorCloningConfig
from agents.gspo import GSPO, GSPOConfig
from agents.policy.finite import DivergedError, require_finite
from agents.policy.sampling import sample
from agents.ppo import PPO, PPOConfig
from agents.training import make_engine
from agents.training.checkpoints import write_checkpoint, write_policy
from agents.training.settings import OptimizerSettings
from rewards import Reward
from rewards.composite import RewardValueError
from seg_env.errors import ExplainedError

ROOT = Path(__file__).parents[3]
TINY = {"prompts_per_update": 2, "group_size": 3, "max_new_tokens": 8}


def one_step(engine, factor):
    """A step whose loss, and with it the gradient, is multiplied."""
    inputs = torch.linspace(-1, 1, 8).view(2, 4)
    loss = engine.forward(lambda: engine.module(inputs).square().mean())
    engine.backward(loss * factor)
    return engine.step(0.1)


def check_engine(settings):
    """Steps that are not finite leave weights and optimizer as they are; the next one counts."""
    torch.manual_seed(0)
    engines = [make_engine(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), settings)]
    module = engines[0].module
    one_step(engines[0], 1.0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = {name: dict(value) for name, value in engines[0].state_dict().items()}
    state = {n: {k: v.clone() for k, v in one.items()} for n, one in state.items()}
    for factor in (math.nan, math.inf):
        assert not math.isfinite(one_step(engines[0], factor))
        for name, value in module.state_dict().items():
            assert torch.equal(value, before[name]), name
        for name, one in engines[0].state_dict().items():
            assert all(torch.equal(value, state[name][key]) for key, value in one.items()), name
    assert math.isfinite(one_step(engines[0], 1.0))
    assert not torch.equal(module.state_dict()["0.weight"], before["0.weight"])
    assert all(value.isfinite().all() for value in module.state_dict().values())


@pytest.mark.parametrize("muon", [True, False])
def test_a_step_that_is_not_finite_changes_nothing(muon):
    check_engine(OptimizerSettings(muon=muon))


@pytest.mark.parametrize("choice", ["zero1", "zero2"])
def test_nor_does_it_under_deepspeed(choice):
    code = f"""
import sys
sys.path[:0] = ["tests", "tests/agents/training"]
from test_finite import OptimizerSettings, check_engine
check_engine(OptimizerSettings(muon=True, deepspeed="{choice}"))
print("as it was")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert "as it was" in done.stdout, done.stderr


class Huge(Reward):
    """What a bug in a reward may return."""

    value = 1e308

    def __call__(self, predictions, targets):
        return np.full(len(predictions), self.value)


class Length(Reward):
    """Differs among the answers of any policy."""

    def __call__(self, predictions, targets):
        return np.array([len(set(prediction.text)) / 10 for prediction in predictions])


def on_policy(agent_type, config_type, policy, reward=Length, weight=1.0, **settings):
    config = config_type(**{**TINY, "learning_rate": 1e-3, **settings})
    return agent_type(policy, scene_environment(config, rewards=[(reward(), weight)]), config)


def agents_of(kind, learning_rate):
    if kind == "cloning":
        policy = small_policy()
        config = BehaviorCloningConfig(
            batch_size=4, learning_rate=learning_rate, warmup=0.0, **OUTLINES_ONLY
        )
        return BehaviorCloning(policy, scene_demonstrations(policy.processor, 8), config)
    agent_type, config_type = {"gspo": (GSPO, GSPOConfig), "ppo": (PPO, PPOConfig)}[kind]
    return on_policy(agent_type, config_type, small_policy(), learning_rate=learning_rate)


@pytest.mark.parametrize("kind", ["gspo", "ppo", "cloning"])
def test_a_rate_that_wrecks_the_policy_is_no_training_that_went_well(kind):
    agent = agents_of(kind, 1e30)
    with pytest.raises(DivergedError, match="not finite"):
        agent.learn(20)
    assert agent.applied <= agent.update < 20


@pytest.mark.parametrize("kind", ["gspo", "ppo", "cloning"])
def test_three_steps_in_a_row_are_the_end_and_none_was_applied(kind, monkeypatch):
    agent = agents_of(kind, 1e-3)
    before = parameters_of(agent.policy)
    backward = agent.engine.backward
    monkeypatch.setattr(agent.engine, "backward", lambda loss: backward(loss * math.nan))
    with pytest.raises(DivergedError, match=r"the last 3 steps were not finite.*update 0"):
        agent.learn(20)
    for name, value in agent.policy.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert agent.skipped == 3


def test_a_single_bad_step_is_passed_over_but_not_as_the_last(monkeypatch):
    bad = {2}
    agent = agents_of("cloning", 1e-3)
    backward = agent.engine.backward
    monkeypatch.setattr(
        agent.engine,
        "backward",
        lambda loss: backward(loss * (math.nan if agent.update in bad else 1.0)),
    )
    norms = []
    agent.learn(5, lambda update, metrics: norms.append(metrics["train/grad_norm"]))
    assert [math.isfinite(norm) for norm in norms] == [True, True, False, True, True]
    assert (agent.skipped, agent.applied) == (0, 5)
    bad.add(5)
    with pytest.raises(DivergedError, match="last 1 steps"):
        agent.learn(6)


def test_a_policy_with_a_weight_that_is_not_finite_answers_nothing_and_is_not_written(tmp_path):
    policy = cloned_policy()
    policy.model.get_input_embeddings().weight.data[3, 1] = math.nan
    with pytest.raises(DivergedError, match="log-probabilities are not finite"):
        sample(policy, small_inputs(policy), max_new_tokens=4)
    with pytest.raises(DivergedError, match=r"the policy has .*: 1 of \d+ in .*embed"):
        require_finite(policy.model, "the policy")
    for write in (write_policy, lambda path, p: write_checkpoint(path, p, {}, {})):
        with pytest.raises(DivergedError, match="not written"):
            write(tmp_path / "folder", policy)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "weight", "told"),
    [
        (1e308, 1.0, r"reward 'Huge': .* at most 1e\+06, got 1e\+308 for prediction 0"),
        (math.nan, 1.0, "got nan for prediction 0"),
        (-2e6, 0.0, "got -2000000.0"),
        (10.0, 1e6, r"add up to 1e\+07, beyond 1e\+06: give smaller weights"),
    ],
)
def test_rewards_beyond_a_million_are_refused(value, weight, told, monkeypatch):
    monkeypatch.setattr(Huge, "value", value)
    agent = on_policy(GSPO, GSPOConfig, small_policy(), Huge, weight)
    assert issubclass(RewardValueError, ExplainedError)  # a command ends in a sentence
    with pytest.raises(RewardValueError, match=told):
        agent.learn(1)


def test_a_million_is_a_reward(monkeypatch):
    monkeypatch.setattr(Huge, "value", 1e6)
    agent = on_policy(GSPO, GSPOConfig, small_policy(), Huge, -1.0)
    agent.learn(1)
    assert agent.applied == 1
