"""Throughput of ``serve_rewards.py``: answers scored over HTTP, and without it."""

from __future__ import annotations

import http.client
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from json import dumps
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from rich.console import Console

from experiments.benchmarks.evaluate import BATCH, make_batches
from experiments.common.logs import write_json
from experiments.common.tables import terminal_table
from experiments.serve_rewards import Args, Scorer
from rewards.composite import DEFAULT_REWARDS
from seg_env.data.export import run_lengths
from seg_env.grammar import encode


def benchmark_serve(
    json: Path | None = None,
    output_dir: Path | None = None,
    seed: int = 0,
    answers: int = 20_000,
    group: int = 8,
    clients: int = 4,
    vertices: int = 25,
    width: int = 640,
    height: int = 480,
    rewards: str = DEFAULT_REWARDS,
) -> None:
    """Time answers that clients send to the server, in requests of 256 over kept-alive connections.

    The server is a process of its own on this machine. "Without HTTP" is the same requests scored
    in this process, with their JSON already parsed.

    Args:
        json: File to write the figures to.
        output_dir: Folder to write them to as serve.json.
        seed: Seed of the objects and answers.
        answers: Number of answers.
        group: Answers to one question.
        clients: Clients that ask at the same time.
        vertices: Vertices of an answer.
        width: Width of the images in pixels.
        height: Height of the images in pixels.
        rewards: Rewards, as ``name=weight`` separated by spaces.
    """
    rng, size = np.random.default_rng(seed), (height, width)
    requests = []
    for predictions, targets in make_batches(rng, size, vertices, group, answers):
        texts = [encode(prediction.rings) for prediction in predictions]
        questions = [
            {"rle": run_lengths(targets[start].rle), "answers": texts[start : start + group]}
            for start in range(0, len(texts), group)
        ]
        requests.append({"questions": questions})
    args = Args(rewards=tuple(rewards.split()))
    alone = seconds_of(lambda: list(map(Scorer(args).score, requests)))
    command = [sys.executable, "-m", "experiments.serve_rewards", "--port", "0"]
    with subprocess.Popen(
        [*command, "--rewards", *args.rewards],
        env=os.environ | {"COLUMNS": "200"},
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        try:
            address = urlsplit(server.stdout.readline().split()[2].rstrip(";")).netloc
            bodies = [dumps(request).encode() for request in requests]
            post(address, bodies[:1])  # imports on first use
            shares = [bodies[start::clients] for start in range(clients)]
            with ThreadPoolExecutor(clients) as pool:
                served = seconds_of(lambda: list(pool.map(post, [address] * clients, shares)))
        finally:
            server.terminate()  # a job in the background may be deaf to SIGINT
    results: dict[str, Any] = {
        "answers_per_second": answers / served,
        "answers_per_second_without_http": answers / alone,
        "milliseconds_per_request": 1000 * served * clients / len(requests),
        "settings": {
            "seed": seed,
            "answers": answers,
            "answers_per_request": BATCH,
            "group": group,
            "clients": clients,
            "vertices": vertices,
            "size": [height, width],
            "rewards": rewards,
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.python_version()}",
    }
    rows = [
        (f"served to {clients} clients at once", f"{results['answers_per_second']:.0f}"),
        ("without HTTP", f"{results['answers_per_second_without_http']:.0f}"),
    ]
    title = f"{answers} answers of {vertices} vertices, {group} a question, {width}x{height}"
    Console().print(terminal_table(["", "answers per second"], rows, title=title))
    for path in (json, output_dir and output_dir / "serve.json"):
        if path:
            write_json(path, results)


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that some work takes by the clock."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def post(address: str, bodies: list[bytes]) -> None:
    """Have requests scored one after the other over one connection."""
    connection = http.client.HTTPConnection(address, timeout=600)
    for body in bodies:
        connection.request("POST", "/score", body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        found = reply.read()
        if reply.status != 200:
            raise RuntimeError(f"the server said {reply.status}: {found[:200]!r}")
    connection.close()
