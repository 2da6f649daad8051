"""Reading answers in the coordinate frame that a model writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from seg_env.envs.observation import frame_of_view
from seg_env.frames import (
    FAMILIES,
    FAMILY_OF_MODEL,
    Frame,
    PixelFrame,
    ResizeSettings,
    family_frame,
    family_of_model,
    normalize_tokens,
)
from seg_env.grammar_answers import decode_answer
from seg_env.types import Form, IssueKind, Prediction, Sample

AUTO = "auto"
_PIXELS = re.compile(r"pixel:([0-9]{1,6})x([0-9]{1,6})")


@dataclass(frozen=True)
class Reader:
    """Reads answers: knows the frame of their numbers for pictures of every size."""

    family: str
    """One of `seg_env.frames.FAMILIES`, or ``pixel:WxH``."""
    reason: str = ""
    """Why it was chosen, empty if it was asked for."""
    settings: ResizeSettings = field(default_factory=ResizeSettings)
    """How the processor resizes pictures, for the families where it matters."""
    canvas_size: tuple[int, int] | None = None
    """``(H, W)`` that pictures are letterboxed to before the model sees them."""

    @property
    def description(self) -> str:
        """One line: the family, what its numbers are, and why it was chosen."""
        meaning = FAMILIES.get(self.family, "pixels of a picture of that size, width first")
        return f"{self.family} ({meaning})" + (f", {self.reason}" if self.reason else "")

    def frame(self, sample: Sample) -> Frame:
        """Frame of answers about a sample."""
        seen = self.canvas_size or sample.target.size
        pixels = _PIXELS.fullmatch(self.family)
        inner = (
            PixelFrame(int(pixels[1]), int(pixels[2]))
            if pixels
            else family_frame(self.family, seen, self.settings)
        )
        return frame_of_view(inner, sample.target.size, self.canvas_size)

    def read(self, text: str, sample: Sample, form: Form = "mask") -> Prediction:
        """Decode one answer as what was asked for; never raises, whatever the text is."""
        if self.family in FAMILIES:
            text = normalize_tokens(text, self.family)
        return decode_answer(text, form, self.frame(sample))


def choose_reader(
    name: str,
    *,
    model_type: str | None = None,
    model_name: str = "",
    recorded: str | None = None,
    settings: ResizeSettings | None = None,
    canvas_size: tuple[int, int] | None = None,
) -> Reader:
    """The reader that ``--frame`` names.

    Args:
        name: A family, a transformers model type, ``pixel:WxH``, or ``auto``.
        model_type: Type of the model that answers, None where only answers are given.
        model_name: Its folder or hub id.
        recorded: The frame that its configuration records, see `agents.loading.ANSWER_FRAME`.
        settings: How its processor resizes pictures.
        canvas_size: ``(H, W)`` that pictures are letterboxed to.

    Raises:
        ValueError: There is no such frame.
    """
    settings = settings or ResizeSettings()
    if name == AUTO:
        family, reason = _pick(model_type, model_name, recorded)
    elif name in FAMILY_OF_MODEL:
        family, reason = family_of_model(name), f"what {name} models write"
    elif name in FAMILIES or _usable_pixels(name):
        family, reason = name, ""
    else:
        raise ValueError(
            f"--frame {name} is unknown; use auto, one of {', '.join(FAMILIES)}, pixel:WxH such as "
            f"pixel:640x480, or a model type: {', '.join(FAMILY_OF_MODEL)}"
        )
    return Reader(family, reason, settings, canvas_size)


def _pick(model_type: str | None, model_name: str, recorded: str | None) -> tuple[str, str]:
    """Family and reason for ``auto``."""
    if recorded is not None and recorded in FAMILIES:
        return recorded, "as the policy's configuration records"
    if model_type is None:
        return "unit", "since answers alone do not name a model (see --frame)"
    if "simpleseg" in model_name.lower():
        return "unit", "what SimpleSeg's checkpoints write"
    if model_type not in FAMILY_OF_MODEL:
        return "unit", f"since nothing is known about model type {model_type} (see --frame)"
    return family_of_model(model_type), f"picked by model type {model_type}"


def _usable_pixels(name: str) -> bool:
    match = _PIXELS.fullmatch(name)
    return match is not None and int(match[1]) > 0 and int(match[2]) > 0


def advise_frame(
    reader: Reader,
    texts: Sequence[str],
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
) -> str | None:
    """A warning when many answers look as if written in another frame, None otherwise.

    Args:
        reader: Who read them.
        texts: ``N`` answers as written.
        samples: ``N`` samples they are about.
        predictions: ``N`` answers as read, all of one form.
    """
    foreign = _share_foreign(predictions)
    if foreign <= 0.1:
        return None
    fits = {}
    for family in FAMILIES:
        if family != reader.family:
            other = Reader(family, settings=reader.settings, canvas_size=reader.canvas_size)
            read = [
                other.read(text, sample, predictions[0].form)
                for text, sample in zip(texts, samples, strict=True)
            ]
            fits[family] = _share_foreign(read)
    best = min(fits, key=lambda family: fits[family])
    advice = f"{foreign:.0%} of the answers have numbers of another frame than {reader.family}"
    if fits[best] < foreign / 2:
        advice += f"; read with --frame {best} it would be {fits[best]:.0%}"
    return advice


def _share_foreign(predictions: Sequence[Prediction]) -> float:
    """Share of answers with numbers of another frame."""
    found = [
        any(issue.kind is IssueKind.WRONG_FRAME for issue in each.issues) for each in predictions
    ]
    return sum(found) / max(1, len(found))
