"""Pickles of plain data are read; nothing in a pickle is ever executed or blows up."""

from __future__ import annotations

import gc
import os
import pickle
import pickletools
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seg_env.data.readers.safe_pickle import UnsafePickleError, check_opcodes, load_plain_pickle

REFERENCE = {
    "ref_id": 7,
    "ann_id": 1 << 40,
    "split": "testA",
    "sent_ids": [1, -2, 70_000],
    "sentences": [
        {"sent": "the café\nsign", "raw": None, "tokens": [], "score": 0.5, "seen": True}
    ],
}

plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False)
    | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=20,
)


@given(value=plain_values, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_comes_back(value: Any, protocol: int) -> None:
    assert load_plain_pickle(pickle.dumps(value, protocol=protocol)) == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_many_references_with_shared_strings(protocol: int) -> None:
    references = [dict(REFERENCE, ref_id=number) for number in range(500)]
    assert load_plain_pickle(pickle.dumps(references, protocol=protocol)) == references


def test_strings_of_python_2_are_text() -> None:
    protocol_0 = (
        b"(lp0\n(dp1\nS'sent'\np2\nS'le caf\\xc3\\xa9'\np3\nsS'id'\np4\nI5\nsS'n'\nL7L\nsa."
    )
    assert load_plain_pickle(protocol_0) == [{"sent": "le café", "id": 5, "n": 7}]
    protocol_2 = b"\x80\x02]q\x01U\x03manq\x02aT\x05\x00\x00\x00womanq\x03a."
    assert load_plain_pickle(protocol_2) == ["man", "woman"]


def test_bytes_that_are_not_utf_8_are_read_as_latin_1() -> None:
    assert load_plain_pickle(b"]U\x04caf\xe9a.") == ["café"]


class Command:
    """Would leave a file behind if its pickle were executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_before_anything_runs(protocol: int, tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    data = pickle.dumps([REFERENCE, Command(trap)], protocol=protocol)
    with pytest.raises(UnsafePickleError, match=r"refs\.p: opcode \w*(GLOBAL|PROTO|NEWOBJ)"):
        load_plain_pickle(data, "refs.p")
    assert not trap.exists()
    pickle.loads(data)
    assert trap.exists(), "the pickle of this test must be one that works"


HARMLESS_PREFIX = b"\x80\x02]q\x00"


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("GLOBAL", b"cos\nsystem\n"),
        ("STACK_GLOBAL", b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93"),
        ("INST", b"(S'true'\nios\nsystem\n"),
        ("OBJ", b"(o"),
        ("REDUCE", b"R"),
        ("BUILD", b"b"),
        ("NEWOBJ", b"\x81"),
        ("NEWOBJ_EX", b"\x92"),
        ("EXT1", b"\x82\x01"),
        ("EXT2", b"\x83\x01\x00"),
        ("EXT4", b"\x84\x01\x00\x00\x00"),
        ("PERSID", b"Pfile\n"),
        ("BINPERSID", b"Q"),
        ("NEXT_BUFFER", b"\x97"),
        ("BYTEARRAY8", b"\x96\x00\x00\x00\x00\xff\xff\xff\x7f"),
        ("BINBYTES8", b"\x8e\x00\x00\x00\x00\xff\xff\xff\x7f"),
        ("DUP", b"2"),
        ("TUPLE2", b"NN\x86"),
        ("FROZENSET", b"(\x91"),
        ("LONG4", b"\x8b\xff\xff\xff\x7f"),
        ("LONG1", b"\x8a\xff" + bytes(255)),
        ("LONG_BINPUT", b"Nr\xff\xff\xff\x7f"),
        ("PUT", b"Np999999999\n"),
        ("LONG", b"L" + b"9" * 5000 + b"L\n"),
        ("INT", b"I" + b"9" * 5000 + b"\n"),
        ("FLOAT", b"F" + b"9" * 5000 + b"\n"),
        ("PROTO", b"\x80\x09"),
        ("0xff", b"\xff"),
    ],
)
def test_opcodes_that_plain_data_does_not_need_are_named(name: str, program: bytes) -> None:
    with pytest.raises(UnsafePickleError, match=rf"opcode {name} at byte \d+ .*not allowed"):
        load_plain_pickle(HARMLESS_PREFIX + program + b"a.")


def test_opcodes_hidden_behind_a_string_are_found() -> None:
    # The length of the string decides where the next opcode starts: one byte off and the
    # scanner would see a string where the machine sees a call.
    for length in (3, 63, 64, 65, 300):
        text = (b"U" + bytes([length]) if length < 256 else b"T" + struct.pack("<I", length)) + (
            b"c" * length
        )
        check_opcodes(b"]" + text + b"a.")
        with pytest.raises(UnsafePickleError, match="GLOBAL"):
            check_opcodes(b"]" + text + b"cos\nsystem\n.")


@given(st.binary(max_size=60).map(lambda program: b"]" + program + b"."))
def test_any_bytes_are_read_or_refused(program: bytes) -> None:
    try:
        value = load_plain_pickle(program)
    except ValueError:
        return
    # What passes is what the standard library's own scanner calls harmless, too.
    names = {opcode.name for opcode, _, _ in pickletools.genops(program)}
    assert not names & {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "INST", "OBJ", "NEWOBJ"}
    assert value is None or isinstance(value, list | dict | str | int | float)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"]",
        b"]X\xff\xff\xff\x7fabc",
        b"]\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc.",
        b"]X\x05\x00",
        b"]q\x00h\x05a.",
        b"a.",
        b".",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff].",
        b"].trailing",
        b"}]Nsa.",
        b"}(]Nu.",
        b"]U\x04caf\xe9ah\x05a.",
        b"]X\x02\x00\x00\x00\xff\xffa.",
    ],
)
def test_broken_pickles_are_value_errors_and_allocate_nothing(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"^refs\.p"):
            load_plain_pickle(data, "refs.p")
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_lists_of_lists_of_lists_stay_as_small_as_their_program() -> None:
    # 2**200 leaves in 1 kB: harmless, for they are shared and nobody walks through them.
    level = b"]q%c(h%ch%ce"
    program = b"]q\x00" + b"".join(level % (n + 1, n, n) for n in range(200)) + b"."
    assert len(load_plain_pickle(program)) == 2


def test_deep_nesting_does_not_exhaust_the_stack() -> None:
    depth = 200_000
    assert isinstance(load_plain_pickle(b"]" * depth + b"a" * (depth - 1) + b"."), list)


def test_garbage_collection_is_left_as_it_was() -> None:
    assert gc.isenabled()
    with pytest.raises(ValueError, match="usable"):
        load_plain_pickle(b"a.")
    assert gc.isenabled()


def test_scanning_takes_time_linear_in_the_file() -> None:
    check_opcodes(b"]" + b"(" * 2_000_000 + b"l" * 2_000_000 + b".")
    check_opcodes(b"]" + b"S" + b"'" * 2_000_000 + b"\n.")
