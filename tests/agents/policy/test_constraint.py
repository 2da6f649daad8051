"""Decoding constrained to outlines: the same language, for every kind of tokenizer."""

import random
import time
from functools import cache

import numpy as np
import pytest
import regex
import torch
from agents_fixtures import small_inputs, small_policy
from ebnf import ebnf_to_regex
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from agents.embedded.tiny import build_tokenizer
from agents.policy.constraint import OutlineConstraint
from agents.policy.model import VLMPolicy
from agents.policy.sampling import sample
from agents.policy.scoring import score
from experiments.common import policies
from seg_env.data.scenes import Scenes
from seg_env.errors import WrongOptionError
from seg_env.frames import PERMILLE, UNIT, pixel_frame
from seg_env.grammar import decode, encode, grammar_ebnf

SPECIAL = ["<pad>", "<end>", "<image>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
RULES = {
    "padded": {"decimals": 2, "pad": True},
    "plain": {"decimals": 3},
    "short rings": {"decimals": 2, "max_vertices": 4},
    "pixels": {"frame": pixel_frame(1344, 73)},
}
UNLIMITED = 10_000
"""A budget that no random walk comes near."""


@cache
def outlines():
    """Texts of many forms, from which a tokenizer learns merges such as ``],[``."""
    scenes, texts = Scenes("train", size=64), []
    for index in range(40):
        rings = scenes[index].target.outline(0.01)
        texts += [encode(rings), encode(rings, 2, pad=True), encode(rings, frame=PERMILLE)]
    return texts + [text.replace(",", ", ") for text in texts]


def wrapped(tokenizer):
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def byte_level_tokenizer():
    """As GPT-2 and Qwen: merges of bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(outlines(), trainer)
    return wrapped(tokenizer)


def sentence_piece_tokenizer():
    """As Llama: pieces that begin with a space, dropped at the start of a text; bytes besides."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=400, show_progress=False, unk_token="<unk>")
    tokenizer.train_from_iterator(outlines(), trainer)
    learned = sorted(tokenizer.get_vocab().keys() - {"<unk>"}, key=tokenizer.token_to_id)
    pieces = [(piece, -float(rank)) for rank, piece in enumerate(learned)]
    vocabulary = [("<unk>", 0.0), *((byte, -1e3) for byte in BYTES), *pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    space, strip = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse(), strip])
    return wrapped(tokenizer)


def byte_fallback_tokenizer():
    """As Gemma: characters and pieces, what is missing byte by byte; here that is every digit."""
    pieces = ["<unk>", *BYTES, *"[],.▁", "[[", "]]", "],", "],[", "]],[[", "]]]", "0.", "▁[["]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    merges = [("[", "["), ("]", "]"), ("]", ","), ("],", "["), ("]]", "]")]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    space = decoders.Replace("▁", " ")
    tokenizer.decoder = decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse()])
    return wrapped(tokenizer)


MAKERS = {
    "tiny": build_tokenizer,
    "byte level": byte_level_tokenizer,
    "sentence piece": sentence_piece_tokenizer,
    "byte fallback": byte_fallback_tokenizer,
}


@cache
def made(kind):
    return MAKERS[kind]()


@pytest.fixture(params=MAKERS)
def tokenizer(request):
    return made(request.param)


@pytest.fixture(params=RULES)
def rules(request):
    return RULES[request.param]


def language(rules):
    """Regular expression of the answers that the rules allow."""
    rules = {"decimals": 3, **rules}
    return regex.compile(ebnf_to_regex(grammar_ebnf(spaces=False, **rules)))


def build(tokenizer, rules, budget=UNLIMITED, **settings):
    return OutlineConstraint(tokenizer, token_budget=budget, **rules, **settings)


def random_walks(constraint, rows, steps, seed=0):
    """Tokens uniform over what is allowed ``(rows, steps)``, and that, ``(rows, steps, V)``."""
    generator = torch.Generator().manual_seed(seed)
    walk, everyone = constraint.walk(rows), torch.arange(rows)
    tokens, allowed = [], []
    for _ in range(steps):
        allowed.append(walk.allowed(everyone))
        assert allowed[-1].any(1).all()
        tokens.append(torch.multinomial(allowed[-1].float(), 1, generator=generator)[:, 0])
        walk.advance(everyone, tokens[-1])
    return torch.stack(tokens, 1), torch.stack(allowed, 1)


