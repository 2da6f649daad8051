"""Everything that is drawn: outlines on images, and what `render` returns."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import shorten

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from rewards.composite import RewardSum
from seg_env.envs.core import Question, ScoredAnswer
from seg_env.geometry.raster import rasterize
from seg_env.types import Prediction, Ring, Sample, Target, counted

RENDER_MODES = ("rgb_array", "ansi")

Color = tuple[int, int, int]

TARGET_COLOR: Color = (0, 190, 160)
ANSWER_COLOR: Color = (255, 96, 48)
WHITE: Color = (255, 255, 255)
DARK: Color = (22, 26, 34)

SHORT_SIDE = 384
"""Smallest side of a drawing in pixels; smaller images are enlarged."""
LONG_SIDE = 1600
"""Largest side of a drawing in pixels; larger images are reduced."""
FILL = 26
"""Opacity of the tints, of 255."""
_OVERSAMPLING = 3
"""Lines are drawn this many times larger and averaged, as Pillow's lines have hard edges."""
_MAX_DOTS = 200
"""Answers with more vertices are drawn without dots, which would hide the outline."""


def check_render_mode(mode: str | None) -> str | None:
    """The mode itself, if there is such a mode."""
    if mode is not None and mode not in RENDER_MODES:
        raise ValueError(f"render_mode={mode!r} is unknown; use None, or one of {RENDER_MODES}")
    return mode


def draw_overlay(
    image: NDArray[np.uint8],
    target: Target | None = None,
    prediction: Prediction | None = None,
    *,
    short_side: int = SHORT_SIDE,
) -> NDArray[np.uint8]:
    """Draw a target and an answer on their image.

    The target has its exact outline in green, the answer its own in orange, each between a light
    and a dark line, so that it shows on any colour; within them the image is tinted so faintly that
    its colours can be told. Vertices of the answer are dots; the start of a ring is a white dot,
    and so is an answer that is a point.

    Returns:
        ``(H', W', 3) uint8``, newly allocated, with the proportions of the image, which is enlarged
        until its shorter side has ``short_side`` pixels, but to at most `LONG_SIDE`.
    """
    height, width = image.shape[:2]
    zoom = min(max(1.0, short_side / min(width, height)), LONG_SIDE / max(width, height))
    width, height = max(1, round(width * zoom)), max(1, round(height * zoom))
    drawing = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    scale = min(width, height) / SHORT_SIDE

    def tint(mask: Image.Image, color: Color) -> None:
        drawing.paste(color, mask=mask.convert("L").point(lambda value: value * FILL // 255))

    if target is not None:
        mask = Image.fromarray(target.mask())
        tint(mask.resize((width, height), Image.Resampling.NEAREST), TARGET_COLOR)
    if prediction is not None and prediction.rings:
        tint(Image.fromarray(rasterize(prediction.rings, (height, width))), ANSWER_COLOR)
    lines = Image.new("RGBA", (width * _OVERSAMPLING, height * _OVERSAMPLING))
    if target is not None:
        _draw_rings(lines, target.rings, TARGET_COLOR, 1.8 * scale)
    if prediction is not None:
        _draw_rings(lines, prediction.rings, ANSWER_COLOR, 1.8 * scale)
        point = () if prediction.point is None else (prediction.point[None],)
        if sum(map(len, prediction.rings)) <= _MAX_DOTS:
            _draw_vertices(lines, (*prediction.rings, *point), 3.2 * scale)
    lines = lines.convert("RGBa").resize((width, height), Image.Resampling.BOX).convert("RGBA")
    drawing.paste(lines, mask=lines)
    return np.asarray(drawing).copy()


def draw_outline(image: NDArray[np.uint8], rings: Sequence[Ring], closed: int) -> NDArray[np.uint8]:
    """Draw the outline so far on a copy of the image seen, ``(H, W, 3) uint8``.

    Rings are ``(V, 2)`` in the unit frame of that image; beyond the first ``closed``, they are
    still being drawn. The lines are thin and nothing is filled, so that the object stays visible. A
    white dot on the first vertex of each ring shows the direction of the lines.
    """
    drawing = Image.fromarray(image)
    draw = ImageDraw.Draw(drawing)
    height, width = image.shape[:2]
    thickness = max(1, round(min(height, width) / 200))
    for number, ring in enumerate(rings):
        corners = _pixels(ring, (width, height))
        ends = corners[:1] if number < closed else []
        draw.line(corners + ends, fill=ANSWER_COLOR, width=thickness)
        (x, y), radius = corners[0], thickness + 0.5
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=WHITE)
    return np.asarray(drawing).copy()


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


def _pixels(ring: Ring, size: tuple[int, int]) -> list[tuple[float, float]]:
    """A ring in pixels of a canvas ``(width, height)``."""
    # Brought near the image: drawing takes time in proportion to the length of a line.
    points = np.clip(np.nan_to_num(ring), -1.0, 2.0) * size
    return [(x, y) for x, y in points.tolist()]


def _draw_rings(lines: Image.Image, rings: tuple[Ring, ...], color: Color, width: float) -> None:
    """Closed outlines with a light and a dark border, so that they show on any background."""
    draw = ImageDraw.Draw(lines)
    for paint, share in ((DARK, 2.8), (WHITE, 1.9), (color, 1.0)):
        thickness = max(1, round(width * share * _OVERSAMPLING))
        for ring in rings:
            points = _pixels(ring, lines.size)
            draw.line([*points, *points[:2]], fill=(*paint, 255), width=thickness, joint="curve")


def _draw_vertices(lines: Image.Image, rings: tuple[Ring, ...], radius: float) -> None:
    draw = ImageDraw.Draw(lines)
    for ring in rings:
        points = _pixels(ring, lines.size)
        for number, (x, y) in reversed(list(enumerate(points))):
            fill, border = (WHITE, ANSWER_COLOR) if number == 0 else (ANSWER_COLOR, WHITE)
            size = radius * _OVERSAMPLING * (1.4 if number == 0 else 1.0)
            draw.ellipse(
                (x - size, y - size, x + size, y + size),
                fill=(*fill, 255),
                outline=(*border, 255),
                width=max(1, round(size / 2.5)),
            )
