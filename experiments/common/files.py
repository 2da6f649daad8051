"""Files of an experiment's folder: whole or absent, never half; needs no deep-learning library."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from seg_env.errors import ExplainedError


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name, then rename it."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that readers see the old one or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def read_scores(folder: Path) -> dict[str, Any]:
    """What ``scores.json`` of a finished run holds, in one form for all scripts.

    Returns:
        ``greedy`` and ``sampled`` scores after training, ``before`` with both of them before it
        where they were measured, ``updates``, ``minutes``, and whatever else there is.

    Raises:
        ExplainedError: The run has not finished.
    """
    path = folder / "scores.json"
    if not path.exists():
        raise ExplainedError(f"{path} is missing: has the run of {folder} finished?")
    scores: dict[str, Any] = json.loads(path.read_text())
    for side in ("before", "after"):
        if side in scores:
            greedy = dict(scores[side])
            scores[side] = {"sampled": greedy.pop("sampled"), "greedy": greedy}
    return scores | scores.pop("after", {})
