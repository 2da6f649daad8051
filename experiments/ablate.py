"""Compare settings over several seeds: run every arm with every seed, then table and plot.

Every run is an ordinary one in a folder of its own; runs that are finished are not made again, and
an interrupted one goes on from its last checkpoint, so this command may be stopped at any time.

    python experiments/ablate.py optimizer
    python experiments/ablate.py constrained --seeds 0 1 2 --workers 2
    python experiments/ablate.py optimizer --options="--updates 20 --evaluation.questions 64"
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from experiments.common.logs import progress_bar
from experiments.sweeps.ablate_report import compare, print_comparison
from experiments.sweeps.ablate_studies import STUDIES

ROOT = Path(__file__).parent.parent


@dataclass
class Args:
    """Compare settings over several seeds."""

    study: Annotated[str, tyro.conf.Positional]
    """Name of the comparison; a wrong one lists those that there are."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of every arm; an interval needs 2 to 10."""
    workers: int = 1
    """Runs at a time; each gets its share of the processor's cores."""
    options: str = ""
    """Options passed to every run, in one word: ``--options="--updates 20"``."""
    output_dir: Path | None = None
    """Where runs, table and plot go; by default ``runs/ablate-STUDY``."""
    seed: int = 0
    """Accepted as everywhere; the seeds of the runs are ``--seeds``."""


def main(args: Args) -> dict[str, Any]:
    """Make the runs that are missing; returns what ``comparison.json`` holds."""
    if args.study not in STUDIES:
        known = "\n".join(f"  {name}: {study.question}" for name, study in STUDIES.items())
        raise SystemExit(f"there is no study {args.study!r}; choose one of\n{known}")
    study = STUDIES[args.study]
    folder = args.output_dir or Path("runs") / f"ablate-{args.study}"
    folders = {arm: [folder / f"{_slug(arm)}-{seed}" for seed in args.seeds] for arm in study.arms}
    jobs = [
        ([*study.arms[arm], *shlex.split(args.options), "--seed", str(seed)], where)
        for number, seed in enumerate(args.seeds)
        for arm, places in folders.items()
        for where in [places[number]]
    ]
    console = Console()
    with progress_bar(console) as progress, ThreadPoolExecutor(args.workers) as pool:
        task = progress.add_task(args.study, total=len(jobs), status="")

        def job(pair: tuple[list[str], Path]) -> None:
            run_arm(*pair, threads=max(1, (os.cpu_count() or 1) // args.workers))
            progress.advance(task)

        list(pool.map(job, jobs))
    comparison = compare(study, folders, folder)
    print_comparison(comparison, console)
    console.print(f"{folder / 'comparison.md'}, {folder / 'comparison.png'}")
    return comparison


def run_arm(command: list[str], folder: Path, *, threads: int) -> None:
    """Make one run, or go on with it, unless it is finished.

    Raises:
        SystemExit: The run failed; its output is in ``log.txt`` in the run's folder.
    """
    if not (folder / "scores.json").exists():
        run_script(command, folder, threads=threads)


def run_script(command: list[str], folder: Path, *, threads: int) -> None:
    """Run a script in a process of its own, with ``--resume`` where it has begun before.

    Raises:
        SystemExit: It failed; its output is in ``log.txt`` in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    resume = ["--resume"] if (folder / "config.json").exists() else []
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    with (folder / "log.txt").open("a") as log:
        script, *options = command
        done = subprocess.run(
            [sys.executable, str(ROOT / script), *options, "--output-dir", str(folder), *resume],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        tail = (folder / "log.txt").read_text()[-2000:]
        raise SystemExit(f"{' '.join(command)} failed in {folder}:\n{tail}")


def _slug(arm: str) -> str:
    return "".join(letter if letter.isalnum() or letter in ".+-" else "_" for letter in arm)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
