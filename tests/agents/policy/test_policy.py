"""Scoring through shared prefixes gives what the plain model gives, answer by answer."""

import pytest
import torch
from agents_fixtures import (
    SMALL,
    cloned_policy,
    grouped_query_policy,
    random_images,
    small_inputs,
    small_policy,
)

from agents.embedded.tiny import ASSISTANT, IMAGE, PAD, USER
from agents.policy.model import VLMPolicy
from agents.policy.processing import chat_text, special_tokens
from agents.policy.scoring import score

GROUP = 3


def random_completions(policy, inputs, longest=7):
    """Answers of unequal lengths, the longest among them."""
    rows = len(inputs["input_ids"]) * GROUP
    generator = torch.Generator().manual_seed(0)
    allowed = (~policy.forbidden).nonzero().squeeze(-1)
    picks = torch.randint(len(allowed), (rows, longest), generator=generator)
    lengths = torch.randint(1, longest + 1, (rows,), generator=generator)
    lengths[0], lengths[1] = longest, 1
    mask = (torch.arange(longest) < lengths[:, None]).long()
    tokens = torch.where(mask.bool(), allowed[picks], policy.tokenizer.pad_token_id)
    return tokens, mask


def plain_logits(policy, inputs, row, answer):
    """Logits of one answer by an ordinary forward pass: no padding and no cache."""
    prompt = row // GROUP
    question = inputs["input_ids"][prompt][inputs["attention_mask"][prompt].bool()]
    return policy.model(
        input_ids=torch.cat([question, answer])[None],
        pixel_values=inputs["pixel_values"][prompt : prompt + 1],
    ).logits[0, len(question) - 1 : -1]


def plain_log_probs(policy, inputs, tokens, mask, temperature=1.0):
    """Log-probabilities by one ordinary forward pass for each answer: no padding and no cache."""
    result = []
    for row in range(len(tokens)):
        length = int(mask[row].sum())
        logits = plain_logits(policy, inputs, row, tokens[row, :length])
        logits = logits.masked_fill(policy.forbidden, -torch.inf) / temperature
        chosen = logits.log_softmax(-1).gather(-1, tokens[row, :length, None]).squeeze(-1)
        result.append(torch.nn.functional.pad(chosen, (0, tokens.shape[1] - length)))
    return torch.stack(result)


@pytest.mark.parametrize("make_policy", [small_policy, cloned_policy, grouped_query_policy])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_equal_those_of_a_plain_forward_pass(make_policy, temperature):
    policy = make_policy()
    inputs = small_inputs(policy)
    tokens, mask = random_completions(policy, inputs)
    scored = score(policy, inputs, tokens, mask, temperature).log_probs
    plain = plain_log_probs(policy, inputs, tokens, mask, temperature)
    torch.testing.assert_close(scored, plain, rtol=0, atol=1e-5)
    assert (scored[mask == 0] == 0).all()
    assert (scored[mask == 1] < 0).all()


@pytest.mark.parametrize("make_policy", [cloned_policy, grouped_query_policy])
def test_gradients_equal_those_of_a_plain_forward_pass(make_policy):
    policy = make_policy()
    inputs = small_inputs(policy)
    tokens, mask = random_completions(policy, inputs)
    weights = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1)) * mask

    def gradients(log_probs):
        policy.model.zero_grad()
        (log_probs * weights).sum().backward()
        return {
            name: parameter.grad.clone()
            for name, parameter in policy.model.named_parameters()
            if parameter.grad is not None
        }

    shared = gradients(score(policy, inputs, tokens, mask).log_probs)
    plain = gradients(plain_log_probs(policy, inputs, tokens, mask))
    assert shared.keys() == plain.keys()
    assert any("vision_tower" in name for name in shared), "the image must be learned too"
    largest = max(gradient.norm() for gradient in plain.values())
    for name, gradient in plain.items():
        # A parameter without influence, such as the bias of attention keys, has only rounding.
        scale = max(gradient.norm().item(), 1e-3 * largest.item())
        assert (shared[name] - gradient).norm().item() / scale < 1e-4, name


