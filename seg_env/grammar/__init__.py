"""The text grammar of answers: the one place that knows how they are written and read."""

from seg_env.grammar.answers import MAX_DECIMALS, decode, encode
from seg_env.grammar.export import grammar_ebnf, grammar_regex
from seg_env.grammar.salvage import ANSWER_LEADS, MAX_CHARACTERS, MAX_RINGS, MAX_VERTICES

__all__ = [
    "ANSWER_LEADS",
    "MAX_CHARACTERS",
    "MAX_DECIMALS",
    "MAX_RINGS",
    "MAX_VERTICES",
    "decode",
    "encode",
    "grammar_ebnf",
    "grammar_regex",
]
