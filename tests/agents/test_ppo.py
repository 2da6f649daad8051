"""PPO: where rewards are placed, what the critic learns, and that it can be interrupted."""

import copy

import numpy as np
import pytest
import torch
from agents_fixtures import (
    cloned_policy,
    parameters_of,
    same_parameters,
    scene_environment,
    small_policy,
)
from identity_tasks import TenVertices, digits_policy

from agents.critic import ValueHead, regression_sums, ridge_regression
from agents.policy.scoring import score
from agents.ppo import PPO, PPOConfig, steer_coefficient


def make_agent(policy=None, **settings):
    config = PPOConfig(
        **{
            "prompts_per_update": 4,
            "group_size": 4,
            "max_new_tokens": 24,
            "learning_rate": 1e-3,
            "muon": False,
            "relative": False,
            "lam": 0.95,
            "epochs": 2,
            "kl_coefficient": 0.02,
            **settings,
        }
    )
    return PPO(policy or cloned_policy(), scene_environment(config), config)


def learn(agent, updates):
    rows = []
    agent.learn(updates, lambda update, metrics: rows.append(metrics))
    return rows


def credited(agent):
    """A rollout of the agent with everything that `loss` takes."""
    rollout, _ = agent.collect()
    metrics = agent.credit(rollout)
    return rollout, metrics


def test_the_reward_of_an_answer_is_on_its_last_token():
    agent = make_agent()
    rollout, _ = agent.collect()
    last = rollout.mask.sum(-1) - 1
    for row, place in enumerate(last.tolist()):
        expected = torch.zeros(rollout.mask.shape[1])
        expected[place] = rollout.rewards[row]
        torch.testing.assert_close(rollout.token_rewards[row], expected)
    assert len(set(last.tolist())) > 1, "the case must show lengths"


def test_rewards_of_vertices_are_on_the_tokens_that_complete_them():
    config = PPOConfig(
        prompts_per_update=1,
        minibatches=1,
        group_size=64,
        max_new_tokens=20,
        credit="vertex",
        muon=False,
        relative=False,
    )
    agent = PPO(digits_policy(), TenVertices(64), config)
    rollout, _ = agent.collect()
    for row, text in enumerate(agent.policy.texts(rollout.tokens, rollout.mask)):
        earned = agent.env.earned(0, text)
        torch.testing.assert_close(rollout.token_rewards[row, 1::2], torch.tensor(earned))
        assert not rollout.token_rewards[row, 0::2].any()
    assert rollout.token_rewards.sum() > 0, "the case must show rewards"


def test_vertex_credit_is_another_placement_of_the_same_rewards():
    whole, apart = (
        make_agent(credit=credit, max_new_tokens=60).collect()[0] for credit in ("answer", "vertex")
    )
    assert torch.equal(whole.tokens, apart.tokens)
    torch.testing.assert_close(whole.token_rewards.sum(-1), apart.token_rewards.sum(-1))
    assert not torch.equal(whole.token_rewards, apart.token_rewards)


def test_relative_rewards_are_those_of_an_answer_minus_the_mean_of_the_others():
    whole, relative = (make_agent(relative=flag).collect()[0] for flag in (False, True))
    groups = whole.rewards.view(4, 4)
    others = (groups.sum(1, keepdim=True) - groups) / 3
    expected = (groups - others).flatten()
    torch.testing.assert_close(relative.token_rewards.sum(-1), expected)
    moved = (relative.token_rewards != whole.token_rewards).nonzero()
    assert (moved[:, 1] == whole.mask.sum(-1)[moved[:, 0]] - 1).all()
    vertices = make_agent(relative=True, credit="vertex", max_new_tokens=60).collect()[0]
    groups = vertices.rewards.view(4, 4)
    others = (groups.sum(1, keepdim=True) - groups) / 3
    torch.testing.assert_close(
        vertices.token_rewards.sum(-1), (groups - others).flatten(), atol=1e-5, rtol=1e-4
    )


def test_the_divergence_from_the_warm_start_is_taken_from_the_reward_of_every_token():
    agent = make_agent(kl_coefficient=0.5, fit_critic=False, whiten=False)
    rollout, metrics = credited(agent)
    assert metrics["reference_kl"] == pytest.approx(0, abs=1e-4)
    with torch.no_grad():  # the warm start stays what it was
        agent.policy.model.get_input_embeddings().weight[:, 0] += 0.3
    rollout, metrics = credited(agent)
    reference = score(cloned_policy(), rollout.inputs, rollout.tokens, rollout.mask)
    divergence = (rollout.old_log_probs - reference.log_probs).detach() * rollout.mask
    assert metrics["reference_kl"] == pytest.approx(divergence.sum(-1).mean().item(), rel=1e-3)
    # The critic knows nothing yet, so returns are rewards discounted by lambda. By hand:
    rewards = rollout.token_rewards - 0.5 * divergence
    for row, length in enumerate(rollout.mask.sum(-1).tolist()):
        expected, running = [], 0.0
        for reward in reversed(rewards[row, :length].tolist()):
            running = reward + 0.95 * running
            expected.append(running)
        np.testing.assert_allclose(
            rollout.returns[row, :length], expected[::-1], rtol=1e-4, atol=1e-5
        )
    torch.testing.assert_close(rollout.advantages, rollout.returns)


