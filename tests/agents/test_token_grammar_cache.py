"""Compiled grammars: fast for large vocabularies, kept on disk, rebuilt when damaged."""

import random
import time

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from agents.embedded.tiny import build_tokenizer
from agents.policy.token_grammar import TokenGrammar
from agents.policy.token_grammar_cache import cache_key, default_cache_dir
from seg_env.frames import PERMILLE, pixel_frame
from seg_env.grammar import decode
from seg_env.grammar.automaton import AnswerRules

TOKENIZER = build_tokenizer()
RULES = AnswerRules(decimals=2, pad=True)


def build(folder):
    return TokenGrammar.from_tokenizer(TOKENIZER, RULES, cache_dir=folder)


def tables(grammar):
    return [value for value in vars(grammar).values() if isinstance(value, torch.Tensor)]


def same(grammar, other):
    return all(map(torch.equal, tables(grammar), tables(other)))


def test_the_second_call_reads_what_the_first_one_wrote(tmp_path):
    first = build(tmp_path / "new" / "folder")
    (path,) = (tmp_path / "new" / "folder").iterdir()
    assert same(first, build(path.parent))
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    column = arrays["tokens"].tolist().index(TOKENIZER.convert_tokens_to_ids("[[["))
    arrays["table"][:, column] = 0
    np.savez(path, **arrays)
    gone = first.allowed(first.start(1)) ^ build(path.parent).allowed(first.start(1))
    assert TOKENIZER.convert_ids_to_tokens(gone[0].nonzero()[:, 0].tolist()) == ["[[["]


def changed(name, **entries):
    """A way to damage one array of the file."""

    def damage(path):
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        arrays[name] = arrays[name].astype(entries.get("dtype", arrays[name].dtype))
        if "value" in entries:
            arrays[name].flat[-1 if name == "tokens" else 6] = entries["value"]
        np.savez(path, **{key: value[: entries.get("stop")] for key, value in arrays.items()})

    return damage


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(random.Random(0).randbytes(3000)),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "flipped": lambda path: path.write_bytes(path.read_bytes().replace(b"\x01", b"\x02")),
    "another file": lambda path: np.savez(path, tokens=np.arange(3)),
    "pickle": lambda path: np.savez(path, tokens=np.array([{}]), table=0, effects=0),
    "token": changed("tokens", value=1 << 40),
    "index": changed("table", value=99),
    "state": changed("effects", value=4000),
    "type": changed("table", dtype=np.float64),
    "shape": changed("table", stop=5),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_compiled_anew(tmp_path, damage):
    grammar = build(tmp_path)
    (path,) = tmp_path.iterdir()
    whole = dict(np.load(path))
    damage(path)
    assert same(build(tmp_path), grammar)
    assert all(np.array_equal(value, whole[name]) for name, value in np.load(path).items())
    assert [path] == list(tmp_path.iterdir())


def test_without_a_place_to_write_it_still_works(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert same(build(tmp_path / "file"), build(tmp_path))


def test_the_default_folder_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "simpleseg-rl"
    build(None)
    assert len(list(default_cache_dir().glob("grammar-*.npz"))) == 1


def test_the_key_depends_on_rules_vocabulary_and_decoding():
    other, spaced = build_tokenizer(), build_tokenizer()
    other.add_tokens(["0.5"])
    spaced.backend_tokenizer.decoder = decoders.WordPiece()
    rules = [RULES, AnswerRules(decimals=2), AnswerRules(decimals=3, pad=True)]
    rules += [AnswerRules(frame=frame) for frame in (PERMILLE, pixel_frame(1000, 999))]
    keys = [cache_key(TOKENIZER, some) for some in rules]
    keys += [cache_key(one, RULES) for one in (other, spaced)]
    assert len(set(keys)) == len(keys)
    assert cache_key(build_tokenizer(), AnswerRules(decimals=2, pad=True)) == keys[0]


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


def test_a_vocabulary_of_150_000_tokens_takes_seconds_and_little_memory(tmp_path):
    tokenizer = large_tokenizer(150_000)
    began = time.thread_time()
    grammar = TokenGrammar.from_tokenizer(
        tokenizer, AnswerRules(decimals=3), token_budget=64, cache_dir=tmp_path
    )
    assert time.thread_time() - began < 10  # about 1.5 s
    assert sum(table.nbytes for table in tables(grammar)) < 8e6
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2e5
    states, tokens = grammar.start(4), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(64):
        allowed = grammar.allowed(states)
        assert allowed.shape == (4, 150_002)
        tokens.append(torch.multinomial(allowed.float(), 1, generator=generator)[:, 0])
        states = grammar.advance(states, tokens[-1])
    answers = tokenizer.batch_decode(torch.stack(tokens, 1), skip_special_tokens=True)
    assert all(decode(answer).issues == () for answer in answers)
