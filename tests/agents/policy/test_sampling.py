"""Groups of answers sampled from one prefill."""

import pytest
import torch
from agents_fixtures import (
    cloned_policy,
    grouped_query_policy,
    random_images,
    small_inputs,
    small_policy,
)
from scipy.stats import chisquare

from agents.embedded.tiny import ASSISTANT, IMAGE, PAD, USER
from agents.policy.sampling import invert_distribution, sample
from agents.policy.scoring import score

LONGEST = 60


def noise_of(rows, seed=0, longest=LONGEST):
    """Uniform noise for some answers."""
    return torch.rand(rows, longest, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def policy():
    return cloned_policy()


@pytest.fixture(scope="module")
def inputs(policy):
    return small_inputs(policy)


@pytest.fixture(scope="module")
def group(policy, inputs):
    """Eight answers to each of three questions."""
    return sample(policy, inputs, group_size=8, max_new_tokens=LONGEST, noise=noise_of(24))


def test_shapes_and_types(group):
    rows, width = group.tokens.shape
    assert rows == 3 * 8
    assert width <= LONGEST
    assert group.mask.shape == group.log_probs.shape == (rows, width)
    assert group.log_probs.dtype == torch.float32


def test_answers_differ_and_have_many_lengths(group):
    assert len({tuple(row.tolist()) for row in group.tokens}) > 12
    assert len(group.lengths.unique()) > 3


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.5])
@pytest.mark.parametrize("make_policy", [cloned_policy, grouped_query_policy])
def test_log_probs_of_the_sampler_equal_those_of_the_scorer(make_policy, temperature):
    policy = make_policy()
    policy.model.double()  # float32 would leave differences as large as a small mistake
    inputs = {
        key: value.double() if value.is_floating_point() else value
        for key, value in small_inputs(policy).items()
    }
    drawn = sample(
        policy,
        inputs,
        group_size=4,
        max_new_tokens=LONGEST,
        temperature=temperature,
        noise=noise_of(12),
    )
    scores = score(policy, inputs, drawn.tokens, drawn.mask, temperature)
    torch.testing.assert_close(drawn.log_probs, scores.log_probs.detach(), rtol=0, atol=1e-5)


def test_a_row_is_masked_after_its_end_token(policy, group):
    pad, end = policy.tokenizer.pad_token_id, policy.tokenizer.eos_token_id
    ended = 0
    for tokens, mask, log_probs in zip(group.tokens, group.mask, group.log_probs, strict=True):
        length = int(mask.sum())
        assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
        assert end not in tokens[: length - 1]
        assert (tokens[length:] == pad).all()
        assert (log_probs[length:] == 0).all()
        assert tokens[length - 1] == end or length == LONGEST
        ended += int(tokens[length - 1] == end)
    assert ended > 12, "the cloned policy ends most of its answers"


def test_texts_are_the_tokens_without_the_end(policy, group):
    for text, tokens, length in zip(
        policy.texts(group.tokens, group.mask), group.tokens, group.lengths, strict=True
    ):
        assert text == policy.tokenizer.decode(tokens[:length]).removesuffix("<end>")


@pytest.mark.parametrize("make_policy", [cloned_policy, small_policy, grouped_query_policy])
def test_greedy_answers_equal_those_of_transformers(make_policy):
    policy = make_policy()
    inputs = small_inputs(policy)
    ours = sample(policy, inputs, max_new_tokens=40, temperature=0)
    theirs = policy.model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=40,
        suppress_tokens=policy.forbidden.nonzero().squeeze(-1).tolist(),
    )[:, inputs["input_ids"].shape[1] :]
    assert ours.tokens.tolist() == theirs[:, : ours.tokens.shape[1]].tolist()


def test_each_answer_follows_from_its_own_question_only(policy, inputs):
    together = sample(policy, inputs, max_new_tokens=40, temperature=0)
    for row in range(3):
        alone = {key: value[row : row + 1] for key, value in inputs.items()}
        kept = alone["attention_mask"][0].bool()
        alone |= {key: alone[key][:, kept] for key in ("input_ids", "attention_mask")}
        answer = sample(policy, alone, max_new_tokens=40, temperature=0)
        length = int(together.lengths[row])
        assert answer.tokens[0].tolist() == together.tokens[row, :length].tolist()


