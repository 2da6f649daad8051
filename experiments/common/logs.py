"""The folder of a run: configuration, metrics, checkpoints, and going on after an interruption."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from agents.training.checkpoints import whole_checkpoints
from experiments.common.files import write_atomically, write_json

MAY_CHANGE = ("deepspeed", "prompts_per_forward")
"""Settings that a resumed run may change: they say how the work is done, and not which."""


class RunLog:
    """Writes ``metrics.jsonl`` and TensorBoard events of a run."""

    def __init__(self, folder: Path, *, start: int = 0) -> None:
        """Open the log; lines of updates after ``start`` belong to work that was lost and go."""
        self.folder = folder
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["update"] <= start]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self.path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def write(self, update: int, metrics: dict[str, float]) -> None:
        """Add the metrics of one update."""
        self._file.write(json.dumps({"update": update, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, update)

    def close(self) -> None:
        """Finish writing."""
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


def start_run(folder: Path, config: Any, *, resume: bool) -> None:
    """Prepare a run's folder and record its configuration.

    How the work is shared out (``deepspeed``, ``prompts_per_forward``) may change on the way.

    Raises:
        FileExistsError: There is a run already and ``resume`` is False.
        ValueError: A run is resumed with another configuration.
    """
    recorded = folder / "config.json"
    wanted = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    wanted.pop("resume", None)
    if recorded.exists():
        if not resume:
            raise FileExistsError(
                f"{folder} holds a run already: pass --resume to go on, or another --output-dir"
            )
        found, asked = _flat(json.loads(recorded.read_text())), _flat(wanted)
        changed = [
            f"{key} ({found.get(key)}, now {value})"
            for key, value in asked.items()
            if found.get(key) != value and key.rpartition(".")[2] not in MAY_CHANGE
        ]
        if changed:
            raise ValueError(
                f"{folder} was started with other values of {', '.join(changed)}: resume with the "
                "same ones, or start another --output-dir"
            )
        return
    write_json(recorded, wanted)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by names like ``gspo.group_size``."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + key
        found |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def keep_latest(folder: Path, count: int = 2) -> None:
    """Remove all checkpoints of a folder but the last ones."""
    for old in whole_checkpoints(folder)[:-count]:
        shutil.rmtree(old)
