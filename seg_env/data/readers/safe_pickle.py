"""Reading a pickle from a stranger without running it.

A pickle is a program for a small stack machine; a few of its opcodes import names and call them.
RefCOCO's ``refs(*).p`` need none of those: they are lists, dictionaries, strings and numbers. So
the whole program is scanned before any of it runs, only opcodes that build such values pass, and
what the machine may allocate is tied to the size of the file:

- nothing that imports, calls or restores an object passes, and the unpickler that finally runs
  refuses names and persistent ids a second time;
- a string must fit in what is left of the file;
- a number in text must be short, since decimal conversion takes quadratic time;
- lists and dictionaries must be few (`seg_env.geometry.limits`), since an empty one takes a byte;
- a memo slot must be smaller than the file, since the machine allocates all slots up to the
  largest;
- tuples and sets do not pass: a tuple of twice a tuple of twice a tuple ... takes forty opcodes to
  write and 2**40 steps to hash. The same trick with lists is harmless as long as the reader goes
  down a known number of levels: values from here are not to be walked, printed, copied or compared
  at large.

Protocols 0 to 5 are read. Strings of Python 2 become `str` (UTF-8, else Latin-1).
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from functools import lru_cache
from typing import Any, NoReturn

from seg_env.geometry.limits import check_limit

_STRING_LENGTH_BYTES = {
    ord("U"): 1,  # SHORT_BINSTRING
    ord("T"): 4,  # BINSTRING
    ord("X"): 4,  # BINUNICODE
    0x8C: 1,  # SHORT_BINUNICODE
    0x8D: 8,  # BINUNICODE8
}
"""Opcodes followed by a little-endian length and a string, with the width of that length."""


class UnsafePickleError(ValueError):
    """The pickle holds an opcode, or an argument of one, that plain data does not need."""


def load_plain_pickle(data: bytes, source: str = "pickle") -> Any:
    """Read a pickle of lists, dictionaries, strings, numbers, booleans and ``None``.

    Lists and dictionaries in it may be shared or contain themselves. Errors call it ``source``.

    Raises:
        UnsafePickleError: An opcode outside of the allowed ones; nothing has been executed.
        LimitError: Too many bytes, or too many lists and dictionaries.
        ValueError: Not a complete pickle.
    """
    check_limit("pickle_bytes", len(data), f"{source}: {len(data)} bytes")
    # An empty list takes a byte of program and 80 bytes of memory. Each container needs one of
    # these bytes; the few that are part of a string or a number do not matter.
    containers = sum(data.count(opcode) for opcode in (b"]", b"}", b"("))
    check_limit("containers", containers, f"{source}: about {containers} lists and dictionaries")
    check_opcodes(data, source)
    try:
        try:
            return _load(data, "utf-8")
        except UnicodeDecodeError:
            return _load(data, "latin-1")
    except Exception as error:  # the machine raises half a dozen kinds for a broken program
        raise ValueError(f"{source} is not a usable pickle: {error}") from error


def check_opcodes(data: bytes, source: str = "pickle") -> None:
    """Raise unless every opcode up to ``STOP`` builds plain data and nothing follows.

    Runs of opcodes are matched by one regular expression, for a full-size file has five million of
    them; only long strings are stepped over one by one.

    Raises:
        UnsafePickleError: Names the opcode and its place.
        ValueError: The program stops early, or goes on after ``STOP``.
    """
    # Memo slots are smaller than the file: a stored value takes at least two bytes of program.
    skip_run = _run_pattern(max(8, (len(data) // 2).bit_length())).match
    position = 0
    while True:
        run = skip_run(data, position)
        assert run is not None  # the pattern also matches nothing
        position = run.end()
        if position == len(data):
            raise ValueError(f"{source} is not a complete pickle: it ends before STOP")
        opcode = data[position]
        if opcode == ord("."):  # STOP
            break
        width = _STRING_LENGTH_BYTES.get(opcode)
        if width is None:
            names = {ord(each.code): each.name for each in pickletools.opcodes}
            name = names.get(opcode, f"{opcode:#04x}")
            raise UnsafePickleError(
                f"{source}: opcode {name} at byte {position} (or its argument) is not allowed; "
                "only lists, dictionaries, strings and numbers are read. Nothing has been "
                "executed. If the file is yours, write it again as JSON beside the old one"
            )
        start = position + 1 + width
        position = start + int.from_bytes(data[position + 1 : start], "little")
        if start > len(data) or position > len(data):
            raise ValueError(f"{source} is not a complete pickle: a string runs past its end")
    if position + 1 != len(data):
        raise ValueError(f"{source}: {len(data) - position - 1} bytes follow the pickle's STOP")


class _PlainUnpickler(pickle.Unpickler):
    """The second lock: even what the scan might miss cannot import or fetch anything."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise UnsafePickleError(f"a pickle of plain data does not import {module_name!r}")

    def persistent_load(self, pid: Any, /) -> NoReturn:
        raise UnsafePickleError("a pickle of plain data has no persistent ids")


