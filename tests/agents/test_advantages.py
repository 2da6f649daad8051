"""Group-relative advantages."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.advantages import (
    against_others,
    degenerate_fraction,
    degenerate_groups,
    group_advantages,
    group_std,
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
    assert degenerate_fraction(rewards, 3) == 0.5
    assert degenerate_groups(rewards, 3).tolist() == [True, False]
    assert degenerate_fraction(torch.zeros(8), 4) == 1


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
