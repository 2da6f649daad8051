"""What every stage of the paper's recipe is worth, over several seeds.

    python experiments/stages.py table --workers 2
    python experiments/stages.py data --workers 2

``table``: SFT, SFT + RL, pre-training + SFT, and all three, beside the paper's figures. Arms that
begin alike share what they begin with: the SFT of a seed is trained once, with and without RL after
it. ``data``: SFT on pictures that the annotation pipeline made, with labels that are right and with
labels as wrong as models make them, against as many clean ones; the runs that it shares with the
table are made once, in the same folder.

All runs are those of experiments/run_pipeline.py, all policies are asked the same questions, and
all seeds pre-train on the same annotated pictures. Run it again to go on after an interruption.
"""

from __future__ import annotations

import os
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from experiments.ablate import run_script
from experiments.common.logs import progress_bar
from experiments.pipeline_steps import SCRIPTS
from experiments.sweeps.stages_report import compare_stages, print_comparison
from experiments.sweeps.stages_studies import STUDIES, AnnotatedPictures, Run


@dataclass
class Args:
    """What every stage of the paper's recipe is worth, over several seeds."""

    study: Annotated[str, tyro.conf.Positional]
    """Name of the comparison; a wrong one lists those that there are."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of every arm; an interval needs 2 to 10."""
    workers: int = 1
    """Pipelines at a time; each gets its share of the processor's cores."""
    annotate: str = ""
    """Options of experiments/annotate.py, in one word."""
    pretrain: str = ""
    """Options of experiments/run_bc.py for pre-training, in one word."""
    sft: str = ""
    """Options of experiments/run_bc.py for fine-tuning, in one word."""
    rl: str = ""
    """Options of experiments/run_gspo.py, in one word."""
    difficulty: str = "easy"
    """Of all scenes."""
    questions: int = 512
    """Questions of the test split that every policy is asked."""
    output_dir: Path = Path("runs/stages")
    """Where runs, tables and plots go."""
    seed: int = 0
    """Accepted as everywhere; the seeds of the runs are ``--seeds``."""


def main(args: Args) -> dict[str, Any]:
    """Make the runs that are missing; returns what ``<study>.json`` holds."""
    if args.study not in STUDIES:
        known = "\n".join(f"  {name}: {study.question}" for name, study in STUDIES.items())
        raise SystemExit(f"there is no study {args.study!r}; choose one of\n{known}")
    if not 2 <= len(set(args.seeds)) == len(args.seeds) <= 10:
        raise SystemExit(f"--seeds {args.seeds}: an interval over seeds needs 2 to 10 different")
    study, console = STUDIES[args.study], Console()
    cores = os.cpu_count() or 1
    for pictures in study.pictures:
        annotate_pictures(args, pictures)
    jobs = [(run, seed) for seed in args.seeds for run in study.runs]
    with progress_bar(console) as progress, ThreadPoolExecutor(args.workers) as pool:
        task = progress.add_task(args.study, total=len(jobs), status="")

        def job(pair: tuple[Run, int]) -> None:
            make_run(args, *pair, threads=max(1, cores // args.workers))
            progress.advance(task)

        list(pool.map(job, jobs))
    comparison = compare_stages(args.study, study, args.seeds, args.output_dir)
    print_comparison(comparison, console)
    console.print(f"{args.output_dir / args.study}.md, .json and .png")
    return comparison


def annotate_pictures(args: Args, pictures: AnnotatedPictures) -> None:
    """Annotate the pictures that all seeds share, unless that is done."""
    folder = pictures.folder(args.output_dir)
    if not (folder / "report.json").exists():
        words = [*pictures.words, "--difficulty", args.difficulty, *shlex.split(args.annotate)]
        run_script([SCRIPTS["annotate"], *words], folder, threads=1)


def make_run(args: Args, run: Run, seed: int, *, threads: int) -> None:
    """Make a pipeline, or go on with it, unless its stages are finished."""
    folder = run.folder(args.output_dir, seed)
    if all((folder / stage / "scores.json").exists() for stage in run.stages):
        return
    run_script(
        ["experiments/run_pipeline.py", *pipeline_words(args, run, seed)], folder, threads=threads
    )


def pipeline_words(args: Args, run: Run, seed: int) -> list[str]:
    """Options of experiments/run_pipeline.py for a run, but for its folder."""
    options = {"pretrain": args.pretrain, "sft": args.sft, "rl": args.rl}
    words = ["--stages", *run.stages, "--seed", str(seed), "--split", "test"]
    words += ["--questions", str(args.questions), "--difficulty", args.difficulty]
    if run.pictures is not None:
        records = str(run.pictures.folder(args.output_dir))
        if "pretrain" in run.stages:
            words += ["--data", records]
        else:
            options["sft"] += f" --data {shlex.quote(records)}"
    words += [f"--{stage}={options[stage]}" for stage in run.stages]
    return words


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
