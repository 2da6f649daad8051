r"""The strict grammar as data for engines that constrain decoding (vLLM, xgrammar, llama.cpp, ...).

Both forms describe the same language: ``[]`` or a list of rings of at least three vertices, numbers
between 0 and the frame's limits, no leading zeros, one optional space after a comma. Whatever they
accept is read by `seg_env.grammar.decode` without any issue, as long as it stays below the caps on
rings and vertices, which no regular expression of sensible size can count.
"""

from __future__ import annotations

from seg_env.frames import UNIT, Frame


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
        below, top = _whole_numbers(limit)
        if frame.integer:
            return "(?:" + "|".join("".join(symbols) for symbols in [*below, top]) + ")"
        whole = "|".join("".join(symbols) for symbols in below)
        return f"(?:(?:{whole}){digits}|{''.join(top)}{zeros})"

    x_limit, y_limit = frame.limits
    vertex = rf"\[{number(x_limit)}, ?{number(y_limit)}\]"
    ring = rf"\[{vertex}, ?{vertex}(?:, ?{vertex})+\]"
    return rf"\[(?:{ring}(?:, ?{ring})*)?\]"


def grammar_ebnf(decimals: int = 3, frame: Frame = UNIT) -> str:
    """The same language in GBNF, the EBNF dialect of xgrammar (vLLM) and llama.cpp.

    The start rule is ``root``; the arguments are those of `grammar_regex`.
    """
    digits = '("." ' + " ".join(["[0-9]"] + ["[0-9]?"] * (decimals - 1)) + ")?"
    zeros = '("." ' + " ".join(['"0"'] + ['"0"?'] * (decimals - 1)) + ")?"

    def sequence(symbols: list[str]) -> str:
        return " ".join(s if s.startswith("[") else f'"{s}"' for s in symbols)

    def number(limit: float) -> str:
        below, top = _whole_numbers(limit)
        if frame.integer:
            return " | ".join(sequence(symbols) for symbols in [*below, top])
        whole = " | ".join(sequence(symbols) for symbols in below)
        return f"({whole}) {digits} | {sequence(top)} {zeros}"

    x_limit, y_limit = frame.limits
    return "\n".join(
        (
            'root ::= "[" (ring (comma ring)*)? "]"',
            'ring ::= "[" vertex comma vertex (comma vertex)+ "]"',
            'vertex ::= "[" x comma y "]"',
            'comma ::= "," " "?',
            f"x ::= {number(x_limit)}",
            f"y ::= {number(y_limit)}",
            "",
        )
    )


def _whole_numbers(limit: float) -> tuple[list[list[str]], list[str]]:
    """Sequences of digits and digit classes for all numbers below the limit, and its digits."""
    if limit != int(limit) or limit < 1:
        raise ValueError(f"limit {limit} of the frame, but a whole number of at least 1 is needed")
    top = str(int(limit))
    below = [["[1-9]"] + ["[0-9]"] * (length - 1) for length in range(1, len(top))]
    if below:
        below[0] = ["[0-9]"]
    for index, digit in enumerate(top):
        lowest = 1 if index == 0 and len(top) > 1 else 0
        if int(digit) > lowest:
            choice = f"[{lowest}-{int(digit) - 1}]" if int(digit) > lowest + 1 else str(lowest)
            below.append([*top[:index], choice, *["[0-9]"] * (len(top) - index - 1)])
    return below, list(top)


GRAMMAR_REGEX = grammar_regex()
"""`grammar_regex` of the paper's answers: unit frame, at most three decimals."""

GRAMMAR_EBNF = grammar_ebnf()
"""`grammar_ebnf` of the paper's answers: unit frame, at most three decimals."""
