"""Which model family writes which numbers, and in what form."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from seg_env.frames.marked import find_marked
from seg_env.frames.plain import BINS, PERMILLE, ROW_FIRST, UNIT, Frame, check_size, pixel_frame
from seg_env.types import Form


@dataclass(frozen=True)
class FrameFamily:
    """What models of one family write."""

    meaning: str
    frame: Frame | None = None
    """Frame for images of all sizes, None for pixels of the image asked about."""
    token: str = ""
    """Regular expression of a location token, empty for bracketed numbers."""
    token_format: str = ""
    separator: str = ""
    """The text between the rings of an answer in tokens."""


_TABLE = {
    "unit": FrameFamily("fractions of the image, x/W and y/H", UNIT),
    "permille": FrameFamily("whole numbers from 0 to 1000 relative to the image", PERMILLE),
    "pixels": FrameFamily("pixels of the image itself"),
    "qwen2.5-vl": FrameFamily("pixels of the image as the processor resizes it"),
    "florence": FrameFamily(
        "tokens <loc_0> to <loc_999>, the middles of 1000 bins a side",
        BINS,
        r"<loc_([0-9]{1,4})>",
        "<loc_{}>",
        "<sep>",
    ),
    "paligemma": FrameFamily(
        "tokens <loc0000> to <loc1023> from border to border, y before x",
        ROW_FIRST,
        r"<loc([0-9]{4})>",
        "<loc{:0>4}>",
        " ; ",
    ),
}

FAMILIES = {name: family.meaning for name, family in _TABLE.items()}
"""Families of models, and what the numbers that they write mean."""
TOKEN_FAMILIES = tuple(name for name, family in _TABLE.items() if family.token)

FAMILY_OF_MODEL = {
    "florence2": "florence",
    "idefics3": "unit",
    "internvl": "permille",
    "kimi_vl": "unit",
    "llava": "unit",
    "llava_onevision": "unit",
    "paligemma": "paligemma",
    "qwen2_vl": "permille",
    "qwen2_5_vl": "qwen2.5-vl",
    "qwen3_vl": "permille",
    "qwen3_vl_moe": "permille",
    "smolvlm": "unit",
}
"""Family by transformers' model type: what such a model writes unless it was trained otherwise.

