"""One process or many: how a script works with the launcher that started it.

    torchrun --nproc_per_node 2 experiments/run_gspo.py
    torchrun --nproc_per_node 8 experiments/run_gspo.py --deepspeed zero2
    deepspeed --hostfile hosts experiments/run_gspo.py --deepspeed zero3

On several machines the output folder must be one that all of them see.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from rich.console import Console

from agents.settings import BehaviorCloningConfig, OnPolicyConfig
from agents.training.distributed import (
    World,
    destroy_process_group,
    init_process_group,
    is_lost_peer,
)
from agents.training.hardware import limit_threads
from agents.training.settings import zero_stage
from seg_env.errors import WrongOptionError


@contextmanager
def launched(deepspeed: str | None) -> Iterator[tuple[World, Console]]:
    """Meet the other ranks; inside the block only the main one prints.

    A rank that finds another one gone ends with a message and status 1.
    """
    limit_threads()
    world = init_process_group(deepspeed=deepspeed is not None)
    try:
        yield world, Console(quiet=not world.is_main)
    except Exception as error:
        if not is_lost_peer(error):
            raise
        raise SystemExit(
            f"rank {world.rank}: another process of this run is gone, so this one ends "
            f"({str(error).split('. ')[0]}). Why it ended is told by its own messages. The same "
            "command with --resume goes on from the last checkpoint."
        ) from error
    destroy_process_group()


def trainer_process() -> tuple[World, Console]:
    """Take this process's device for a trainer of TRL, which meets the other processes itself.

    Returns this process as if it were alone, and a console that only the first one prints on.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    world = World(int(os.environ.get("RANK", "0")), 1)
    return world, Console(quiet=not world.is_main)


def fit_to_deepspeed(
    config: OnPolicyConfig | BehaviorCloningConfig, choice: str | None, console: Console
) -> None:
    """Adjust settings to DeepSpeed: at stage 3 AdamW replaces Muon, at a third of the rate."""
    config.deepspeed = choice
    if choice is None or not config.muon or zero_stage(choice) < 3:
        return
    config.muon = False
    config.learning_rate /= 3
    if config.vision_learning_rate is not None:
        config.vision_learning_rate /= 3
    console.print(
        f"Muon needs whole matrices, which stage 3 of ZeRO cuts up: AdamW is used, at a third of "
        f"the learning rate ({config.learning_rate:.3g}). With Muon turned off the rate is taken "
        "as given; stages 1 and 2 keep Muon."
    )


def fit_to_adapter(
    config: OnPolicyConfig | BehaviorCloningConfig, rank: int, console: Console
) -> None:
    """Adjust settings to an adapter of a rank: AdamW replaces Muon; with rank 0 nothing changes.

    Raises:
        WrongOptionError: Weights are sharded.
    """
    if not rank:
        return
    if config.deepspeed is not None and zero_stage(config.deepspeed) == 3:
        raise WrongOptionError(
            f"--deepspeed {config.deepspeed} shards weights, and those of adapters are few: use "
            "zero1 or zero2 with --lora-rank"
        )
    if config.muon:
        config.muon = False
        console.print(
            f"Muon knows no matrices of low rank: the adapter is trained by AdamW, at the learning "
            f"rate as it is given ({config.learning_rate:.3g})."
        )


@contextmanager
def termination(world: World) -> Iterator[Callable[[], int]]:
    """Yield a function that returns the signal by which any rank was asked to end, or 0.

    That is SIGTERM, as from a scheduler, or SIGHUP, as from a terminal that was closed. All ranks
    must call it at the same point. A second signal ends a process at once.
    """
    asked = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = number
        signal.signal(number, previous[number])
        if number != signal.SIGTERM:
            drop_closed_outputs()

    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # only that one can listen
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as it is under nohup
                previous.setdefault(number, signal.getsignal(number))
                signal.signal(number, note)
    try:
        yield lambda: max(world.gather(asked))
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def drop_closed_outputs() -> None:
    """Discard what is printed if the terminal is gone, as writing to it would fail."""
    for output in (1, 2):
        poll = select.poll()
        poll.register(output, 0)  # reports only closed outputs
        if poll.poll(0):
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), output)
