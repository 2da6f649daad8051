"""Speed and memory of an update: shared prefixes, repeated prompts, and TRL's GRPOTrainer."""

from __future__ import annotations

import platform
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from importlib import metadata
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.console import Console

from experiments.common.logs import progress_bar, write_json
from experiments.common.tables import terminal_table

if TYPE_CHECKING:  # with torch, which `--help` does not need
    from experiments.benchmarks.train_legs import Work

LegName = Literal["ours", "repeated", "trl"]
LEGS = {"ours": "ours", "repeated": "ours, repeated", "trl": "TRL"}
"""Contestants and their names in tables."""
COLORS = {"ours": "tab:green", "repeated": "tab:olive", "trl": "tab:red"}
PARTS = ("sampling", "scoring", "backward", "total")

Updates = dict[str, list[dict[str, float]]]
"""By leg: seconds of the parts of each update, and memory."""


def benchmark_train(
    json: Path | None = None,
    output_dir: Path = Path("runs/benchmark_train"),
    seed: int = 0,
    lengths: tuple[str, ...] = ("64:48", "600:120"),
    group_sizes: tuple[int, ...] = (4, 8, 16),
    prompts: int = 0,
    repetitions: int = 3,
    legs: tuple[LegName, ...] = ("ours", "repeated", "trl"),
    shape: Literal["matched", "small", "1m", "30m", "2b"] = "matched",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    attention: Literal["sdpa", "eager"] = "sdpa",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int = 0,
) -> None:
    """Time updates of this project's GSPO and of TRL's GRPOTrainer, and measure their memory.

    One update: load and prepare the images, sample G answers to each question, score them in the
    environment, make one optimizer step (AdamW) from one forward and one backward pass. All legs
    have a policy of LLaVA form with the same random weights, the same 16 questions to draw from,
    the same G, and answers of exactly the same length: the end token is forbidden. All of them are
    on-policy, so none computes log-probabilities a second time in float32; in bfloat16 ours does,
    as it does in training, and that counts. Legs: `ours` encodes an image and its question once
    for the G answers, `repeated` is the same program with that turned off, `trl` is GRPOTrainer
    with sequence-level ratios as `run_gspo.py --backend trl` sets it up, without vLLM.

    Every leg of a comparison lives in a process of its own and they take turns (A, B, C, A, B, C);
    the first round only warms up. Seconds are medians over the others: `sampling` ends with the
    rewards, `scoring` is the forward pass, `backward` all the rest, optimizer included. Ratios are
    the median over rounds of their seconds / ours. Memory is the most a process needed during its
    updates beyond what it used when everything was loaded: of its resident set on a CPU, of what
    torch allocated on a GPU. It includes gradients and optimizer state. The growth is the cost of
    an update at the largest G over that at the smallest. Nothing else should run meanwhile.

    Args:
        json: File to write the figures to.
        output_dir: Folder of train.json and train.png.
        seed: Seed of weights and sampling.
        lengths: Comparisons as P:T. The image gets the tokens of the largest square of at most P;
            the question comes on top, and answers have T tokens.
        group_sizes: Answers per question, G.
        prompts: Questions per update; 0 takes 8 where P is at most 256, else 1.
        repetitions: Rounds that count.
        legs: The legs that take part.
        shape: Of the policy: matched takes embedded (1.3 million parameters) where P is at most
            256, else 30m; 2b has 1,800 million and is for GPUs; small tries out the benchmark.
        precision: Of all legs: float32, bfloat16 under autocast, or auto: bfloat16 on a GPU.
        attention: Of all legs: the kernel of ordinary attention.
        device: cpu, cuda, or auto: cuda where there is one.
        threads: Threads of each leg; 0 leaves it to torch.
    """
    check(lengths, group_sizes, repetitions, legs)
    import torch

    from experiments.benchmarks.train_legs import Work

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "auto":
        precision = "bfloat16" if device == "cuda" else "float32"
    settings: dict[str, Any] = {"precision": precision, "attention": attention, "device": device}
    settings["seed"] = seed
    works: dict[tuple[str, int], Work] = {}
    for length in lengths:
        prompt_tokens, new_tokens = map(int, length.split(":"))
        suited, usual = ("1m", 8) if prompt_tokens <= 256 else ("30m", 1)
        name, questions = suited if shape == "matched" else shape, prompts or usual
        for size in sorted(set(group_sizes)):
            work = Work(name, prompt_tokens, new_tokens, size, questions, **settings)
            works[length, size] = work
    console = Console()
    measured: dict[str, dict[int, Updates]] = {length: {} for length in lengths}
    sizes: dict[str, Any] = {}
    with progress_bar(console) as progress:
        total = len(works) * (repetitions + 1) * len(legs)
        task = progress.add_task("updates", total=total, status="")
        advance = partial(progress.advance, task)
        for (length, size), work in works.items():
            progress.update(task, status=f"{length}, G={size}")
            found, sizes[length] = compare(work, legs, repetitions, threads, advance)
            measured[length][size] = found
    processor = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    results = summarize(measured) | {
        "sizes": sizes,
        "settings": {
            **settings,
            "repetitions": repetitions,
            "threads": threads,
            "shape": shape,
            "prompts": {length: work.prompts for (length, _), work in works.items()},
        },
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "trl")},
        "machine": f"{processor}, Python {platform.python_version()}",
    }
    show(results, console)
    for path in (json, output_dir / "train.json"):
        if path:
            write_json(path, results)
    plot(results, output_dir / "train.png")
    console.print(f"figures: {output_dir / 'train.json'}, plot: {output_dir / 'train.png'}")


