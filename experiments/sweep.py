"""Compare settings over several seeds: run what is missing, then make a table and a plot.

    python experiments/sweep.py optimizer
    python experiments/sweep.py my_sweep.toml --seeds 0 1 2 3 --jobs 2 --options="--updates 20"
    python experiments/sweep.py runs/main-0 runs/main-1 runs/main-2 --output-dir runs/main

A sweep is a TOML file of arms; those in experiments/sweeps are known by name and can be copied.
Every run is an ordinary one in a folder of its own, so this command may be stopped at any time:
finished runs are not made again, an interrupted one goes on. Differences are paired by seed. Runs
that differ in more than their seed and what the sweep varies are refused.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from experiments.common.command import run_command
from experiments.common.comparison import Arm, Result, Sweep, report
from experiments.common.logs import check_command, progress_bar, write_json
from experiments.run_pipeline import STAGES
from seg_env.errors import ExplainedError

ROOT = Path(__file__).parent.parent
SWEEPS = Path(__file__).parent / "sweeps"
FINISHED = ("report.json", "scores.json")
"""What commands write when they have finished: one that annotates, and one that trains."""


@dataclass
class Args:
    """Compare settings over several seeds."""

    what: Annotated[tuple[str, ...], tyro.conf.Positional]
    """A TOML file, the name of one that comes with the project, or the folders of finished runs
    that differ in their seed."""
    seeds: tuple[int, ...] | None = None
    """Seeds of every arm, by default those of the file; an interval needs two or more."""
    jobs: int = 1
    """Runs at a time; each gets its share of the processor's cores."""
    options: str = ""
    """Options added to every run, as one argument: ``--options="--updates 20"``."""
    output_dir: Path | None = None
    """Where runs, table and plot go, by default the folder that the file names."""
    dry_run: bool = False
    """Only print the commands of the runs that are missing."""
    report_only: bool = False
    """Run nothing; only make table and plot of the runs that are finished."""


def main(args: Args) -> dict[str, Any] | None:
    """Make the runs that are missing, and report; returns what the JSON file holds."""
    console = Console()
    if not args.what:
        raise ExplainedError(f"name a sweep, a file or finished runs; sweeps are\n{list_sweeps()}")
    if len(args.what) > 1:
        folder = args.output_dir or Path("runs/summary")
        results = [Result(Path(run)) for run in args.what]
        question = f"What do {len(results)} seeds gain?"
        return report(Sweep("seeds", question, folder, {"": Arm()}), {"": results}, console)
    sweep = read_sweep(find_file(*args.what), args.options, args.output_dir, args.seeds)
    if args.dry_run:
        for command, folder in missing(sweep):
            print(shlex.join(["python", *full_command(command, folder)]))
        return None
    if not args.report_only:
        make_runs(sweep, args.jobs, console)
    arms = {
        label: [Result(sweep.folder / f"{arm.run}-{seed}", arm.stage) for seed in sweep.seeds]
        for label, arm in sweep.arms.items()
    }
    return report(sweep, arms, console)


# What a file says.


def list_sweeps() -> str:
    """Names and questions of the sweeps that come with the project."""
    files = {path.stem: path.read_text("utf-8") for path in sorted(SWEEPS.glob("*.toml"))}
    questions = {name: tomllib.loads(text)["question"] for name, text in files.items()}
    return "\n".join(f"    {name}: {question}" for name, question in questions.items())


def find_file(name: str) -> Path:
    """The file that a word of the command line means."""
    for path in (Path(name), SWEEPS / f"{name}.toml"):
        if path.is_file():
            return path
    if Path(name).is_dir():
        raise ExplainedError(f"{name} is one run: an interval over seeds needs 2 or more")
    raise ExplainedError(f"there is no file and no sweep {name!r}; choose one of\n{list_sweeps()}")


