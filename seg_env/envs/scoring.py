"""The one path from answers to numbers: decode, reward, IoU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewards.composite import DEFAULT_REWARDS, RewardSpec, RewardSum
from rewards.mask_iou import MaskIoU, outline_iou
from seg_env.frames import UNIT_ANSWERS, AnswerFrame, Frame
from seg_env.grammar.answers import decode_answer
from seg_env.types import Form, Prediction, Sample


@dataclass(frozen=True, eq=False)
class ScoredAnswer:
    """What one answer is worth."""

    prediction: Prediction
    iou: float
    total: float
    terms: dict[str, float]


@dataclass(frozen=True, eq=False)
class Scores:
    """What ``N`` answers are worth."""

    total: NDArray[np.float64]
    """``(N,)`` weighted reward."""
    terms: dict[str, NDArray[np.float64]]
    """Each reward on its own, ``(N,)``, without its weight."""
    iou: NDArray[np.float64]
    """``(N,)`` mask IoU in [0, 1] at the target's native size, whatever the rewards are and
    whatever was asked for: of a box, what it fills; a point fills nothing."""
    predictions: tuple[Prediction, ...]
    """The ``N`` decoded answers, rings in the unit frame of the sample's image."""

    def answer(self, row: int) -> ScoredAnswer:
        """What one answer is worth."""
        return ScoredAnswer(
            self.predictions[row],
            float(self.iou[row]),
            float(self.total[row]),
            {name: float(values[row]) for name, values in self.terms.items()},
        )


class Scorer:
    """Scores answers to questions about samples, for environments, trainers and evaluators."""

    def __init__(
        self,
        rewards: RewardSpec = DEFAULT_REWARDS,
        frame: str | Frame | AnswerFrame = UNIT_ANSWERS,
    ) -> None:
        """Set up rewards (see `RewardSum.from_spec`) and frame (see `AnswerFrame.from_spec`)."""
        self.rewards = RewardSum.from_spec(rewards)
        self.answer_frame = AnswerFrame.from_spec(frame)

    def __call__(
        self,
        texts: Sequence[str],
        samples: Sequence[Sample],
        frames: Sequence[Frame] | None = None,
        forms: Sequence[Form] | None = None,
    ) -> Scores:
        """Score ``N`` answers in one call of each reward.

        Args:
            texts: Any strings.
            samples: Answers to one question should share one `Sample` object: what is prepared for
                its target is then prepared once.
            frames: Coordinate frames; by default those of the answer frame for each sample.
            forms: What was asked for; by default outlines.

        Raises:
            ValueError: The sequences differ in length.
            Exception: Whatever a reward raises; a bug must not become a zero.
        """
        return self.judge(self.read(texts, samples, frames, forms), samples)

    def read(
        self,
        texts: Sequence[str],
        samples: Sequence[Sample],
        frames: Sequence[Frame] | None = None,
        forms: Sequence[Form] | None = None,
    ) -> tuple[Prediction, ...]:
        """Decode ``N`` answers without scoring them; arguments and errors as of a call."""
        forms = ["mask"] * len(texts) if forms is None else forms
        given = len(texts) if frames is None else len(frames)
        if not len(texts) == len(samples) == given == len(forms):
            raise ValueError(
                f"{len(texts)} answers, {len(samples)} samples and {given} frames"
                f"{'' if len(forms) == len(texts) else f' and {len(forms)} forms'}: "
                f"give one of each for every answer"
            )
        if frames is None:
            frames = [self.answer_frame.for_image(sample.target.size) for sample in samples]
        plain = map(self.answer_frame.normalize, texts, forms)
        return tuple(map(decode_answer, plain, forms, frames))

    def judge(self, predictions: Sequence[Prediction], samples: Sequence[Sample]) -> Scores:
        """Score ``N`` decoded answers in one call of each reward."""
        targets = [sample.target for sample in samples]
        scored = self.rewards.score(predictions, targets)
        # The IoU is almost always one of the rewards already.
        iou = next(
            (
                scored.terms[name]
                for name, term in self.rewards.terms.items()
                if type(term.reward) is MaskIoU
                and all(prediction.form == "mask" for prediction in predictions)
            ),
            None,
        )
        if iou is None:
            iou = outline_iou(predictions, targets)
        return Scores(scored.total, scored.terms, iou, tuple(predictions))
