"""Soft targets: numbers near the true one earn a part of the probability, by hand and by limits."""

import math

import pytest
import torch
from agents_fixtures import OUTLINES_ONLY, scene_demonstrations, small_policy
from torch.nn.functional import cross_entropy

from agents.behavior_cloning import BehaviorCloning, BehaviorCloningConfig
from agents.policy.soft_targets import SoftTargets
from seg_env.errors import WrongOptionError


class Vocabulary:
    """A tokenizer with these tokens."""

    def __init__(self, *tokens):
        self.tokens = tokens

    def __len__(self):
        return len(self.tokens)

    def get_vocab(self):
        return {token: index for index, token in enumerate(self.tokens)}


def targets_of(targets, token, size):
    """The distribution that a cross-entropy is taken to, from its gradient: softmax - targets."""
    logits = torch.zeros(1, size, dtype=torch.float64, requires_grad=True)
    targets.cross_entropy(logits, torch.tensor([token])).backward()
    return 1 / size - logits.grad[0]


def test_by_hand():
    words = Vocabulary("[0.10", "[0.12", "x", "[0.11", ",0.11", "7")
    soft = SoftTargets(words, 1.0, "cpu")
    near, far = torch.exp(torch.tensor([-0.5, -2.0], dtype=torch.float64))
    total = 1 + near + far
    expected = torch.tensor([1, far, 0, near, 0, 0], dtype=torch.float64) / total
    torch.testing.assert_close(targets_of(soft, 0, 6), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("token", [2, 4, 5])
def test_words_digits_and_numbers_without_neighbours_stay_hard(token):
    words = Vocabulary("[0.10", "[0.12", "x", "[0.11", ",0.11", "7")
    found = targets_of(SoftTargets(words, 1.0, "cpu"), token, 6)
    torch.testing.assert_close(found, torch.eye(6, dtype=torch.float64)[token])


def test_a_small_deviation_is_ordinary_cross_entropy():
    policy = small_policy()
    soft = SoftTargets(policy.tokenizer, 1e-3, "cpu")
    logits = torch.randn(40, len(policy.tokenizer))
    tokens = torch.randint(len(policy.tokenizer), (40,))
    torch.testing.assert_close(soft.cross_entropy(logits, tokens), cross_entropy(logits, tokens))


@pytest.mark.parametrize("token", ["[0.40", ",0.07", "],[0.93"])
def test_the_mean_of_the_target_is_the_number(token):
    tokenizer = small_policy().tokenizer
    soft = SoftTargets(tokenizer, 1.5, "cpu")
    index = tokenizer.convert_tokens_to_ids(token)
    found = targets_of(soft, index, len(tokenizer))
    before = token[: token.index("0.")]
    kind = [tokenizer.convert_tokens_to_ids(f"{before}0.{number:02d}") for number in range(100)]
    assert found[kind].sum() == pytest.approx(1, abs=1e-6)
    mean = (found[kind] * torch.arange(100)).sum().item()
    assert mean == pytest.approx(int(token[-2:]), abs=1e-3)


def test_whole_numbers_of_tokenizers_that_have_them_are_soft_too():
    words = Vocabulary(*(str(number) for number in range(1000)))
    found = targets_of(SoftTargets(words, 1.0, "cpu"), 512, 1000)
    assert found[[511, 512, 513]].tolist() == pytest.approx([0.242, 0.399, 0.242], abs=1e-3)
    assert found[:100].abs().max() < 1e-6


def test_soft_targets_end_where_they_should():
    """What is known by heart still costs the entropy of the targets, and nothing afterwards."""
    policy = small_policy()
    demonstrations = scene_demonstrations(policy.processor, 4)
    config = BehaviorCloningConfig(
        batch_size=4, learning_rate=1e-2, soft_targets=2.0, soft_until=0.7, **OUTLINES_ONLY
    )
    losses = []
    agent = BehaviorCloning(policy, demonstrations, config)
    agent.learn(200, lambda update, metrics: losses.append(metrics["train/loss"]))
    entropy = 0.5 * math.log(2 * math.pi * math.e * 4)  # of one number; words have none
    assert min(losses[:140]) > 0.6 * entropy
    assert losses[-1] < 0.1


def test_a_tokenizer_without_numbers_is_refused():
    policy = small_policy()
    policy.tokenizer = Vocabulary("a", "5", "[")
    with pytest.raises(WrongOptionError, match=r"soft_targets=1.0, but no number is one token"):
        BehaviorCloning(policy, [], BehaviorCloningConfig(batch_size=1, soft_targets=1.0))