def test_special_tokens_are_never_sampled_however_large_their_logits():
    policy = small_policy()
    forbidden = policy.tokenizer.convert_tokens_to_ids([PAD, IMAGE, USER, ASSISTANT])

    def enlarge(module, args, logits):
        logits[..., forbidden] += 1e4
        return logits

    policy.model.get_output_embeddings().register_forward_hook(enlarge)
    drawn = sample(
        policy, small_inputs(policy), group_size=16, max_new_tokens=10, noise=noise_of(48)
    )
    assert not torch.isin(drawn.tokens[drawn.mask.bool()], torch.tensor(forbidden)).any()
    assert drawn.log_probs.isfinite().all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_from_the_tempered_distribution(policy, temperature):
    draws = 4000
    inputs = policy.prepare(random_images(1), ["the red star"])
    # A policy that has learned always starts with the same brackets: look at its first number.
    start = policy.tokenizer("[[", add_special_tokens=False, return_tensors="pt").input_ids
    inputs["input_ids"] = torch.cat([inputs["input_ids"], start], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    drawn = sample(
        policy,
        inputs,
        group_size=draws,
        max_new_tokens=1,
        temperature=temperature,
        noise=noise_of(draws, longest=1),
    )
    logits = policy.model(**inputs).logits[0, -1].masked_fill(policy.forbidden, -torch.inf)
    expected = draws * (logits / temperature).softmax(-1)
    counts = torch.bincount(drawn.tokens[:, 0], minlength=len(expected)).double()
    common = expected > 5
    assert common.sum() > 3
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]]).double()
    assert chisquare(observed.numpy(), (wanted * draws / wanted.sum()).detach()).pvalue > 1e-3


def test_equal_noise_draws_equal_answers(policy, inputs, group):
    again = sample(policy, inputs, group_size=8, max_new_tokens=LONGEST, noise=noise_of(24))
    assert torch.equal(again.tokens, group.tokens)
    assert torch.equal(again.log_probs, group.log_probs)
    other = sample(policy, inputs, group_size=8, max_new_tokens=LONGEST, noise=noise_of(24, 1))
    assert other.tokens.tolist() != group.tokens.tolist()


def test_an_answer_follows_from_its_own_noise_whatever_else_is_in_the_batch(policy, inputs, group):
    noise = noise_of(24)
    for prompt in range(3):
        rows = slice(8 * prompt, 8 * prompt + 8)
        alone = {key: value[prompt : prompt + 1] for key, value in inputs.items()}
        part = sample(policy, alone, group_size=8, max_new_tokens=LONGEST, noise=noise[rows])
        width = part.tokens.shape[1]
        assert part.tokens.tolist() == group.tokens[rows, :width].tolist()
        assert group.mask[rows].sum() == part.mask.sum()


def test_noise_is_turned_into_tokens_by_the_cumulated_distribution():
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]]).expand(7, 6)
    noise = torch.tensor([0.0, 0.2499, 0.25, 0.5, 0.7499, 0.75, 1 - 2**-24])
    assert invert_distribution(probabilities, noise).tolist() == [1, 1, 3, 3, 3, 4, 4]


def test_a_token_of_probability_zero_is_never_taken_whatever_rounding_does():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(2000, 50, generator=generator).mul(4).softmax(-1)
    probabilities = probabilities.masked_fill(torch.rand(2000, 50, generator=generator) < 0.6, 0.0)
    probabilities[:, 7] += 1e-30
    for extreme in (0.0, 1 - 2**-24):
        noise = torch.full((2000,), extreme)
        taken = invert_distribution(probabilities, noise)
        assert (probabilities.gather(1, taken[:, None]) > 0).all()