def texts_of(tokenizer, rows):
    return tokenizer.batch_decode(rows, skip_special_tokens=True)


def follow(constraint, tokens):
    """Which tokens are allowed behind some tokens."""
    walk, row = constraint.walk(1), torch.tensor([0])
    for token in tokens:
        walk.advance(row, torch.tensor([token]))
    return walk.allowed(row)[0].nonzero()[:, 0].tolist()


def shortest_answer(tokenizer, rules):
    """The smallest budget that is not refused."""
    for budget in range(1, 20):
        try:
            build(tokenizer, rules, budget)
        except ValueError:
            continue
        return budget
    raise AssertionError("no answer fits 20 tokens")


@pytest.mark.parametrize("spare", [0, 1, 7, 60])
def test_every_answer_ends_within_the_budget_and_has_no_issue(tokenizer, rules, spare):
    budget = shortest_answer(tokenizer, rules) + spare
    tokens, _ = random_walks(build(tokenizer, rules, budget), 60, budget + 2)
    ends = torch.tensor([tokenizer.pad_token_id, tokenizer.eos_token_id])
    assert (tokens[:, :budget] == tokenizer.eos_token_id).any(1).all()
    assert torch.isin(tokens[:, budget:], ends).all()
    answers = texts_of(tokenizer, tokens)
    pattern = language(rules)
    assert all(pattern.fullmatch(answer) for answer in answers)
    assert all(decode(answer, rules.get("frame", UNIT)).issues == () for answer in answers)
    assert spare < 60 or len(set(answers)) > 15  # at most half of them are empty


def test_outlines_are_accepted_as_the_tokenizer_writes_them(tokenizer):
    scenes = Scenes("val", "hard", size=64)
    found = [scenes[index].target.outline(0.01) for index in range(8)]
    permille = PERMILLE
    for rules, texts in (
        (RULES["plain"], ["[]", *map(encode, found)]),
        (RULES["padded"], [encode(rings, 2, pad=True) for rings in found]),
        ({"frame": permille}, [encode(rings, frame=permille) for rings in found]),
    ):
        walk, everyone = build(tokenizer, rules).walk(len(texts)), torch.arange(len(texts))
        ended = [text + tokenizer.eos_token for text in texts]
        batch = tokenizer(ended, add_special_tokens=False, padding=True, padding_side="right")
        for tokens in torch.tensor(batch.input_ids).T:
            assert walk.allowed(everyone).gather(1, tokens[:, None]).all()
            walk.advance(everyone, tokens)


def test_allowed_tokens_are_those_whose_characters_are(tokenizer, rules):
    tokens, allowed = random_walks(build(tokenizer, rules), 3, 40, seed=5)
    special = set(tokenizer.all_special_ids)
    for row, step in np.random.default_rng(0).permutation(
        [(r, s) for r in range(3) for s in range(40)]
    )[:14]:
        prefix = tokens[row, :step].tolist()
        if tokenizer.eos_token_id in prefix:
            continue
        expected = allowed_by_characters(language(rules), tokenizer, prefix)
        found = set(allowed[row, step].nonzero()[:, 0].tolist())
        # In rings of a limited length xgrammar leaves out tokens that end one and begin another.
        assert found == expected or ("max_vertices" in rules and found < expected)
        assert found & special <= {tokenizer.eos_token_id}


def allowed_by_characters(pattern, tokenizer, prefix):
    """Tokens behind a prefix, from nothing but decoded texts and the regular expression."""
    vocabulary = range(len(tokenizer))
    before = tokenizer.decode(prefix, skip_special_tokens=True)
    texts = texts_of(tokenizer, [[*prefix, token] for token in vocabulary])
    pure = texts_of(tokenizer, [[40, token] for token in vocabulary])
    writes = [text != pure[tokenizer.eos_token_id] for text in pure]
    allowed = {
        token
        for token, text in enumerate(texts)
        if writes[token]
        and set(text[len(before) :]) <= set("[],.0123456789 ")
        and pattern.fullmatch(text, partial=True)
        and (text != before or not prefix)
    }
    return allowed | ({tokenizer.eos_token_id} if pattern.fullmatch(before) else set())


