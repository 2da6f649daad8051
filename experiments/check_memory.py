"""Say how much memory an update of a training command needs, and for what, before it is run.

It takes the options of run_gspo.py, and reads only the configuration of the policy, no weights.
The figures are calculated (``agents/training/memory.py``); docs/scaling.md compares them with
updates that were measured.

    python experiments/check_memory.py --policy FOLDER --image 1024x768 --gradient-checkpointing
    simpleseg check-memory --shape qwen2.5-vl-7b --device cuda --lora-rank 16 --load-in-4bit
    simpleseg check-memory --measure
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from rich.console import Console

from experiments import run_gspo
from experiments.common.command import opening, run_command
from experiments.common.policies import SHIPPED, choose_precision
from experiments.common.tables import terminal_table
from seg_env.errors import WrongOptionError
from seg_env.frames import ResizeSettings, smart_resize

SHAPES = Path(__file__).parent / "shapes"
"""Folders with the configurations of published models."""
Shape = Literal["qwen2.5-vl-3b", "qwen2.5-vl-7b"]
FIRST = {
    "Which policy": ("policy", "shape", "device", "weights"),
    "What is trained": ("freeze-vision", "lora-rank", "load-in-4bit", "gradient-checkpointing"),
    "On what": ("image", "max-new-tokens", "gspo.prompts-per-update", "gspo.group-size"),
    "The arithmetic": ("measure",),
}


@dataclass
class Args(run_gspo.Args):
    """Say how much memory an update needs; options that do not affect it are ignored."""

    shape: Shape | None = None
    """A published model instead of --policy, whose configuration comes with the project."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; auto: what this machine has."""
    image: str = "640x480"
    """Width and height of the images, which some processors resize."""
    image_tokens: int | None = None
    """Tokens of an image; by default computed from --image, as a single tile where there may be
    more."""
    question_tokens: int = 40
    """Tokens of a prompt besides those of its image."""
    ranks: int = 1
    """Processes that share the work; see --deepspeed."""
    measure: bool = False
    """Measure updates of a small policy, and compare their memory with what is calculated."""


def main(args: Args) -> dict[str, Any]:
    """Print the calculated memory, or compare it with measurements; returns bytes."""
    console = Console()
    if args.measure:
        return measure(console, device_of(args))
    from agents.training.memory import empty_model, needs_of

    with opening():
        config, processor = read_configuration(args)
        update = planned_update(args, config, processor)
        model = empty_model(config)
        needs = needs_of(model, update)
    largest = max(needs, key=lambda need: need.total)
    unit, name = (2**30, "GiB") if largest.total > 2**30 else (2**20, "MiB")
    parts = list(dict.fromkeys(part for need in needs for part in need.parts))
    rows = [
        (part, *(shown(need.parts.get(part, 0) / unit) for need in needs))
        for part in parts
        if any(need.parts.get(part) for need in needs)
    ]
    rows.append(("all", *(shown(need.total / unit) for need in needs)))
    parameters = sum(each.numel() for each in model.parameters())
    title = (
        f"{args.shape or args.policy}: {parameters / 1e6:,.1f} M weights of {update.weights} "
        f"bytes, prompts of {update.prompt_tokens} tokens ({update.image_tokens} of the image), "
        f"{update.group_size} answers of {update.answer_tokens}; {name} in the phases of an update"
    )
    headings = ["", *(need.phase for need in needs)]
    console.print(terminal_table(headings, rows, title=title))
    peak = f"most memory: {largest.total / unit:.2f} {name}, {largest.phase}"
    console.print(peak, highlight=False)
    return {need.phase: need.parts for need in needs} | {"peak": largest.total}


def device_of(args: Args) -> str:
    """The device to train on."""
    import torch

    if args.device != "auto":
        return args.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def shown(value: float) -> str:
    """A figure of the table."""
    return f"{value:.2f}" if value else ""


def read_configuration(args: Args) -> tuple[Any, Any]:
    """The configuration of the model, and what its folder says of images.

    Raises:
        CheckpointError: There is none.
    """
    from transformers import AutoConfig
    from transformers.image_processing_base import ImageProcessingMixin

    from agents.policy.loading import check_checkpoint, explained

    name = SHAPES / args.shape if args.shape else SHIPPED.get(args.policy, args.policy)
    if args.shape is None:
        check_checkpoint(name)
    with explained(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=args.trust_remote_code)
    try:
        images, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except (OSError, ValueError):
        images = {}
    bounds = {"shortest_edge": images.get("min_pixels"), "longest_edge": images.get("max_pixels")}
    return config, SimpleNamespace(**{"size": bounds} | images)


