"""Finding the answer in a text that marks it: after the thoughts, or in tags of its own."""

from __future__ import annotations

from typing import NamedTuple


class Marked(NamedTuple):
    """The part of a text that is its answer."""

    start: int
    end: int
    is_closed: bool
    """Whether the answer is whole: its tag is closed, or there is text after the thoughts."""
    words: str
    """The text outside the thoughts and the answer."""


def find_marked(text: str) -> Marked | None:
    """The part that a text marks as its answer, None if it marks none; time is linear.

    The answer comes after the last ``</think>``, and there in the last ``<answer>`` if there is
    one. Thoughts that do not end hold no answer.
    """
    thought, opened = text.rfind("</think>"), text.rfind("<answer>")
    if thought < 0 and opened < 0 and "<think>" not in text:
        return None
    start = thought + len("</think>") if thought >= 0 else 0
    unfinished = text.find("<think>", start)
    end = unfinished if unfinished >= 0 else len(text)
    opened = text.rfind("<answer>", start, end)
    if opened < 0:
        return Marked(start, end, unfinished < 0 and bool(text[start:end].strip()), "")
    inside = opened + len("<answer>")
    closed = text.find("</answer>", inside, end)
    if closed < 0:
        return Marked(inside, end, False, text[start:opened])
    words = text[start:opened] + text[closed + len("</answer>") : end]
    return Marked(inside, closed, True, words)