def test_the_budget_takes_nothing_away_that_could_still_end_in_time():
    tokenizer, budget = made("tiny"), 30
    rules = {"decimals": 1, "pad": True}
    free, limited = build(tokenizer, rules), build(tokenizer, rules, budget)
    edges = reachable(free, tokenizer)
    steps = shortest_ends(edges)
    tokens, allowed = random_walks(limited, 90, budget, seed=1)
    checked = 0
    for row, answer in enumerate(tokens.tolist()):
        for used in range(answer.index(tokenizer.eos_token_id) + 1):
            behind = edges[free._position(tokenizer.decode(answer[:used]))]
            in_time = [
                token for token, after in behind.items() if used + 1 + steps[after] <= budget
            ]
            assert allowed[row, used].nonzero()[:, 0].tolist() == sorted(in_time)
            checked += len(in_time) < len(behind)
    assert checked > 100


def reachable(constraint, tokenizer):
    """Positions of answers without a budget, and which tokens lead from one to which."""
    waiting, edges = [[]], {"end": {}}
    while waiting:
        answer = waiting.pop()
        position = constraint._position(tokenizer.decode(answer))
        if position in edges:
            continue
        edges[position] = {}
        for token in follow(constraint, answer):
            if token == tokenizer.eos_token_id:
                edges[position][token] = "end"
                continue
            edges[position][token] = constraint._position(tokenizer.decode([*answer, token]))
            waiting.append([*answer, token])
    return edges


def shortest_ends(edges):
    """Tokens to the end from every position; by relaxation."""
    steps = dict.fromkeys(edges, 1 << 30) | {"end": 0}
    while True:
        closer = steps | {
            position: 1 + min(steps[after] for after in behind.values())
            for position, behind in edges.items()
            if behind
        }
        if closer == steps:
            return steps
        steps = closer


def test_where_one_token_fits_it_is_the_only_one_allowed():
    constraint = build(made("tiny"), RULES["padded"])
    assert forced(constraint, "[[[1") == ["."]
    assert forced(constraint, "[[[1.") == ["0"]
    assert forced(constraint, "[[[1.0") == ["0"]
    assert forced(constraint, "[]") == ["<end>"]
    assert len(forced(constraint, "[[[0.")) == 10
    numbers = [f"0.{number:02d}" for number in range(100)]
    assert sorted(forced(constraint, "[[[0.12")) == [",", *(f",{each}" for each in numbers)]
    ends = ["]", "],[", *(f"],[{each}" for each in numbers)]
    assert sorted(forced(constraint, "[[[0.12,0.34")) == ends
    triangles = build(made("tiny"), {"decimals": 1, "pad": True, "max_vertices": 3})
    assert sorted(forced(triangles, "[[[0.1,0.3],[0.2,0.2],[0.4,0.5")) == ["]", "]]]"]
    assert sorted(forced(triangles, "[[[0.1,0.3],[0.2,0.2],[0.4,0.5]]")) == [",", "]"]


def forced(constraint, text):
    """Tokens allowed behind a text that is written character by character."""
    tokenizer = made("tiny")
    found = follow(constraint, tokenizer.convert_tokens_to_ids(list(text)))
    return tokenizer.convert_ids_to_tokens(found)


def test_behind_the_end_there_is_only_the_end(tokenizer):
    constraint = build(tokenizer, RULES["plain"])
    end, padding = tokenizer.eos_token_id, tokenizer.pad_token_id
    written = tokenizer("[]", add_special_tokens=False).input_ids
    assert follow(constraint, written) == [end]
    for broken in ([*written, written[-1]], [end], [*written, end], [*written, end, padding]):
        assert follow(constraint, broken) == sorted([end, padding])


def test_rows_of_a_batch_do_not_depend_on_each_other(tokenizer):
    constraint = build(tokenizer, RULES["short rings"], 40)
    tokens, allowed = random_walks(constraint, 8, 30)
    order = [5, 0, 7]
    walk = constraint.walk(8)
    for step in range(30):
        rows = torch.tensor(order if step % 2 else order[::-1])
        assert torch.equal(walk.allowed(rows), allowed[rows, step])
        walk.advance(rows, tokens[rows, step])


def test_a_policy_can_be_constrained():
    policy = small_policy()
    embedding = policy.model.resize_token_embeddings(len(policy.tokenizer) + 6)
    policy = VLMPolicy(policy.model, policy.processor)
    constraint = OutlineConstraint.for_policy(
        policy, decimals=2, pad=True, max_vertices=5, token_budget=40
    )
    tokens, allowed = random_walks(constraint, 20, 40)
    assert allowed.shape == (20, 40, embedding.weight.shape[0])
    assert allowed.shape[-1] == len(policy.forbidden)
    allowed[..., policy.tokenizer.pad_token_id] = False  # what follows an end is masked
    assert not (allowed & policy.forbidden).any()
    answers = policy.texts(tokens, torch.ones_like(tokens))
    assert all(decode(answer).issues == () for answer in answers)