def planned_update(args: Args, config: Any, processor: Any) -> Any:
    """The update that the options describe.

    Raises:
        WrongOptionError: They contradict each other, or the model has no tower to be measured.
    """
    from agents.policy.adapters import ALL_LINEAR, DECODER
    from agents.training.memory import BFLOAT16, FLOAT32, Update
    from agents.training.settings import zero_stage

    if args.load_in_4bit and not args.lora_rank:
        raise WrongOptionError("--load-in-4bit trains adapters only: add --lora-rank 16")
    if ALL_LINEAR in args.lora_targets:
        raise WrongOptionError(
            f"--lora-targets {ALL_LINEAR}: only adapters of the decoder are counted; give "
            f"{DECODER}, or names of its layers"
        )
    if args.ranks < 1 or args.gspo.prompts_per_update % (args.ranks * args.gspo.minibatches):
        raise WrongOptionError(
            f"--gspo.prompts-per-update {args.gspo.prompts_per_update} cannot be shared out among "
            f"--ranks {args.ranks} times --gspo.minibatches {args.gspo.minibatches}"
        )
    args.configure(args.gspo)
    tokens, patches, pixels = image_numbers(args, config, processor)
    device = device_of(args)
    saved = str(getattr(config, "dtype", None)).removeprefix("torch.")
    weights = args.weights if args.weights != "auto" else (saved if device == "cuda" else "float32")
    precision: str = args.precision
    if args.weights == "bfloat16":
        precision = choose_precision(args.precision, args.weights)
    elif precision == "auto":
        precision = "bfloat16" if device == "cuda" else "float32"
    length = args.max_new_tokens
    return Update(
        prompts=args.gspo.prompts_per_update // args.ranks,
        group_size=args.gspo.group_size,
        prompts_per_forward=args.gspo.prompts_per_forward,
        minibatches=args.gspo.minibatches,
        prompt_tokens=tokens + args.question_tokens,
        image_tokens=tokens,
        patches=patches,
        pixels=pixels,
        answer_tokens=args.gspo.max_new_tokens if length == "auto" else length,
        weights=BFLOAT16 if weights in ("bfloat16", "float16") else FLOAT32,
        computed=BFLOAT16 if precision == "bfloat16" else FLOAT32,
        muon=args.gspo.muon,
        freeze_vision=args.freeze_vision,
        checkpointing=args.gradient_checkpointing,
        reference=args.gspo.kl_coefficient > 0,
        lora_rank=args.lora_rank,
        lora_targets=args.lora_targets,
        four_bits=args.load_in_4bit,
        ranks=args.ranks,
        stage=zero_stage(args.deepspeed) if args.deepspeed else 0,
    )


def image_numbers(args: Args, config: Any, processor: Any) -> tuple[int, int, int]:
    """Tokens and patches of an image, and values that the processor makes of it.

    Raises:
        WrongOptionError: The image has no size, or the model no tower of a known form.
    """
    width, by, height = args.image.partition("x")
    if not (by and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise WrongOptionError(f"--image {args.image}: give width and height, as 640x480")
    vision = getattr(config, "vision_config", None)
    merge = getattr(vision, "spatial_merge_size", 1)
    # Some families write both sides of a square.
    patch, side = (
        value[0] if isinstance(value, list | tuple) else value
        for value in (getattr(vision, name, None) for name in ("patch_size", "image_size"))
    )
    if not isinstance(patch, int):
        raise WrongOptionError(
            f"models of type {config.model_type!r} have no tower whose patches can be counted"
        )
    frames = getattr(vision, "temporal_patch_size", 1)
    if merge == 1 and isinstance(side, int):
        patches = (side // patch) ** 2
        scale = getattr(config, "scale_factor", 1) ** 2
        tokens = getattr(config, "image_seq_length", None) or patches // scale
    else:
        processor.patch_size, processor.merge_size = patch, merge
        sizes = ResizeSettings.from_processor(processor)
        rows, columns = (each // patch for each in smart_resize((int(height), int(width)), sizes))
        patches, tokens = rows * columns, rows * columns // merge**2
    if args.image_tokens is not None:
        patches, tokens = round(patches * args.image_tokens / tokens), args.image_tokens
    return tokens, patches, patches * patch**2 * 3 * frames


def measure(console: Console, device: str) -> dict[str, Any]:
    """Print measured beside predicted memory of updates; adapters only if peft is installed."""
    from experiments.benchmarks.train_legs import Work
    from experiments.benchmarks.update_memory import WAYS
    from experiments.benchmarks.update_memory import measure as measure_way

    work = Work("30m", 600, 120, 8, 1, "float32", "sdpa", device, seed=0)
    possible = [name for name, way in WAYS.items() if not way.lora_rank or find_spec("peft")]
    found = {name: measure_way(work, WAYS[name]) for name in possible}
    rows = [
        (
            name,
            f"{one['peak'] / 2**20:.0f}",
            f"{one['measured'] / 2**20:.0f}",
            f"{one['peak'] / one['measured']:.2f}",
        )
        for name, one in found.items()
    ]
    headings = ["MiB, 32 M weights, 600:120, G = 8", "predicted", "measured", "ratio"]
    console.print(terminal_table(headings, rows))
    return found


command_line = partial(run_command, Args, main, __doc__, FIRST)
"""Run what the command line, or the words given, ask for."""


if __name__ == "__main__":
    command_line()
