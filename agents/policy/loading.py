"""How a checkpoint is opened: its class, its code, its processor, and the frame it records.

What cannot be opened raises `CheckpointError`, which says in one line what is missing and what to
do about it.

The folder of an adapter is opened as its base model with the adapter merged in. Its configuration
is data from outside: it is not passed to PEFT, which may import what it names.
"""

from __future__ import annotations

import json
import math
import re
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import torch
import transformers
from huggingface_hub import constants as hub_settings
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
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
from transformers.utils import find_adapter_config_file
from transformers.utils import logging as transformers_logging

from seg_env.errors import ExplainedError
from seg_env.frames import AnswerFrame, ResizeSettings, find_answer_frame

PROCESSOR_FILE, IMAGES_FILE = "processor_config.json", "preprocessor_config.json"
"""Files that say how text and images are prepared. Transformers 5 writes all into the first; on the
hub the second holds the part about images."""
ANSWER_FRAME = "answer_frame"
"""Entry of a configuration: the frame that the model was trained in, one of
`seg_env.frames.FAMILIES` or ``pixel:WxH``. It need not be the one that its family writes."""
ADAPTER_FILE, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""What PEFT calls the files of an adapter."""
FRAME_FILE = "answer_frame.json"
"""Holds `ANSWER_FRAME` beside an adapter, whose folder has no configuration of the model."""
ADAPTER_LAYER = re.compile(r"base_model\.model\.([\w.]+)\.lora_([AB])\.weight")
"""Names of an adapter's weights: of the matrices that lead into and out of the low rank."""
ADAPTER_ENTRIES: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal"),  # others change the model's weights, too
}
"""Entries of an adapter's configuration with the values, besides unset, that are supported."""
ADAPTER_NEUTRAL = {
    *("base_model_name_or_path", "r", "lora_alpha", "use_rslora"),  # which are read
    *("lora_dropout", "inference_mode", "task_type", "revision", "auto_mapping", "peft_version"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("megatron_core", "qalora_group_size", "ensure_weight_tying"),
}
"""Entries that may have any value; all others must be unset."""
MOST_BASES = 8
"""Most adapters that may be stacked on each other."""


class CheckpointError(ExplainedError, OSError, ValueError):
    """A checkpoint cannot be opened; the message is one line."""


class CheckpointMissingError(CheckpointError, FileNotFoundError):
    """There is no checkpoint of that name."""


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter as stored in a folder."""

    base: str
    """The model that it belongs to: a folder or hub id, which may itself be an adapter's."""
    scaling: float
    """The matrices added to the weights are multiplied by this."""
    layers: dict[str, tuple[Tensor, Tensor]]
    """By names of layers: ``A`` ``(rank, inputs)`` and ``B`` ``(outputs, rank)`` float32; ``B A``
    is added to the weights."""
    frame: str | None
    """The frame that it was trained in, if that is recorded."""


@contextmanager
def quiet_progress() -> Iterator[None]:
    """Hide the progress bars of transformers inside the block: they would garble a run's own."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def model_class(name_or_path: str | Path, *, trust_remote_code: bool) -> Any:
    """The automatic class that opens a checkpoint of an image-text-to-text model.

    Checkpoints with code of their own may register it under the automatic class of plain language
    models, as Kimi-VL does.

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
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str,
    trust_remote_code: bool = False,
    adapters: int = MOST_BASES,
    **options: Any,
) -> tuple[Any, Any]:
    """Model and processor of a folder or hub id; the model is on the CPU.

    With the dtype ``"auto"`` weights keep the type they were saved in. An adapter is merged into
    its base model, up to ``adapters`` stacked ones. ``options`` are those of ``from_pretrained``.

    Raises:
        CheckpointError: It cannot be opened.
    """
    if (folder := adapter_folder(name_or_path)) is not None:
        model, processor = _open_adapter(folder, adapters, dtype, trust_remote_code, options)
        model.name_or_path = model.config._name_or_path = str(name_or_path)
        return model, processor
    opener = model_class(name_or_path, trust_remote_code=trust_remote_code)
    # The processor comes first: it opens fast, and is what most often is missing.
    processor = open_policy_processor(name_or_path, trust_remote_code=trust_remote_code)
    with quiet_progress(), explained(name_or_path):
        model = opener.from_pretrained(
            name_or_path, dtype=dtype, trust_remote_code=trust_remote_code, **options
        )
    return model, processor


def adapter_folder(name_or_path: str | Path) -> Path | None:
    """The folder of an adapter, downloaded from the hub if need be; None if it is no adapter.

    Raises:
        CheckpointError: It cannot be found out, or not downloaded.
    """
    path = Path(name_or_path)
    if path.exists():
        return path if (path / ADAPTER_FILE).is_file() else None
    check_checkpoint(name_or_path)
    with explained(name_or_path):
        if find_adapter_config_file(str(name_or_path)) is None:
            return None
        files = ["*.json", "*.jinja", "*.model", "*.txt", ADAPTER_WEIGHTS]
        return Path(huggingface_hub.snapshot_download(str(name_or_path), allow_patterns=files))


