"""How much memory a process needs at most beyond what it had at some point."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
"""Where Linux says what this process has had at most, without what its parent had before it."""


class Memory:
    """Growth of a process's memory: of the GPU's where it is used, else of the resident set."""

    def __init__(self, device: str) -> None:
        """Watch ``"cuda"``, or the memory of the processor."""
        self.on_gpu = device == "cuda"
        self.baseline = 0.0

    def start(self) -> None:
        """Count from what is in use now."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self.baseline = torch.cuda.memory_allocated() / 2**20
        else:
            self.baseline = resident_mib("VmRSS")

    def growth_mib(self) -> float:
        """The most that has been in use since, in MiB above the start."""
        if self.on_gpu:
            return torch.cuda.max_memory_allocated() / 2**20 - self.baseline
        return resident_mib("VmHWM") - self.baseline


def resident_mib(field: str) -> float:
    """Resident set in MiB: ``VmRSS`` now, ``VmHWM`` at most so far.

    Where the system does not tell the two apart, both are the most so far.
    """
    if STATUS.exists():
        found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
