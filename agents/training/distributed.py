"""The processes that train together: which one this is, and what the others found.

Started plainly a run is one process and nothing here talks to anybody. Started by ``torchrun`` or
``deepspeed``, every process (*rank*) has its share of the prompts, whole groups at a time.
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
"""Variables that launchers set."""
TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others. One that dies is noticed at once, since its connections
close; this is for machines that vanish, and must allow for writing a large checkpoint."""
LONGEST_WAIT = 10.0
"""Seconds that a process that is done waits for its threads."""
MAXIMA = ("_max", "_difference")
"""Endings of metrics of which the largest counts; of all others the mean does."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them."""

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """Number of processes."""

    @classmethod
    def current(cls) -> World:
        """The processes that `join_world` met; a single one without it."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def block(self, count: int, what: str) -> slice:
        """This rank's share of ``count`` things: contiguous, and as many as every other's.

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
        """Metrics of equal shares of the work, as those of the whole; see `combine`."""
        return combine(self.gather({name: float(value) for name, value in metrics.items()}))

    def gather(self, value: Value) -> list[Value]:
        """One value of every rank, by rank; everybody gets them all."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def sum(self, tensor: Tensor) -> Tensor:
        """A tensor added up over all ranks; everybody gets the sum."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, value: Value) -> Value:
        """What the main process has; the values of others do not count."""
        return self.gather(value)[0] if self.size > 1 else value

    def any(self, flag: bool) -> bool:
        """Whether it is so for any rank."""
        return any(self.gather(flag))

    def barrier(self) -> None:
        """Wait until everybody is here."""
        self.gather(None)


def combine(
    found: Sequence[Mapping[str, float]], shares: Sequence[float] | None = None
) -> dict[str, float]:
    """Metrics of parts, as those of the whole.

    Args:
        found: One mapping per part, all of the same names.
        shares: Of the parts in the whole, summing to 1; by default equal ones.

    Returns:
        The mean; the largest of those that end in one of `MAXIMA`.
    """
    shares = [1 / len(found)] * len(found) if shares is None else shares
    combined = {}
    for name in found[0]:
        values = [part[name] for part in found]
        mean = sum(share * value for share, value in zip(shares, values, strict=True))
        combined[name] = max(values) if name.endswith(MAXIMA) else mean
    return combined


def join_world(*, deepspeed: bool = False, timeout: timedelta = TIMEOUT) -> World:
    """Meet the other processes that a launcher started.

    Args:
        deepspeed: DeepSpeed needs a world even if it is of one process.
        timeout: How long to wait for the others, here and later.

    Returns:
        The world; a single process where there was no launcher.
    """
    if dist.is_available() and dist.is_initialized():
        return World.current()
    if not all(name in os.environ for name in LAUNCHED):
        if not deepspeed:
            return World()
        # Not through variables: processes started by this one would take them for a launcher's.
        where: dict[str, Any] = {"rank": 0, "world_size": 1}
        where["store"] = dist.HashStore()  # type: ignore[attr-defined]
    else:
        where = {}
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # Metrics and messages travel through gloo, so that they need no accelerator.
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=timeout, **where)
    return World.current()


def leave_world() -> None:
    """Take leave of the others, in good order."""
    if dist.is_available() and dist.is_initialized():
        _wait_for_threads()
        dist.destroy_process_group()


def _wait_for_threads() -> None:
    """Give gloo's threads the time to drop the last tensors they worked on.

    A collective is over for its caller a moment before the thread that did it lets go of its
    tensors, for which it needs the interpreter. A thread that comes too late, on a busy machine,
    finds an interpreter that is ending, and that aborts the process. Destroying a group would wait
    for its threads, but only if nothing else refers to it, and DeepSpeed's engines do.
    """
    deadline = time.monotonic() + LONGEST_WAIT
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
    """Whether an error says that another rank is gone, and not that this one did anything wrong."""
    if World.current().size == 1:
        return False
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and any(word in str(error).lower() for word in ("gloo", "connection", "nccl"))
    )