def _load(data: bytes, encoding: str) -> Any:
    # The unpickler reads ahead only from files that can `peek`.
    stream = io.BufferedReader(io.BytesIO(data), buffer_size=1 << 18)
    return _PlainUnpickler(stream, encoding=encoding).load()


@lru_cache(maxsize=8)
def _run_pattern(slot_bits: int) -> re.Pattern[bytes]:
    """Match as many opcodes as possible that need no look at a length.

    Possessive quantifiers keep it linear: what has been matched is never tried again. Strings up to
    63 bytes are spelled out length by length, which takes a third of the time of stepping
    over them in Python.
    """
    alternatives = [
        *(_short_strings(opcode, width) for opcode, width in _STRING_LENGTH_BYTES.items()),
        rb"[(ldeasu\]}N\x88\x89\x94]",  # no argument; 0x94 is MEMOIZE, which counts by itself
        rb"[Khq][\s\S]",  # BININT1, BINGET, BINPUT
        rb"\x80[\x00-\x05]",  # PROTO
        rb"M[\s\S]{2}",  # BININT2
        rb"[Jj][\s\S]{4}",  # BININT, LONG_BINGET
        rb"[G\x95][\s\S]{8}",  # BINFLOAT, FRAME
        *(rb"\x8a\x%02x[\s\S]{%d}" % (width, width) for width in range(9)),  # LONG1
        rb"r" + _binary_below(slot_bits),  # LONG_BINPUT
        rb"p" + _decimal_below(slot_bits) + rb"\n",  # PUT
        rb"g[0-9]{1,10}+\n",  # GET
        rb"[IL]-?[0-9]{1,19}+L?\n",  # INT, LONG
        rb"F[-+.0-9a-z]{1,32}+\n",  # FLOAT
        rb"[SV][^\n]*+\n",  # STRING, UNICODE
    ]
    return re.compile(rb"(?:%b)*+" % rb"|".join(alternatives))


def _short_strings(opcode: int, width: int) -> bytes:
    padding = rb"\x00" * (width - 1)
    lengths = (rb"\x%02x%b[\s\S]{%d}" % (n, padding, n) for n in range(64))
    return rb"\x%02x(?:%b)" % (opcode, rb"|".join(lengths))


def _binary_below(bits: int) -> bytes:
    """A pattern of four little-endian bytes that hold a number below ``2**bits``."""
    top_values = [min(255, (1 << max(0, bits - 8 * byte)) - 1) for byte in range(4)]
    return b"".join(rb"[\x00-\x%02x]" % value for value in top_values)


def _decimal_below(bits: int) -> bytes:
    """A pattern of decimal numbers of at most about ``2**bits`` (the first digit decides)."""
    limit = str(1 << bits).encode()
    return rb"(?:[0-9]{1,%d}|[0-%c][0-9]{%d})" % (len(limit) - 1, limit[0], len(limit) - 1)
