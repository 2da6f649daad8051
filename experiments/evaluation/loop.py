"""The one loop that asks a policy the questions of an environment and measures its answers.

Training curves, reports, ``evaluate.py`` and files of answers all come from `ask`: greedy or
sampled, one turn or several, any task, any frame, on one rank or many.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from agents.base import Agent
from agents.policy.checks import try_sharing
from agents.policy.model import VLMPolicy
from agents.policy.sampling import sample
from agents.screening import prepare_usable
from agents.training.distributed import World
from experiments.common.logs import progress_bar, write_json
from experiments.evaluation.answers import (
    AnswerRecord,
    append_answers,
    check_resume,
    keep_whole_answers,
    read_answers,
)
from rewards.mask_iou import MaskIoU
from seg_env.envs.core import Outcome, Question, ReferringCore
from seg_env.envs.left_out import LeftOut, UnusableSampleError, ask_each, name_of
from seg_env.metrics import (
    PRECISION_THRESHOLDS,
    bootstrap_interval,
    ciou,
    giou,
    overlaps,
    precision_at,
)
from seg_env.tasks import DEFAULT_TASK

BATCH_SIZE = 64
"""Questions asked at a time, by default."""

_State = tuple[Outcome, str, int]
"""Where an episode stands, its outline as text, and how many tokens its last answer had."""


@dataclass
class Evaluation:
    """Answers to ``n`` questions, ``k`` each, and how good they are; arrays are ``(n, k)``."""

    indices: NDArray[np.int64]
    """``(n,)`` positions of the questions in the data set."""
    iou: NDArray[np.float64]
    """Mask IoU at the native size."""
    intersections: NDArray[np.int64]
    """In pixels."""
    unions: NDArray[np.int64]
    """In pixels."""
    valid: NDArray[np.bool_]
    """Whether the text was well-formed."""
    vertices: NDArray[np.int64]
    tokens: NDArray[np.int64]
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
        """All of it as lists and strings."""
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


def sample_answers(
    policy: VLMPolicy,
    inputs: dict[str, Tensor],
    *,
    temperature: float,
    answers: int,
    max_new_tokens: int,
    noise: Tensor,
) -> tuple[list[str], list[int]]:
    """Let a policy answer one batch of prepared prompts; see `agents.policy.sampling.sample`.

    Returns:
        The texts, those to one question next to each other, and how many tokens each has.
    """
    try_sharing(policy, inputs)
    completions = sample(
        policy,
        inputs,
        group_size=answers,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        noise=noise.to(policy.device),
    )
    return policy.texts(completions.tokens, completions.mask), completions.lengths.tolist()


def question_noise(
    seed: int, indices: Sequence[int], answers: int, max_new_tokens: int, turn: int = 0
) -> Tensor:
    """Noise of sampled answers that follows from the seed, the question and the turn alone.

    So answers are the same in batches of any size, on any rank, and after an interruption.

    Returns:
        ``(n * answers, max_new_tokens)`` float32, uniform in [0, 1).
    """
    later = [turn] if turn else []
    generators = [np.random.default_rng([seed, index, *later]) for index in indices]
    drawn = [each.random((answers, max_new_tokens), np.float32) for each in generators]
    return torch.from_numpy(np.concatenate(drawn))


def ask(
    policy: VLMPolicy,
    rules: ReferringCore,
    batches: Sequence[Sequence[int]],
    *,
    temperature: float = 0.0,
    answers: int = 1,
    max_new_tokens: int = 128,
    seed: int = 0,
    left_out: LeftOut,
    world: World | None = None,
) -> Iterator[list[Evaluation]]:
    """Play whole episodes and measure where they stand after every turn.

    The samples of a batch are asked about together, in ``answers`` episodes each; temperature 0 is
    greedy. Ranks (by default there is one) share out whole batches. All of them must call this, and
    each gets the whole result. ``left_out`` is told of samples that cannot be asked about.

    Yields:
        For each batch one evaluation per turn, as many as its longest episode has; none if no
        sample of the batch can be asked about.

    Raises:
        UnusableSampleError: A sample cannot be asked about and is not to be left out.
    """
    policy.model.eval()
    world = World() if world is None else world
    for start in range(0, len(batches), world.size):
        turns: list[Evaluation] = []
        if (place := start + world.rank) < len(batches):
            questions = ask_each(rules, batches[place], left_out)
            questions, inputs = prepare_usable(policy, questions, left_out)
            if questions:
                turns = _play(
                    policy, rules, questions, inputs, temperature, answers, max_new_tokens, seed
                )
        found = world.gather((turns, left_out.reasons))
        for _, reasons in found:
            left_out.update(reasons)
        yield from (each for each, _ in found[: len(batches) - start])


def _play(
    policy: VLMPolicy,
    rules: ReferringCore,
    questions: Sequence[Question],
    inputs: dict[str, Tensor],
    temperature: float,
    answers: int,
    max_new_tokens: int,
    seed: int,
) -> list[Evaluation]:
    """Episodes about one batch of prepared questions, measured after every turn."""
    asked = [question.index for question in questions]
    episodes = [rules.begin(question) for question in questions for _ in range(answers)]
    states: list[Any] = [None] * len(episodes)
    turns: list[Evaluation] = []
    running = list(range(len(episodes)))
    while running:
        if turns:
            seen = [rules.observe(episodes[row]) for row in running]
            inputs = policy.prepare([one["image"] for one in seen], [one["prompt"] for one in seen])
        texts, lengths = sample_answers(
            policy,
            inputs,
            temperature=temperature,
            answers=1 if turns else answers,  # at first all episodes of a question are alike
            max_new_tokens=max_new_tokens,
            noise=question_noise(seed, asked, answers, max_new_tokens, turn=len(turns))[running],
        )
        outcomes = rules.step([episodes[row] for row in running], texts)
        for row, outcome, text, length in zip(running, outcomes, texts, lengths, strict=True):
            episodes[row] = outcome.episode
            # An answer may be an edit; what it led to is an outline.
            states[row] = outcome, outcome.info.get("outline", text), length
        turns.append(_measure(questions, states, answers))
        ended = {row for row in running if states[row][0].terminated or states[row][0].truncated}
        running = [row for row in running if row not in ended]
    return turns


def _measure(questions: Sequence[Question], states: Sequence[_State], answers: int) -> Evaluation:
    """Where the episodes of one batch stand; those of a question stand next to each other."""
    outcomes = [outcome for outcome, _, _ in states]
    predictions = [outcome.answer.prediction for outcome in outcomes]
    targets = [question.sample.target for question in questions for _ in range(answers)]
    counted = overlaps(predictions, targets)
    shape = (len(questions), answers)
    texts = [text for _, text, _ in states]
    return Evaluation(
        indices=np.array([question.index for question in questions]),
        iou=np.array([outcome.info["iou"] for outcome in outcomes]).reshape(shape),
        intersections=counted.intersections.reshape(shape),
        unions=counted.unions.reshape(shape),
        valid=np.array([outcome.info["valid"] for outcome in outcomes]).reshape(shape),
        vertices=np.array([outcome.info["num_vertices"] for outcome in outcomes]).reshape(shape),
        tokens=np.array([length for _, _, length in states]).reshape(shape),
        texts=[texts[row * answers : (row + 1) * answers] for row in range(len(questions))],
        fit=MaskIoU()(predictions, targets).reshape(shape),
        tasks=np.array([question.task for question in questions]),
    )


def evaluate_turns(
    policy: VLMPolicy,
    rules: ReferringCore,
    indices: Sequence[int] | NDArray[np.integer[Any]],
    *,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int], None] | None = None,
    left_out: LeftOut | None = None,
    **settings: Any,
) -> list[Evaluation]:
    """Ask about all samples and measure where their episodes stand after every turn.

    ``on_batch`` is called with the number of questions after every batch, of whatever rank.
    ``left_out`` is told of samples that cannot be asked about; by default they are an error.
    Further settings are those of `ask`.

    Returns:
        One evaluation per turn, as many as the longest episode has; others stay as they ended.

    Raises:
        UnusableSampleError: No sample can be asked about, or one cannot and is not to be left out.
    """
    left_out = LeftOut("error") if left_out is None else left_out
    numbers = [int(index) for index in indices]
    batches = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
    played = ask(policy, rules, batches, left_out=left_out, **settings)
    parts = []
    for batch, turns in zip(batches, played, strict=True):
        if turns:
            parts.append(turns)
        if on_batch is not None:
            on_batch(len(batch))
    if not parts:
        raise UnusableSampleError(f"no sample can be asked about: {left_out.summary()}")
    longest = max(map(len, parts))
    return [_join([turns[min(turn, len(turns) - 1)] for turns in parts]) for turn in range(longest)]


def _join(parts: Sequence[Evaluation]) -> Evaluation:
    texts = [row for part in parts for row in part.texts]
    names = vars(parts[0]).keys() - {"texts"}
    stacked = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Evaluation(**stacked, texts=texts)


def evaluate(
    policy: VLMPolicy,
    core: ReferringCore,
    indices: Sequence[int] | NDArray[np.integer[Any]],
    **settings: Any,
) -> Evaluation:
    """`evaluate_turns` for questions that are answered once."""
    return evaluate_turns(policy, core, indices, **settings)[-1]


def evaluate_agent(
    agent: Agent, core: ReferringCore, indices: NDArray[np.integer[Any]], **settings: Any
) -> Evaluation:
    """`evaluate_agent_turns` for questions that are answered once."""
    return evaluate_agent_turns(agent, core, indices, **settings)[-1]


def evaluate_agent_turns(
    agent: Agent, rules: ReferringCore, indices: NDArray[np.integer[Any]], **settings: Any
) -> list[Evaluation]:
    """`evaluate_turns` for an agent that trains; its ranks share the questions out."""
    # Few questions are no reason for ranks to be idle.
    batch_size = max(1, min(BATCH_SIZE, math.ceil(len(indices) / agent.world.size)))
    settings |= {"batch_size": batch_size, "world": agent.world}
    with agent.gathered_weights():
        return evaluate_turns(agent.policy, rules, indices, **settings)


def collect_answers(
    policy: VLMPolicy,
    core: ReferringCore,
    folder: Path,
    *,
    asked: dict[str, Any],
    resume: bool,
    questions: int,
    answers: int,
    max_new_tokens: int,
    batch_size: int,
    console: Console,
    left_out: LeftOut,
    **settings: Any,
) -> Path | None:
    """Ask the first questions of a data set and keep the answers in a file as they come.

    The answers are the same on any number of ranks and after an interruption: ranks share out whole
    batches, and those that the file holds whole are not asked again. The folder keeps
    ``answers.jsonl``, ``left_out.json``, and in ``asked.json`` what decides the answers, ``asked``:
    answers by other settings are not added to, and none without ``resume``. Further settings are
    those of `ask`.

    Returns:
        The file; None on a rank that is not the main one.

    Raises:
        RunExistsError: There are answers already and they may not be there.
        WrongOptionError: They are there by other settings.
        UnusableSampleError: No question can be asked, or one cannot and is not to be left out.
    """
    world, path, noted = World.current(), folder / "answers.jsonl", folder / "left_out.json"
    check_resume(path, asked, resume=resume)
    if noted.exists() and left_out.on_error == "skip":
        left_out.update(json.loads(noted.read_text()))
    world.barrier()  # every rank has looked at what is there
    if world.is_main:
        write_json(folder / "asked.json", asked)
    known = set(world.broadcast(keep_whole_answers(path, answers) if world.is_main else {}))
    names = [name_of(core.dataset, index) for index in range(questions)]
    batches = []
    for start in range(0, questions, batch_size):
        places = range(start, min(start + batch_size, questions))
        usable = [index for index in places if names[index] not in left_out.reasons]
        if any(names[index] not in known for index in usable):
            batches.append(usable)
    settings |= {"answers": answers, "max_new_tokens": max_new_tokens}
    played = ask(policy, core, batches, left_out=left_out, world=world, **settings)
    total, count, status = 0.0, 0, "" if batches else "answered before"
    with progress_bar(console) as progress:
        task = progress.add_task("answering", total=questions, status=status)
        progress.update(task, completed=questions - sum(map(len, batches)))
        for batch, turns in zip(batches, played, strict=True):
            if turns and world.is_main:
                (found,) = turns
                rows = zip(found.indices, found.texts, found.tokens.tolist(), strict=True)
                given = [(names[index], list(map(AnswerRecord, *pair))) for index, *pair in rows]
                append_answers(path, [row for row in given if row[0] not in known])
                total, count = total + float(found.fit.sum()), count + found.fit.size
                status = f"score {total / count:.3f}"
            progress.update(task, advance=len(batch), status=status)
    if not world.is_main:
        return None
    write_json(noted, left_out.reasons)
    lengths = [each.tokens or 0 for some in read_answers(path).values() for each in some]
    if not lengths:
        raise UnusableSampleError(f"no question can be asked: {left_out.summary()}")
    if left_out:
        console.print(f"[yellow]{left_out.summary()}[/yellow]", highlight=False, soft_wrap=True)
    cut_off = sum(tokens >= max_new_tokens for tokens in lengths) / len(lengths)
    if cut_off > 0.01:
        console.print(
            f"[yellow]{cut_off:.0%} of the answers were cut off at {max_new_tokens} tokens; see "
            f"--max-new-tokens[/yellow]",
            highlight=False,
        )
    return path