def read_sweep(
    path: Path, options: str = "", output: Path | None = None, seeds: Sequence[int] | None = None
) -> Sweep:
    """Read a TOML file.

    It has ``question``, ``script``, ``options`` of all runs, and ``arms``, the baseline first: for
    each its own options, or a table of ``options`` and ``script``. Besides:

    - ``seeds``, and ``folder`` for the results;
    - ``measure = "score"`` compares scores after training instead of gains over those before;
    - ``against = "tokens"`` draws greedy gIoU over another score, joined where arms have the same
      ``series``;
    - ``varies``: settings that arms differ in besides those that their options name;
    - ``shared``: commands to be made first, once; ``{name}`` stands for the folder elsewhere;
      ``$NAME`` or ``${NAME}`` is a variable of the shell's;
    - ``shares``: another sweep, whose ``folder`` and ``shared`` commands this one has as well;
    - ``runs``: options of runs by name, where arms are stages of a run that they may share. An arm
      is then a table of ``run`` and ``stage``, and perhaps ``paper``, a figure to stand beside it.

    The arguments ``output`` and ``seeds`` come before the file's, ``options`` are added to them.
    """
    try:
        given = tomllib.loads(path.read_text("utf-8"))
        known = "question script options arms seeds folder measure against varies"
        check_keys(path, given, [*known.split(), "shared", "shares", "runs"])
        if other := given.get("shares"):
            begun = tomllib.loads(find_file(other).read_text("utf-8"))
            shared = begun["shared"] | given.get("shared", {})
            given = {"folder": begun["folder"]} | given | {"shared": shared}
        seeds = tuple(seeds or given.get("seeds", (0, 1, 2)))
        if not 2 <= len(set(seeds)) == len(seeds):
            raise ExplainedError(f"seeds {seeds}: an interval needs 2 or more different ones")
        folder = output or Path(given.get("folder", f"runs/sweep-{path.stem}"))
        shared = given.get("shared", {})

        def words(text: str) -> list[str]:
            text = os.path.expandvars(text)
            if unset := re.search(r"\$\{?(\w+)", text):
                raise ExplainedError(f"{path} needs the variable {unset[1]}: set it")
            for name in shared:
                text = text.replace(f"{{{name}}}", shlex.quote(str(folder / name)))
            return shlex.split(text)

        arms: dict[str, Arm] = {}
        varies = set(given.get("varies", ()))
        for label, arm in given["arms"].items():
            arm = {"options": arm} if isinstance(arm, str) else arm
            made_of = ["run"] if "run" in arm else ["script", "options"]
            check_keys(path, arm, [*made_of, "stage", "paper", "series"])
            own = words(given["runs"][arm["run"]] if "run" in arm else arm.get("options", ""))
            varies |= {setting_of(word) for word in own if word.startswith("--")}
            run = arm.get("run") or re.sub(r"[^\w.+-]", "_", label)
            script = arm.get("script") or given["script"]
            command = (script, *words(given.get("options", "")), *own, *shlex.split(options))
            if any(other.run == run and other.command != command for other in arms.values()):
                raise ExplainedError(f"{path}: two arms have runs of the name {run!r}")
            told = {key: arm[key] for key in ("stage", "paper", "series") if key in arm}
            arms[label] = Arm(run, command, **told)
        return Sweep(
            path.stem,
            given["question"],
            folder,
            arms,
            seeds,
            scores=given.get("measure") == "score",
            against=given.get("against", ""),
            varies=tuple(varies),
            shared={name: tuple(words(text)) for name, text in shared.items()},
        )
    except tomllib.TOMLDecodeError as error:
        raise ExplainedError(f"{path} is no TOML file: {error}") from error
    except KeyError as error:
        raise ExplainedError(f"{path} has no {error}") from error


def check_keys(path: Path, table: dict[str, Any], known: Sequence[str]) -> None:
    """Refuse unknown keys, which are mostly misspelt ones."""
    if unknown := sorted(set(table) - set(known)):
        raise ExplainedError(f"{path}: {', '.join(unknown)} is not among {', '.join(known)}")


def setting_of(option: str) -> str:
    """The setting of an option: ``gspo.muon`` of ``--gspo.no-muon``."""
    name = option.removeprefix("--").partition("=")[0].replace("-", "_")
    group, dot, last = name.rpartition(".")
    return group + dot + last.removeprefix("no_")


# Making the runs.


def missing(sweep: Sweep) -> list[tuple[list[str], Path]]:
    """Commands that have to be run and their folders; what is shared comes first."""
    runs: dict[Path, list[str]] = {}
    for seed in sweep.seeds:
        for arm in sweep.arms.values():
            folder = sweep.folder / f"{arm.run}-{seed}"
            command = [*arm.command, "--seed", str(seed)]
            if not (folder / arm.stage / "scores.json").exists():
                runs[folder] = command
            else:
                check_command(folder, command, partial(up_to_stage, stage=arm.stage))
    shared = {
        sweep.folder / name: list(command)
        for name, command in sweep.shared.items()
        if runs and not any((sweep.folder / name / done).exists() for done in FINISHED)
    }
    return [(command, folder) for folder, command in (shared | runs).items()]


def up_to_stage(command: Sequence[str], stage: str) -> list[str]:
    """A command of the pipeline without the stages after one, and without their options.

    What a stage left is the same whether or not others came after it. Commands of anything else
    stay as they are.
    """
    later = STAGES[STAGES.index(stage) + 1 :] if stage in STAGES else ()
    kept, option = [], ""
    for word in command:
        if typed := re.match(r"--([\w.-]+)(?==|$)", word):  # an option's value may have options
            option = typed[1]
        if option not in later and not (option == "stages" and word in later):
            kept.append(word)
    return kept


def make_runs(sweep: Sweep, jobs: int, console: Console) -> None:
    """Make the runs that are missing, several at a time."""
    jobs = max(1, jobs)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    todo = missing(sweep)
    shared = [pair for pair in todo if pair[1].name in sweep.shared]
    with progress_bar(console) as progress, ThreadPoolExecutor(jobs) as pool:
        task = progress.add_task(sweep.name, total=len(todo), status="")

        def job(pair: tuple[list[str], Path]) -> None:
            progress.update(task, status=pair[1].name)
            run_script(*pair, threads=threads)
            progress.advance(task)

        for pair in shared:
            job(pair)
        list(pool.map(job, todo[len(shared) :]))


def run_script(command: list[str], folder: Path, *, threads: int) -> None:
    """Run a script in a process of its own; its output goes to ``log.txt`` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    script, *options = full_command(command, folder)
    write_json(folder / "command.json", command)
    with (folder / "log.txt").open("a") as log:
        done = subprocess.run(
            [sys.executable, str(ROOT / script), *options],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        tail = (folder / "log.txt").read_text()[-2000:]
        raise ExplainedError(f"{shlex.join(command)} failed in {folder}:\n{tail}")


def full_command(command: list[str], folder: Path) -> list[str]:
    """A command with its folder, and ``--resume`` where it has begun before."""
    resume = ["--resume"] if (folder / "config.json").exists() else []
    return [*command, "--output-dir", str(folder), *resume]


command_line = partial(
    run_command, Args, main, f"{__doc__}\nKnown by name:\n\n{list_sweeps()}", None
)
"""Run what the command line, or the words given, ask for."""


if __name__ == "__main__":
    command_line()
