"""How a checkpoint is opened: its class, its code, its processor, and the frame it records.

What cannot be opened raises `CheckpointError`, which says in one line what is missing and what to
do about it.
"""

from __future__ import annotations

import json
import re
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import torch
import transformers
from huggingface_hub import constants as hub_settings
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from seg_env.errors import ExplainedError
from seg_env.frames import AnswerFrame, ResizeSettings, find_answer_frame

PROCESSOR_FILE, IMAGES_FILE = "processor_config.json", "preprocessor_config.json"
"""How text and images are prepared. Transformers 5 writes all into the first file; on the hub the
second holds what is about images."""
ANSWER_FRAME = "answer_frame"
"""Entry of a configuration: the frame that the model was trained in, one of
`seg_env.frames.FAMILIES` or ``pixel:WxH``. It need not be the one that its family writes."""


class CheckpointError(ExplainedError, OSError, ValueError):
    """A checkpoint cannot be opened; the message is one line."""


class CheckpointMissingError(CheckpointError, FileNotFoundError):
    """There is no checkpoint of that name."""


@contextmanager
def quiet_progress() -> Iterator[None]:
    """No progress bars of transformers inside the block: they would break those of a run."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def model_class(name_or_path: str | Path, *, trust_remote_code: bool) -> Any:
    """The automatic class that opens a checkpoint of an image-text-to-text model.

    Checkpoints with code of their own may have it under the name of plain language models, as
    Kimi-VL does.

    Raises:
        CheckpointError: There is no such checkpoint, its model reads no images, or it needs code of
            its own, which was not allowed.
    """
    check_checkpoint(name_or_path)
    with explained(name_or_path):
        config, _ = PreTrainedConfig.get_config_dict(name_or_path)
    if not isinstance(config, dict) or "model_type" not in config:
        raise CheckpointError(f"{name_or_path}: config.json names no model_type, so it is no model")
    model_type, own = str(config["model_type"]), config.get("auto_map")
    if model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return AutoModelForImageTextToText
    if not isinstance(own, dict):
        known = "does not read images and write text"
        if model_type not in CONFIG_MAPPING:
            known = (
                "is unknown to the installed transformers, and there is no code beside it: "
                "pip install --upgrade transformers"
            )
        raise CheckpointError(f"{name_or_path}: model type {model_type!r} {known}")
    if not trust_remote_code:
        files = sorted({str(name).split(".")[0] + ".py" for name in own.values()})
        raise CheckpointError(
            f"{name_or_path} is of model type {model_type!r}, which transformers does not have; it "
            f"comes with code of its own ({', '.join(files)}), which was not run. Read it, then "
            "allow it by --trust-remote-code (trust_remote_code=True)"
        )
    if AutoModelForImageTextToText.__name__ not in own and AutoModelForCausalLM.__name__ in own:
        return AutoModelForCausalLM
    return AutoModelForImageTextToText


def open_checkpoint(
    name_or_path: str | Path, *, dtype: torch.dtype | str, trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """Model and processor of a folder or hub id; the model is on the CPU.

    With the dtype ``"auto"`` its weights are as they were saved.

    Raises:
        CheckpointError: It cannot be opened.
    """
    opener = model_class(name_or_path, trust_remote_code=trust_remote_code)
    # The processor comes first: it is opened in no time, and is what most often is missing.
    processor = open_policy_processor(name_or_path, trust_remote_code=trust_remote_code)
    with quiet_progress(), explained(name_or_path):
        model = opener.from_pretrained(
            name_or_path, dtype=dtype, trust_remote_code=trust_remote_code
        )
    return model, processor


def open_processor(name_or_path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The processor of a checkpoint: image processor, tokenizer and chat template.

    The same image becomes the same numbers with and without torchvision: families with a video
    part need it, and theirs is taken; for all others images are prepared by Pillow alone.

    Raises:
        CheckpointError: It cannot be opened.
    """
    check_checkpoint(name_or_path)
    # The argument `backend` would reach the video processor too, which refuses all but torchvision.
    options = {"trust_remote_code": trust_remote_code}
    with explained(name_or_path, "its processor"):
        processor = AutoProcessor.from_pretrained(name_or_path, **options)
        if _has_pillow_variant(processor):
            images = AutoImageProcessor.from_pretrained(name_or_path, backend="pil", **options)
            processor.image_processor = images
    if isinstance(processor, ProcessorMixin) and getattr(processor, "chat_template", None) is None:
        tokenizer = getattr(processor, "tokenizer", None)
        processor.chat_template = getattr(tokenizer, "chat_template", None)
    return processor


