"""The processes that train together.

A run started plainly is one process. Started by ``torchrun`` or ``deepspeed``, every process
(*rank*) has its share of the prompts, whole groups at a time.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others, in case a machine vanishes (a rank that dies is noticed at
once); it must allow for writing a large checkpoint."""
MAXIMA = ("_max", "_difference")
"""Suffixes of metrics that are combined by their maximum; others are averaged."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """The processes that `init_process_group` met; a single one without it."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def block(self, count: int, what: str) -> slice:
        """This rank's contiguous share of ``count`` things.

        Raises:
            ValueError: ``count`` is not a multiple of the number of ranks; ``what`` names it.
        """
        if count % self.size:
            raise ValueError(
                f"{what}={count} cannot be shared out evenly among {self.size} processes: "
                f"make it a multiple of {self.size}"
            )
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def reduce(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Combine metrics of equal shares of the work; see `combine`."""
        return combine(self.gather({name: float(value) for name, value in metrics.items()}))

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def sum(self, tensor: Tensor) -> Tensor:
        """A tensor added up over all ranks."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, value: Value) -> Value:
        """The main process's value."""
        return self.gather(value)[0] if self.size > 1 else value

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return any(self.gather(flag))

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.gather(None)


def combine(
    found: Sequence[Mapping[str, float]], shares: Sequence[float] | None = None
) -> dict[str, float]:
    """Combine metrics of parts: means, or maxima for names that end in one of `MAXIMA`.

    ``shares`` of the parts in the whole sum to 1; by default they are equal.
    """
    shares = [1 / len(found)] * len(found) if shares is None else shares
    combined = {}
    for name in found[0]:
        values = [part[name] for part in found]
        mean = sum(share * value for share, value in zip(shares, values, strict=True))
        combined[name] = max(values) if name.endswith(MAXIMA) else mean
    return combined


def init_process_group(*, deepspeed: bool = False, timeout: timedelta = TIMEOUT) -> World:
    """Join the other processes that a launcher started; without one this process is alone.

    DeepSpeed needs a process group even of one process. ``timeout`` is how long to wait for the
    others, here and later.
    """
    if dist.is_available() and dist.is_initialized():
        return World.current()
    where: dict[str, Any] = {}
    if not all(name in os.environ for name in LAUNCHED):
        if not deepspeed:
            return World()
        # Not through the environment: child processes would take it for a launcher's.
        where = {"rank": 0, "world_size": 1, "store": dist.HashStore()}  # type: ignore[attr-defined]
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # Metrics and messages travel through gloo, so that they need no accelerator.
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=timeout, **where)
    return World.current()


def destroy_process_group() -> None:
    """Leave the process group cleanly."""
    if dist.is_available() and dist.is_initialized():
        _wait_for_threads()
        dist.destroy_process_group()


def _wait_for_threads() -> None:
    """Give gloo's threads time to drop their last tensors, for which they need the interpreter.

    A thread that does so while the interpreter shuts down aborts the process. Destroying a group
    would wait for its threads, but only if nothing else refers to it, and DeepSpeed's engines do.
    """
    deadline = time.monotonic() + 10.0
    pauses_in_a_row = 0
    while pauses_in_a_row < 3 and time.monotonic() < deadline:
        time.sleep(0.02)  # the interpreter is theirs meanwhile
        pauses_in_a_row = 0 if _threads_are_busy() else pauses_in_a_row + 1


def _threads_are_busy() -> bool:
    """Whether a thread of gloo's runs or waits for a processor; False where Linux does not tell."""
    for status in Path("/proc/self/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            name, _, rest = status.read_text().partition("(")[2].rpartition(")")
            if name.startswith("pt_gloo") and rest.split()[0] == "R":
                return True
    return False


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error says that another rank is gone."""
    if World.current().size == 1:
        return False
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and any(word in str(error).lower() for word in ("gloo", "connection", "nccl"))
    )
