"""The command line of the evaluation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from experiments.common.policies import AnswerLength
from experiments.evaluation.answers import Missing
from experiments.evaluation.reader import GUESS
from seg_env.envs.core import ReferringCore
from seg_env.frames import AUTO, ResizeSettings
from seg_env.tasks.queries import QueryStyle

SCENES_QUESTIONS = 512
"""Questions by default where the data set is endless."""


@dataclass
class Args:
    """Score the answers of a policy, or of any system."""

    env: str = "SimpleSeg-Scenes-v0"
    """Environment id: what is asked."""
    dataset: str | None = None
    """Another data set than that of the environment, by the name that `open_dataset` knows."""
    data_root: str | None = None
    """Folder of RefCOCO data; by default the variable SIMPLESEG_DATA."""
    split: str = "val"
    """Split to ask about."""
    split_by: str | None = None
    """Whose split of RefCOCO data: unc, umd, google, berkeley."""
    difficulty: str | None = None
    """Of scenes: easy (default), medium, hard."""
    negatives: float | None = None
    """Of scenes: share of questions about an object that is not there."""
    task: str | None = None
    """What is given and asked for: text->mask (default), another of seg_env.tasks.TASKS, or ``all``
    for a table of every task."""
    queries: QueryStyle = field(default_factory=QueryStyle)
    """How the places that questions give are drawn and written."""
    image_size: int | None = None
    """Side that pictures are letterboxed to; by default they keep their sizes."""
    questions: int | None = None
    """The first so many samples; by default 512 scenes, and all of any other data set."""
    policy: str | None = None
    """Who answers: ``embedded`` (default), taught by expression only; ``embedded-tasks``, which
    reads points, boxes and outlines too; a transformers folder; or a hub id."""
    predictions: Path | None = None
    """File of answers to score in place of a policy's."""
    frame: str = AUTO
    """What the numbers in answers are: auto (what the policy's folder records, else what its family
    writes), unit, permille, pixels, qwen2.5-vl, florence, paligemma, pixel:WxH, or a model type
    such as qwen3_vl; guess reads the answers in every frame, shows what comes of it and stops."""
    min_pixels: int = ResizeSettings.min_pixels
    """For --predictions with --frame qwen2.5-vl: as the processor was set."""
    max_pixels: int = ResizeSettings.max_pixels
    """For --predictions with --frame qwen2.5-vl: as the processor was set."""
    missing: Missing = "error"
    """Questions without an answer in --predictions: an error, empty answers, or skipped."""
    ignore_unknown: bool = False
    """Pass over answers in --predictions to other questions than those asked."""
    temperature: float = 0.0
    """0 for greedy answers."""
    answers: int = 1
    """Answers per question."""
    max_new_tokens: AnswerLength = "auto"
    """Longest answer in tokens; auto: 128 for the shipped policies, and for others measured on
    outlines of the ground truth in their own tokens."""
    batch_size: int = 64
    """Questions at a time."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """float32, bfloat16 under autocast, or auto: bfloat16 where the hardware has it."""
    on_error: Literal["skip", "error"] = "skip"
    """Images that are broken or that the processor refuses: left out and counted, or an error."""
    check_vision: bool = False
    """Only show whether the policy sees: how likely true answers are with their image, with another
    one and with a blank one."""
    trust_remote_code: bool = False
    """Run code that comes with a hub model; only for models you have read."""
    empty_union: float = 1.0
    """IoU where answer and target are both empty: 1 as Text4Seg and LISA, 0 as VisionReasoner."""
    details: bool = True
    """Also boundary scores, PoLiS and the ceiling of each sample; some milliseconds an answer."""
    pictures: bool = True
    """Also draw the worst and best answers and the histogram."""
    compare: Path | None = None
    """Folder or per_sample file of another evaluation: paired gains over it."""
    ceiling: bool = False
    """Only measure what the representation allows."""
    epsilon: tuple[float, ...] = (0.0, 0.001, 0.005, 0.01, 0.02)
    """For --ceiling: tolerances of the outline's simplification, as shares of its perimeter."""
    decimals: tuple[int, ...] = (3,)
    """For --ceiling: digits after the point."""
    seed: int = 0
    """Seed of sampling and of the bootstrap."""
    output_dir: Path = Path("runs/evaluate")
    """Folder for what is written."""
    resume: bool = False
    """Keep the answers that the folder holds already and ask only for the others."""

    @property
    def policy_frame(self) -> str:
        """The frame to open a policy with: nothing is assumed while frames are compared."""
        return AUTO if self.frame == GUESS else self.frame

    def environment(self) -> dict[str, Any]:
        """Arguments of the environment that are not left at their defaults."""
        names = ("dataset", "split", "data_root", "split_by", "difficulty", "image_size")
        given = {name: getattr(self, name) for name in (*names, "negatives", "task")}
        given["queries"] = None if self.queries == QueryStyle() else asdict(self.queries)
        return {name: value for name, value in given.items() if value is not None}

    def count(self, core: ReferringCore) -> int:
        """How many questions are asked.

        Raises:
            ValueError: There are not that many.
        """
        available = len(core.dataset)
        if self.questions is not None and not 1 <= self.questions <= available:
            raise ValueError(
                f"--questions {self.questions}: {core.dataset.name} ({core.dataset.split}) has "
                f"{available}; use 1 to {available}"
            )
        endless = core.dataset.name.startswith("scenes")
        return self.questions or (min(SCENES_QUESTIONS, available) if endless else available)

    def asked(self) -> dict[str, Any]:
        """The settings that decide what a policy answers; JSON-able."""
        names = ("env", "policy", "temperature", "answers", "max_new_tokens", "batch_size")
        named = {name: getattr(self, name) for name in (*names, "precision", "seed")}
        named["frame"] = self.policy_frame
        return {**self.environment(), **named}