def open_policy_processor(name_or_path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """What `open_processor` opens, of which a policy needs both parts.

    Raises:
        CheckpointError: It cannot be opened, or prepares text or images only.
    """
    check_checkpoint(name_or_path)
    _check_processor_files(name_or_path)
    processor = open_processor(name_or_path, trust_remote_code=trust_remote_code)
    for part in ("tokenizer", "image_processor"):
        if not hasattr(processor, part):
            raise CheckpointError(
                f"{name_or_path}: has no processor of images and text, only a "
                f"{type(processor).__name__} without {part}; copy the processor's files from the "
                "model it was made from"
            )
    return processor


def policy_frame(name: str, model: Any, processor: Any, name_or_path: str) -> AnswerFrame:
    """The frame of the numbers that a policy writes.

    ``name`` is what was asked for: ``auto`` for what the model records, else what its family
    writes.

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


def recorded_frame(model: Any) -> str | None:
    """The frame that a model's configuration says it was trained in, if it says so."""
    found = getattr(model.config, ANSWER_FRAME, None)
    return found if isinstance(found, str) else None


def check_checkpoint(name_or_path: str | Path) -> None:
    """Make sure that a name stands for a model's folder, or may stand for one on the hub.

    Raises:
        CheckpointError: It does not.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if path.exists():
        _check_folder(path)
    elif not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) or isinstance(name_or_path, Path):
        raise CheckpointMissingError(f"{name}: no such folder, and no id of a model on the hub")
    elif not isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str):
        obstacle = f"{urlsplit(hub_settings.ENDPOINT).hostname} cannot be reached"
        if hub_settings.HF_HUB_OFFLINE:
            obstacle = "nothing can be fetched while HF_HUB_OFFLINE is set"
        elif _hub_answers():
            return
        raise CheckpointMissingError(
            f"{name}: no such folder here, not among the models that were downloaded before, and "
            f"{obstacle}"
        )


@contextmanager
def explained(name_or_path: str | Path, part: str = "") -> Iterator[None]:
    """Turn what libraries raise inside the block into a `CheckpointError` of one line."""
    try:
        yield
    except (CheckpointError, torch.OutOfMemoryError):
        raise
    except (OSError, ValueError, ImportError, SafetensorError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{name_or_path}: {_reason(error, part)}") from error


def _reason(error: Exception, part: str) -> str:
    """Why something could not be opened, in one sentence."""
    text = " ".join(str(error).split())
    if isinstance(error, (ImportError, RuntimeError)):
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
            causes.append(cause)
        told = " ".join(map(str, causes)).lower()
        for package in ("torchvision", "num2words", "timm", "sentencepiece", "tiktoken"):
            if package in told:
                command = f"pip install {package}"
                if package == "torchvision":
                    command += (
                        ", in the release that belongs to the installed torch (its CPU builds have "
                        "none: pip install torch==2.14.1 torchvision==0.29.1)"
                    )
                missing = "which is not installed"
                if find_spec(package) is not None:
                    missing = f"and the installed one does not fit torch {torch.__version__}"
                return f"{part or 'it'} needs {package}, {missing}: {command}"
    sentence = re.split(r"(?<=[a-z)'`\"])\. (?=[A-Z])", text, maxsplit=1)[0]
    if len(sentence) > 240:
        sentence = sentence[:240].rsplit(" ", 1)[0] + " …"
    return f"{part + ': ' if part else ''}{sentence.rstrip('.') or type(error).__name__}"


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise CheckpointError(f"{path}: is a file; give the folder of a model")
    if (path / "config.json").is_file():
        for name in ("config.json", PROCESSOR_FILE, IMAGES_FILE, "tokenizer_config.json"):
            _read_settings(path / name)
        return
    if (path / "adapter_config.json").is_file():
        base = _read_settings(path / "adapter_config.json").get("base_model_name_or_path")
        raise CheckpointError(
            f"{path}: holds an adapter of {base} and no model; merge the two first "
            "(PEFT's merge_and_unload, then save_pretrained with the processor), or give the base "
            "model itself"
        )
    inner = sorted(found.parent.name for found in path.glob("*/config.json"))
    hint = f"; there is one in {path / inner[0]}" if inner else ""
    raise CheckpointError(f"{path}: is no model's folder, config.json is missing{hint}")


def _read_settings(path: Path) -> dict[str, Any]:
    """What a JSON file of a checkpoint holds; nothing if there is no such file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds a {type(found).__name__} instead of settings")
    return found


def _check_processor_files(name_or_path: str | Path) -> None:
    """Refuse a folder without a file of the processor: transformers may make one up instead."""
    path = Path(name_or_path)
    if not path.is_dir():
        return
    missing = []
    images_told = "image_processor" in _read_settings(path / PROCESSOR_FILE)
    if not images_told and not (path / IMAGES_FILE).is_file():
        missing.append(f"how images are prepared ({IMAGES_FILE})")
    vocabularies = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken")
    if not any(any(path.glob(pattern)) for pattern in vocabularies):
        missing.append("the tokenizer (tokenizer.json)")
    if missing:
        raise CheckpointError(
            f"{path}: the processor is incomplete, {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; copy the processor's files from the "
            "model it was made from"
        )


def _has_pillow_variant(processor: Any) -> bool:
    """Whether a processor of transformers prepares images alone, by torchvision, and need not."""
    if not isinstance(processor, ProcessorMixin) or hasattr(processor, "video_processor"):
        return False
    kinds = type(processor), type(getattr(processor, "image_processor", None))
    ours = all(kind.__module__.startswith("transformers.") for kind in kinds)
    return ours and hasattr(transformers, f"{kinds[1].__name__}Pil")


def _hub_answers() -> bool:
    """Whether the hub can be reached; asked once, where its client would try for minutes."""
    if urllib.request.getproxies():
        return True  # the proxy knows, and this machine may not even resolve the name
    address = urlsplit(hub_settings.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=10.0).close()
    except OSError:
        return False
    return True
