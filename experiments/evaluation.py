"""Asking a policy the questions of an environment and measuring the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.policy import VLMPolicy
from agents.sampling import sample
from experiments.questions import open_questions as open_questions
from rewards.mask_iou import MaskIoU
from seg_env.envs.core import Question, ReferringCore
from seg_env.metrics import bootstrap_interval, ciou, giou, overlaps, precision_at
from seg_env.task_mixture import DEFAULT_TASK

PRECISION_THRESHOLDS = (0.5, 0.7, 0.9)


@dataclass
class Evaluation:
    """Answers to ``n`` questions, ``k`` each, and how good they are; arrays are ``(n, k)``."""

    indices: NDArray[np.int64]
    """``(n,)`` positions of the questions in the data set."""
    iou: NDArray[np.float64]
    """Mask IoU at the native size."""
    intersections: NDArray[np.int64]
    """Pixels in prediction and target."""
    unions: NDArray[np.int64]
    """Pixels in prediction or target."""
    valid: NDArray[np.bool_]
    """Whether the text was well-formed."""
    vertices: NDArray[np.int64]
    """Vertices of the outline."""
    tokens: NDArray[np.int64]
    """Tokens of the answer."""
    texts: list[list[str]]
    """The answers."""
    fit: NDArray[np.float64]
    """How well answers fit what was asked for: as ``iou`` for outlines, the IoU of boxes, and 1 for
    points on the object (see `rewards.MaskIoU`)."""
    tasks: NDArray[np.str_]
    """``(n,)`` what was asked."""

    def summary(self) -> dict[str, Any]:
        """Scores with a 95 % bootstrap interval over questions; an empty union counts 1."""
        score, low, high = bootstrap_interval(giou, self.iou.mean(axis=1))
        return {
            "questions": len(self.indices),
            "answers_per_question": self.iou.shape[1],
            "giou": score,
            "giou_interval": [low, high],
            "ciou": float(ciou(self.intersections.ravel(), self.unions.ravel())),
            **{
                f"precision@{threshold}": float(precision_at(self.iou.ravel(), threshold))
                for threshold in PRECISION_THRESHOLDS
            },
            "well_formed": float(self.valid.mean()),
            "vertices": float(self.vertices.mean()),
            "tokens": float(self.tokens.mean()),
            "tasks": {
                task: self.fit_score(self.tasks == task) for task in np.unique(self.tasks).tolist()
            },
        }

    def fit_score(self, chosen: NDArray[np.bool_] | None = None) -> dict[str, Any]:
        """How well answers fit what was asked for, of all or of the ``(n,) bool`` chosen."""
        values = self.fit.mean(axis=1)
        values = values if chosen is None else values[chosen]
        score, low, high = bootstrap_interval(giou, values)
        return {"questions": len(values), "score": score, "interval": [low, high]}

    def to_json(self) -> dict[str, Any]:
        """Lists and strings only."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Evaluation:
        """Inverse of `to_json`."""
        # Files of earlier versions are all about outlines.
        stored = {"fit": stored["iou"], "tasks": [DEFAULT_TASK] * len(stored["iou"])} | stored
        arrays = {name: np.array(value) for name, value in stored.items() if name != "texts"}
        return cls(**arrays, texts=stored["texts"])


def ask(
    policy: VLMPolicy,
    questions: Sequence[Question],
    *,
    temperature: float,
    answers: int,
    max_new_tokens: int,
    noise: Tensor | None = None,
) -> tuple[list[str], list[int]]:
    """Ask one batch of questions; see `agents.sampling.sample`.

    Returns:
        The texts, those to one question next to each other, and how many tokens each one has.
    """
    inputs = policy.prepare([q.image for q in questions], [q.prompt for q in questions])
    completions = sample(
        policy,
        inputs,
        group_size=answers,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        noise=noise,
    )
    return policy.texts(completions.tokens, completions.mask), completions.lengths.tolist()


def evaluate(
    policy: VLMPolicy,
    core: ReferringCore,
    indices: Sequence[int] | NDArray[np.integer[Any]],
    *,
    temperature: float = 0.0,
    answers: int = 1,
    max_new_tokens: int = 128,
    batch_size: int = 64,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Ask questions and score the answers.

    Args:
        policy: Who answers.
        core: Who asks and scores.
        indices: Which samples, ``n`` of them.
        temperature: 0 for greedy answers.
        answers: Answers per question, ``k``.
        max_new_tokens: Longest answer.
        batch_size: Questions at a time.
        seed: Seed of sampling.
        on_batch: Called with the number of questions after every batch.
    """
    policy.model.eval()
    parts = []
    for start in range(0, len(indices), batch_size):
        some = [int(index) for index in indices[start : start + batch_size]]
        questions = [core.ask(index) for index in some]
        texts, lengths = ask(
            policy,
            questions,
            temperature=temperature,
            answers=answers,
            max_new_tokens=max_new_tokens,
            noise=question_noise(seed, some, answers, max_new_tokens).to(policy.device),
        )
        parts.append(_measure(core, questions, texts, lengths, answers))
        if on_batch is not None:
            on_batch(len(questions))
    return join(parts)


def join(parts: Sequence[Evaluation]) -> Evaluation:
    """Evaluations of some questions and of further ones, as one of all."""
    stacked = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in vars(parts[0])
        if name != "texts"
    }
    return Evaluation(**stacked, texts=[row for part in parts for row in part.texts])


def question_noise(seed: int, indices: Sequence[int], answers: int, max_new_tokens: int) -> Tensor:
    """Noise of sampled answers that follows from the seed and the question alone.

    So answers are the same in batches of any size, on any rank, and after an interruption.

    Returns:
        ``(n * answers, max_new_tokens)`` float32, uniform in [0, 1).
    """
    shape = (answers, max_new_tokens)
    drawn = [np.random.default_rng([seed, index]).random(shape, np.float32) for index in indices]
    return torch.from_numpy(np.concatenate(drawn))


def _measure(
    core: ReferringCore,
    questions: Sequence[Question],
    texts: Sequence[str],
    lengths: Sequence[int],
    answers: int,
) -> Evaluation:
    """Score one batch; the answers to a question stand next to each other."""
    repeated = [question for question in questions for _ in range(answers)]
    scores = core.score(texts, repeated)
    shape = (len(questions), answers)
    targets = [question.sample.target for question in repeated]
    counted = overlaps(scores.predictions, targets)
    return Evaluation(
        indices=np.array([question.index for question in questions]),
        iou=scores.iou.reshape(shape),
        intersections=counted.intersections.reshape(shape),
        unions=counted.unions.reshape(shape),
        valid=np.array([p.valid for p in scores.predictions]).reshape(shape),
        vertices=np.array([sum(map(len, p.rings)) for p in scores.predictions]).reshape(shape),
        tokens=np.array(lengths).reshape(shape),
        texts=[list(texts[row * answers : (row + 1) * answers]) for row in range(len(questions))],
        fit=MaskIoU()(scores.predictions, targets).reshape(shape),
        tasks=np.array([question.task for question in questions]),
    )
