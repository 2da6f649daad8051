"""What `render` returns: a picture with a strip of scores below it, or a few lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from rewards.composite import Term
from seg_env.envs.overlay import ANSWER_COLOR, INK, TARGET_COLOR, WHITE, draw_overlay, font
from seg_env.geometry.raster import rasterize
from seg_env.types import Prediction, Sample

__all__ = [
    "RENDER_MODES",
    "Answer",
    "check_render_mode",
    "draw_overlay",
    "draw_panel",
    "write_report",
]

RENDER_MODES = ("rgb_array", "ansi")

_MUTED = (150, 158, 172)
_TRACK = (52, 59, 72)
_BAD = (255, 138, 128)


@dataclass(frozen=True, eq=False)
class Answer:
    """One scored answer, as far as a picture shows it."""

    prediction: Prediction
    """The decoded answer."""
    iou: float
    """Mask IoU with the target."""
    total: float
    """The reward."""
    terms: Mapping[str, float]
    """Each reward by itself."""

    @property
    def faults(self) -> str:
        """Kinds of faults, separated by commas; empty for a valid answer."""
        return ", ".join(dict.fromkeys(issue.kind.value for issue in self.prediction.issues))


def check_render_mode(mode: str | None) -> str | None:
    """The mode itself.

    Raises:
        ValueError: It is neither None nor one of `RENDER_MODES`.
    """
    if mode is not None and mode not in RENDER_MODES:
        raise ValueError(f"render_mode={mode!r} is unknown; use None, or one of {RENDER_MODES}")
    return mode


def draw_panel(
    sample: Sample, weights: Mapping[str, Term], answer: Answer | None = None
) -> NDArray[np.uint8]:
    """Draw a question and its scored answer.

    Before the answer only the picture and the expression are shown, since the truth is what is
    asked for. The size is that of the drawing after the answer, so that frames can form a video.

    Args:
        sample: What is asked about.
        weights: The rewards with their weights, by name.
        answer: The answer, None while the question is open.

    Returns:
        ``(H, W, 3) uint8``.
    """
    shown = (sample.target, answer.prediction) if answer else (None, None)
    overlay = draw_overlay(sample.image, *shown)
    height, width = overlay.shape[:2]
    width = max(width, 384)
    margin, row = 14, 22
    names = [*weights] if "mask_iou" in weights else ["IoU", *weights]
    strip = 72 + row * len(names)
    panel = Image.new("RGB", (width, height + strip), INK)
    panel.paste(Image.fromarray(overlay), ((width - overlay.shape[1]) // 2, 0))
    draw = ImageDraw.Draw(panel)
    _write_fitting(draw, (margin, height + 22), f"“{sample.expression}”", width - 2 * margin)
    y = height + 50
    if answer is None:
        draw.text((margin, y), "waiting for an answer", _MUTED, font(13), "lm")
    else:
        _draw_legend(draw, margin, y, answer)
    values = {"IoU": answer.iou, **answer.terms} if answer else {}
    for number, name in enumerate(names):
        place = (margin, height + 78 + row * number, width - margin)
        _draw_bar(draw, place, name, _weight_text(weights.get(name)), values.get(name))
    if answer is not None:
        draw.text(
            (width - margin, height + 50), f"reward {answer.total:.3f}", WHITE, font(15), "rm"
        )
    return np.asarray(panel).copy()


def write_report(sample: Sample, weights: Mapping[str, Term], answer: Answer | None = None) -> str:
    """The same in a few lines of text, with a map of the two masks.

    Args:
        sample: What is asked about.
        weights: The rewards with their weights, by name.
        answer: The answer, None while the question is open.
    """
    height, width = sample.target.size
    lines = [f'"{sample.expression}"  {sample.id}, {width}x{height} pixels']
    if answer is None:
        return "\n".join([*lines, "waiting for an answer", ""])
    lines += [
        f"answer: {_content(answer.prediction)}, {answer.faults or 'valid'}",
        *_map_of_masks(sample, answer),
        f"{'IoU':<20}{answer.iou:7.3f}",
    ]
    for name, term in weights.items():
        lines.append(f"{name:<20}{answer.terms[name]:7.3f}  {_weight_text(term)}")
    return "\n".join([*lines, f"{'reward':<20}{answer.total:7.3f}", ""])


def _content(prediction: Prediction) -> str:
    """What an answer consists of; a point in the unit frame."""
    if prediction.form != "point":
        vertices = sum(len(ring) for ring in prediction.rings)
        return f"{len(prediction.rings)} rings, {vertices} vertices"
    if prediction.point is None:
        return "no point"
    x, y = prediction.point.tolist()
    return f"point [{x:.4g},{y:.4g}]"


def _weight_text(term: Term | None) -> str:
    if term is None:
        return ""
    return "gate" if term.weight == "gate" else f"x {term.weight:g}"


def _map_of_masks(sample: Sample, answer: Answer, columns: int = 48) -> list[str]:
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
    return ["".join(letter for letter in line) for line in letters] + [key]


def _draw_legend(draw: ImageDraw.ImageDraw, x: int, y: int, answer: Answer) -> None:
    """Colours of target and answer, with the answer's size or faults."""
    vertices = sum(len(ring) for ring in answer.prediction.rings)
    size = f"{vertices} vertices" if answer.prediction.form != "point" else "a point"
    texts = [("target", TARGET_COLOR), (f"answer, {size}", ANSWER_COLOR)]
    place = float(x)
    for text, color in texts:
        draw.rounded_rectangle((place, y - 6, place + 12, y + 6), 3, color)
        draw.text((place + 18, y), text, WHITE, font(13), "lm")
        place += 18 + draw.textlength(text, font(13)) + 14
    if answer.faults:
        draw.text((place, y), answer.faults, _BAD, font(13), "lm")


def _draw_bar(
    draw: ImageDraw.ImageDraw,
    span: tuple[int, int, int],
    name: str,
    weight: str,
    value: float | None,
) -> None:
    """One line: name, weight, a bar over [0, 1], the number."""
    left, y, right = span
    draw.text((left, y), name, WHITE, font(13), "lm")
    draw.text((left + 180, y), weight, _MUTED, font(12), "rm")
    start, end = left + 192, right - 54
    draw.rounded_rectangle((start, y - 4, end, y + 4), 4, _TRACK)
    if value is None:
        return
    reach = start + (end - start) * float(np.clip(value, 0.0, 1.0))
    if reach > start + 1:
        draw.rounded_rectangle((start, y - 4, max(reach, start + 8), y + 4), 4, ANSWER_COLOR)
    draw.text((right, y), f"{value:.3f}", WHITE, font(13), "rm")


def _write_fitting(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int
) -> None:
    """One line of text, shortened with an ellipsis where it is too long."""
    text, letters = text[:300], font(17)
    if draw.textlength(text, letters) > width:
        while text and draw.textlength(text + "…”", letters) > width:
            text = text[:-1]
        text = text.rstrip() + "…”"
    draw.text(place, text, WHITE, letters, "lm")
