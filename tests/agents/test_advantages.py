"""Advantages by hand and beside others: relative to a group, and generalised, with whitening."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common import buffers

from agents.advantages import (
    against_others,
    best_advantages,
    degenerate_groups,
    explained_variance,
    generalized_advantages,
    greedy_advantages,
    group_advantages,
    group_std,
    masked_moments,
    most_different,
    term_advantages,
    whiten,
)


def test_by_hand():
    # Means 2 and 5; deviations with G - 1: sqrt((1 + 0 + 1) / 2) = 1 and sqrt((9 + 9 + 36) / 2).
    rewards = torch.tensor([1.0, 2.0, 3.0, 2.0, 2.0, 11.0])
    spread = math.sqrt(27)
    expected = torch.tensor([-1.0, 0.0, 1.0, -3 / spread, -3 / spread, 6 / spread])
    torch.testing.assert_close(group_advantages(rewards, 3), expected)
    torch.testing.assert_close(group_std(rewards, 3), torch.tensor([1.0, spread]))


def test_answers_are_compared_within_their_group_only():
    low, high = [0.0, 0.2], [0.8, 1.0]
    torch.testing.assert_close(
        group_advantages(torch.tensor(low + high), 2), group_advantages(torch.tensor(high + low), 2)
    )


def test_a_group_of_equal_rewards_teaches_nothing():
    rewards = torch.tensor([0.7, 0.7, 0.7, 0.1, 0.2, 0.3])
    advantages = group_advantages(rewards, 3)
    # Rounding of the mean may leave a trace, far below that of any real difference.
    assert advantages[:3].abs().max() < 1e-2
    assert advantages[3:].abs().max() > 0.9
    assert degenerate_groups(rewards, 3).tolist() == [True, False]
    assert degenerate_groups(torch.zeros(8), 4).all()


def test_the_floor_keeps_noise_small_and_leaves_ordinary_groups_alone():
    noise, ordinary = torch.tensor([0.0, 0.02]), torch.tensor([0.2, 0.8])
    rewards = torch.cat([noise, ordinary])
    published, floored = (group_advantages(rewards, 2, floor) for floor in (1e-4, 0.2))
    half = math.sqrt(0.5)
    torch.testing.assert_close(published, torch.tensor([-half, half, -half, half]))
    torch.testing.assert_close(floored, torch.tensor([-0.05, 0.05, -half, half]))


def test_without_a_floor_nothing_is_divided():
    advantages = group_advantages(torch.tensor([0.0, 0.02, 0.2, 0.8]), 2, None)
    torch.testing.assert_close(advantages, torch.tensor([-0.01, 0.01, -0.3, 0.3]))


def test_a_group_of_one_has_advantage_zero():
    assert group_advantages(torch.tensor([3.0, -1.0]), 1).tolist() == [0, 0]


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=16).filter(lambda x: len(x) % 2 == 0),
    st.floats(-5, 5, width=32),
)
def test_advantages_have_mean_zero_and_do_not_change_with_a_constant(values, constant):
    rewards = torch.tensor(values, dtype=torch.float64)
    advantages = group_advantages(rewards, 2, 0.01)
    assert advantages.view(-1, 2).mean(1).abs().max() < 1e-12
    torch.testing.assert_close(
        group_advantages(rewards + constant, 2, 0.01), advantages, rtol=0, atol=1e-9
    )


@pytest.mark.parametrize(
    ("rewards", "size"), [(torch.zeros(5), 2), (torch.zeros(2, 2), 2), (torch.zeros(4), 0)]
)
def test_rewards_that_do_not_split_into_groups_are_refused(rewards, size):
    with pytest.raises(ValueError, match=f"groups of {size}"):
        group_advantages(rewards, size)


def test_the_floor_must_be_positive():
    with pytest.raises(ValueError, match=r"spread_floor=0\.0"):
        group_advantages(torch.zeros(4), 2, 0.0)


def test_rewards_against_the_mean_of_the_others():
    rewards = torch.tensor([[1.0, 0.0], [2.0, 3.0], [6.0, 0.0], [5.0, 5.0], [5.0, 5.0], [5.0, 5.0]])
    expected = torch.tensor([[-3.0, -1.5], [-1.5, 3.0], [4.5, -1.5], *[[0.0, 0.0]] * 3])
    torch.testing.assert_close(against_others(rewards, 3), expected)
    assert torch.equal(against_others(rewards, 1), rewards)
    with pytest.raises(ValueError, match="do not split into groups of 4"):
        against_others(rewards, 4)


def random_tokens(seed, rows=6, length=11):
    """Rewards, values and a mask of answers of random lengths; garbage on the padding."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.rand(rows, length, generator=generator) - 0.3 for _ in range(2))
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    return rewards, values, (torch.arange(length) < lengths[:, None]).long()