def check(
    lengths: Sequence[str], group_sizes: Sequence[int], repetitions: int, legs: Sequence[str]
) -> None:
    """Refuse what cannot be measured."""
    if not all(re.fullmatch(r"[1-9]\d*:[1-9]\d*", length) for length in lengths):
        raise SystemExit(f"{lengths=}: use P:T, tokens of prompt and answer, as 600:120")
    if not lengths or not legs or repetitions < 1 or min(group_sizes, default=0) < 2:
        raise SystemExit(
            f"{lengths=} {group_sizes=} {repetitions=} {legs=}: name a length and a leg, groups of "
            "2 or more, and a repetition"
        )


def compare(
    work: Work,
    legs: Sequence[str],
    repetitions: int,
    threads: int,
    advance: Callable[[], object],
) -> tuple[Updates, dict[str, int]]:
    """Let the legs take turns, each in a process of its own; ``advance`` is called at every turn.

    Returns:
        The updates after the first round, and the real sizes.

    Raises:
        RuntimeError: A leg failed; the message has its traceback.
    """
    from experiments.benchmarks.train_legs import work_process

    context = get_context("spawn")  # a forked process would inherit memory and locks
    connections: dict[str, Connection] = {}
    updates: Updates = {leg: [] for leg in legs}
    with ExitStack() as stack:
        for leg in legs:
            connection, theirs = context.Pipe()
            arguments = leg, work, threads, theirs
            process = context.Process(target=work_process, args=arguments, daemon=True)
            process.start()
            theirs.close()  # so that a leg that dies is noticed
            stack.callback(process.join, timeout=30)  # a leg ends when its connection is closed
            connections[leg] = stack.enter_context(connection)
        for leg, connection in connections.items():
            facts = receive(leg, connection)
        for _ in range(repetitions + 1):
            for leg, connection in connections.items():
                connection.send("go on")
                updates[leg].append(receive(leg, connection))
                advance()
    return {leg: found[1:] for leg, found in updates.items()}, facts


def receive(leg: str, connection: Connection) -> Any:
    """The next result of a leg; an error comes as text."""
    try:
        found = connection.recv()
    except EOFError:
        found = "its process ended, perhaps for lack of memory"
    if isinstance(found, str):
        raise RuntimeError(f"leg {leg!r}: {found}")
    return found


