"""What the numbers in a policy's answers mean, for images of every size, and how to find out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from seg_env.errors import WrongOptionError
from seg_env.frames.models import (
    FAMILIES,
    FAMILY_OF_MODEL,
    FrameFamily,
    ResizeSettings,
    find_family,
    normalize_tokens,
    smart_resize,
    write_tokens,
)
from seg_env.frames.plain import Frame, letterbox_frame, pixel_frame
from seg_env.types import Form

AUTO = "auto"
"""The name for the frame that a policy's configuration records, else that of its family."""


@dataclass(frozen=True)
class AnswerFrame:
    """The frame that a policy writes its numbers in; gives a `Frame` for every image."""

    family: str = "unit"
    """One of `FAMILIES`, ``pixel:WxH``, or the name of ``fixed``."""
    reason: str = field(default="", compare=False)
    """Why it was chosen, empty if it was asked for."""
    resize: ResizeSettings = field(default_factory=ResizeSettings)
    """How the processor resizes images, for families whose numbers depend on it."""
    canvas_size: tuple[int, int] | None = None
    """``(H, W)`` that images are letterboxed to before the policy sees them."""
    fixed: Frame | None = None
    """A frame that a caller made, for images of all sizes."""

    @classmethod
    def from_spec(cls, spec: str | Frame | AnswerFrame) -> AnswerFrame:
        """An answer frame from a `Frame`, or from a name that `find_answer_frame` knows."""
        if isinstance(spec, AnswerFrame):
            return spec
        if not isinstance(spec, str):
            return cls(spec.name, fixed=spec)
        return find_answer_frame(spec)

    @property
    def description(self) -> str:
        """The family, what its numbers are, and why it was chosen, in one line."""
        reason = f", {self.reason}" if self.reason else ""
        return f"{self.family} ({self._written.meaning}){reason}"

    @property
    def _written(self) -> FrameFamily:
        if self.fixed is not None:
            return FrameFamily("as given", self.fixed)
        return find_family(self.family)

    @property
    def writes_tokens(self) -> bool:
        """Whether answers consist of location tokens instead of bracketed numbers."""
        return bool(self._written.token)

    @property
    def depends_on_image(self) -> bool:
        """Whether the numbers of a place depend on the size of the image."""
        return self._written.frame is None and self.canvas_size is None

    def on_canvas(self, canvas_size: tuple[int, int] | None) -> AnswerFrame:
        """The same for images that are letterboxed to ``(H, W)``; None for images as they are."""
        return replace(self, canvas_size=canvas_size)

    def for_view(self, image_size: tuple[int, int]) -> Frame:
        """Frame relative to what the policy sees of an image of ``(H, W)`` pixels.

        Raises:
            ValueError: The processor would refuse the image.
        """
        if self._written.frame is not None:
            return self._written.frame
        size = self.canvas_size or image_size
        height, width = smart_resize(size, self.resize) if self.family == "qwen2.5-vl" else size
        return pixel_frame(width, height)

    def for_image(self, image_size: tuple[int, int]) -> Frame:
        """Frame that maps to the unit frame of an image of ``(H, W)`` pixels itself."""
        seen = self.for_view(image_size)
        if self.canvas_size in (None, image_size):
            return seen
        return letterbox_frame(seen, image_size, self.canvas_size)

    def widest(self) -> Frame:
        """Frame whose limits are large enough for images of every size."""
        if self.depends_on_image:
            return pixel_frame(9999, 9999)
        return self.for_view((1, 1))

    def normalize(self, text: str, form: Form = "mask") -> str:
        """An answer as the bracketed numbers that the grammar reads."""
        return normalize_tokens(text, self.family, form) if self.writes_tokens else text

    def write(self, text: str) -> str:
        """Rewrite bracketed numbers as the policy writes them."""
        return write_tokens(text, self.family) if self.writes_tokens else text


UNIT_ANSWERS = AnswerFrame()


def find_answer_frame(
    name: str,
    *,
    model_type: str | None = None,
    model_name: str = "",
    recorded: str | None = None,
    resize: ResizeSettings | None = None,
) -> AnswerFrame:
    """The frame that a name stands for.

    Args:
        name: A family, a transformers model type, ``pixel:WxH``, or ``auto``.
        model_type: Type of the model that answers, None where only answers are given.
        model_name: Its folder or hub id.
        recorded: The frame that its configuration records.
        resize: How its processor resizes images.
    """
    resize = resize or ResizeSettings()
    if name == AUTO:
        family, reason = _pick(model_type, model_name, recorded)
    elif name in FAMILY_OF_MODEL:
        family, reason = FAMILY_OF_MODEL[name], f"what {name} models write"
    elif is_frame_name(name):
        family, reason = name, ""
    else:
        raise WrongOptionError(
            f"frame={name!r} is unknown; use one of {', '.join(FAMILIES)}, or {AUTO}, pixel:WxH "
            f"such as pixel:640x480, or a model type: {', '.join(FAMILY_OF_MODEL)}"
        )
    if recorded is not None and is_frame_name(recorded) and recorded != family:
        reason = f"as asked for, although the policy's configuration records {recorded}"
    return AnswerFrame(family, reason, resize)


def is_frame_name(name: str) -> bool:
    """Whether a name is one of `FAMILIES` or ``pixel:WxH`` with positive sides."""
    try:
        find_family(name)
    except ValueError:
        return False
    return True


def _pick(model_type: str | None, model_name: str, recorded: str | None) -> tuple[str, str]:
    """Family and reason for ``auto``."""
    if recorded is not None and is_frame_name(recorded):
        return recorded, "as the policy's configuration records"
    if model_type is None:
        return "unit", "since answers alone do not name a model (see --frame)"
    if "simpleseg" in model_name.lower():
        return "unit", "what SimpleSeg's checkpoints write"
    if model_type not in FAMILY_OF_MODEL:
        return "unit", f"since nothing is known about model type {model_type} (see --frame)"
    return FAMILY_OF_MODEL[model_type], f"picked by model type {model_type}"