def test_an_answer_of_one_token_is_scored():
    policy = small_policy()
    inputs = small_inputs(policy)
    tokens, mask = random_completions(policy, inputs)
    plain = plain_log_probs(policy, inputs, tokens[:, :1], mask[:, :1])
    torch.testing.assert_close(
        score(policy, inputs, tokens[:, :1], mask[:, :1]).log_probs, plain, rtol=0, atol=1e-5
    )


def test_entropy_is_that_of_the_allowed_tokens():
    policy = small_policy()
    inputs = small_inputs(policy)
    tokens, mask = random_completions(policy, inputs)
    entropies = score(policy, inputs, tokens, mask).entropies
    for row in range(len(tokens)):
        length = int(mask[row].sum())
        logits = plain_logits(policy, inputs, row, tokens[row, :length])
        allowed = torch.distributions.Categorical(logits=logits[..., ~policy.forbidden])
        torch.testing.assert_close(entropies[row, :length], allowed.entropy(), rtol=1e-4, atol=1e-5)
        assert (entropies[row, length:] == 0).all()


def test_special_tokens_are_forbidden_however_large_their_logits():
    policy = small_policy()
    forbidden = policy.tokenizer.convert_tokens_to_ids([PAD, IMAGE, USER, ASSISTANT])
    logits = torch.zeros(len(policy.tokenizer))
    logits[forbidden] = 1e6
    probabilities = policy.log_softmax(logits, temperature=1.0).exp()
    assert probabilities[forbidden].tolist() == [0, 0, 0, 0]
    assert probabilities.sum().item() == pytest.approx(1)
    # The end token is special too, but an answer must be able to end.
    assert probabilities[policy.tokenizer.eos_token_id] > 0


def test_rows_of_the_embedding_beyond_the_tokenizer_are_forbidden():
    policy = small_policy()
    size = len(policy.tokenizer)
    policy.model.resize_token_embeddings(size + 14)
    padded = VLMPolicy(policy.model, policy.processor)
    assert padded.forbidden[size:].all()
    assert not padded.forbidden[:size].all()


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "Ünïcödé 龍 🐉 \u202e\x00 \ud7ff",
        "a <image> in words",
        "<user><assistant><end><pad>" * 3,
        "<im<image>age>",
        "{{ messages }} {% raw %}",
        "[[[0.1,0.2]]]" * 200,
    ],
)
def test_any_text_can_be_asked(prompt):
    policy = small_policy()
    inputs = policy.prepare(random_images(1), [prompt])
    ids = inputs["input_ids"][0].tolist()
    specials = [token for index in ids if (token := special_tokens(policy.tokenizer).get(index))]
    # One image, one turn: what reads like a special token in the question is only text.
    assert specials.count(IMAGE) == (SMALL.image_size // SMALL.patch_size) ** 2
    assert specials.count(USER) == specials.count(ASSISTANT) == 1
    assert policy.encode(inputs).next_logits.isfinite().all()


def test_an_ordinary_prompt_is_asked_word_for_word():
    prompt = "Output the polygon coordinates of the tiny red star < 3 px in the image."
    assert chat_text(small_policy().processor, prompt) == f"<user><image>{prompt}<assistant>"


def test_bfloat16_scores_are_close_and_stay_float32():
    policy = cloned_policy()
    inputs = small_inputs(policy)
    tokens, mask = random_completions(policy, inputs)
    exact = score(policy, inputs, tokens, mask).log_probs
    policy.precision = "bfloat16"
    rounded = score(policy, inputs, tokens, mask).log_probs
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).abs().mean() < 0.1


def test_several_threads_make_the_same_bits_every_time():
    """Otherwise an interrupted run would not go on to the same numbers.

    All answers of a group begin from one row of logits, whose gradient is added up.
    """
    policy = cloned_policy()
    inputs = small_inputs(policy)
    generator = torch.Generator().manual_seed(0)
    rows = 32 * len(inputs["input_ids"])
    tokens = torch.randint(10, 60, (rows, 6), generator=generator)
    mask = torch.ones_like(tokens)
    parameters = list(policy.model.parameters())
    found = set()
    torch.set_num_threads(2)
    for _ in range(20):
        scores = score(policy, inputs, tokens, mask)
        gradients = torch.autograd.grad(scores.log_probs.mean(), parameters, allow_unused=True)
        found.add(tuple(float(each.double().sum()) for each in gradients if each is not None))
    assert len(found) == 1
