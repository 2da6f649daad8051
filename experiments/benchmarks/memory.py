"""How much memory a process uses, and how much more it needed at its peak."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path


def resident_mib(field: str) -> float:
    """Resident set in MiB: ``VmRSS`` now, ``VmHWM`` at its peak; always the peak without /proc."""
    status = Path("/proc/self/status")  # without what the parent process had before this one
    if status.exists():
        found = re.search(rf"^{field}:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class Memory:
    """Growth of a process's memory: of the GPU's where it is used, else of the resident set."""

    def __init__(self, device: str) -> None:
        """Watch ``"cuda"``, or the memory of the processor, from what is in use now."""
        import torch

        self._gpu = torch.cuda if device == "cuda" else None
        if self._gpu is not None:
            self._gpu.reset_peak_memory_stats()
            self._start = self._gpu.memory_allocated() / 2**20
        else:
            self._start = resident_mib("VmRSS")

    def growth_mib(self) -> float:
        """The peak since the start, in MiB above what was in use then."""
        if self._gpu is not None:
            return self._gpu.max_memory_allocated() / 2**20 - self._start
        return resident_mib("VmHWM") - self._start
