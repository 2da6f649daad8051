"""How a checkpoint wants to be opened: its class, its code, and the frame it records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
)

from seg_env.frames import AnswerFrame, ResizeSettings, find_answer_frame, is_frame_name

ANSWER_FRAME = "answer_frame"
"""Entry of a configuration: the frame of the numbers that the model was trained to write, one of
`seg_env.frames.FAMILIES`. A model that was trained here writes another than its family does."""


def model_class(name_or_path: str | Path, *, trust_remote_code: bool) -> Any:
    """The automatic class that opens a checkpoint of an image-text-to-text model.

    Checkpoints with code of their own may have it under the name of plain language models, as
    Kimi-VL does.

    Args:
        name_or_path: Folder or hub id.
        trust_remote_code: Whether that code may run.

    Raises:
        ValueError: It needs code of its own, and that was not allowed; names the option.
        OSError: There is no such checkpoint.
    """
    config, _ = PreTrainedConfig.get_config_dict(name_or_path)
    model_type, own = str(config.get("model_type")), config.get("auto_map")
    if model_type in CONFIG_MAPPING or not isinstance(own, dict):
        return AutoModelForImageTextToText
    if not trust_remote_code:
        files = sorted({str(name).split(".")[0] + ".py" for name in own.values()})
        raise ValueError(
            f"{name_or_path} is of model type {model_type!r}, which transformers does not have; it "
            f"comes with code of its own ({', '.join(files)}), which was not run. Read it, then "
            "allow it by --trust-remote-code (trust_remote_code=True)"
        )
    if AutoModelForImageTextToText.__name__ not in own and AutoModelForCausalLM.__name__ in own:
        return AutoModelForCausalLM
    return AutoModelForImageTextToText


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
