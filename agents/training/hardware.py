"""What the hardware is good at: the type it multiplies in, and how many threads fit."""

from __future__ import annotations

import os
from pathlib import Path

import torch

PROCESSORS = Path("/sys/devices/system/cpu")
"""Where Linux says which processors are threads of one core."""
QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""CPU time that a container is granted: microseconds, and the period they are granted in."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether matrices are multiplied faster in bfloat16 than in float32.

    That takes a GPU since Ampere, or a CPU with AMX, AVX512_BF16 or ARM's instructions; emulated,
    the type is many times slower.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and any(map(_has, ("amx_bf16", "avx512_bf16", "bf16")))


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether whole passes through a model are faster in bfloat16 than in float32.

    Passes also convert numbers: on CPUs, only AMX saves more than that costs.
    """
    return multiplies_bfloat16(device) and (device.type == "cuda" or _has("amx_bf16"))


def _has(instructions: str) -> bool:
    """Whether the CPU has instructions, and PyTorch was not told to do without."""
    denied = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    wide = instructions in ("amx_bf16", "avx512_bf16")
    return bool(torch.cpu.get_capabilities().get(instructions)) and not (wide and denied)


def limit_threads() -> int:
    """Let PyTorch use no more threads than cores; returns how many it uses.

    A second thread per core gains little, and threads beyond a container's share wait for each
    other. A number set by an environment variable, or a lower one, stays.
    """
    if not any(os.environ.get(name) for name in THREAD_VARIABLES):
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    return torch.get_num_threads()


def usable_cores(processors: Path = PROCESSORS, quota: Path = QUOTA) -> int:
    """Cores (not threads) that this process may use."""
    cores = {
        _read(processors / f"cpu{index}" / "topology" / "thread_siblings_list") or str(index)
        for index in _allowed_processors()
    }
    granted, _, period = (_read(quota) or "max").partition(" ")
    if granted == "max":
        return len(cores)
    return max(1, min(len(cores), int(granted) // int(period)))


def _allowed_processors() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
