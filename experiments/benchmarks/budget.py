"""What training a large policy should need, by arithmetic: memory per GPU, work and time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.common.logs import write_json

ACTIVATION_FACTOR = 34
"""Bytes kept per token, layer and unit of width, with a fused attention kernel and 16 bits
(Korthikanti et al., arXiv 2205.05198, section 4.1, without the scores of attention)."""


@dataclass(frozen=True)
class Setting:
    """A policy, a machine and an update; defaults are Qwen2.5-VL-7B on the paper's 32 GPUs."""

    gpus: int = 32
    """GPUs, N; the paper (arXiv 2601.19228) has 32."""
    prompts: int = 256
    """Questions per update; the paper's global batch, which it publishes for fine-tuning only."""
    group_size: int = 8
    """Answers per question, G; not published."""
    prompt_tokens: int = 600
    """Tokens of picture and question, P."""
    new_tokens: int = 400
    """Tokens of an answer, T: about 30 vertices of three decimals, a digit a token."""
    prompts_per_forward: int = 1
    """Questions per GPU and forward pass."""
    decoder: float = 7.6e9
    """Weights of the decoder."""
    vision: float = 0.7e9
    """Weights of the vision tower."""
    patches_per_token: int = 4
    """Patches that the tower makes one token of."""
    layers: int = 28
    """Layers of the decoder."""
    width: int = 3584
    """Width of the decoder."""
    kv_width: int = 512
    """Width of keys in one layer: 4 heads of 128."""
    vocabulary: int = 152_064
    """Rows of the output embedding."""
    peak: float = 989e12
    """Multiplications and additions a second and GPU: an H100 in bfloat16, dense."""
    utilization: float = 0.4
    """Share of that peak that training reaches."""
    bandwidth: float = 3.35e12
    """Bytes a second and GPU: an H100's memory."""

    @property
    def weights(self) -> float:
        """All weights."""
        return self.decoder + self.vision

    def tokens(self, shared: bool) -> int:
        """Decoder tokens of one group: ``P + G T`` with a shared prompt, else ``G (P + T)``."""
        prompts = 1 if shared else self.group_size
        return prompts * self.prompt_tokens + self.group_size * self.new_tokens


def benchmark_budget(
    setting: Setting, json: Path | None = None, output_dir: Path | None = None, seed: int = 0
) -> None:
    """Work out what an update of a large policy needs; nothing is run and nothing is measured.

    Memory of weights, gradients and optimizer under ZeRO is that of arXiv 1910.02054, section 3.1:
    per weight 2 bytes, 2 bytes, and 12 bytes (float32 copy and Adam's two moments), each divided by
    N from the stage on that shards it. Operations are 2 per weight and token forward, 6 forward and
    backward; attention between tokens is left out (a few per cent at these lengths). Decoding is
    bound by reading the weights once per token; the time given for it is the least possible.

    Args:
        setting: Policy, machine and update.
        json: File to write the figures to.
        output_dir: Folder to write them to as budget.json.
        seed: Nothing is random; every experiment takes one.
    """
    results: dict[str, Any] = {
        "gib_per_gpu_of_states": states_gib(setting),
        "gib_per_gpu_of_a_forward_pass": {
            name: activations_gib(setting, shared)
            for name, shared in (("shared", True), ("repeated", False))
        },
        "update": {
            name: work(setting, shared) for name, shared in (("shared", True), ("repeated", False))
        },
        "settings": vars(setting),
    }
    show(results, setting, Console())
    for path in (json, output_dir and output_dir / "budget.json"):
        if path:
            write_json(path, results)


def states_gib(setting: Setting) -> dict[str, float]:
    """Weights, gradients and optimizer per GPU, in GiB, by ZeRO stage."""
    gpus = setting.gpus
    per_weight = {
        "one GPU or DDP": 16.0,
        "zero1": 4 + 12 / gpus,
        "zero2": 2 + 14 / gpus,
        "zero3": 16 / gpus,
    }
    return {name: size * setting.weights / 2**30 for name, size in per_weight.items()}


def activations_gib(setting: Setting, shared: bool) -> dict[str, float]:
    """What a forward pass over ``prompts_per_forward`` groups keeps, and what sampling keeps."""
    groups, rows = setting.prompts_per_forward, setting.layers * setting.width
    tokens = groups * setting.tokens(shared)
    answers = groups * setting.group_size * setting.new_tokens
    sizes = {
        "activations": ACTIVATION_FACTOR * rows * tokens,
        "with checkpointing": (2 * rows + ACTIVATION_FACTOR * setting.width) * tokens,
        "logits in float32": 4 * setting.vocabulary * answers,
        "keys and values": 2 * 2 * setting.layers * setting.kv_width * tokens,
    }
    return {name: size / 2**30 for name, size in sizes.items()}


def work(setting: Setting, shared: bool) -> dict[str, float]:
    """Operations and seconds of an update."""
    pictures = setting.prompts * (1 if shared else setting.group_size)
    tower = 2 * setting.vision * setting.patches_per_token * setting.prompt_tokens * pictures
    prefill = 2 * setting.decoder * setting.prompt_tokens * pictures + tower
    train = 6 * setting.decoder * setting.prompts * setting.tokens(shared) + 3 * tower
    speed = setting.gpus * setting.peak * setting.utilization
    seconds = {
        "seconds_prefill": prefill / speed,
        "seconds_decode_at_least": setting.new_tokens * 2 * setting.decoder / setting.bandwidth,
        "seconds_train": train / speed,
    }
    return {
        "decoder_tokens": setting.prompts * setting.tokens(shared),
        "prefill_petaflop": prefill / 1e15,
        "train_petaflop": train / 1e15,
        **seconds,
        "seconds": sum(seconds.values()),
    }


def show(results: dict[str, Any], setting: Setting, console: Console) -> None:
    """Print the figures."""
    table = Table(title=f"GiB per GPU of {setting.gpus}: weights, gradients, optimizer")
    for name in results["gib_per_gpu_of_states"]:
        table.add_column(name, justify="right")
    table.add_row(*(f"{size:.1f}" for size in results["gib_per_gpu_of_states"].values()))
    console.print(table)
    for title, name, digits in (
        ("GiB per GPU and forward pass", "gib_per_gpu_of_a_forward_pass", 2),
        (f"one update: {setting.prompts} x {setting.group_size} answers", "update", 1),
    ):
        table = Table("", title=title)
        for kind in ("shared", "repeated"):
            table.add_column(kind, justify="right")
        for row, value in results[name]["shared"].items():
            table.add_row(
                row.replace("_", " "),
                f"{value:,.{digits}f}",
                f"{results[name]['repeated'][row]:,.{digits}f}",
            )
        console.print(table)
    console.print("arithmetic: nothing was run")