def test_the_penalty_is_in_the_reward_and_not_in_the_loss():
    agent = make_agent(kl_coefficient=1e3, fit_critic=False, minibatches=1, epochs=1)
    (row,) = learn(agent, 1)
    # At the first step the policy is the warm start: whatever the weight, nothing is added.
    assert row["train/reference_kl"] == pytest.approx(0, abs=1e-4)
    assert abs(row["train/policy_loss"]) < 1e-3


def test_a_whitened_first_step_is_exactly_on_policy():
    (row,) = learn(make_agent(minibatches=1, epochs=1, fit_critic=False), 1)
    assert row["train/ratio_max"] == pytest.approx(1, abs=1e-5)
    assert row["train/clip_fraction"] == 0
    assert row["train/approx_kl"] == pytest.approx(0, abs=1e-6)
    assert row["train/policy_loss"] == pytest.approx(0, abs=1e-5)


@pytest.mark.rounding
def test_a_new_critic_expects_nothing_and_the_first_update_fits_it_alone():
    plain, fitted = make_agent(fit_critic=False), make_agent()
    rollout, metrics = credited(plain)
    assert not rollout.values.any()
    assert metrics["explained_variance"] == pytest.approx(0, abs=1e-6)
    rollout, metrics = credited(fitted)
    assert metrics["value"] == pytest.approx(rollout.rewards.mean().item(), rel=0.2)
    assert metrics["explained_variance"] > 0
    before = parameters_of(fitted.policy)
    learn(fitted, 1)
    after = parameters_of(fitted.policy)
    assert all(torch.equal(after[name], before[name]) for name in before)
    learn(fitted, 2)
    after = parameters_of(fitted.policy)
    assert not all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.rounding
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_the_critic_learns_what_a_fixed_policy_earns(critic):
    agent = make_agent(critic=critic, fit_critic=False, credit="vertex", max_new_tokens=60)
    # One rollout again and again: how much there is to foresee differs between rollouts.
    rollout, metrics = agent.collect()
    agent.collect = lambda: (copy.copy(rollout), dict(metrics))
    agent.config.value_clip = float("inf")
    agent.loss = _critic_only(agent)
    rows = learn(agent, 30)
    losses = [row["train/value_loss"] for row in rows]
    assert np.mean(losses[-3:]) < 0.7 * losses[0]


def _critic_only(agent):
    """The agent's loss on advantages of 0: nothing to learn for the policy."""
    ordinary = agent.loss

    def loss(scores, part):
        part.advantages = torch.zeros_like(part.advantages)
        return ordinary(scores, part)

    return loss


def test_a_separate_critic_leaves_the_policy_to_the_policy():
    agent = make_agent(critic="separate", fit_critic=False)
    rollout, _ = credited(agent)
    rollout.advantages = torch.zeros_like(rollout.advantages)
    agent.critic.head.weight.data.fill_(0.1)
    loss, _ = agent.loss(agent._score(agent.policy, rollout), rollout)
    loss.backward()
    gradients = [each.grad for each in agent.policy.model.parameters() if each.grad is not None]
    assert not any(gradient.any() for gradient in gradients)
    assert any(each.grad is not None and each.grad.any() for each in agent.critic.parameters())


def test_epochs_end_once_the_policy_has_moved_too_far():
    def steps(stop_kl):
        agent = make_agent(epochs=5, learning_rate=1e-2, fit_critic=False, stop_kl=stop_kl)
        made = []
        step = agent.engine.step
        agent.engine.step = lambda rate: made.append(rate) or step(rate)
        learn(agent, 2)
        return len(made)

    assert steps(0.0) == 2 * 5 * 2
    assert steps(1e-9) == 2 * 1 * 2
    assert 2 * 1 * 2 <= steps(0.01) < 2 * 5 * 2