def summarize(measured: dict[str, dict[int, Updates]]) -> dict[str, Any]:
    """Medians, ratios and growth; keys are strings, as in the file."""
    results: dict[str, Any] = defaultdict(lambda: defaultdict(dict))
    for length, row in measured.items():
        seconds = results["seconds_per_update"][length]
        for group_size, updates in row.items():
            size = str(group_size)
            seconds[size] = {
                leg: {part: float(np.median([one[part] for one in found])) for part in PARTS}
                for leg, found in updates.items()
            }
            results["memory_mib"][length][size] = {
                leg: max(one["memory"] for one in found) for leg, found in updates.items()
            }
            for theirs in ("trl", "repeated"):
                if not {theirs, "ours"} <= updates.keys():
                    continue
                pairs = zip(updates[theirs], updates["ours"], strict=True)
                ratios = [other["total"] / our["total"] for other, our in pairs]
                results[f"ratio_vs_{theirs}"][length][size] = float(np.median(ratios))
                results[f"ratio_vs_{theirs}_range"][length][size] = [min(ratios), max(ratios)]
        smallest, largest = seconds[str(min(row))], seconds[str(max(row))]
        results["growth"][length] = {
            leg: largest[leg]["total"] / first["total"] for leg, first in smallest.items()
        }
    return dict(results)


def show(results: dict[str, Any], console: Console) -> None:
    """Print the figures."""
    settings = results["settings"]
    for length, row in results["seconds_per_update"].items():
        sizes = results["sizes"][length]
        rows = []
        for group_size, cell in row.items():
            for number, (leg, seconds) in enumerate(cell.items()):
                ratios = results.get(f"ratio_vs_{leg}")
                rows.append(
                    (
                        "" if number else group_size,
                        LEGS[leg],
                        *(f"{seconds[part]:.3g}" for part in PARTS),
                        f"{results['memory_mib'][length][group_size][leg]:.0f}",
                        f"{ratios[length][group_size]:.2f}" if ratios else "",
                    )
                )
        title = (
            f"{length}: {sizes['prompt_tokens']} prompt tokens, {settings['prompts'][length]} "
            f"questions per update, {sizes['parameters'] / 1e6:.3g} M parameters, "
            f"{settings['precision']}"
        )
        caption = "seconds per update (medians); memory beyond the loaded policy; theirs / ours"
        headings = ["G", "", *PARTS, "MiB", "ratio"]
        console.print(terminal_table(headings, rows, "rl", title=title, caption=caption))
        grown = results["growth"][length]
        first, last = min(row, key=int), max(row, key=int)
        console.print(
            f"cost of an update from G={first} to G={last}: "
            + ", ".join(f"{LEGS[leg]} x {factor:.2f}" for leg, factor in grown.items())
        )


def plot(results: dict[str, Any], path: Path) -> None:
    """Seconds per update and memory against G, a column for each length."""
    from matplotlib.figure import Figure

    rows = results["seconds_per_update"]
    figure = Figure(figsize=(5.5 * len(rows), 7.5), layout="constrained")
    axes = figure.subplots(2, len(rows), squeeze=False)
    for column, (length, row) in enumerate(rows.items()):
        sizes = [int(group_size) for group_size in row]
        for leg in next(iter(row.values())):
            style = {"marker": "o", "color": COLORS[leg], "label": LEGS[leg]}
            memory = results["memory_mib"][length].values()
            axes[0, column].plot(sizes, [cell[leg]["total"] for cell in row.values()], **style)
            axes[1, column].plot(sizes, [cell[leg] for cell in memory], **style)
        prompt = results["sizes"][length]["prompt_tokens"]
        answer = length.split(":")[1]
        axes[0, column].set_title(f"prompts of {prompt} tokens, answers of {answer}")
        for axis, label in ((axes[0, column], "seconds per update"), (axes[1, column], "MiB")):
            axis.set(xlabel="answers per question, G", ylabel=label, xticks=sizes, ylim=(0, None))
            axis.grid(alpha=0.3)
            axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
