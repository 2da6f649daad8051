"""What a run leaves and shows on its way: its folder, its metrics, its progress bar.

No deep-learning library is imported before a log is opened.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from seg_env.errors import ExplainedError, WrongOptionError

MAY_CHANGE = ("deepspeed", "prompts_per_forward")
"""Settings that a resumed run may change: they say how the work is done, and not which."""


class RunExistsError(ExplainedError, FileExistsError):
    """The folder of a new run holds another one."""


class RunLog:
    """Writes ``metrics.jsonl`` and TensorBoard events of a run."""

    def __init__(self, folder: Path, *, start: int = 0) -> None:
        """Open the log, without the lines after update ``start``, whose work was lost."""
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["update"] <= start]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def write(self, update: int, metrics: dict[str, float]) -> None:
        """Add the metrics of one update."""
        self._file.write(json.dumps({"update": update, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, update)

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._board.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows of ``metrics.jsonl``; a last line that was cut off in writing is left out."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def check_run(folder: Path, config: Any, *, resume: bool) -> dict[str, Any]:
    """Make sure that a folder is free, or that its run goes on as it was started.

    Returns:
        The configuration as ``config.json`` records it.

    Raises:
        RunExistsError: There is a run already and ``resume`` is False.
        WrongOptionError: Settings other than `MAY_CHANGE` differ from those of the run resumed.
    """
    recorded = folder / "config.json"
    wanted = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    wanted.pop("resume", None)
    if not recorded.exists():
        return wanted
    if not resume:
        raise RunExistsError(
            f"{folder} holds a run already: pass --resume to go on, or another --output-dir"
        )
    found = flatten(json.loads(recorded.read_text()))
    changed = [
        f"{key} ({found.get(key)}, now {value})"
        for key, value in flatten(wanted).items()
        if found.get(key) != value and key.rpartition(".")[2] not in MAY_CHANGE
    ]
    if changed:
        raise WrongOptionError(
            f"{folder} was started with other values of {', '.join(changed)}: resume with the "
            "same ones, or start another --output-dir"
        )
    return wanted


def start_run(folder: Path, config: Any, *, resume: bool) -> None:
    """Make a run's folder with its configuration, or find it as `check_run` wants it."""
    wanted = check_run(folder, config, resume=resume)
    if not (folder / "config.json").exists():
        write_json(folder / "config.json", wanted)


def check_command(folder: Path, command: Sequence[str]) -> None:
    """Refuse what was made by another command than the one that ``command.json`` records."""
    path = folder / "command.json"
    made = json.loads(path.read_text()) if path.exists() else [*command]
    if made != [*command]:
        raise WrongOptionError(
            f"{folder} was made with other options: {shlex.join(made)}, now {shlex.join(command)}; "
            "remove it to make it anew, or use another --output-dir"
        )


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by names like ``gspo.group_size``."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + key
        found |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def keep_latest(folder: Path) -> None:
    """Remove all checkpoints of a folder but the last two."""
    from agents.training.checkpoints import complete_checkpoints

    for old in complete_checkpoints(folder)[:-2]:
        shutil.rmtree(old)


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name, then rename it."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that readers see the old one or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def warn(console: Console, text: str) -> None:
    """Print a line in yellow; brackets in it, which may be of a file, mean nothing."""
    console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


def progress_bar(console: Console) -> Progress:
    """A bar whose tasks carry a ``status`` field; it fits 80 columns with one of 25 letters.

    What is left follows from the mean pace of all steps since the first one.
    """
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=console,
        speed_estimate_period=math.inf,
    )
