"""Asking a policy the questions of an environment and measuring the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.policy.checks import try_sharing
from agents.policy.model import VLMPolicy
from agents.policy.sampling import sample
from agents.screening import prepare_usable
from experiments.common.questions import open_questions as open_questions
from rewards.mask_iou import MaskIoU
from seg_env.envs.core import Question, ReferringCore
from seg_env.envs.episodes import AnswerRules, EpisodeRules, Outcome
from seg_env.envs.left_out import LeftOut, UnusableSampleError, ask_each
from seg_env.metrics import bootstrap_interval, ciou, giou, overlaps, precision_at
from seg_env.tasks.mixture import DEFAULT_TASK

PRECISION_THRESHOLDS = (0.5, 0.7, 0.9)

_OBSERVED = ("image", "prompt")
_Standing = tuple[Outcome[Any], str, int]
"""Where an episode stands, its outline as text, and how many tokens its last answer had."""


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
    """The answers; of several turns, the outlines they led to."""
    fit: NDArray[np.float64]
    """How well answers fit what was asked for: as ``iou`` for outlines, the IoU of boxes, and 1 for
    points on the object (see `rewards.MaskIoU`)."""
    tasks: NDArray[np.str_]
    """``(n,)`` what was asked."""

    def summary(self) -> dict[str, Any]:
        """Scores with a 95 % bootstrap interval over questions; an empty union counts 1."""
        score, low, high = bootstrap_interval(giou, self.iou.mean(axis=1))
        areas = self.intersections.sum(axis=1), self.unions.sum(axis=1)
        ratio, *ratio_interval = bootstrap_interval(ciou, *areas)
        return {
            "questions": len(self.indices),
            "answers_per_question": self.iou.shape[1],
            "giou": score,
            "giou_interval": [low, high],
            "ciou": ratio,
            "ciou_interval": ratio_interval,
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


def answer(
    policy: VLMPolicy,
    inputs: dict[str, Tensor],
    *,
    temperature: float,
    answers: int,
    max_new_tokens: int,
    noise: Tensor | None,
) -> tuple[list[str], list[int]]:
    """Let a policy answer one batch of prepared prompts; see `agents.policy.sampling.sample`.

    Returns:
        The texts, those to one question next to each other, and how many tokens each one has.
    """
    try_sharing(policy, inputs)
    completions = sample(
        policy,
        inputs,
        group_size=answers,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        noise=None if noise is None else noise.to(policy.device),
    )
    return policy.texts(completions.tokens, completions.mask), completions.lengths.tolist()


def evaluate(
    policy: VLMPolicy,
    core: ReferringCore,
    indices: Sequence[int] | NDArray[np.integer[Any]],
    **settings: Any,
) -> Evaluation:
    """Ask questions that are answered once and score the answers; as `evaluate_turns`.

    Raises:
        UnusableSampleError: No sample can be asked about, or one cannot and is not to be left out.
    """
    turns = evaluate_turns(policy, AnswerRules(core), indices, **settings)
    if not turns:
        raise UnusableSampleError(f"none of the {len(indices)} samples can be asked about")
    return turns[-1]


def evaluate_turns(
    policy: VLMPolicy,
    rules: EpisodeRules[Any],
    indices: Sequence[int] | NDArray[np.integer[Any]],
    *,
    temperature: float = 0.0,
    answers: int = 1,
    max_new_tokens: int = 128,
    batch_size: int = 64,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
    left_out: LeftOut | None = None,
) -> list[Evaluation]:
    """Play whole episodes and score where they stand after every turn.

    Args:
        policy: Who answers.
        rules: Who asks and scores, and what an episode consists of.
        indices: Which samples, ``n`` of them.
        temperature: 0 for greedy answers.
        answers: Episodes per question, ``k``.
        max_new_tokens: Longest answer.
        batch_size: Questions at a time.
        seed: Seed of sampling.
        on_batch: Called with the number of questions after every batch.
        left_out: Told of samples that cannot be asked about; by default they are an error.

    Returns:
        One evaluation per turn, as many as the longest episode has. What has ended stays as it is.
        None if no sample can be asked about.

    Raises:
        UnusableSampleError: A sample cannot be asked about and is not to be left out.
    """
    policy.model.eval()
    left_out = LeftOut("error") if left_out is None else left_out
    parts = []
    for start in range(0, len(indices), batch_size):
        some = [int(index) for index in indices[start : start + batch_size]]
        speak = partial(answer, policy, temperature=temperature, max_new_tokens=max_new_tokens)
        questions = ask_each(rules.core, some, left_out)
        questions, inputs = prepare_usable(policy, questions, left_out)
        if questions:
            asked = [question.index for question in questions]
            noise = partial(question_noise, seed, asked, answers, max_new_tokens)
            parts.append(_play(policy, rules, questions, inputs, answers, speak, noise))
        if on_batch is not None:
            on_batch(len(some))
    return join_turns(parts)


def _play(
    policy: VLMPolicy,
    rules: EpisodeRules[Any],
    questions: Sequence[Question],
    inputs: dict[str, Tensor],
    answers: int,
    speak: Callable[..., tuple[list[str], list[int]]],
    noise: Callable[[int], Tensor],
) -> list[Evaluation]:
    """Episodes about one batch of prepared questions; `speak` answers, with the noise of a turn."""
    episodes = [rules.begin(question) for question in questions for _ in range(answers)]
    standing: list[Any] = [None] * len(episodes)
    turns: list[Evaluation] = []
    going = list(range(len(episodes)))
    while going:
        together = 1 if turns else answers  # at first all episodes of a question are alike
        if turns:
            observations = [rules.observe(episodes[row]) for row in going]
            inputs = policy.prepare(*([one[key] for one in observations] for key in _OBSERVED))
        texts, lengths = speak(inputs, answers=together, noise=noise(len(turns))[going])
        outcomes = rules.step([episodes[row] for row in going], texts)
        for row, outcome, text, length in zip(going, outcomes, texts, lengths, strict=True):
            episodes[row] = outcome.episode
            # An answer may be an edit; what it led to is an outline.
            standing[row] = outcome, outcome.info.get("outline", text), length
        turns.append(_measure(questions, standing, answers))
        ended = {row for row in going if standing[row][0].terminated or standing[row][0].truncated}
        going = [row for row in going if row not in ended]
    return turns


def join(parts: Sequence[Evaluation]) -> Evaluation:
    """Evaluations of some questions and of further ones, as one of all."""
    stacked = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in vars(parts[0])
        if name != "texts"
    }
    return Evaluation(**stacked, texts=[row for part in parts for row in part.texts])


def join_turns(parts: Sequence[list[Evaluation]]) -> list[Evaluation]:
    """As `join`, turn by turn; where episodes ended sooner their last evaluation stands."""
    longest = max((len(turns) for turns in parts), default=0)
    return [join([turns[min(turn, len(turns) - 1)] for turns in parts]) for turn in range(longest)]


def question_noise(
    seed: int, indices: Sequence[int], answers: int, max_new_tokens: int, turn: int = 0
) -> Tensor:
    """Noise of sampled answers that follows from the seed, the question and the turn alone.

    So answers are the same in batches of any size, on any rank, and after an interruption.

    Returns:
        ``(n * answers, max_new_tokens)`` float32, uniform in [0, 1).
    """
    shape = (answers, max_new_tokens)
    later = [turn] if turn else []
    drawn = [
        np.random.default_rng([seed, index, *later]).random(shape, np.float32) for index in indices
    ]
    return torch.from_numpy(np.concatenate(drawn))


def _measure(
    questions: Sequence[Question], standing: Sequence[_Standing], answers: int
) -> Evaluation:
    """Where the episodes of one batch stand; those of a question stand next to each other."""
    outcomes = [outcome for outcome, _, _ in standing]
    predictions = [outcome.answer.prediction for outcome in outcomes]
    repeated = [question for question in questions for _ in range(answers)]
    targets = [question.sample.target for question in repeated]
    counted = overlaps(predictions, targets)
    shape = (len(questions), answers)
    texts = [text for _, text, _ in standing]
    return Evaluation(
        indices=np.array([question.index for question in questions]),
        iou=np.array([outcome.info["iou"] for outcome in outcomes]).reshape(shape),
        intersections=counted.intersections.reshape(shape),
        unions=counted.unions.reshape(shape),
        valid=np.array([outcome.info["valid"] for outcome in outcomes]).reshape(shape),
        vertices=np.array([outcome.info["num_vertices"] for outcome in outcomes]).reshape(shape),
        tokens=np.array([length for _, _, length in standing]).reshape(shape),
        texts=[texts[row * answers : (row + 1) * answers] for row in range(len(questions))],
        fit=MaskIoU()(predictions, targets).reshape(shape),
        tasks=np.array([question.task for question in questions]),
    )
