"""Coordinate frames: what the numbers in an answer mean, and the way to the unit frame and back.

Vision-language models disagree about the numbers they were trained to write: SimpleSeg writes
``x / W``, Qwen3-VL 0-1000, Qwen2.5-VL pixels of the resized image. Conversion happens at the
border, here and nowhere else; everything inside the library lives in the unit frame.
"""

from seg_env.frames.answers import AUTO, UNIT_ANSWERS, AnswerFrame, find_answer_frame, is_frame_name
from seg_env.frames.marked import Marked, find_marked
from seg_env.frames.models import (
    FAMILIES,
    FAMILY_OF_MODEL,
    TOKEN_FAMILIES,
    ResizeSettings,
    normalize_tokens,
    smart_resize,
    write_tokens,
)
from seg_env.frames.plain import (
    BINS,
    PERMILLE,
    ROW_FIRST,
    UNIT,
    Frame,
    letterbox_frame,
    letterbox_geometry,
    pixel_frame,
)

__all__ = [
    "AUTO",
    "BINS",
    "FAMILIES",
    "FAMILY_OF_MODEL",
    "PERMILLE",
    "ROW_FIRST",
    "TOKEN_FAMILIES",
    "UNIT",
    "UNIT_ANSWERS",
    "AnswerFrame",
    "Frame",
    "Marked",
    "ResizeSettings",
    "find_answer_frame",
    "find_marked",
    "is_frame_name",
    "letterbox_frame",
    "letterbox_geometry",
    "normalize_tokens",
    "pixel_frame",
    "smart_resize",
    "write_tokens",
]