def test_outlines_are_scored_as_they_were_sampled():
    policy = small_policy()
    inputs = small_inputs(policy)
    policy.constraint = OutlineConstraint.for_policy(policy, decimals=1, token_budget=30)
    torch.manual_seed(0)
    drawn = sample(policy, inputs, group_size=6, max_new_tokens=30, temperature=1.3)
    answers = policy.texts(drawn.tokens, drawn.mask)
    assert all(decode(answer).issues == () for answer in answers)
    assert len(set(answers)) > 3
    for shared in (None, False):
        scores = score(policy, inputs, drawn.tokens, drawn.mask, 1.3, shared=shared)
        torch.testing.assert_close(drawn.log_probs, scores.log_probs.detach(), rtol=0, atol=1e-5)
        assert torch.equal(scores.choice_mask, drawn.choice_mask)


def test_without_xgrammar_the_command_line_names_it(monkeypatch):
    policy, options = small_policy(), policies.GrammarOptions(constrained=True)
    monkeypatch.setattr(policies, "find_spec", lambda name: None)
    with pytest.raises(WrongOptionError, match=r"simpleseg-rl\[grammar\]"):
        policies.constrain(policy, "a folder", options, 20, policy.answer_frame, Console())
    monkeypatch.undo()
    policies.constrain(policy, "a folder", options, 20, policy.answer_frame, Console())
    assert policy.constraint.token_budget == 20


def test_answers_may_end_in_several_ways():
    tokenizer = made("tiny")
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<user>")]
    constraint = build(tokenizer, RULES["plain"], end_ids=ends)
    assert not {*ends} & {*follow(constraint, tokenizer.convert_tokens_to_ids(["["]))}
    assert follow(constraint, tokenizer.convert_tokens_to_ids(["[", "]"])) == sorted(ends)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="token_budget=2, but the shortest answer takes 3"):
        build(made("tiny"), RULES["pixels"], 2)
    build(made("tiny"), RULES["pixels"], 3)
    with pytest.raises(ValueError, match="cannot write an answer"):
        build(word_tokenizer("[0,5"), RULES["pixels"])


def test_a_decoder_that_rewrites_what_tokens_say_together_is_found_out():
    backend = word_tokenizer("[],.0123456789").backend_tokenizer
    backend.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("0.", "")])
    broken = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    with pytest.raises(ValueError, match="one by one they write"):
        build(broken, RULES["plain"])


def word_tokenizer(characters):
    """One token a character."""
    vocabulary = {piece: index for index, piece in enumerate([*SPECIAL, *characters])}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<pad>"))
    backend.decoder = decoders.Fuse()
    return wrapped(backend)


def large_tokenizer(count):
    """Bytes, all numbers of up to three digits, merges of outlines, and a great many words."""
    rng = random.Random(0)
    vocabulary = dict.fromkeys(pre_tokenizers.ByteLevel.alphabet())
    vocabulary |= dict.fromkeys(f"{n:0{digits}}" for digits in (1, 2, 3) for n in range(10**digits))
    vocabulary |= dict.fromkeys(["[[", "[[[", "],[", "]],[[", "]]]", "0.", ",0.", "Ġ[[[", "],Ġ["])
    letters = "abcdefghijklmnopqrstuvwxyz" * 3 + "ĠÃ©[],.0123456789"
    while len(vocabulary) < count:
        vocabulary["".join(rng.choices(letters, k=rng.randint(2, 9)))] = None
    backend = Tokenizer(models.BPE({text: index for index, text in enumerate(vocabulary)}, []))
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<pad>")


def test_a_vocabulary_of_150_000_tokens_takes_seconds():
    tokenizer = large_tokenizer(150_000)
    began = time.thread_time()
    constraint = build(tokenizer, RULES["plain"], 64)
    assert time.thread_time() - began < 10  # about 3 s
    tokens, allowed = random_walks(constraint, 4, 64)
    assert allowed.shape == (4, 64, 150_002)
    answers = texts_of(tokenizer, tokens)
    assert all(decode(answer).issues == () for answer in answers)
