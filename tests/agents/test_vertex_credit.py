"""Rewards of vertices find the tokens that wrote them, whatever the tokenizer."""

import time

import numpy as np
import pytest
import torch
from agents_fixtures import cloned_policy, scene_environment
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from agents.embedded.tiny import END, build_tokenizer
from agents.gspo import GSPOConfig
from agents.policy.sampling import sample
from agents.vertex_credit import TokenAligner, credits_of, place_credit
from seg_env.envs.vertex import VertexCredit

OUTLINE = "[[[0.1,0.2],[0.3,0.4],[0.5,0.6]],[[0.7,0.8],[0.9,0.1],[0.2,0.3]]]"


def credit(ends, rewards, iou=None):
    rewards = np.array(rewards, dtype=float)
    return VertexCredit(np.array(ends), rewards, rewards if iou is None else np.array(iou))


def vertex_ends(text):
    """Indices behind the bracket that closes each vertex."""
    return [i + 1 for i, c in enumerate(text) if c == "]" and text[i - 1].isdigit()]


def byte_tokenizer():
    """Byte-level: characters beyond ASCII take several tokens, none of which decodes by itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "]]", "],", "],["])}
    merges = [("]", "]"), ("]", ","), ("],", "[")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def sentence_tokenizer():
    """As SentencePiece does it: the space in front of the first word is dropped in decoding."""
    pieces = ["▁", "▁[[", "▁[", "[[", "]]", "],", "0.", *"[],.0123456789 ab"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in vocabulary], unk_id=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


TOKENIZERS = {"own": build_tokenizer, "bytes": byte_tokenizer, "sentences": sentence_tokenizer}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", [OUTLINE, "a [[[0.1, 0.2],[0.3,0.4] ]", "", "[]"])
def test_every_character_is_written_by_the_token_that_holds_it(name, text):
    tokenizer = TOKENIZERS[name]()
    tokens = tokenizer.encode(text, add_special_tokens=False)
    tokens.append(tokenizer.eos_token_id)
    assert tokenizer.decode(tokens, skip_special_tokens=True) == text
    written = TokenAligner(tokenizer).text_ends(tokens, text)
    beginnings = [
        tokenizer.decode(tokens[: i + 1], skip_special_tokens=True) for i in range(len(tokens))
    ]
    assert [text[:end] for end in written] == beginnings


def test_a_character_of_several_tokens_is_written_by_the_last_of_them():
    tokenizer = byte_tokenizer()
    text = "é[1,2]→]"
    tokens = tokenizer.encode(text, add_special_tokens=False)
    written = TokenAligner(tokenizer).text_ends(tokens, text)
    assert written.tolist() == [0, 1, 2, 3, 4, 5, 6, 6, 6, 7, 8]


@given(st.text("[],.0123456789 aé→\n", min_size=1, max_size=40))
def test_beginnings_and_remembered_pieces_agree_on_any_text(text):
    tokenizer = byte_tokenizer()
    aligner = TokenAligner(tokenizer)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    quick = aligner.text_ends(tokens, text)
    np.testing.assert_array_equal(quick, aligner._decode_step_by_step(tokens, text))
    assert (np.diff(quick) >= 0).all()
    assert quick[-1] == len(text)


def tokens_of(tokenizer, texts):
    """Padded tokens and mask of texts, each with its end token."""
    ids = [[*tokenizer.encode(t), tokenizer.eos_token_id] for t in texts]
    width = max(map(len, ids))
    tokens = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    return tokens, mask


def test_a_vertex_is_completed_by_the_token_with_its_closing_bracket():
    tokenizer = build_tokenizer()
    outline = "[[[0.10,0.20],[0.30,0.40],[0.50,0.60]],[[0.70,0.80],[0.90,0.10],[0.20,0.30]]]"
    tokens, mask = tokens_of(tokenizer, [outline])
    ends = [*vertex_ends(outline), len(outline)]
    written = tokens[0][mask[0].bool()].tolist()
    places = TokenAligner(tokenizer).completing_tokens(written, outline, np.array(ends))
    pieces = [tokenizer.convert_ids_to_tokens(int(tokens[0, place])) for place in places]
    assert pieces == ["],[0.30", "],[0.50", "]],[", "],[0.90", "],[0.20", "]]]", END]


def test_one_token_may_complete_several_entries():
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = "!"
    tokens, mask = tokens_of(tokenizer, ["[1]],[2]"])
    given = [credit([3, 4, 8], [0.25, 0.5, 1.0])]
    placed = place_credit(TokenAligner(tokenizer), tokens, mask, ["[1]],[2]"], given)
    pieces = tokenizer.convert_ids_to_tokens(tokens[0].tolist())
    assert pieces == ["[", "1", "]]", ",", "[", "2", "]", "<end>"]
    assert placed.tolist() == [[0, 0, 0.75, 0, 0, 0, 0, 1]]


def test_rewards_of_every_answer_keep_their_sum_whatever_the_offsets():
    tokenizer = build_tokenizer()
    texts = [OUTLINE, "", "nonsense", "[[["]
    tokens, mask = tokens_of(tokenizer, texts)
    given = [
        credit([*vertex_ends(OUTLINE), len(OUTLINE)], np.arange(7) / 10),
        credit([0], [0.5]),
        credit([8], [-0.25]),
        credit([1, 2, 3], [0.1, 0.2, 0.3]),
    ]
    placed = place_credit(TokenAligner(tokenizer), tokens, mask, texts, given)
    torch.testing.assert_close(placed.sum(-1), torch.tensor([2.1, 0.5, -0.25, 0.6]))
    assert not (placed * (1 - mask)).any()
    last = mask.sum(-1) - 1
    assert placed[1, last[1]] == 0.5
    assert placed[2, last[2]] == -0.25


def test_vertices_can_be_compared_with_those_of_the_same_number():
    tokenizer = build_tokenizer()
    texts = ["[1][2]", "[3]", "[4][5]", "[6]"]
    tokens, mask = tokens_of(tokenizer, texts)
    given = [
        credit([3, 6], [0.5, 0.25]),
        credit([3], [0.75]),
        credit([3, 6], [1.0, 0.0]),
        credit([3], [0.0]),
    ]
    placed = place_credit(TokenAligner(tokenizer), tokens, mask, texts, given, group_size=2)
    # "[1]" against "[3]", and "[2]" against nothing; what "[2]" earned is missing after "[3]",
    # on top of what its only vertex did better, both on the end token.
    first, second = 0.5 - 0.75, 0.25
    assert placed[0].tolist() == pytest.approx([0, 0, first, 0, 0, 0, second])
    assert placed[1].tolist() == pytest.approx([0, 0, 0, -first - second, 0, 0, 0])
    assert placed[2].tolist() == pytest.approx([0, 0, 1.0, 0, 0, 0, 0])
    assert placed[3].tolist() == pytest.approx([0, 0, 0, -1.0, 0, 0, 0])


def test_sampled_answers_of_a_policy_and_the_environment_fit_together():
    config = GSPOConfig(prompts_per_update=4, group_size=4)
    env, policy = scene_environment(config), cloned_policy()
    observations, _ = env.reset(seed=0)
    inputs = policy.prepare(observations["image"], observations["prompt"])
    torch.manual_seed(0)
    answers = sample(policy, inputs, max_new_tokens=60)
    texts = policy.texts(answers.tokens, answers.mask)
    _, rewards, *_ = env.step(texts)
    credits = credits_of(env, texts)
    assert max(len(each.ends) for each in credits) > 3, "the case must show vertices"
    aligner = TokenAligner(policy.tokenizer)
    placed = place_credit(aligner, answers.tokens, answers.mask, texts, credits)
    np.testing.assert_allclose(placed.sum(-1), rewards, atol=1e-5)
    for row, (text, each) in enumerate(zip(texts, credits, strict=True)):
        written = answers.tokens[row][answers.mask[row].bool()].tolist()
        places = aligner.completing_tokens(written, text, each.ends)
        for end, place in zip(each.ends[:-1], places.tolist(), strict=False):
            before, after = (
                policy.tokenizer.decode(answers.tokens[row, :count], skip_special_tokens=True)
                for count in (place, place + 1)
            )
            assert len(before) < end <= len(after)


def test_a_whole_rollout_takes_milliseconds():
    tokenizer = build_tokenizer()
    texts = [OUTLINE] * 256
    tokens, mask = tokens_of(tokenizer, texts)
    given = [credit([*vertex_ends(OUTLINE), len(OUTLINE)], [0.1] * 7)] * 256
    aligner = TokenAligner(tokenizer)
    start = time.process_time()
    place_credit(aligner, tokens, mask, texts, given)
    assert time.process_time() - start < 0.5


def test_an_environment_that_cannot_tell_is_named():
    class Plain:
        unwrapped = property(lambda self: self)

    with pytest.raises(TypeError, match="Plain has no vertex_credit"):
        credits_of(Plain(), [""])
