"""A stage of the pipeline: which script it is, and what it left in its folder."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Stage = Literal["annotate", "pretrain", "sft", "rl"]

SCRIPTS: dict[Stage, str] = {
    "annotate": "experiments/annotate.py",
    "pretrain": "experiments/run_bc.py",
    "sft": "experiments/run_bc.py",
    "rl": "experiments/run_gspo.py",
}


@dataclass(frozen=True)
class Step:
    """One stage with its options."""

    stage: Stage
    """Which one."""
    words: tuple[str, ...]
    """Options of its script."""
    folder: Path
    """Where it writes."""

    @property
    def trains(self) -> bool:
        """Whether a policy comes of it."""
        return self.stage != "annotate"

    @property
    def finished(self) -> bool:
        """Whether its last file is there."""
        return (self.folder / ("scores.json" if self.trains else "report.json")).exists()

    @property
    def command(self) -> str:
        """What makes the stage by hand."""
        return shlex.join(["python", SCRIPTS[self.stage], *self.words])


def read_scores(folder: Path) -> dict[str, Any]:
    """Scores of the policy that a finished stage made.

    Returns:
        ``greedy`` and ``sampled`` as `experiments.evaluation.loop.Evaluation.summary` has them,
        ``updates`` and ``minutes``.
    """
    scores = json.loads((folder / "scores.json").read_text())
    if "after" in scores:  # reinforcement learning
        greedy = dict(scores["after"])
        scores |= {"sampled": greedy.pop("sampled"), "greedy": greedy}
    return {name: scores[name] for name in ("greedy", "sampled", "updates", "minutes")}
