"""GSPO's relatives as settings of the agent: losses and dynamic sampling."""

import numpy as np
import pytest
import torch
from agents_fixtures import cloned_policy, same_parameters, scene_environment
from identity_tasks import OneToken, digits_policy

from agents.advantages import degenerate_groups
from agents.gspo import GSPO, GSPOConfig, replace_degenerate
from agents.losses import LOSSES
from agents.rollout import Prompts, Rollout


def make_agent(policy=None, env=None, **settings):
    config = GSPOConfig(
        **{
            "prompts_per_update": 4,
            "group_size": 4,
            "max_new_tokens": 30,
            "learning_rate": 1e-3,
            "muon": False,
            **settings,
        }
    )
    return GSPO(policy or cloned_policy(), env or scene_environment(config), config)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_and_reports_the_same_metrics(loss):
    rows = []
    agent = make_agent(loss=loss)
    agent.learn(2, lambda update, metrics: rows.append(metrics))
    assert not same_parameters(agent.policy, cloned_policy())
    for row in rows:
        assert all(np.isfinite(value) for value in row.values())
        assert row["train/ratio_max"] >= 1
        assert {"train/policy_loss", "train/clip_fraction", "train/approx_kl"} <= row.keys()


def test_clips_are_those_of_the_loss_unless_given():
    def clips(**settings):
        config = GSPOConfig(**settings)
        return LOSSES[config.loss].clips_of(config)

    assert clips(loss="dapo") == (0.2, 0.28)
    assert clips(loss="dapo", clip_high=0.5) == (0.2, 0.5)
    assert clips(clip_low=0.0) == (0.0, 0.015)


def test_gspo_token_has_the_loss_and_gradient_of_gspo():
    found = []
    for loss in ("gspo", "gspo_token"):
        agent = make_agent(loss=loss)
        rollout, _ = agent.collect()
        agent.credit(rollout)
        # As if a step had been made since: ratios differ from 1, and some are clipped.
        rollout.old_log_probs = rollout.old_log_probs + 0.1 * torch.sin(rollout.tokens)
        value, metrics = agent.loss(agent._score(agent.policy, rollout), rollout)
        value.backward()
        gradients = [each.grad for each in agent.policy.model.parameters() if each.grad is not None]
        found.append((value, torch.cat([each.flatten() for each in gradients]), metrics))
    assert 0 < found[0][2]["clip_fraction"] < 1, "the case must show clipping"
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-7)


def test_dr_grpo_does_not_divide_by_the_spread():
    agent = make_agent(loss="dr_grpo")
    rollout, _ = agent.collect()
    agent.credit(rollout)
    groups = rollout.rewards.view(4, 4)
    expected = (groups - groups.mean(1, keepdim=True)).flatten()
    torch.testing.assert_close(rollout.advantages, expected)


def rollout_of(policy, rewards, first_prompt, width):
    """A rollout of groups of two answers with given rewards, which tell whose they are."""
    rewards = torch.tensor(rewards)
    prompts = len(rewards) // 2
    asked = Prompts.prepare(
        policy,
        [np.zeros((16, 16, 3), np.uint8)] * prompts,
        ["it " * (first_prompt + i) for i in range(prompts)],
    )
    tokens = torch.full((len(rewards), width), 7) + torch.arange(len(rewards))[:, None]
    mask, zeros = torch.ones_like(tokens), torch.zeros(len(rewards), width)
    return Rollout(asked, tokens, mask, mask, zeros, zeros, rewards, token_rewards=zeros + 1)


def test_groups_that_teach_nothing_are_replaced_by_others():
    policy = digits_policy()
    rollout = rollout_of(policy, [0.5, 0.5, 0.1, 0.2, 0.0, 0.0, 1.0, 1.0], 1, width=3)
    spare = rollout_of(policy, [0.3, 0.3, 0.4, 0.6, 0.7, 0.9], 20, width=5)
    filled = replace_degenerate(rollout, spare, policy)
    np.testing.assert_allclose(filled.rewards, [0.1, 0.2, 0.5, 0.5, 0.4, 0.6, 0.7, 0.9])
    assert filled.prompts == 4
    assert filled.mask.sum(-1).tolist() == [3, 3, 3, 3, 5, 5, 5, 5]
    assert filled.tokens.shape == filled.token_rewards.shape == (8, 5)
    texts = policy.tokenizer.batch_decode(filled.inputs["input_ids"], skip_special_tokens=True)
    assert [text.count("it") for text in texts] == [2, 1, 21, 22]
    assert replace_degenerate(spare, rollout, policy).rewards.tolist() == pytest.approx(
        [0.4, 0.6, 0.7, 0.9, 0.1, 0.2]
    )


def test_a_rollout_that_teaches_nothing_at_all_is_replaced_whole():
    policy = digits_policy()
    rollout = rollout_of(policy, [0.5, 0.5, 0.0, 0.0], 1, width=3)
    spare = rollout_of(policy, [0.1, 0.2, 0.3, 0.3, 0.4, 0.6], 20, width=5)
    filled = replace_degenerate(rollout, spare, policy)
    np.testing.assert_allclose(filled.rewards, [0.1, 0.2, 0.4, 0.6])


def test_a_spare_rollout_that_teaches_nothing_either_changes_nothing():
    policy = digits_policy()
    rollout = rollout_of(policy, [0.5, 0.5, 0.1, 0.2], 1, width=3)
    assert replace_degenerate(rollout, rollout_of(policy, [1.0, 1.0], 1, 3), policy) is rollout


def test_dynamic_sampling_collects_until_every_group_teaches_or_gives_up():
    def collected(rounds):
        agent = make_agent(
            digits_policy(),
            OneToken(8 * 4),
            prompts_per_update=8,
            max_new_tokens=1,
            dynamic_sampling=True,
            dynamic_rounds=rounds,
        )
        return agent.collect()

    rollout, metrics = collected(20)
    # Every tenth answer is right, so that most groups of four are all wrong.
    assert metrics["rollout/degenerate_groups"] > 0.3
    assert metrics["rollout/groups_left_degenerate"] == 0
    assert 0 < metrics["rollout/further_rounds"] < 20
    assert not degenerate_groups(rollout.rewards, 4).any()
    assert rollout.prompts == 8
    rollout, metrics = collected(1)
    assert metrics["rollout/further_rounds"] == 1
    assert 0 < metrics["rollout/groups_left_degenerate"] < metrics["rollout/degenerate_groups"]
    assert rollout.prompts == 8