def test_the_first_answer_is_the_baseline_of_the_others():
    rewards = torch.tensor([0.5, 0.7, 0.1, 0.2, 0.2, 1.0])
    expected = torch.tensor([0.0, 0.2, -0.4, 0.0, 0.0, 0.8])
    torch.testing.assert_close(greedy_advantages(rewards, 3), expected)


def test_the_best_of_a_group_is_imitated():
    rewards = torch.tensor([0.5, 0.7, 0.1, 0.4, 0.4, 0.4, 0.3, 0.9, 0.9])
    assert best_advantages(rewards, 3).tolist() == [0, 1, 0, 0, 0, 0, 0, 1, 0]


def test_rewards_that_vary_little_keep_their_say():
    # Of the second reward a hundredth is seen in the sum; by itself it counts as much as the first.
    terms = torch.tensor([[0.0, 0.01], [0.5, 0.00], [1.0, 0.02], [0.5, 0.01]])
    weights = torch.tensor([1.0, 1.0])
    found = term_advantages(terms, weights, 4, 1e-4)
    each = [group_advantages(terms[:, k], 4, 1e-4) for k in (0, 1)]
    torch.testing.assert_close(found, (each[0] + each[1]) / 2)
    assert found.tolist() == pytest.approx([-0.612, -0.612, 1.225, 0.0], abs=1e-3)
    torch.testing.assert_close(term_advantages(terms, 3 * weights, 4, 1e-4), found)
    torch.testing.assert_close(term_advantages(terms, torch.tensor([2.0, 0.0]), 4, 1e-4), each[0])


@pytest.mark.parametrize("count", [2, 3, 4, 6])
@pytest.mark.parametrize("seed", range(3))
def test_no_other_choice_of_answers_has_more_variance(count, seed):
    rewards = torch.rand(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = most_different(rewards, 6, count)
    assert rows.shape == (2 * count,)
    for group, chosen in enumerate(rows.view(2, count).tolist()):
        assert chosen == sorted(chosen)
        own = range(6 * group, 6 * group + 6)
        assert set(chosen) <= set(own)
        most = max(rewards[list(some)].var(correction=0) for some in combinations(own, count))
        assert rewards[chosen].var(correction=0) == pytest.approx(most)


def plain_gae(rewards, values, gamma, lam):
    """The definition: exponentially weighted sums of temporal differences, one answer at a time."""
    following = [*values[1:], 0.0]
    deltas = [r + gamma * v1 - v for r, v1, v in zip(rewards, following, values, strict=True)]
    return [
        sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[start:]))
        for start in range(len(deltas))
    ]


def test_generalized_advantages_by_hand():
    # One answer of three tokens and padding; reward 1 at the end; gamma .5, lambda .5.
    # delta_2 = 1 - .4 = .6; delta_1 = .5 * .4 - .6 = -.4; delta_0 = .5 * .6 - .2 = .1
    # A_2 = .6; A_1 = -.4 + .25 * .6 = -.25; A_0 = .1 + .25 * -.25 = .0375
    rewards = torch.tensor([[0.0, 0.0, 1.0, 9.0]])
    values = torch.tensor([[0.2, 0.6, 0.4, 9.0]])
    mask = torch.tensor([[1, 1, 1, 0]])
    advantages, returns = generalized_advantages(rewards, values, mask, 0.5, 0.5)
    torch.testing.assert_close(advantages, torch.tensor([[0.0375, -0.25, 0.6, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[0.2375, 0.35, 1.0, 0.0]]))


def test_lambda_one_gives_rewards_to_go_and_lambda_zero_temporal_differences():
    rewards = torch.tensor([[0.1, 0.2, 0.3]])
    values, mask = torch.tensor([[0.5, 0.4, 0.1]]), torch.ones(1, 3)
    advantages, returns = generalized_advantages(rewards, values, mask, 1.0, 1.0)
    torch.testing.assert_close(returns, torch.tensor([[0.6, 0.5, 0.3]]))
    torch.testing.assert_close(advantages, returns - values)
    differences, _ = generalized_advantages(rewards, values, mask, 1.0, 0.0)
    torch.testing.assert_close(differences, torch.tensor([[0.0, -0.1, 0.2]]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7)])