def read_adapter(folder: Path) -> SavedAdapter:
    """Read the adapter in a folder.

    Raises:
        CheckpointError: It is damaged, or an adapter of a kind that is not supported.
    """
    settings = _read_settings(folder / ADAPTER_FILE)
    base, rank, alpha = map(settings.get, ("base_model_name_or_path", "r", "lora_alpha"))
    for name, value in settings.items():
        if name not in ADAPTER_NEUTRAL and value and value not in ADAPTER_ENTRIES.get(name, ()):
            raise CheckpointError(
                f"{folder}: its adapter has {name}={str(value)[:40]}, which is unknown here; merge "
                "it into its model by PEFT (merge_and_unload), and save that with the processor"
            )
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{folder}: names no model that the adapter belongs to; write its folder or hub id "
            f"into {ADAPTER_FILE} (base_model_name_or_path)"
        )
    if (
        not (isinstance(rank, int) and isinstance(alpha, (int, float)))
        or rank < 1
        or not abs(alpha) < 1e6
    ):
        raise CheckpointError(f"{folder}: {ADAPTER_FILE} has no usable numbers r and lora_alpha")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder}: {ADAPTER_WEIGHTS} is missing, and adapter_model.bin, which may hold code, "
            "is never read; save the adapter by PEFT's save_pretrained"
        )
    with explained(folder, ADAPTER_WEIGHTS):
        weights = load_file(folder / ADAPTER_WEIGHTS)
    layers: dict[str, dict[str, Tensor]] = {}
    for name, matrix in weights.items():
        if (match := ADAPTER_LAYER.fullmatch(name)) is None or matrix.ndim != 2:
            raise CheckpointError(f"{folder}: {name} in {ADAPTER_WEIGHTS} is no matrix of LoRA")
        layers.setdefault(match[1], {})[match[2]] = matrix.float()
    pairs = {}
    for name, pair in layers.items():
        if len(pair) < 2 or not len(pair["A"]) == pair["B"].shape[1] == rank:
            raise CheckpointError(f"{folder}: {name} in {ADAPTER_WEIGHTS} is not of rank {rank}")
        pairs[name] = (pair["A"], pair["B"])
    frame = _read_settings(folder / FRAME_FILE).get(ANSWER_FRAME)
    scaling = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    return SavedAdapter(base, scaling, pairs, frame if isinstance(frame, str) else None)


def _open_adapter(
    folder: Path,
    adapters: int,
    dtype: torch.dtype | str,
    trust_remote_code: bool,
    options: dict[str, Any],
) -> tuple[Any, Any]:
    """The base model with an adapter merged in, and the adapter's processor or the base model's."""
    if options:
        raise CheckpointError(
            f"{folder}: is an adapter, and cannot be merged into a model in 4 bits; save the two "
            "merged (--merge-adapter), and load that"
        )
    if not adapters:
        raise CheckpointError(f"{folder}: is an adapter upon more than {MOST_BASES} others")
    adapter = read_adapter(folder)
    # A relative path starts at the working directory, as in PEFT, or else at the folder.
    base: str | Path = adapter.base
    with explained(folder):
        if not Path(base).exists() and (folder / base).exists():
            base = folder / base
    try:
        model, processor = open_checkpoint(
            base, dtype=dtype, trust_remote_code=trust_remote_code, adapters=adapters - 1
        )
    except CheckpointMissingError as error:
        raise CheckpointMissingError(
            f"{folder} is an adapter of {error}; put that model there, or write another place of "
            f"it into {ADAPTER_FILE} (base_model_name_or_path)"
        ) from error
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    for name, (into, out) in adapter.layers.items():
        if name not in layers or layers[name].weight.shape != (len(out), into.shape[1]):
            raise CheckpointError(
                f"{folder}: its adapter has a matrix of {len(out)} x {into.shape[1]} for {name}, "
                f"and {base} has no such layer"
            )
        layers[name].weight.data += out @ into * adapter.scaling
    if adapter.frame is not None:
        setattr(model.config, ANSWER_FRAME, adapter.frame)
    if any((folder / name).is_file() for name in (PROCESSOR_FILE, IMAGES_FILE)):
        processor = open_policy_processor(folder, trust_remote_code=trust_remote_code)
    return model, processor


def open_processor(name_or_path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The processor of a checkpoint: image processor, tokenizer and chat template.

    The same image becomes the same numbers with and without torchvision: families with a video
    part need and use it; for all others Pillow alone prepares images.

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
    """Open a processor as `open_processor` does; it must have the two parts a policy needs.

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

    ``name`` is the frame asked for; ``auto`` takes the one that the model records, else its
    family's.

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
    """The frame that a model's configuration records it was trained in, if any."""
    found = getattr(model.config, ANSWER_FRAME, None)
    return found if isinstance(found, str) else None


def check_checkpoint(name_or_path: str | Path) -> None:
    """Make sure that a name is that of a model's folder, or may be an id on the hub.

    Raises:
        CheckpointError: It does not.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if path.exists():
        _check_folder(path)
    elif not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) or isinstance(name_or_path, Path):
        raise CheckpointMissingError(f"{name}: no such folder, and no id of a model on the hub")
    elif not any(
        isinstance(huggingface_hub.try_to_load_from_cache(name, file), str)
        for file in ("config.json", ADAPTER_FILE)
    ):
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
    """Turn errors of libraries inside the block into a `CheckpointError` of one line."""
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
    if any((path / name).is_file() for name in ("config.json", ADAPTER_FILE)):
        for name in ("config.json", ADAPTER_FILE, PROCESSOR_FILE, IMAGES_FILE):
            _read_settings(path / name)
        _read_settings(path / "tokenizer_config.json")
        return
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
    """Whether a transformers processor takes no videos and has a variant that uses Pillow."""
    if not isinstance(processor, ProcessorMixin) or hasattr(processor, "video_processor"):
        return False
    kinds = type(processor), type(getattr(processor, "image_processor", None))
    ours = all(kind.__module__.startswith("transformers.") for kind in kinds)
    return ours and hasattr(transformers, f"{kinds[1].__name__}Pil")


def _hub_answers() -> bool:
    """Whether the hub can be reached; tried once, since its client would retry for minutes."""
    if urllib.request.getproxies():
        return True  # the proxy knows, and this machine may not even resolve the name
    address = urlsplit(hub_settings.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=10.0).close()
    except OSError:
        return False
    return True
