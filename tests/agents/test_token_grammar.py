"""The grammar over tokens: the same language, for every kind of tokenizer."""

from functools import cache

import numpy as np
import pytest
import torch
from agents_fixtures import small_policy
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from agents.embedded.tiny import build_tokenizer
from agents.policy.model import VLMPolicy
from agents.policy.token_grammar import TokenGrammar
from seg_env.data.scenes import Scenes
from seg_env.frames import PERMILLE, pixel_frame
from seg_env.grammar import decode, encode
from seg_env.grammar.automaton import AnswerRules

SPECIAL = ["<pad>", "<end>", "<image>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
RULES = {
    "padded": AnswerRules(decimals=2, pad=True, max_rings=3),
    "plain": AnswerRules(decimals=3),
    "spaced": AnswerRules(decimals=2, spaces=True, max_vertices=9, max_rings=2),
    "pixels": AnswerRules(frame=pixel_frame(1344, 73), allow_empty=False, max_ring_vertices=4),
}


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


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Constraints by tokenizer and rules; compiled once."""
    folder = tmp_path_factory.mktemp("cache")

    def build(tokenizer, rules, token_budget=None):
        return TokenGrammar.from_tokenizer(
            tokenizer, rules, token_budget=token_budget, cache_dir=folder
        )

    return build


def random_walks(grammar, rows, steps, seed=0):
    """Tokens uniform over what is allowed, ``(rows, steps)``, and the states before each."""
    generator = torch.Generator().manual_seed(seed)
    states, visited, tokens = grammar.start(rows), [], []
    for _ in range(steps):
        visited.append(states)
        allowed = grammar.allowed(states)
        assert allowed.any(1).all()
        tokens.append(torch.multinomial(allowed.float(), 1, generator=generator)[:, 0])
        states = grammar.advance(states, tokens[-1])
    return torch.stack(tokens, 1), torch.stack(visited, 1)


def texts_of(tokenizer, rows):
    return tokenizer.batch_decode(rows, skip_special_tokens=True)


def shortest_answer(grammar):
    """Tokens of the shortest answer, by looking at every position that tokens can reach."""
    states, steps = grammar.start(1), 1
    while not (states[:, 0] == grammar.automaton.end).any():
        rows, tokens = grammar.allowed(states).nonzero(as_tuple=True)
        states, steps = grammar.advance(states[rows], tokens).unique(dim=0), steps + 1
    return steps


@pytest.mark.parametrize("spare", [0, 1, 7, 60])
def test_every_answer_ends_within_the_budget_and_has_no_issue(tokenizer, rules, spare, compiled):
    budget = shortest_answer(compiled(tokenizer, rules)) + spare
    grammar = compiled(tokenizer, rules, budget)
    tokens, _ = random_walks(grammar, 60, budget + 2)
    ends = torch.tensor([tokenizer.pad_token_id, tokenizer.eos_token_id])
    assert (tokens[:, :budget] == tokenizer.eos_token_id).any(1).all()
    assert torch.isin(tokens[:, budget:], ends).all()
    answers = texts_of(tokenizer, tokens)
    assert all(grammar.automaton.accepts(answer) for answer in answers)
    assert all(decode(answer, rules.frame).issues == () for answer in answers)
    assert spare < 60 or len(set(answers)) > 15  # at most half of them are empty


def test_outlines_are_accepted_as_the_tokenizer_writes_them(tokenizer, compiled):
    scenes = Scenes("val", "hard", size=64)
    found = [scenes[index].target.outline(0.01) for index in range(8)]
    permille = PERMILLE
    for rules, texts in (
        (RULES["plain"], ["[]", *map(encode, found)]),
        (RULES["padded"], [encode(rings, 2, pad=True) for rings in found]),
        (RULES["spaced"], ["[[[0.1, 0.25], [1, 0.4], [0.5, 0]], [[0,0],[1,0],[1,1]]]"]),
        (AnswerRules(frame=permille), [encode(rings, frame=permille) for rings in found]),
    ):
        grammar = compiled(tokenizer, rules)
        ended = [text + tokenizer.eos_token for text in texts]
        batch = tokenizer(ended, add_special_tokens=False, padding=True, padding_side="right")
        states = grammar.start(len(texts))
        for tokens in torch.tensor(batch.input_ids).T:
            assert grammar.allowed(states).gather(1, tokens[:, None]).all()
            states = grammar.advance(states, tokens)


def test_allowed_tokens_are_those_whose_characters_are(tokenizer, rules, compiled):
    grammar = compiled(tokenizer, rules)
    tokens, states = random_walks(grammar, 3, 40, seed=5)
    special = set(tokenizer.all_special_ids)
    for row, step in np.random.default_rng(0).permutation(
        [(r, s) for r in range(3) for s in range(40)]
    )[:14]:
        prefix = tokens[row, :step].tolist()
        if tokenizer.eos_token_id in prefix:
            continue
        expected = allowed_by_characters(grammar.automaton, tokenizer, prefix)
        allowed = set(grammar.allowed(states[row, step][None])[0].nonzero()[:, 0].tolist())
        assert allowed == expected
        assert allowed & special <= {tokenizer.eos_token_id}


def allowed_by_characters(automaton, tokenizer, prefix):
    """Tokens behind a prefix, from nothing but decoded texts and the character automaton."""
    vocabulary = range(len(tokenizer))
    before = tokenizer.decode(prefix, skip_special_tokens=True)
    texts = texts_of(tokenizer, [[*prefix, token] for token in vocabulary])
    pure = texts_of(tokenizer, [[40, token] for token in vocabulary])
    writes = [text != pure[tokenizer.eos_token_id] for text in pure]
    allowed = {
        token
        for token, text in enumerate(texts)
        if writes[token] and automaton.walk(text) and (text != before or not prefix)
    }
    return allowed | ({tokenizer.eos_token_id} if automaton.accepts(before) else set())


def test_the_budget_takes_nothing_away_that_could_still_end_in_time(compiled):
    rules = AnswerRules(decimals=1, pad=True, max_vertices=7, max_rings=2)
    tokenizer, budget = made("tiny"), 30
    free, limited = compiled(tokenizer, rules), compiled(tokenizer, rules, budget)
    positions = reachable(free)
    steps_to_end = shortest_ends(free, positions)
    checked = 0
    for position, steps in steps_to_end.items():
        for used in range(max(0, budget - steps - 6), budget - steps + 1):
            states = torch.tensor([[*position, used]])
            allowed = free.allowed(states)[0].nonzero()[:, 0]
            after = free.advance(states.expand(len(allowed), -1), allowed)
            in_time = [
                token
                for token, (*behind, _) in zip(allowed.tolist(), after.tolist(), strict=True)
                if used + 1 + steps_to_end.get(tuple(behind), 0) <= budget
            ]
            assert limited.allowed(states)[0].nonzero()[:, 0].tolist() == in_time
            checked += 1
    assert checked > 1000


def reachable(grammar):
    """All states that tokens lead to, without the count of tokens and without ended answers."""
    found, fresh = set(), grammar.start(1)
    while len(fresh):
        rows, tokens = grammar.allowed(fresh).nonzero(as_tuple=True)
        found |= {tuple(state) for state in fresh[:, :-1].tolist()}
        fresh = grammar.advance(fresh[rows], tokens)
        fresh[:, -1] = 0
        fresh = fresh.unique(dim=0)
        is_new = [
            tuple(state[:-1]) not in found and state[0] != len(grammar.automaton.in_ring) + 1
            for state in fresh.tolist()
        ]
        fresh = fresh[torch.tensor(is_new)]
    return sorted(found)


def shortest_ends(grammar, positions):
    """Tokens to the end, the end token included, from every position; by relaxation."""
    states = torch.tensor([[*position, 0] for position in positions])
    rows, tokens = grammar.allowed(states).nonzero(as_tuple=True)
    after = [tuple(state[:-1]) for state in grammar.advance(states[rows], tokens).tolist()]
    edges = [(positions[row], behind) for row, behind in zip(rows.tolist(), after, strict=True)]
    steps = {position: 1 for position in positions if position[0] == grammar.automaton.end}
    while True:
        closer = dict(steps)
        for position, behind in edges:
            if behind in steps:
                closer[position] = min(closer.get(position, 1 << 30), steps[behind] + 1)
        if closer == steps:
            return steps
        steps = closer


def test_where_one_token_fits_it_is_the_only_one_allowed(compiled):
    grammar = compiled(made("tiny"), RULES["padded"])
    assert forced(grammar, "[[[1") == ["."]
    assert forced(grammar, "[[[1.") == ["0"]
    assert forced(grammar, "[[[1.0") == ["0"]
    assert forced(grammar, "[]") == ["<end>"]
    assert len(forced(grammar, "[[[0.")) == 10
    assert sorted(forced(grammar, "[[[0.12")) == [",", ",0."]
    assert sorted(forced(grammar, "[[[0.12,0.34")) == ["]", "],[", "],[0."]
    triangles = compiled(made("tiny"), AnswerRules(decimals=1, pad=True, max_vertices=3))
    assert sorted(forced(triangles, "[[[0.1,0.3],[0.2,0.2],[0.4,0.5")) == ["]", "]]]"]


def forced(grammar, text):
    """Tokens allowed behind a text that is written character by character."""
    tokenizer = made("tiny")
    states = grammar.start(1)
    for token in tokenizer.convert_tokens_to_ids(list(text)):
        states = grammar.advance(states, torch.tensor([token]))
    return tokenizer.convert_ids_to_tokens(grammar.allowed(states)[0].nonzero()[:, 0].tolist())


def test_behind_the_end_there_is_only_the_end(tokenizer, compiled):
    grammar = compiled(tokenizer, RULES["plain"])
    states = grammar.start(2)
    written = tokenizer("[]", add_special_tokens=False).input_ids
    for token in written:
        states = grammar.advance(states, torch.tensor([token, written[-1]]))
    ends = {tokenizer.pad_token_id, tokenizer.eos_token_id}
    complete, broken = grammar.allowed(states)
    assert complete.nonzero()[:, 0].tolist() == [tokenizer.eos_token_id]
    assert set(broken.nonzero()[:, 0].tolist()) == ends
    for token in ends:
        states = grammar.advance(states, torch.tensor([tokenizer.eos_token_id, token]))
        assert [set(row.nonzero()[:, 0].tolist()) for row in grammar.allowed(states)] == [ends] * 2


def test_rows_of_a_batch_do_not_depend_on_each_other(tokenizer, compiled):
    grammar = compiled(tokenizer, RULES["spaced"], 40)
    tokens, states = random_walks(grammar, 8, 30)
    for step in (3, 12, 29):
        now, order = states[:, step], torch.tensor([5, 5, 0, 7])
        assert torch.equal(grammar.allowed(now)[order], grammar.allowed(now[order]))
        following = grammar.advance(now, tokens[:, step])
        assert torch.equal(following[order], grammar.advance(now[order], tokens[order, step]))


def test_a_policy_can_be_constrained(tmp_path):
    policy = small_policy()
    embedding = policy.model.resize_token_embeddings(len(policy.tokenizer) + 6)
    policy = VLMPolicy(policy.model, policy.processor)
    grammar = TokenGrammar.for_policy(
        policy, decimals=2, pad=True, max_vertices=5, token_budget=40, cache_dir=tmp_path
    )
    tokens, states = random_walks(grammar, 20, 40)
    allowed = grammar.allowed(states.flatten(0, 1))
    assert allowed.shape == (800, embedding.weight.shape[0]) == (800, len(policy.forbidden))
    allowed[:, policy.tokenizer.pad_token_id] = False  # what follows an end is masked
    assert not (allowed & policy.forbidden).any()
    answers = policy.texts(tokens, torch.ones_like(tokens))
    assert all(decode(answer).issues == () for answer in answers)


def test_answers_may_end_in_several_ways(tmp_path):
    tokenizer = made("tiny")
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<user>")]
    grammar = TokenGrammar.from_tokenizer(
        tokenizer, RULES["plain"], end_ids=ends, cache_dir=tmp_path
    )
    states = grammar.start(1)
    for token in tokenizer.convert_tokens_to_ids(["[", "]"]):
        assert not grammar.allowed(states)[0, ends].any()
        states = grammar.advance(states, torch.tensor([token]))
    assert grammar.allowed(states)[0].nonzero()[:, 0].tolist() == sorted(ends)


def test_impossible_settings_are_refused(tmp_path, compiled):
    rules = RULES["pixels"]
    with pytest.raises(ValueError, match="token_budget=13, but the shortest answer takes 14"):
        compiled(made("tiny"), rules, 13)
    compiled(made("tiny"), rules, 14)
    bracket = made("tiny").convert_tokens_to_ids("]")
    with pytest.raises(ValueError, match=f"token {bracket} ends an answer"):
        TokenGrammar.from_tokenizer(made("tiny"), rules, end_ids=[bracket], cache_dir=tmp_path)
    with pytest.raises(ValueError, match="cannot write an answer"):
        TokenGrammar.from_tokenizer(word_tokenizer("[0,5"), rules, cache_dir=tmp_path)


def test_a_decoder_that_rewrites_what_tokens_say_together_is_found_out(tmp_path):
    backend = word_tokenizer("[],.0123456789").backend_tokenizer
    backend.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("0.", "")])
    broken = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    with pytest.raises(ValueError, match="one by one they write"):
        TokenGrammar.from_tokenizer(broken, RULES["plain"], cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def word_tokenizer(characters):
    """One token a character."""
    vocabulary = {piece: index for index, piece in enumerate([*SPECIAL, *characters])}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<pad>"))
    backend.decoder = decoders.Fuse()
    return wrapped(backend)
