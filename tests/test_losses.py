"""GSPO's loss, by hand and beside TRL's."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from agents.losses import gspo_loss, kl_penalty, masked_mean, sequence_log_ratio

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
    ratio = sequence_log_ratio(new, torch.zeros_like(new), MASK)
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
        def __init__(self, clip_low, clip_high):
            self.aux_loss_enabled = self._entropy_bonus_enabled = self.use_vllm = False
            self.top_entropy_quantile, self.off_policy_mask_threshold = 1.0, None
            self.importance_sampling_level, self.loss_type = "sequence", "grpo"
            self.beta, self.epsilon_low, self.epsilon_high = 0.0, clip_low, clip_high
            self.args = SimpleNamespace(delta=None)
            self.current_gradient_accumulation_steps = 1
            self.model, self.accelerator = nn.Identity(), Accelerator(cpu=True)
            self._metrics = {"train": {key: [] for key in METRICS}}

        def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
            return model, torch.zeros_like(model), None

    def loss(new, old, advantages, mask, clip_low, clip_high):
        rows = len(new)
        trainer = GivenLogProbs(clip_low, clip_high)
        inputs = {
            "prompt_ids": torch.zeros(rows, 2, dtype=torch.long),
            "prompt_mask": torch.ones(rows, 2, dtype=torch.long),
            "completion_ids": torch.zeros_like(mask, dtype=torch.long),
            "completion_mask": mask,
            "advantages": advantages,
            "old_per_token_logps": old,
        }
        value = trainer._compute_loss(new, inputs)
        return value, trainer._metrics["train"]["clip_ratio/region_mean"][0]

    return loss


METRICS = ["entropy", *(f"clip_ratio/{part}" for part in ("low_mean", "high_mean", "region_mean"))]
METRICS += ["clip_ratio/low_min", "clip_ratio/high_max"]


@pytest.mark.parametrize("seed", range(4))
def test_loss_and_gradient_equal_those_of_trl(trl_loss, seed):
    generator = torch.Generator().manual_seed(seed)
    rows, length = 12, 9
    old = -torch.rand(rows, length, generator=generator) * 3
    change = torch.randn(rows, length, generator=generator) * 0.2
    advantages = torch.randn(rows, generator=generator)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    mask = (torch.arange(length) < lengths[:, None]).long()
    clips = (0.05, 0.08)

    ours = (old + change).requires_grad_()
    our_loss, metrics = gspo_loss(ours, old, advantages, mask, *clips)
    our_loss.backward()
    theirs = (old + change).requires_grad_()
    their_loss, their_clipped = trl_loss(theirs, old, advantages, mask, *clips)
    their_loss.backward()

    assert 0 < metrics["clip_fraction"] < 1, "the case must show clipping"
    torch.testing.assert_close(our_loss, their_loss)
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert metrics["clip_fraction"] == pytest.approx(their_clipped)
