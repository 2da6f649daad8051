"""Speed and memory of an update: shared prefixes, repeated prompts, and TRL's GRPOTrainer."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from experiments.benchmarks.train_legs import work_process
from experiments.benchmarks.train_report import LEGS, Updates, plot, show, summarize
from experiments.benchmarks.train_work import Work
from experiments.common.logs import progress_bar, write_json

LegName = Literal["ours", "repeated", "trl"]
ShapeName = Literal["matched", "small", "embedded", "30m", "2b"]


def benchmark_train(
    json: Path | None = None,
    output_dir: Path = Path("runs/benchmark_train"),
    seed: int = 0,
    lengths: tuple[str, ...] = ("64:48", "600:120"),
    group_sizes: tuple[int, ...] = (4, 8, 16),
    prompts: int = 0,
    repetitions: int = 3,
    legs: tuple[LegName, ...] = ("ours", "repeated", "trl"),
    shape: ShapeName = "matched",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    attention: Literal["sdpa", "eager"] = "sdpa",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int = 0,
) -> None:
    """Time updates of this project's GSPO and of TRL's GRPOTrainer, and measure their memory.

    One update: load and prepare the pictures, sample G answers to each question, score them in the
    environment, make one optimizer step (AdamW) from one forward and one backward pass. All legs
    have a policy of LLaVA form with the same random weights, the same 16 questions to draw from,
    the same G, and answers of exactly the same length: the end token is forbidden. All of them are
    on-policy, so none computes log-probabilities a second time in float32; in bfloat16 ours does,
    as it does in training, and that counts. Legs: `ours` encodes a picture and its question once
    for the G answers, `repeated` is the same program with that turned off, `trl` is GRPOTrainer
    with sequence-level ratios as `run_gspo.py --backend trl` sets it up, without vLLM.

    Every leg of a comparison lives in a process of its own and they take turns (A, B, C, A, B, C);
    the first round only warms up. Seconds are medians over the others: `sampling` ends with the
    rewards, `scoring` is the forward pass, `backward` all the rest, optimizer included. Ratios are
    the median over rounds of their seconds / ours. Memory is the most a process needed during its
    updates beyond what it had when everything was loaded: on a CPU of its resident set, on a GPU of
    what torch allocated. It contains gradients and the state of the optimizer. The growth is the
    cost of an update at the largest G over that at the smallest. Nothing else should run meanwhile.

    Args:
        json: File to write the figures to.
        output_dir: Folder of train.json and train.png.
        seed: Seed of weights and sampling.
        lengths: Comparisons as P:T. The picture gets the tokens of the largest square of at most P;
            the question comes on top, and answers have T tokens.
        group_sizes: Answers per question, G.
        prompts: Questions per update; 0 takes 8 where P is at most 256, else 1.
        repetitions: Rounds that count.
        legs: Who takes part.
        shape: Of the policy: matched takes embedded (1.3 million parameters) where P is at most
            256, else 30m; 2b has 1,800 million and is for GPUs; small tries out the benchmark.
        precision: Of all legs: float32, bfloat16 under autocast, or auto: bfloat16 on a GPU.
        attention: Of all legs: the kernel of ordinary attention.
        device: cpu, cuda, or auto: cuda where there is one.
        threads: Threads of each leg; 0 leaves it to torch.
    """
    check(lengths, group_sizes, repetitions, legs)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "auto":
        precision = "bfloat16" if device == "cuda" else "float32"
    works = {
        length: {
            group_size: plan(
                length,
                group_size,
                shape=shape,
                prompts=prompts,
                precision=precision,
                attention=attention,
                device=device,
                seed=seed,
            )
            for group_size in sorted(set(group_sizes))
        }
        for length in lengths
    }
    console = Console()
    measured, facts = measure_all(works, legs, repetitions, threads, console)
    results = summarize(measured) | {
        "sizes": facts,
        "settings": {
            **{"seed": seed, "repetitions": repetitions, "precision": precision},
            **{"attention": attention, "device": device, "threads": threads, "shape": shape},
            "prompts": {length: row[min(group_sizes)].prompts for length, row in works.items()},
        },
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "trl")},
        "machine": machine(device),
    }
    show(results, console)
    for path in (json, output_dir / "train.json"):
        if path:
            write_json(path, results)
    plot(results, output_dir / "train.png")
    console.print(f"figures: {output_dir / 'train.json'}, picture: {output_dir / 'train.png'}")


def check(
    lengths: Sequence[str], group_sizes: Sequence[int], repetitions: int, legs: Sequence[str]
) -> None:
    """Refuse what cannot be measured.

    Raises:
        SystemExit: Something is wrong; the message says what is allowed.
    """
    for length in lengths:
        prompt, _, answer = length.partition(":")
        if not (prompt.isdecimal() and answer.isdecimal() and int(prompt) and int(answer)):
            raise SystemExit(
                f"--lengths {length}: use P:T, tokens of prompt and answer, as 600:120"
            )
    if not lengths or not legs or repetitions < 1 or min(group_sizes, default=0) < 2:
        raise SystemExit(
            f"{lengths=} {group_sizes=} {repetitions=} {legs=}: name a length and a leg, groups of "
            "2 or more, and a repetition"
        )


def plan(length: str, group_size: int, *, shape: str, prompts: int, **settings: Any) -> Work:
    """The work of one comparison; ``"matched"`` and 0 prompts stand for what suits the length."""
    prompt_tokens, new_tokens = map(int, length.split(":"))
    is_short = prompt_tokens <= 256
    return Work(
        shape=("embedded" if is_short else "30m") if shape == "matched" else shape,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        group_size=group_size,
        prompts=prompts or (8 if is_short else 1),
        **settings,
    )


def machine(device: str) -> str:
    """What this was measured on."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    return f"{name}, Python {platform.python_version()}"


