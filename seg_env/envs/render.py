"""What `render` returns: a panel of question, answer and rewards, or lines of text."""

from __future__ import annotations

from textwrap import shorten

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from rewards.composite import RewardSum
from seg_env.envs.core import Question, ScoredAnswer
from seg_env.geometry.drawing import DARK, SHORT_SIDE, WHITE, draw_overlay
from seg_env.geometry.raster import rasterize
from seg_env.types import Prediction, Sample, counted

RENDER_MODES = ("rgb_array", "ansi")


def check_render_mode(mode: str | None) -> str | None:
    """The mode itself, if there is such a mode."""
    if mode is not None and mode not in RENDER_MODES:
        raise ValueError(f"render_mode={mode!r} is unknown; use None, or one of {RENDER_MODES}")
    return mode


def render_question(
    mode: str | None, question: Question, rewards: RewardSum, answer: ScoredAnswer | None
) -> NDArray[np.uint8] | str | None:
    """What `render` returns of a question, and of the answer if there is one."""
    if mode == "rgb_array":
        return _draw_panel(question.sample, rewards, answer)
    return _write_report(question.sample, rewards, answer) if mode == "ansi" else None


def _draw_panel(
    sample: Sample, rewards: RewardSum, answer: ScoredAnswer | None
) -> NDArray[np.uint8]:
    """A question and its scored answer, ``(H, W, 3) uint8``.

    Before the answer the truth is not shown, but the size is the same, so frames can form a video.
    """
    shown = (sample.target, answer.prediction) if answer else (None, None)
    overlay = draw_overlay(sample.image, *shown)
    height, width = overlay.shape[:2]
    width = max(width, SHORT_SIDE)
    line, margin = 22, 14
    panel = Image.new("RGB", (width, height + line * (len(rewards.terms) + 5)), DARK)
    panel.paste(Image.fromarray(overlay), ((width - overlay.shape[1]) // 2, 0))
    draw, letters = ImageDraw.Draw(panel), ImageFont.load_default(14)
    asked = shorten(f"“{sample.expression}”", width // 9, placeholder="…”")
    for number, (text, value, weight) in enumerate([(asked, "", ""), *_lines(rewards, answer)], 1):
        y = height + line * number
        draw.text((margin, y), f"{text}  {weight}", WHITE, letters, "lm")
        draw.text((width - margin, y), value.strip(), WHITE, letters, "rm")
    return np.asarray(panel).copy()


def _write_report(sample: Sample, rewards: RewardSum, answer: ScoredAnswer | None) -> str:
    """What `_draw_panel` shows in a few lines of text, with a map of the two masks."""
    height, width = sample.target.size
    (first, *_), *rows = _lines(rewards, answer)
    lines = [f'"{sample.expression}"  {sample.id}, {width}x{height} pixels', first]
    if answer is not None:
        lines += _map_of_masks(sample, answer)
        lines += [f"{name:<20}{value}  {weight}".rstrip() for name, value, weight in rows]
    return "\n".join([*lines, ""])


def _lines(rewards: RewardSum, answer: ScoredAnswer | None) -> list[tuple[str, str, str]]:
    """What is said of an answer, line by line: a text, a number, and its weight in the reward."""
    if answer is None:
        return [("waiting for an answer", "", "")]
    faults = ", ".join(answer.prediction.issue_kinds)
    numbers = [("IoU", answer.iou, "")]
    for name, term in rewards.terms.items():
        weight = "gate" if term.weight == "gate" else f"x {term.weight:g}"
        numbers.append((name, answer.terms[name], weight))
    numbers.append(("reward", answer.total, ""))
    content = _content(answer.prediction)
    return [
        (f"answer: {content}, {faults or 'valid'}", "", ""),
        *((name, f"{value:7.3f}", weight) for name, value, weight in numbers),
    ]


def _content(prediction: Prediction) -> str:
    if prediction.form != "point":
        vertices = sum(map(len, prediction.rings))
        rings = counted(len(prediction.rings), "ring")
        return f"{rings}, {counted(vertices, 'vertex', 'vertices')}"
    if prediction.point is None:
        return "no point"
    x, y = prediction.point.tolist()
    return f"point [{x:.4g},{y:.4g}]"


def _map_of_masks(sample: Sample, answer: ScoredAnswer, columns: int = 48) -> list[str]:
    """Rows of characters: ``#`` both, ``o`` only target, ``+`` only answer, ``X`` a point."""
    height, width = sample.target.size
    rows = int(np.clip(round(columns * height / width / 2), 4, 40))  # letters are twice as high
    y = (np.arange(rows) + 0.5) * height / rows
    x = (np.arange(columns) + 0.5) * width / columns
    cells = np.ix_(y.astype(int), x.astype(int))
    truth = sample.target.mask()[cells]
    answered = rasterize(answer.prediction.rings, sample.target.size)[cells]
    letters = np.array(list(".o+#"))[truth + 2 * answered]
    key = "# both   o target only   + answer only"
    point = answer.prediction.point
    if point is not None and ((point >= 0) & (point < 1)).all():
        letters[int(point[1] * rows), int(point[0] * columns)] = "X"
        key = "o target   X answer"
    return ["".join(line) for line in letters] + [key]
