"""What is read of a picture beside its pixels, in whatever form it comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seg_env.data.annotate.text import clean_text

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp")
"""Endings of pictures, in lower case."""
MOST_IMAGE_BYTES = 1 << 25
"""Larger encoded pictures are left out."""
MOST_TEXT_BYTES = 1 << 20
"""Longer texts and records are left out."""
TEXT_KEYS = ("caption", "text", "TEXT", "alt_text", "alt")
"""What LAION, COYO and img2dataset call the alternative text."""
KEPT_KEYS = {"url": "url", "URL": "url", "license": "license", "LICENSE": "license"}
"""What is kept of a record: where a picture came from and under which licence."""


def text_of(record: Mapping[str, Any]) -> str:
    """The alternative text in a record, or ``""``."""
    found = (record.get(key) for key in TEXT_KEYS)
    return next((text for text in found if isinstance(text, str) and text), "")


def kept_metadata(record: Mapping[str, Any]) -> dict[str, str]:
    """What is kept of a record."""
    return {
        name: clean_text(record[key])
        for key, name in KEPT_KEYS.items()
        if isinstance(record.get(key), str)
    }