def test_sampling_leaves_the_global_generator_and_the_weights_alone(policy, inputs):
    before = torch.get_rng_state()
    drawn = sample(policy, inputs, max_new_tokens=5, noise=noise_of(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert not drawn.log_probs.requires_grad


def test_the_ordinary_attention_is_back_after_sampling(policy, inputs):
    config = policy.model.get_decoder().config
    before = config._attn_implementation
    sample(policy, inputs, max_new_tokens=3)
    assert config._attn_implementation == before


class Alternating:
    """Tokens come from two sets in turn; after a comma a quote must follow, then the end."""

    def __init__(self, policy):
        ids = policy.tokenizer.convert_tokens_to_ids
        self.comma, self.quote, self.end = ids([",", '"', "<end>"])
        self.sets = [ids(list("0123456789")), ids(list("abc,"))]
        self.size = len(policy.forbidden)

    def walk(self, rows):
        return AlternatingWalk(self, rows)


class AlternatingWalk:
    """What is known of each answer: the number of tokens so far and the last token."""

    def __init__(self, rule, rows):
        self.rule, self.states = rule, torch.zeros(rows, 2, dtype=torch.long)

    def allowed(self, rows):
        rule = self.rule
        allowed = torch.zeros(len(rows), rule.size, dtype=torch.bool)
        for row, (count, last) in enumerate(self.states[rows].tolist()):
            after = {rule.comma: [rule.quote], rule.quote: [rule.end]}
            allowed[row, after.get(last, rule.sets[count % 2])] = True
        return allowed

    def advance(self, rows, tokens):
        self.states[rows] = torch.stack([self.states[rows, 0] + 1, tokens], 1)


@pytest.fixture
def constrained(inputs):
    """A policy with a constraint, and its answers."""
    policy = small_policy()
    policy.constraint = Alternating(policy)
    arguments = {"group_size": 8, "max_new_tokens": 12, "temperature": 1.3}
    return policy, sample(policy, inputs, **arguments, noise=noise_of(24))


def test_a_constraint_is_kept(constrained):
    policy, drawn = constrained
    rule, ended = policy.constraint, 0
    for tokens, length in zip(drawn.tokens.tolist(), drawn.lengths.tolist(), strict=True):
        for place, token in enumerate(tokens[:length]):
            after = {rule.comma: [rule.quote], rule.quote: [rule.end]}
            assert token in after.get(tokens[place - 1] if place else 0, rule.sets[place % 2])
        ended += tokens[length - 1] == rule.end
    assert 0 < ended < len(drawn.tokens)


@pytest.mark.parametrize("shared", [True, False])
def test_a_constrained_policy_is_scored_as_it_was_sampled(constrained, inputs, shared):
    policy, drawn = constrained
    scores = score(policy, inputs, drawn.tokens, drawn.mask, 1.3, shared=shared)
    torch.testing.assert_close(drawn.log_probs, scores.log_probs.detach(), rtol=0, atol=1e-5)
    assert torch.equal(scores.choice_mask, drawn.choice_mask)
    # Where the rule leaves no choice, nothing was chosen.
    alone = (drawn.mask == 1) & (drawn.choice_mask == 0)
    singles = torch.isin(drawn.tokens, torch.tensor([policy.constraint.quote]))
    assert torch.equal(alone, (singles | (drawn.tokens == policy.constraint.end)) & alone)
    assert alone.any()
    assert (scores.log_probs[alone] == 0).all()
    assert (scores.entropies[alone] == 0).all()
    assert (scores.log_probs[drawn.choice_mask == 1] < 0).all()


def test_a_constrained_policy_is_the_model_renormalised(constrained, inputs):
    policy, drawn = constrained
    scores = score(policy, inputs, drawn.tokens, drawn.mask, 1.3)
    rule, policy.constraint = policy.constraint, None
    logits = policy.encode(inputs).next_logits.repeat_interleave(8, dim=0)
    wanted = (logits[:, rule.sets[0]] / 1.3).log_softmax(-1)
    place = (drawn.tokens[:, :1] == torch.tensor(rule.sets[0])).long().argmax(-1)
    wanted = wanted.gather(-1, place[:, None]).squeeze(-1)
    torch.testing.assert_close(scores.log_probs[:, 0], wanted, rtol=0, atol=1e-5)


def test_without_a_constraint_every_token_is_free(group, policy, inputs):
    assert torch.equal(group.choice_mask, group.mask)
    assert torch.equal(score(policy, inputs, group.tokens, group.mask).choice_mask, group.mask)