def test_equals_the_definition(seed, gamma, lam):
    rewards, values, mask = random_tokens(seed)
    advantages, returns = generalized_advantages(
        rewards.double(), values.double(), mask, gamma, lam
    )
    for row, length in enumerate(mask.sum(-1).tolist()):
        expected = plain_gae(
            rewards[row, :length].double().tolist(),
            values[row, :length].double().tolist(),
            gamma,
            lam,
        )
        np.testing.assert_allclose(advantages[row, :length], expected, rtol=0, atol=1e-12)
        assert not advantages[row, length:].any()
        assert not returns[row, length:].any()


def test_equals_stable_baselines3():
    """One environment of its buffer plays all answers, one after the other."""
    rewards, values, mask = random_tokens(0)
    real = mask.bool()
    count = int(mask.sum())
    space = spaces.Box(0, 1, (1,))
    buffer = buffers.RolloutBuffer(count, space, space, gae_lambda=0.95, gamma=0.99)
    first = torch.zeros_like(real)
    first[:, 0] = True
    for reward, value, starts in zip(rewards[real], values[real], first[real], strict=True):
        nothing = np.zeros((1, 1))
        buffer.add(nothing, nothing, reward.numpy()[None], starts.numpy()[None], value[None], value)
    buffer.compute_returns_and_advantage(last_values=torch.zeros(1), dones=np.ones(1))
    advantages, returns = generalized_advantages(rewards, values, mask, 0.99, 0.95)
    np.testing.assert_allclose(advantages[real], buffer.advantages[:, 0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(returns[real], buffer.returns[:, 0], rtol=0, atol=1e-6)


def test_moments_and_whitening_by_hand():
    values = torch.tensor([[1.0, 3.0, 99.0], [5.0, 99.0, 99.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    mean, variance = masked_moments(values, mask)
    assert mean.item() == 3
    assert variance.item() == pytest.approx((4 + 0 + 4) / 3)
    scale = (8 / 3) ** -0.5
    expected = torch.tensor([[-2 * scale, 0, 0], [2 * scale, 0, 0]])
    torch.testing.assert_close(whiten(values, mask), expected)


@pytest.mark.parametrize("seed", range(3))
def test_whitened_values_have_mean_0_and_variance_1_over_real_tokens(seed):
    _, values, mask = random_tokens(seed)
    real = mask.bool()
    ours = whiten(5 * values.double() + 100, mask)
    picked = (5 * values.double() + 100)[real].numpy()
    np.testing.assert_allclose(
        ours[real], (picked - picked.mean()) / picked.std(), rtol=0, atol=1e-6
    )
    assert not ours[~real].any()


def test_processes_that_add_up_their_sums_whiten_as_one_would():
    _, values, mask = random_tokens(0)
    whole = whiten(values, mask)
    sums = []
    masked_moments(values, mask, lambda part: sums.append(part) or part)
    totals = iter(sums)
    # Half of the rows, with the sums of all of them.
    half = whiten(values[:3], mask[:3], lambda part: next(totals))
    torch.testing.assert_close(half, whole[:3])


def test_equal_values_are_whitened_to_zero():
    assert whiten(torch.full((2, 3), 0.7), torch.ones(2, 3)).abs().max() < 1e-3


def test_explained_variance():
    returns, mask = torch.tensor([[1.0, 2.0, 3.0, 50.0]]), torch.tensor([[1, 1, 1, 0]])
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(torch.zeros(1, 4), returns, mask) == pytest.approx(0)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3)
    half = torch.tensor([[1.5, 2.0, 2.5, 0.0]])  # what is left has a quarter of the variance
    assert explained_variance(half, returns, mask) == pytest.approx(0.75)
    assert explained_variance(half, torch.ones(1, 4), mask) == 0
