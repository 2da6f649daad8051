r"""The strict grammar as data for engines that constrain decoding (vLLM, xgrammar, llama.cpp, ...).

Both forms describe the same language: ``[]`` or a list of rings of at least three vertices, numbers
between 0 and the frame's limits, no leading zeros, one optional space after a comma. Whatever they
accept is read by `seg_env.grammar.decode` without any issue, as long as it stays below the caps on
rings and vertices, which no regular expression of sensible size can count.
"""

from __future__ import annotations

from seg_env.frames import UNIT, Frame
from seg_env.grammar.salvage import MAX_MAGNITUDE, MAX_VERTICES


def grammar_regex(decimals: int = 3, frame: Frame = UNIT) -> str:
    """Regular expression of strict answers, to be matched against the full text.

    It has no anchors, and only plain groups, classes, alternatives and counted repeats up to
    `decimals`, so it means the same in Python's ``re``, RE2, Rust and the engines of vLLM.

    Args:
        decimals: Most digits after the point; ignored in integer frames.
        frame: Frame of the numbers; its limits, whole numbers, become part of the expression.
    """
    digits, zeros = rf"(?:\.[0-9]{{1,{decimals}}})?", rf"(?:\.0{{1,{decimals}}})?"

    def number(limit: float) -> str:
        *below, top = map("".join, _whole_numbers(limit))
        if frame.integer:
            return f"(?:{'|'.join([*below, top])})"
        return f"(?:(?:{'|'.join(below)}){digits}|{top}{zeros})"

    x_limit, y_limit = frame.limits
    vertex = rf"\[{number(x_limit)}, ?{number(y_limit)}\]"
    ring = rf"\[{vertex}, ?{vertex}(?:, ?{vertex})+\]"
    return rf"\[(?:{ring}(?:, ?{ring})*)?\]"


def grammar_ebnf(
    decimals: int = 3,
    frame: Frame = UNIT,
    *,
    pad: bool = False,
    spaces: bool = True,
    max_vertices: int | None = None,
) -> str:
    """The same language in GBNF, the EBNF dialect of xgrammar (vLLM) and llama.cpp.

    Args:
        decimals: Most digits after the point, 1 to 17; ignored in integer frames.
        frame: Frame of the numbers; its limits become part of the grammar.
        pad: Every number has `decimals` digits after the point, as ``encode(pad=True)`` writes.
        spaces: A comma may be followed by one space.
        max_vertices: Most vertices of a ring; by default as many as it likes.

    Raises:
        ValueError: A limit of the frame is no whole number that is read, or an argument is out of
            range.
    """
    if not 1 <= decimals <= 17:  # `decode` reads more only after closer inspection
        raise ValueError(f"decimals={decimals}, but allowed are 1 to 17")
    if max_vertices is not None and not 3 <= max_vertices <= MAX_VERTICES:
        raise ValueError(f"max_vertices={max_vertices}, but allowed are 3 to {MAX_VERTICES}")
    digits, zeros = (
        f'("." {" ".join([one] * decimals)})'
        if pad
        else f'("." {" ".join([one] + [f"{one}?"] * (decimals - 1))})?'
        for one in ("[0-9]", '"0"')
    )
    more = "+" if max_vertices is None else f"{{1,{max_vertices - 2}}}"

    def sequence(symbols: list[str]) -> str:
        return " ".join(s if s.startswith("[") else f'"{s}"' for s in symbols)

    def number(limit: float) -> str:
        *below, top = map(sequence, _whole_numbers(limit))
        if frame.integer:
            return " | ".join([*below, top])
        return f"({' | '.join(below)}) {digits} | {top} {zeros}"

    x_limit, y_limit = frame.limits
    return "\n".join(
        (
            'root ::= "[" (ring (comma ring)*)? "]"',
            f'ring ::= "[" vertex comma vertex (comma vertex){more} "]"',
            'vertex ::= "[" x comma y "]"',
            'comma ::= "," " "?' if spaces else 'comma ::= ","',
            f"x ::= {number(x_limit)}",
            f"y ::= {number(y_limit)}",
            "",
        )
    )


def _whole_numbers(limit: float) -> list[list[str]]:
    """Sequences of digits and classes for the numbers from 0 to `limit`, the last for itself."""
    if limit != int(limit) or not 1 <= limit <= MAX_MAGNITUDE:
        raise ValueError(
            f"limit {limit:.10g} of the frame, but a whole number from 1 to {MAX_MAGNITUDE:.0f} is "
            "needed"
        )
    top = str(int(limit))
    below = [["[1-9]"] + ["[0-9]"] * (length - 1) for length in range(1, len(top))]
    if below:
        below[0] = ["[0-9]"]
    for index, digit in enumerate(top):
        lowest = 1 if index == 0 and len(top) > 1 else 0
        if int(digit) > lowest:
            choice = f"[{lowest}-{int(digit) - 1}]" if int(digit) > lowest + 1 else str(lowest)
            below.append([*top[:index], choice, *["[0-9]"] * (len(top) - index - 1)])
    return [*below, list(top)]
