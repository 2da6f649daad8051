"""Text from outside: descriptions that models wrote, alternative texts of web pages."""

from __future__ import annotations

import re
import unicodedata

LONGEST_INPUT = 10_000
"""Characters that are looked at; the rest is cut off first."""
LONGEST = 300
"""Characters that are kept."""

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Categories of characters that nobody sees: control characters, marks that turn the direction of
writing, halves of pairs that no encoding can write, private and unassigned ones."""
_QUOTES = "\"'`“”‘’«»„ "


def clean_text(text: str, longest: int = LONGEST) -> str:
    """One line of visible characters, in Unicode's composed form.

    Args:
        text: Any text, of any length and content.
        longest: Characters that are kept; the cut is made at a space where there is one.

    Returns:
        The text without characters that nobody sees and with single spaces.
    """
    visible = (
        " " if character.isspace() else character
        for character in text[:LONGEST_INPUT]
        if character.isspace() or unicodedata.category(character) not in _HIDDEN
    )
    line = " ".join(unicodedata.normalize("NFC", "".join(visible)).split())
    if len(line) <= longest:
        return line
    cut = line[: longest + 1].rpartition(" ")[0]
    return cut or line[:longest]


def clean_expression(text: str) -> str:
    """A description as an expression: `clean_text` without quotes around it or a stop behind it.

    Text that is too long is not cut but kept as far as filters need to see that it is: half a
    sentence is no expression.
    """
    line = clean_text(text, 2 * LONGEST)
    line = re.sub(r"^(?:answer|description|expression)\s*:\s*", "", line, flags=re.IGNORECASE)
    line = line.strip(_QUOTES)
    return line[:-1].strip(_QUOTES) if line.endswith(".") and not line.endswith("..") else line
