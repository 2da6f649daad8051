"""Losses by hand, with a ratio per completion and per token, and beside TRL's."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from agents.losses import (
    LOSSES,
    kl_estimates,
    kl_penalty,
    masked_mean,
    policy_loss,
    truncated_importance_weights,
    value_loss,
)

gspo_loss = luspo_loss = partial(policy_loss, level="sequence")
gspo_token_loss = partial(policy_loss, level="sequence_token")
grpo_loss = partial(policy_loss, level="token")


def token_mean_loss(*given, tokens_per_answer=None, **others):
    """The mean over all tokens, as in PPO and DAPO, or over ``N`` times a length."""
    mask = given[3]
    length = mask.sum().item() / len(mask) if tokens_per_answer is None else tokens_per_answer
    return policy_loss(*given, level="token", tokens_per_answer=length, **others)


MASK = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
"""Three completions of 4, 2 and 1 tokens."""


def loss_of_ratios(ratios, advantages, clip_low=0.1, clip_high=0.2):
    """Loss of completions of one token each that have the given importance ratios."""
    new = torch.tensor(ratios).log()[:, None].requires_grad_()
    loss, metrics = gspo_loss(
        new,
        torch.zeros_like(new),
        torch.tensor(advantages),
        torch.ones_like(new),
        clip_low,
        clip_high,
    )
    loss.backward()
    return loss.item(), new.grad[:, 0], metrics


def test_the_log_ratio_is_the_mean_over_the_real_tokens_of_each_completion():
    new = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, -0.1, 9.0, 9.0], [-0.3, 9.0, 9.0, 9.0]])
    ratio = masked_mean(new - torch.zeros_like(new), MASK)
    torch.testing.assert_close(ratio, torch.tensor([0.25, 0.2, -0.3]))


def test_loss_by_hand():
    # Mean log ratios are .25, .2 and -.3, so the ratios are e^.25 = 1.284, e^.2 = 1.221 and
    # e^-.3 = .741, clipped to [.9, 1.2].
    new = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, -0.1, 9.0, 9.0], [-0.3, 9.0, 9.0, 9.0]])
    advantages = torch.tensor([1.0, -2.0, 0.5])
    loss, metrics = gspo_loss(new, torch.zeros_like(new), advantages, MASK, 0.1, 0.2)
    objectives = [
        1.2 * 1.0,  # good and already likelier by more than 20 %: clipped
        math.exp(0.2) * -2.0,  # bad and likelier: not clipped, whatever its size
        math.exp(-0.3) * 0.5,  # good and less likely: not clipped
    ]
    assert loss.item() == pytest.approx(-sum(objectives) / 3, rel=1e-6)
    assert metrics["policy_loss"] == pytest.approx(loss.item())
    assert metrics["clip_fraction"] == pytest.approx(1 / 3)
    assert metrics["ratio_max"] == pytest.approx(math.exp(0.25))
    kl = [math.exp(x) - 1 - x for x in (0.25, 0.2, -0.3)]
    assert metrics["approx_kl"] == pytest.approx(sum(kl) / 3, rel=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "clipped"),
    [
        (1.3, 1.0, 1.2, True),
        (1.15, 1.0, 1.15, False),
        (0.5, 1.0, 0.5, False),
        (0.5, -1.0, -0.9, True),
        (0.95, -1.0, -0.95, False),
        (1.3, -1.0, -1.3, False),
    ],
)
def test_only_changes_that_went_far_enough_in_the_right_direction_are_clipped(
    ratio, advantage, expected, clipped
):
    loss, gradient, metrics = loss_of_ratios([ratio], [advantage])
    assert loss == pytest.approx(-expected)
    assert metrics["clip_fraction"] == clipped
    # d(ratio * A) / d(log pi) = ratio * A, and nothing once clipped.
    assert gradient.item() == pytest.approx(0.0 if clipped else -ratio * advantage)


def test_a_good_answer_becomes_likelier_and_a_bad_one_less_likely():
    _, gradient, _ = loss_of_ratios([1.0, 1.0], [1.0, -1.0])
    likelier = -gradient  # where gradient descent goes
    assert likelier[0] > 0 > likelier[1]


def test_every_completion_weighs_the_same_whatever_its_length():
    new = torch.zeros(3, 4, requires_grad=True)
    loss, _ = gspo_loss(new, torch.zeros(3, 4), torch.ones(3), MASK, 0.1, 0.1)
    loss.backward()
    torch.testing.assert_close(new.grad.sum(-1), torch.full((3,), -1 / 3))


def test_padding_has_no_influence():
    generator = torch.Generator().manual_seed(0)
    new, old = (torch.randn(3, 4, generator=generator) * 0.1 for _ in range(2))
    advantages = torch.tensor([1.0, -1.0, 0.3])
    garbage = torch.where(MASK.bool(), new, torch.tensor(-50.0))
    plain, _ = gspo_loss(new, old, advantages, MASK, 0.05, 0.05)
    padded, _ = gspo_loss(garbage, old, advantages, MASK, 0.05, 0.05)
    assert plain.item() == padded.item()


def test_luspo_is_gspo_times_length_by_hand():
    # The completions of `test_loss_by_hand`, of 4, 2 and 1 tokens.
    new = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, -0.1, 9.0, 9.0], [-0.3, 9.0, 9.0, 9.0]])
    advantages = torch.tensor([1.0, -2.0, 0.5])
    objectives = [4 * 1.2, 2 * math.exp(0.2) * -2.0, math.exp(-0.3) * 0.5]
    given = (new, torch.zeros_like(new), advantages, MASK, 0.1, 0.2)
    loss, _ = luspo_loss(*given, tokens_per_answer=1.0)
    assert loss.item() == pytest.approx(-sum(objectives) / 3, rel=1e-6)
    weighted, _ = luspo_loss(*given, weights=torch.tensor([1.0, 0.5, 2.0]), tokens_per_answer=4)
    objectives = [1.2, 0.5 * math.exp(0.2) * -1.0, 2 * math.exp(-0.3) * 0.125]
    assert weighted.item() == pytest.approx(-sum(objectives) / 3, rel=1e-6)


def test_under_luspo_every_token_weighs_the_same():
    new = torch.zeros(3, 4, requires_grad=True)
    loss, _ = luspo_loss(
        new, torch.zeros(3, 4), torch.ones(3), MASK, 0.1, 0.1, tokens_per_answer=1.0
    )
    loss.backward()
    torch.testing.assert_close(new.grad, -MASK / 3)


def random_case(seed, rows=12, length=9):
    """Completions of random lengths under two policies: old, change, advantages, mask."""
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(rows, length, generator=generator) * 3
    change = torch.randn(rows, length, generator=generator) * 0.2
    advantages = torch.randn(rows, generator=generator)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    return old, change, advantages, (torch.arange(length) < lengths[:, None]).long()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weights", [None, torch.linspace(0.5, 2, 12)])
def test_gspo_token_equals_gspo_where_all_tokens_have_one_advantage(seed, weights):
    old, change, advantages, mask = random_case(seed)
    results = []
    for loss, given in (
        (gspo_loss, advantages),
        (gspo_token_loss, advantages[:, None].expand(mask.shape)),
        (gspo_token_loss, advantages),
    ):
        new = (old + change).requires_grad_()
        value, metrics = loss(new, old, given, mask, 0.05, 0.08, weights=weights)
        value.backward()
        assert 0 < metrics["clip_fraction"] < 1, "the case must show clipping"
        results.append((value, new.grad, metrics))
    for value, gradient, metrics in results[1:]:
        torch.testing.assert_close(value, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])
        assert metrics == pytest.approx(results[0][2], abs=1e-6)


def test_gspo_token_by_hand():
    # Ratios: e^.1 = 1.105 for the whole first completion, e^-.2 = .819 for the second.
    new = torch.tensor([[0.3, -0.1], [-0.2, 9.0]], requires_grad=True)
    mask = torch.tensor([[1.0, 1], [1, 0]])
    advantages = torch.tensor([[1.0, -2.0], [-1.0, 9.0]])
    loss, metrics = gspo_token_loss(new, torch.zeros_like(new), advantages, mask, 0.1, 0.05)
    good, bad = 1.05 * 1.0, math.exp(0.1) * -2.0  # only the good token is clipped from above
    assert loss.item() == pytest.approx(-((good + bad) / 2 + 0.9 * -1.0) / 2, rel=1e-6)
    assert metrics["clip_fraction"] == pytest.approx((0.5 + 1) / 2)
    loss.backward()
    # The gradient of a token is that of its own log-probability times the completion's ratio.
    torch.testing.assert_close(new.grad, torch.tensor([[0.0, math.exp(0.1) * 2.0 / 4], [0.0, 0.0]]))


def test_importance_weights_by_hand():
    new, sampler = torch.tensor([[0.2, 0.4], [1.0, 9.0]]), torch.zeros(2, 2)
    mask = torch.tensor([[1.0, 1], [1, 0]])
    weights, metrics = truncated_importance_weights(new, sampler, mask, cap=2)
    torch.testing.assert_close(weights, torch.tensor([math.exp(0.3), 2.0]))
    assert metrics["truncated_fraction"] == 0.5
    assert metrics["sampler_difference"] == 1
    with pytest.raises(ValueError, match=r"cap 0\.5"):
        truncated_importance_weights(new, sampler, mask, cap=0.5)


def test_weights_scale_what_a_completion_counts():
    new = torch.zeros(3, 4, requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 0.5])
    gspo_loss(new, torch.zeros(3, 4), torch.ones(3), MASK, 0.1, 0.1, weights=weights)[0].backward()
    torch.testing.assert_close(new.grad.sum(-1), -weights / 3)


def test_kl_estimates_by_hand():
    new, reference = torch.tensor([0.5, 0.1]).log(), torch.tensor([0.25, 0.2]).log()
    two = math.log(2)
    expected = {"k1": [two, -two], "k3": [0.5 + two - 1, 2 - two - 1]}
    for name, values in expected.items():
        torch.testing.assert_close(kl_estimates(new, reference, name), torch.tensor(values))


def test_k1_and_k3_are_unbiased():
    policy, reference = torch.tensor([0.2, 0.8]), torch.tensor([0.7, 0.3])
    exact = (policy * (policy / reference).log()).sum().item()
    means = {
        name: (policy * kl_estimates(policy.log(), reference.log(), name)).sum().item()
        for name in ("k1", "k3")
    }
    assert means["k1"] == pytest.approx(exact)
    assert means["k3"] == pytest.approx(exact)


def test_kl_penalty_by_hand_and_never_negative():
    new = torch.log(torch.tensor([[0.5, 0.25], [0.1, 1.0]]))
    reference = torch.log(torch.tensor([[0.25, 0.25], [0.2, 1.0]]))
    mask = torch.tensor([[1.0, 1], [1, 0]])
    first = (0.5 - math.log(0.5) - 1) / 2  # mean of two tokens, of which one is unchanged
    second = 2 - math.log(2) - 1
    penalty = kl_penalty(new, reference, mask)
    assert penalty.item() == pytest.approx((first + second) / 2, rel=1e-6)
    assert kl_penalty(new, new, mask).item() == 0


def test_the_mean_of_an_empty_completion_is_zero():
    assert masked_mean(torch.ones(1, 3), torch.zeros(1, 3)).item() == 0


@pytest.fixture(scope="module")
def trl_loss():
    """TRL's own loss computation, fed with given log-probabilities instead of a model's."""
    from accelerate import Accelerator
    from trl import GRPOTrainer

    class GivenLogProbs(GRPOTrainer):
        def __init__(self, name, level, clip_low, clip_high):
            self.aux_loss_enabled = self._entropy_bonus_enabled = self.use_vllm = False
            self.top_entropy_quantile, self.off_policy_mask_threshold = 1.0, None
            self.importance_sampling_level, self.loss_type = level, name
            self.beta, self.epsilon_low, self.epsilon_high = 0.0, clip_low, clip_high
            self.args = SimpleNamespace(delta=None, steps_per_generation=1)
            self.max_completion_length = LONGEST
            self.current_gradient_accumulation_steps = 1
            self.model, self.accelerator = nn.Identity(), Accelerator(cpu=True)
            self._metrics = {"train": {key: [] for key in METRICS}}

        def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
            return model, torch.zeros_like(model), None

    def loss(name, level, new, old, advantages, mask, clips):
        rows = len(new)
        trainer = GivenLogProbs(name, level, *clips)
        inputs = {
            "prompt_ids": torch.zeros(rows, 2, dtype=torch.long),
            "prompt_mask": torch.ones(rows, 2, dtype=torch.long),
            "completion_ids": torch.zeros_like(mask, dtype=torch.long),
            "completion_mask": mask,
            "advantages": advantages,
            "old_per_token_logps": old,
            "num_items_in_batch": mask.sum(),
        }
        value = trainer._compute_loss(new, inputs)
        return value, trainer._metrics["train"]["clip_ratio/region_mean"][0]

    return loss


LONGEST = 20
METRICS = ["entropy", *(f"clip_ratio/{part}" for part in ("low_mean", "high_mean", "region_mean"))]
METRICS += ["clip_ratio/low_min", "clip_ratio/high_max"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "gspo_token"])
def test_loss_and_gradient_equal_those_of_trl(trl_loss, name, seed):
    old, change, advantages, mask = random_case(seed)
    clips = (0.05, 0.08)
    level = LOSSES[name].level
    lengths = {"luspo": 1.0, "dapo": mask.sum().item() / len(mask), "dr_grpo": LONGEST}

    new = (old + change).requires_grad_()
    our_loss, metrics = policy_loss(
        new, old, advantages, mask, *clips, level=level, tokens_per_answer=lengths.get(name)
    )
    our_loss.backward()
    their_new = (old + change).requires_grad_()
    theirs = "grpo" if name == "gspo" else name
    their_loss, their_clipped = trl_loss(theirs, level, their_new, old, advantages, mask, clips)
    their_loss.backward()

    assert 0 < metrics["clip_fraction"] < 1, "the case must show clipping"
    torch.testing.assert_close(our_loss, their_loss)
    torch.testing.assert_close(new.grad, their_new.grad)
    assert metrics["clip_fraction"] == pytest.approx(their_clipped)


TOKEN_MASK = torch.tensor([[1.0, 1, 1], [1, 0, 0]])
"""Two completions of 3 tokens and of 1."""
TOKEN_NEW = torch.tensor([[0.3, -0.3, 0.1], [0.1, 50.0, 50.0]])
"""Log ratios: factors e^.3 = 1.350, e^-.3 = .741 and e^.1 = 1.105; clips are at .8 and 1.2."""
TOKEN_ADVANTAGES = torch.tensor([[1.0, -1.0, 2.0], [-2.0, 7.0, 7.0]])
TOKEN_OBJECTIVES = [1.2, -0.8, 2 * math.exp(0.1), -2 * math.exp(0.1)]
"""Of the four tokens: clipped, clipped, and the two within the range."""


def of_tokens(loss, **last):
    new = TOKEN_NEW.clone().requires_grad_()
    value, metrics = loss(new, torch.zeros(2, 3), TOKEN_ADVANTAGES, TOKEN_MASK, 0.2, 0.2, **last)
    value.backward()
    return value.item(), new.grad, metrics


def test_grpo_takes_the_mean_over_tokens_then_over_completions():
    loss, gradient, metrics = of_tokens(grpo_loss)
    first, second = sum(TOKEN_OBJECTIVES[:3]) / 3, TOKEN_OBJECTIVES[3]
    assert loss == metrics["policy_loss"] == pytest.approx(-(first + second) / 2, rel=1e-6)
    # d(r A) / d(log pi) = r A, and nothing once clipped or on padding.
    expected = [[0, 0, -2 * math.exp(0.1) / 6], [2 * math.exp(0.1) / 2, 0, 0]]
    torch.testing.assert_close(gradient, torch.tensor(expected))


def test_ppo_and_dapo_take_the_mean_over_all_tokens():
    loss, gradient, _ = of_tokens(token_mean_loss)
    assert loss == pytest.approx(-sum(TOKEN_OBJECTIVES) / 4, rel=1e-6)
    expected = [[0, 0, -2 * math.exp(0.1) / 4], [2 * math.exp(0.1) / 4, 0, 0]]
    torch.testing.assert_close(gradient, torch.tensor(expected))


def test_dr_grpo_divides_by_a_constant_length():
    loss, _, _ = of_tokens(token_mean_loss, tokens_per_answer=10)
    assert loss == pytest.approx(-sum(TOKEN_OBJECTIVES) / (2 * 10), rel=1e-6)


def test_weights_are_those_of_completions():
    weights = torch.tensor([0.5, 2.0])
    loss, _, _ = of_tokens(token_mean_loss, weights=weights)
    expected = (0.5 * sum(TOKEN_OBJECTIVES[:3]) + 2 * TOKEN_OBJECTIVES[3]) / 4
    assert loss == pytest.approx(-expected, rel=1e-6)
    loss, _, _ = of_tokens(grpo_loss, weights=weights)
    expected = (0.5 * sum(TOKEN_OBJECTIVES[:3]) / 3 + 2 * TOKEN_OBJECTIVES[3]) / 2
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
            loss(TOKEN_NEW, torch.zeros(2, 3), given, TOKEN_MASK, 0.2, 0.2)[0].item()
            for given in (whole, each)
        ]
        assert values[0] == values[1]


@pytest.mark.parametrize("loss", [grpo_loss, token_mean_loss])
def test_padding_has_no_influence_whatever_it_holds(loss):
    garbage = torch.where(TOKEN_MASK.bool(), TOKEN_NEW, torch.tensor(1e4)).requires_grad_()
    value, _ = loss(garbage, torch.zeros(2, 3), TOKEN_ADVANTAGES, TOKEN_MASK, 0.2, 0.2)
    value.backward()
    assert value.item() == of_tokens(loss)[0]
    assert garbage.grad[TOKEN_MASK == 0].tolist() == [0, 0]


def test_parts_of_a_rollout_add_up_to_the_whole():
    given = (torch.zeros(2, 3), TOKEN_ADVANTAGES, TOKEN_MASK)
    whole, _ = token_mean_loss(TOKEN_NEW, *given, 0.2, 0.2)
    parts = [
        token_mean_loss(
            TOKEN_NEW[[row]], *(x[[row]] for x in given), 0.2, 0.2, tokens_per_answer=4 / 2
        )[0]
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
