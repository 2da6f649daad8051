"""Losses with a ratio per token, and that of the critic, by hand."""

import math

import pytest
import torch

from agents.token_losses import grpo_loss, token_mean_loss, value_loss

MASK = torch.tensor([[1.0, 1, 1], [1, 0, 0]])
"""Two completions of 3 tokens and of 1."""
NEW = torch.tensor([[0.3, -0.3, 0.1], [0.1, 50.0, 50.0]])
"""Log ratios: factors e^.3 = 1.350, e^-.3 = .741 and e^.1 = 1.105; clips are at .8 and 1.2."""
ADVANTAGES = torch.tensor([[1.0, -1.0, 2.0], [-2.0, 7.0, 7.0]])
OBJECTIVES = [1.2, -0.8, 2 * math.exp(0.1), -2 * math.exp(0.1)]
"""Of the four tokens: clipped, clipped, and the two within the range."""


def of_tokens(loss, **last):
    new = NEW.clone().requires_grad_()
    value, metrics = loss(new, torch.zeros(2, 3), ADVANTAGES, MASK, 0.2, 0.2, **last)
    value.backward()
    return value.item(), new.grad, metrics


def test_grpo_takes_the_mean_over_tokens_then_over_completions():
    loss, gradient, metrics = of_tokens(grpo_loss)
    first, second = sum(OBJECTIVES[:3]) / 3, OBJECTIVES[3]
    assert loss == metrics["policy_loss"] == pytest.approx(-(first + second) / 2, rel=1e-6)
    # d(r A) / d(log pi) = r A, and nothing once clipped or on padding.
    expected = [[0, 0, -2 * math.exp(0.1) / 6], [2 * math.exp(0.1) / 2, 0, 0]]
    torch.testing.assert_close(gradient, torch.tensor(expected))


def test_ppo_and_dapo_take_the_mean_over_all_tokens():
    loss, gradient, _ = of_tokens(token_mean_loss)
    assert loss == pytest.approx(-sum(OBJECTIVES) / 4, rel=1e-6)
    expected = [[0, 0, -2 * math.exp(0.1) / 4], [2 * math.exp(0.1) / 4, 0, 0]]
    torch.testing.assert_close(gradient, torch.tensor(expected))


def test_dr_grpo_divides_by_a_constant_length():
    loss, _, _ = of_tokens(token_mean_loss, tokens_per_answer=10)
    assert loss == pytest.approx(-sum(OBJECTIVES) / (2 * 10), rel=1e-6)


def test_weights_are_those_of_completions():
    weights = torch.tensor([0.5, 2.0])
    loss, _, _ = of_tokens(token_mean_loss, weights=weights)
    expected = (0.5 * sum(OBJECTIVES[:3]) + 2 * OBJECTIVES[3]) / 4
    assert loss == pytest.approx(-expected, rel=1e-6)
    loss, _, _ = of_tokens(grpo_loss, weights=weights)
    expected = (0.5 * sum(OBJECTIVES[:3]) / 3 + 2 * OBJECTIVES[3]) / 2
    assert loss == pytest.approx(-expected, rel=1e-6)


def test_metrics_are_means_over_tokens():
    _, _, metrics = of_tokens(grpo_loss)
    assert metrics["clip_fraction"] == pytest.approx(2 / 4)
    kl = [math.exp(x) - 1 - x for x in (0.3, -0.3, 0.1, 0.1)]
    assert metrics["approx_kl"] == pytest.approx(sum(kl) / 4, rel=1e-5)
    assert metrics["ratio_max"] == pytest.approx(math.exp(0.3))


def test_an_advantage_per_completion_counts_for_all_of_its_tokens():
    whole = torch.tensor([1.5, -0.5])
    for loss in (grpo_loss, token_mean_loss):
        each = whole[:, None].expand(2, 3)
        values = [
            loss(NEW, torch.zeros(2, 3), given, MASK, 0.2, 0.2)[0].item() for given in (whole, each)
        ]
        assert values[0] == values[1]


@pytest.mark.parametrize("loss", [grpo_loss, token_mean_loss])
def test_padding_has_no_influence_whatever_it_holds(loss):
    garbage = torch.where(MASK.bool(), NEW, torch.tensor(1e4)).requires_grad_()
    value, _ = loss(garbage, torch.zeros(2, 3), ADVANTAGES, MASK, 0.2, 0.2)
    value.backward()
    assert value.item() == of_tokens(loss)[0]
    assert garbage.grad[MASK == 0].tolist() == [0, 0]


def test_parts_of_a_rollout_add_up_to_the_whole():
    given = (torch.zeros(2, 3), ADVANTAGES, MASK)
    whole, _ = token_mean_loss(NEW, *given, 0.2, 0.2)
    parts = [
        token_mean_loss(NEW[[row]], *(x[[row]] for x in given), 0.2, 0.2, tokens_per_answer=4 / 2)[
            0
        ]
        for row in (0, 1)
    ]
    assert sum(parts).item() / 2 == pytest.approx(whole.item())


def test_value_loss_by_hand():
    # Clip .5. Token by token: moved by .2, within the clip, error (1.2 - 2)^2; moved by 1 towards
    # the return, so it counts as 1.5 and is held there, (1.5 - 3)^2; moved by 1 away from the
    # return, which is seen in full, (2 - 0)^2.
    values = torch.tensor([[1.2, 2.0, 2.0], [9.0, 9.0, 9.0]], requires_grad=True)
    old, returns = torch.ones(2, 3), torch.tensor([[2.0, 3.0, 0.0], [9.0, 9.0, 9.0]])
    mask = torch.tensor([[1.0, 1, 1], [0, 0, 0]])
    loss, metrics = value_loss(values, old, returns, mask, clip=0.5)
    assert loss.item() == pytest.approx(0.5 * (0.64 + 2.25 + 4.0) / 3)
    assert metrics["value_loss"] == pytest.approx(loss.item())
    assert metrics["value_clip_fraction"] == pytest.approx(1 / 3)
    loss.backward()
    torch.testing.assert_close(values.grad[0], torch.tensor([-0.8 / 3, 0.0, 2.0 / 3]))
    assert values.grad[1].tolist() == [0, 0, 0]


def test_the_value_loss_goes_down_when_values_go_towards_returns():
    returns = torch.tensor([[0.7, 0.2]])
    losses = [
        value_loss(share * returns, torch.zeros(1, 2), returns, torch.ones(1, 2), 10.0)[0].item()
        for share in (0.0, 0.5, 1.0)
    ]
    assert losses[0] > losses[1] > losses[2] == 0


def test_a_value_clip_that_is_no_distance_is_refused():
    with pytest.raises(ValueError, match=r"value clip 0\.0"):
        value_loss(*[torch.zeros(1, 1)] * 3, torch.ones(1, 1), 0.0)
