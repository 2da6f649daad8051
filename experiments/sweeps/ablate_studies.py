"""The comparisons that `experiments/ablate.py` knows by name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Study:
    """Runs that differ in one thing."""

    question: str
    """What the comparison answers."""
    arms: dict[str, tuple[str, ...]]
    """Script and options of every arm, the baseline first."""


# The validation split chose the settings, so it cannot judge them.
_GSPO = ("experiments/run_gspo.py", "--evaluation.split", "test")

_PPO = ("experiments/run_ppo.py", "--evaluation.split", "test")
# All arms see as many answers: 60 updates of 32 questions with 8 answers each.
_BUDGET = ("--updates", "60", "--evaluation.every", "20")

STUDIES: dict[str, Study] = {
    "agents": Study(
        "Which agent makes most of 15,360 answers?",
        {
            "GSPO": (*_GSPO, *_BUDGET),
            "PPO, one step": (*_PPO, *_BUDGET, "--ppo.credit", "answer"),
            "PPO, vertex": (*_PPO, *_BUDGET, "--ppo.credit", "vertex"),
        },
    ),
    "constrained": Study(
        "Does it help to allow nothing but outlines?",
        {
            "free": _GSPO,
            "constrained": (*_GSPO, "--grammar.constrained"),
        },
    ),
    "optimizer": Study(
        "Muon on hidden matrices, or AdamW everywhere?",
        {
            "Muon 1e-4": (*_GSPO, *_BUDGET),
            "AdamW 3e-5": (*_GSPO, *_BUDGET, "--gspo.no-muon", "--gspo.learning-rate", "3e-5"),
            "AdamW 1e-4": (*_GSPO, *_BUDGET, "--gspo.no-muon", "--gspo.learning-rate", "1e-4"),
        },
    ),
    "rewards": Study(
        "What does the centroid distance add to mask IoU?",
        {
            "IoU, centroid, format": _GSPO,
            "IoU, format": (*_GSPO, "--rewards", "mask_iou=1.0", "format=0.1"),
            "IoU": (*_GSPO, "--rewards", "mask_iou=1.0"),
        },
    ),
    "spread-floor": Study(
        "Does a floor under the spread of a group help?",
        {
            "floor 0.2": _GSPO,
            "no floor": (*_GSPO, "--gspo.spread-floor", "1e-4"),
        },
    ),
}