def test_the_weight_of_the_divergence_follows_its_target():
    assert steer_coefficient(0.1, found=1.0, target=1.0, share=0.1) == 0.1
    assert steer_coefficient(0.1, found=9.0, target=1.0, share=0.1) == pytest.approx(0.1 * 1.02)
    assert steer_coefficient(0.1, found=0.0, target=1.0, share=0.1) == pytest.approx(0.1 * 0.98)
    assert steer_coefficient(0.1, found=1.1, target=1.0, share=0.5) == pytest.approx(0.1 * 1.05)
    with pytest.raises(ValueError, match=r"target_kl=0"):
        steer_coefficient(0.1, 1.0, 0.0, 0.1)
    # 16 answers at a horizon of 160: a tenth. Nothing has diverged at first.
    rows = learn(make_agent(kl_coefficient=0.1, target_kl=5.0, kl_horizon=160), 2)
    found = [row["train/kl_coefficient"] for row in rows]
    assert found == pytest.approx([0.1, 0.1 * 0.98], rel=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"kl_coefficient": 0.0},
        {"credit": "vertex", "target_kl": 0.1, "kl_horizon": 100},
        {"critic": "separate", "muon": True},
    ],
)
def test_going_on_from_a_checkpoint_gives_the_same_weights(tmp_path, settings):
    whole, rows = make_agent(**settings), []

    def save_half_way(update, metrics):
        rows.append(metrics)
        if update == 2:
            whole.save(tmp_path / "half")

    whole.learn(4, save_half_way)
    resumed = make_agent(**settings)
    resumed.load(tmp_path / "half")
    for ours, theirs in zip(learn(resumed, 4), rows[2:], strict=True):
        timeless = {key for key in ours if not key.startswith("time/")}
        assert {key: ours[key] for key in timeless} == {key: theirs[key] for key in timeless}
    assert same_parameters(resumed.policy, whole.policy)
    critics = [agent.critic.state_dict() for agent in (resumed, whole)]
    assert all(torch.equal(value, critics[1][name]) for name, value in critics[0].items())


@pytest.mark.rounding
def test_splitting_a_minibatch_to_save_memory_changes_nothing_but_rounding():
    first, second = (
        learn(make_agent(minibatches=1, epochs=1, prompts_per_forward=count, adam_epsilon=1e-4), 2)[
            -1
        ]
        for count in (0, 1)
    )
    for key in ("policy_loss", "value_loss", "explained_variance", "grad_norm", "reference_kl"):
        assert first[f"train/{key}"] == pytest.approx(second[f"train/{key}"], rel=1e-4, abs=1e-5)


def test_metrics_of_every_update():
    for row in learn(make_agent(), 2):
        assert all(np.isfinite(value) for value in row.values())
        names = ("policy_loss", "value_loss", "explained_variance", "approx_kl", "clip_fraction")
        others = ("entropy", "kl_coefficient", "reference_kl", "value", "grad_norm")
        assert {f"train/{name}" for name in (*names, *others)} <= row.keys()


def test_an_environment_without_vertex_credit_is_refused():
    config = PPOConfig(
        prompts_per_update=1, group_size=2, minibatches=1, credit="vertex", muon=False
    )

    class Plain(TenVertices):
        vertex_credit = property()

    with pytest.raises(TypeError, match=r"Plain has no vertex_credit"):
        PPO(small_policy(), Plain(2), config).collect()


def test_the_rate_of_a_head_scales_its_steps_and_not_its_start():
    slow, fast = ValueHead(3, rate=1.0), ValueHead(3, rate=10.0)
    hidden = torch.tensor([[1.0, -2.0, 0.5]])
    moved = []
    for head in (slow, fast):
        assert head(hidden).item() == 0
        optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
        (head(hidden) - 1).square().sum().backward()
        optimizer.step()
        moved.append(head(hidden).item())
    assert moved[0] == pytest.approx(0.01 * (1 + 2 + 0.5 + 1), rel=1e-3)
    assert moved[1] == pytest.approx(10 * moved[0], rel=1e-3)


def test_regression_equals_the_closed_form_and_adds_up():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 3, generator=generator) + 5
    targets = features @ torch.tensor([1.0, -2.0, 0.5]) + 3
    sums = sum(
        regression_sums(features[part], targets[part]) for part in (slice(0, 20), slice(20, 50))
    )
    weights, bias = ridge_regression(sums, 1e-9)
    torch.testing.assert_close(weights.float(), torch.tensor([1.0, -2.0, 0.5]), atol=1e-4, rtol=0)
    assert bias.item() == pytest.approx(3, abs=1e-3)
    # Ridge by its definition, with a bias that is not held down.
    weights, bias = ridge_regression(sums, 0.1)
    x = (features - features.mean(0)).double()
    damping = 0.1 * x.square().sum(0).mean() * torch.eye(3)
    expected = torch.linalg.solve(x.T @ x + damping, x.T @ (targets - targets.mean()).double())
    torch.testing.assert_close(weights, expected, atol=1e-5, rtol=1e-5)
    predicted = features.double() @ weights + bias
    assert predicted.mean().item() == pytest.approx(targets.mean().item(), abs=1e-4)
