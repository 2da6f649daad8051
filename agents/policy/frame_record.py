"""The frame of the numbers that a policy writes: what its folder records, and how it gets there."""

from __future__ import annotations

from typing import Any

from seg_env.frames import AnswerFrame, ResizeSettings, find_answer_frame, is_frame_name

ANSWER_FRAME = "answer_frame"
"""Entry of a configuration: the frame that the model was trained in, one of
`seg_env.frames.FAMILIES` or ``pixel:WxH``. It need not be the one that its family writes."""


def policy_frame(name: str, model: Any, processor: Any, name_or_path: str) -> AnswerFrame:
    """The frame of the numbers that a policy writes.

    Args:
        name: What was asked for, ``auto`` for what the model records, else what its family writes.
        model: The model.
        processor: Its processor, which may resize images.
        name_or_path: Folder or hub id it was opened from.

    Raises:
        ValueError: There is no such frame.
    """
    return find_answer_frame(
        name,
        model_type=model.config.model_type,
        model_name=name_or_path,
        recorded=recorded_frame(model),
        resize=ResizeSettings.from_processor(getattr(processor, "image_processor", None)),
    )


def record_frame(model: Any, frame: AnswerFrame) -> None:
    """Let the configuration of a model that training has changed say what its numbers mean."""
    if is_frame_name(frame.family):
        setattr(model.config, ANSWER_FRAME, frame.family)


def copy_record(source: Any, target: Any) -> None:
    """Let a model's configuration record the frame that another one's does, if that does."""
    if (recorded := recorded_frame(source)) is not None:
        setattr(target.config, ANSWER_FRAME, recorded)


def recorded_frame(model: Any) -> str | None:
    """What `record_frame` left in a model's configuration."""
    found = getattr(model.config, ANSWER_FRAME, None)
    return found if isinstance(found, str) else None