Checkpoints of SimpleSeg write fractions whatever they were made from."""

_LONGEST_TEXT = 1 << 18  # What `seg_env.grammar.decode` reads; longer texts are not worth the work.


@dataclass(frozen=True)
class ResizeSettings:
    """How a Qwen2-VL or Qwen2.5-VL processor resizes images; defaults as the models ship."""

    factor: int = 28
    """Both sides become multiples of this: patch size times merge size."""
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 16384

    @classmethod
    def from_processor(cls, image_processor: Any) -> ResizeSettings:
        """Read the settings of a transformers image processor; what it lacks is left at default."""
        size = getattr(image_processor, "size", None) or {}
        patch = getattr(image_processor, "patch_size", None)
        merge = getattr(image_processor, "merge_size", None)
        factor = patch * merge if isinstance(patch, int) and isinstance(merge, int) else cls.factor
        return cls(
            factor,
            _entry(size, "shortest_edge") or cls.min_pixels,
            _entry(size, "longest_edge") or cls.max_pixels,
        )


def smart_resize(size: tuple[int, int], settings: ResizeSettings | None = None) -> tuple[int, int]:
    """Size ``(H, W)`` that a Qwen2-VL or Qwen2.5-VL processor gives to an image of ``(H, W)``.

    Equal to transformers' rule of the same name: both sides are rounded to multiples of the factor;
    if the area is then outside of what is allowed, the image is scaled to the nearer bound first
    and the sides rounded towards the inside.

    Raises:
        ValueError: A side is not positive, or one is more than 200 times the other: the processor
            refuses such images too.
    """
    check_size("smart_resize", size)
    if max(size) > 200 * min(size):
        raise ValueError(f"smart_resize: (H, W) = {size}, but one side is over 200 times the other")
    rule = settings or ResizeSettings()
    resized = [round(side / rule.factor) * rule.factor for side in size]
    area = resized[0] * resized[1]
    if area > rule.max_pixels:
        shrink = math.sqrt(size[0] * size[1] / rule.max_pixels)
        resized = [
            max(rule.factor, math.floor(side / shrink / rule.factor) * rule.factor) for side in size
        ]
    elif area < rule.min_pixels:
        grow = math.sqrt(rule.min_pixels / (size[0] * size[1]))
        resized = [math.ceil(side * grow / rule.factor) * rule.factor for side in size]
    return resized[0], resized[1]


def normalize_tokens(text: str, family: str, form: Form = "mask") -> str:
    """Rewrite location tokens as the bracketed numbers that `seg_env.grammar` reads.

    Each unbroken run of tokens is a ring; anything between runs (``<sep>``, ``;``, labels) ends it.
    A run of four tokens is two corners of a box, as both families write boxes: if a box was asked
    for it stays one, if an outline was asked for it becomes four corners. If a box or a point was
    asked for, a longer run is several of them, four or two tokens each. Labels and structural tags
    are dropped; other tags, such as PaliGemma's ``<seg000>`` codes, say more than an outline and
    are kept after the list, where they are reported. A run of odd length keeps its last number
    alone in its brackets, which is reported as well. Numbers keep their order and are still in the
    family's frame. If a text marks its answer (see `find_marked`), only that part is rewritten.

    Text without location tokens, and very long text, is returned unchanged. Time is linear in the
    length of the text.
    """
    token = find_family(family).token
    if not token or len(text) > _LONGEST_TEXT:
        return text
    if marked := find_marked(text):
        start, end = marked.start, marked.end
        return text[:start] + _normalize(text[start:end], token, form) + text[end:]
    return _normalize(text, token, form)


def _normalize(text: str, token: str, form: Form) -> str:
    count = {"bbox": 4, "point": 2}.get(form)
    runs: list[list[Any]] = []
    for run in re.finditer(rf"(?:{token}\s*+)++", text):
        numbers = [int(number) for number in re.findall(token, run[0])]
        points = [numbers[start : start + 2] for start in range(0, len(numbers), 2)]
        if count and len(numbers) % count == 0:
            runs.extend(numbers[start : start + count] for start in range(0, len(numbers), count))
            continue
        if len(numbers) == 4:
            (a, b), (c, d) = points
            points = [[a, b], [c, b], [c, d], [a, d]]
        runs.append(points)
    if not runs:
        return text
    rest = re.sub(r"</?(?:poly|sep|s|pad|eos|bos)>", "", re.sub(token, "", text))
    unread = " ".join(re.findall(r"<[^<>]{0,32}+>", rest))
    is_one = count is not None and len(runs) == 1 and len(runs[0]) == count
    is_one &= bool(runs) and not isinstance(runs[0][0], list)
    found = json.dumps(runs[0] if is_one else runs, separators=(",", ":"))
    return found + (f" {unread}" if unread else "")


def write_tokens(text: str, family: str) -> str:
    """Write an encoded answer in the tokens of its family; inverse of `normalize_tokens`.

    ``[]``, "no target", stays as it is, and so does every answer of a family without tokens.
    """
    tokens = find_family(family)
    if not tokens.token or text == "[]":
        return text
    return tokens.separator.join(
        "".join(tokens.token_format.format(number) for number in re.findall(r"[0-9]+", ring))
        for ring in text.split("]],[[")
    )


def find_family(family: str) -> FrameFamily:
    """What models of a family, or of ``pixel:WxH``, write; ValueError if it is unknown."""
    if pixels := re.fullmatch("pixel:([0-9]{1,6})x([0-9]{1,6})", family):
        frame = pixel_frame(int(pixels[1]), int(pixels[2]))
        return FrameFamily("pixels of an image of that size, width first", frame)
    if family not in _TABLE:
        raise ValueError(f"family {family!r} is unknown; use one of {', '.join(FAMILIES)}")
    return _TABLE[family]


def _entry(size: Any, key: str) -> int | None:
    """A whole number of a processor's size, which is a dict or an object with attributes."""
    value = size.get(key) if hasattr(size, "get") else getattr(size, key, None)
    return value if isinstance(value, int) else None
