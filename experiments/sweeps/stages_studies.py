"""The comparisons that `experiments/stages.py` knows by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from experiments.pipeline_steps import Stage
from experiments.run_pipeline import DEFAULTS, SCENES


@dataclass(frozen=True)
class AnnotatedPictures:
    """Pictures that several runs learn from."""

    name: str
    """Of their folder."""
    words: tuple[str, ...]
    """Options of experiments/annotate.py."""

    def folder(self, output: Path) -> Path:
        """Where they are."""
        return output / self.name


@dataclass(frozen=True)
class Run:
    """A pipeline, made once for each seed."""

    name: str
    """Of its folders."""
    stages: tuple[Stage, ...]
    """Its stages that train."""
    pictures: AnnotatedPictures | None = None
    """What its first stage learns from; None for scenes with their truth."""

    def folder(self, output: Path, seed: int) -> Path:
        """Where it is."""
        return output / f"{self.name}-{seed}"


@dataclass(frozen=True)
class Study:
    """Policies to compare."""

    question: str
    """What the comparison answers."""
    arms: dict[str, tuple[Run, Stage]]
    """The run of each arm, and the stage of it whose policy is meant; the baseline first."""
    paper: dict[str, float] = field(default_factory=dict)
    """gIoU in per cent that the paper reports for an arm."""

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run once."""
        return tuple({run.name: run for run, _ in self.arms.values()}.values())

    @property
    def pictures(self) -> tuple[AnnotatedPictures, ...]:
        """What has to be annotated."""
        return tuple(run.pictures for run in self.runs if run.pictures is not None)


WEB = AnnotatedPictures("pictures-web", DEFAULTS["annotate"])
"""Scenes of their own, with labels as wrong as models make them."""
# Scenes of the seed that SFT takes: the pictures are the same, only their labels went through the
# pipeline.
MADE = AnnotatedPictures("pictures-made", ("--scenes", SCENES, "--seed", "0"))
"""The scenes of SFT, annotated with the ground-truth detector."""

PLAIN = Run("plain", ("sft", "rl"))
PRETRAINED = Run("pretrained", ("pretrain", "sft", "rl"), WEB)

STUDIES: dict[str, Study] = {
    "table": Study(
        "What is each stage worth?",
        {
            "SFT": (PLAIN, "sft"),
            "pre-train + SFT": (PRETRAINED, "sft"),
            "SFT + RL": (PLAIN, "rl"),
            "pre-train + SFT + RL": (PRETRAINED, "rl"),
        },
        # SimpleSeg, arXiv 2601.19228: Kimi-VL.
        {
            "SFT": 65.5,
            "pre-train + SFT": 70.1,
            "SFT + RL": 75.2,
            "pre-train + SFT + RL": 78.5,
        },
    ),
    "data": Study(
        "Is SFT data that the annotation pipeline makes as good as clean data?",
        {
            "clean scenes": (Run("plain", ("sft",)), "sft"),
            "made by the pipeline": (Run("made", ("sft",), MADE), "sft"),
            # The table's pre-training is nothing else: the same updates from random weights.
            "made with wrong labels": (Run("pretrained", ("pretrain",), WEB), "pretrain"),
        },
    ),
}
