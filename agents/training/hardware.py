"""What the processor at hand is good at: the numbers it multiplies in, and how many threads fit."""

from __future__ import annotations

import os
from pathlib import Path

import torch

PROCESSORS = Path("/sys/devices/system/cpu")
"""Where Linux says which processors are threads of one core."""
QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where Linux says how much processor time a container has: microseconds, of how many."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables by which users set the number of threads."""


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether matrices are multiplied sooner in bfloat16 than in float32.

    It takes instructions made for it: of GPUs since Ampere, AMX, AVX512_BF16, or those of ARM.
    Without them the type is emulated, many times slower than float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and any(map(_has, ("amx_bf16", "avx512_bf16", "bf16")))


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether whole passes through a model are faster in bfloat16 than in float32.

    They convert numbers and do more than multiply, so a CPU's instructions must save a lot: AMX
    does, AVX512_BF16 does not.
    """
    return multiplies_bfloat16(device) and (device.type == "cuda" or _has("amx_bf16"))


def _has(instructions: str) -> bool:
    """Whether the CPU has instructions, and PyTorch was not told to do without."""
    denied = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    wide = instructions in ("amx_bf16", "avx512_bf16")
    return bool(torch.cpu.get_capabilities().get(instructions)) and not (wide and denied)


def fit_threads() -> int:
    """Let PyTorch use no more threads than there are cores for them; returns how many it uses.

    A second thread of a core gains little, and threads beyond what a container is granted wait for
    each other. A number that the user set, by `THREAD_VARIABLES` or a lower one, stays.
    """
    if not any(os.environ.get(name) for name in THREAD_VARIABLES):
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    return torch.get_num_threads()


def usable_cores(processors: Path = PROCESSORS, quota: Path = QUOTA) -> int:
    """Cores that this process may use, whatever the number of their threads."""
    allowed = _allowed_processors()
    siblings = {
        index: processors / f"cpu{index}" / "topology" / "thread_siblings_list" for index in allowed
    }
    cores = {_read(path) or str(index) for index, path in siblings.items()}
    granted, _, period = (_read(quota) or "max").partition(" ")
    if granted == "max":
        return len(cores)
    return max(1, min(len(cores), int(granted) // int(period)))


def _allowed_processors() -> set[int]:
    """The processors that the system may run this process on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _read(path: Path) -> str | None:
    """What stands in a file, or None where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return None
