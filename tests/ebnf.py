"""The exported grammar as a regular expression, to check it without an engine."""

import re


def ebnf_to_regex(grammar: str) -> str:
    """Substitute the rules of a GBNF grammar without recursion into each other."""
    rules = dict(line.split(" ::= ") for line in grammar.splitlines())

    def expand(rule: str) -> str:
        token = r'"([^"]*)"|(\[[^\]]*\])|([a-z]+)| '
        # A vertex can be read in one way only; to try others takes a minute in long answers.
        opening = "(?>" if rule == "vertex" else "(?:"
        return opening + re.sub(token, translate, rules[rule]) + ")"

    def translate(match: re.Match[str]) -> str:
        literal, character_class, rule = match.groups()
        if literal is not None:
            return f"(?:{re.escape(literal)})"
        return character_class or (expand(rule) if rule else "")

    return expand("root")
