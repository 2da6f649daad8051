"""What a run writes and shows on its way: its folder, its metrics, its progress bar.

No deep-learning library is imported before a log is opened.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import os
import platform
import shlex
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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

from experiments.common.trackers import Tracker
from seg_env.errors import ExplainedError, WrongOptionError

MAY_CHANGE = ("deepspeed", "prompts_per_forward", "track", "rollouts_every", "rollouts_kept")
"""Settings that a resumed run may change: they say how the work is done, not what is done."""


class RunExistsError(ExplainedError, FileExistsError):
    """The folder of a new run holds another one."""


class RunInUseError(ExplainedError, RuntimeError):
    """Another process is at work in the folder of a run."""


class RunLog:
    """Writes ``metrics.jsonl`` of a run, and passes metrics on to trackers."""

    def __init__(self, folder: Path, trackers: Sequence[Tracker], *, start: int = 0) -> None:
        """Open the log, without the lines after update ``start``, whose work was lost."""
        path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["update"] <= start]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a")
        self.trackers = trackers

    def write(self, update: int, metrics: dict[str, float]) -> None:
        """Add the metrics of one update."""
        self._file.write(json.dumps({"update": update, **metrics}) + "\n")
        self._file.flush()
        for tracker in self.trackers:
            tracker.write(update, metrics)

    def show(self, update: int, name: str, picture: Path) -> None:
        """Add a picture, a PNG file, to the trackers."""
        for tracker in self.trackers:
            tracker.show(update, name, picture)

    def close(self) -> None:
        """Flush and close all of it."""
        self._file.close()
        for tracker in self.trackers:
            tracker.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows of ``metrics.jsonl``; a last line that was cut off in writing is left out.

    Other lines that are no rows are left out with a warning that names them.
    """
    path = folder / "metrics.jsonl"
    *lines, last = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    rows, garbage = [], []
    for number, line in enumerate([*lines, last], 1):
        try:
            row = json.loads(line)
            operator.index(row["update"])
            rows.append(row)
        except (ValueError, TypeError, KeyError, RecursionError):
            garbage.append(number)
    if lost := [number for number in garbage if number <= len(lines)]:
        warnings.warn(
            f"{path}: {len(lost)} lines are no rows of metrics and are left out, the first of them "
            f"line {lost[0]}",
            stacklevel=1,
        )
    return rows


def read_object(path: Path) -> dict[str, Any] | None:
    """What a JSON file of a run holds; None, with a warning, where it is damaged."""
    try:
        found = json.loads(path.read_text("utf-8"))
        if isinstance(found, dict):
            return found
        problem = f"it holds a {type(found).__name__}"
    except (ValueError, RecursionError) as error:
        problem = str(error)
    warnings.warn(f"{path} is damaged and is not used: {problem}", stacklevel=1)
    return None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run's folder for this process inside the block; the lock ends with the process.

    Raises:
        RunInUseError: Another process has it.
    """
    if os.name != "posix":  # there the system has no such locks
        yield
        return
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "run.lock").open("a+", encoding="utf-8") as file:
        try:
            # Not flock, which child processes inherit and keep when this one is killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise RunInUseError(
                f"{folder} is in use by {file.read(200).strip() or 'another process'}: wait until "
                "it has ended, or use another --output-dir"
            ) from None
        except OSError as error:
            warnings.warn(f"{folder} cannot be locked here ({error.strerror})", stacklevel=3)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        try:
            yield
        finally:
            (folder / "run.lock").unlink(missing_ok=True)


def check_run(folder: Path, config: Any, *, resume: bool) -> dict[str, Any]:
    """Make sure that a folder is free, or that its run goes on as it was started.

    A damaged configuration cannot be compared, and gives a warning.

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
    if (settings := read_object(recorded)) is None:
        return wanted
    found = flatten(settings)
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
    recorded = folder / "config.json"
    wanted = check_run(folder, config, resume=resume)
    if not recorded.exists() or read_object(recorded) is None:
        write_json(recorded, wanted)


def check_command(
    folder: Path,
    command: Sequence[str],
    matters: Callable[[Sequence[str]], Sequence[str]] = list,
) -> None:
    """Refuse a folder whose ``command.json`` records another command.

    ``matters`` says which words of a command count, by default all.
    """
    path = folder / "command.json"
    made = json.loads(path.read_text()) if path.exists() else [*command]
    if matters(made) != matters(command):
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
    """Print a line in yellow; brackets in it, as from a file's name, are not markup."""
    console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


def progress_bar(console: Console) -> Progress:
    """A bar whose tasks carry a ``status`` field; it fits 80 columns with one of 25 letters.

    The time left is estimated from the mean pace of all steps since the first one.
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