def measure_all(
    works: dict[str, dict[int, Work]],
    legs: Sequence[str],
    repetitions: int,
    threads: int,
    console: Console,
) -> tuple[dict[str, dict[int, Updates]], dict[str, Any]]:
    """Measure every comparison.

    Returns:
        Updates by length and group size, and real sizes by length.
    """
    measured: dict[str, dict[int, Updates]] = {}
    facts: dict[str, Any] = {}
    cells = [(length, group_size) for length, row in works.items() for group_size in row]
    with progress_bar(console) as progress:
        rounds = len(cells) * (repetitions + 1) * len(legs)
        task = progress.add_task("updates", total=rounds, status="")
        for length, group_size in cells:

            def advance(leg: str, name: str = f"{length}, G={group_size}") -> None:
                progress.update(task, advance=1, status=f"{name}: {LEGS[leg]}")

            updates, facts[length] = compare(
                works[length][group_size], legs, repetitions, threads, advance
            )
            measured.setdefault(length, {})[group_size] = updates
    return measured, facts


def compare(
    work: Work,
    legs: Sequence[str],
    repetitions: int,
    threads: int,
    advance: Callable[[str], None],
) -> tuple[Updates, dict[str, int]]:
    """Let the legs take turns.

    Args:
        work: What each update does.
        legs: Who takes part.
        repetitions: Rounds after the first, which only warms up.
        threads: Threads of each leg, 0 for torch's choice.
        advance: Called after every update.

    Returns:
        The updates that count, and real sizes.
    """
    with started(legs, work, threads) as connections:
        facts: dict[str, int] = {}
        for leg in legs:
            facts = receive(leg, connections[leg], "ready")
        updates: Updates = {leg: [] for leg in legs}
        for _ in range(repetitions + 1):
            for leg in legs:
                connections[leg].send(True)
                updates[leg].append(receive(leg, connections[leg], "update"))
                advance(leg)
        return {leg: found[1:] for leg, found in updates.items()}, facts


@contextmanager
def started(legs: Sequence[str], work: Work, threads: int) -> Iterator[dict[str, Connection]]:
    """A process for each leg, ended with the block."""
    context = get_context("spawn")  # a forked process would inherit memory and locks
    connections, processes = {}, []
    for leg in legs:
        connections[leg], theirs = context.Pipe()
        process = context.Process(
            target=work_process, args=(leg, work, threads, theirs), daemon=True
        )
        process.start()
        theirs.close()  # so that a leg that dies is noticed
        processes.append(process)
    try:
        yield connections
        for connection in connections.values():
            connection.send(False)
        for process in processes:
            process.join(timeout=30)
    finally:
        for process in processes:
            process.kill()
            process.join()


def receive(leg: str, connection: Connection, expected: str) -> Any:
    """What a leg says next.

    Raises:
        RuntimeError: It failed.
    """
    try:
        kind, content = connection.recv()
    except EOFError:
        kind, content = "error", "its process ended, perhaps for lack of memory"
    if kind != expected:
        raise RuntimeError(f"leg {leg!r}: {content}")
    return content
