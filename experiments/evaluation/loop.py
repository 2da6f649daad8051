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

from agents.policy.checks import try_sharing
from agents.policy.model import VLMPolicy
from agents.policy.sampling import Completions, sample
from agents.screening import prepare_usable
from agents.training.distributed import World
from experiments.common.logs import progress_bar, warn, write_json
from experiments.evaluation.answers import (
    AnswerRecord,
    Answers,
    append_answers,
    check_resume,
    keep_whole_answers,
    read_answers,
)
from rewards.boundary import BoundaryF
from rewards.mask_iou import MaskIoU
from seg_env import metrics
from seg_env.envs.core import Outcome, Question, ReferringCore
from seg_env.envs.left_out import LeftOut, UnusableSampleError, ask_each, name_of


@dataclass
class Evaluation:
    """Answers to ``n`` questions, ``k`` each, and how good they are; arrays are ``(n, k)``."""

    indices: NDArray[np.int64]
    """``(n,)`` positions of the questions in the data set."""
    iou: NDArray[np.float64]
    """Mask IoU at the native size."""
    boundary: NDArray[np.float64]
    """DAVIS' boundary F."""
    intersections: NDArray[np.int64]
    """In pixels."""
    unions: NDArray[np.int64]
    """In pixels."""
    valid: NDArray[np.bool_]
    """Whether the text was well-formed."""
    vertices: NDArray[np.int64]
    tokens: NDArray[np.int64]
    texts: NDArray[np.object_]
    """The answers; of several turns, the outlines they led to."""
    fit: NDArray[np.float64]
    """How well answers fit what was asked for: as ``iou`` for outlines, the IoU of boxes, and 1 for
    points on the object (see `rewards.MaskIoU`)."""
    tasks: NDArray[np.str_]
    """``(n,)`` what was asked."""
    present: NDArray[np.bool_]
    """``(n,)`` whether what was asked about is there."""
    silent: NDArray[np.bool_]
    """Whether answers say that nothing is there, in whatever form they were asked for."""

    def summary(self) -> dict[str, Any]:
        """Scores with a 95 % bootstrap interval over questions; an empty union counts 1."""
        score, low, high = metrics.bootstrap_interval(metrics.giou, self.iou.mean(axis=1))
        areas = self.intersections.sum(axis=1), self.unions.sum(axis=1)
        ratio, *ratio_interval = metrics.bootstrap_interval(metrics.ciou, *areas)
        return {
            "questions": len(self.indices),
            "answers_per_question": self.iou.shape[1],
            "giou": score,
            "giou_interval": [low, high],
            "ciou": ratio,
            "ciou_interval": ratio_interval,
            **{
                f"precision@{threshold}": float(metrics.precision_at(self.iou.ravel(), threshold))
                for threshold in metrics.PRECISION_THRESHOLDS
            },
            "best_giou": float(self.iou.max(axis=1).mean()),
            "boundary_f": float(self.boundary.mean()),
            "well_formed": float(self.valid.mean()),
            "vertices": float(self.vertices.mean()),
            "tokens": float(self.tokens.mean()),
            "tasks": {
                task: self.fit_score(self.tasks == task) for task in np.unique(self.tasks).tolist()
            },
            **self._absence(),
        }

    def _absence(self) -> dict[str, float]:
        """Scores if some of the objects asked about are absent: gRefCOCO's (GRES, CVPR 2023).

        ``n_acc`` is the share of absent objects that answers call absent, ``t_acc`` that of present
        ones that they do not, and ``giou_present`` the gIoU of the latter.
        """
        if self.present.all() or not self.present.any():
            return {}
        return {
            "n_acc": float(self.silent[~self.present].mean()),
            "t_acc": float(1 - self.silent[self.present].mean()),
            "giou_present": float(self.iou[self.present].mean()),
        }

    def fit_score(self, chosen: NDArray[np.bool_] | None = None) -> dict[str, Any]:
        """How well answers fit what was asked for, of all or of the ``(n,) bool`` chosen."""
        values = self.fit.mean(axis=1)
        values = values if chosen is None else values[chosen]
        score, low, high = metrics.bootstrap_interval(metrics.giou, values)
        return {"questions": len(values), "score": score, "interval": [low, high]}

    def to_json(self) -> dict[str, Any]:
        """All of it as lists and strings."""
        return {name: value.tolist() for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Evaluation:
        """Inverse of `to_json`."""
        types = {"texts": object}
        return cls(**{name: np.array(stored[name], types.get(name)) for name in stored})


def sample_answers(
    policy: VLMPolicy,
    inputs: dict[str, Tensor],
    *,
    temperature: float,
    answers: int,
    max_new_tokens: int,
    noise: Tensor,
    on_token: Callable[[list[str]], object] | None = None,
) -> tuple[list[str], list[int]]:
    """Let a policy answer one batch of prepared prompts; see `agents.policy.sampling.sample`.

    ``on_token`` is called with the texts so far after every token; what it raises ends sampling.

    Returns:
        The texts, those to one question next to each other, and how many tokens each has.
    """

    def texts(written: Completions) -> list[str]:
        return policy.texts(written.tokens, written.mask)

    try_sharing(policy, inputs)
    completions = sample(
        policy,
        inputs,
        group_size=answers,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        noise=noise.to(policy.device),
        on_token=on_token and (lambda written: on_token(texts(written))),
    )
    return texts(completions), completions.lengths.tolist()


def question_noise(
    seed: int, indices: Sequence[int], answers: int, max_new_tokens: int, turn: int = 0
) -> Tensor:
    """Noise for sampled answers that depends only on the seed, the question and the turn.

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
    left_out: LeftOut,
    world: World | None = None,
    **sampling: Any,
) -> Iterator[list[Evaluation]]:
    """Play whole episodes and measure where they stand after every turn.

    The samples of a batch are asked about together. Ranks (by default there is one) share out whole
    batches; all of them must call this, and each gets the whole result. ``left_out`` is told of
    samples that cannot be asked about; ``sampling`` are the settings of `play`.

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
                turns = play(policy, rules, questions, inputs, **sampling)
        found = world.gather((turns, left_out.reasons))
        for _, reasons in found:
            left_out.update(reasons)
        yield from (each for each, _ in found[: len(batches) - start])


def play(
    policy: VLMPolicy,
    rules: ReferringCore,
    questions: Sequence[Question],
    inputs: dict[str, Tensor],
    *,
    temperature: float = 0.0,
    answers: int = 1,
    max_new_tokens: int = 128,
    seed: int = 0,
) -> list[Evaluation]:
    """Play episodes about questions prepared as ``inputs``; temperature 0 is greedy.

    Returns:
        Where the episodes stand after every turn.
    """
    asked = [question.index for question in questions]
    episodes = [rules.begin(question) for question in questions for _ in range(answers)]
    outcomes: list[Any] = [None] * len(episodes)
    outlines, lengths = [""] * len(episodes), [0] * len(episodes)
    turns: list[Evaluation] = []
    running = list(range(len(episodes)))
    while running:
        if turns:
            seen = [rules.observe(episodes[row]) for row in running]
            inputs = policy.prepare([one["image"] for one in seen], [one["prompt"] for one in seen])
        texts, counts = sample_answers(
            policy,
            inputs,
            temperature=temperature,
            answers=1 if turns else answers,  # at first all episodes of a question are alike
            max_new_tokens=max_new_tokens,
            noise=question_noise(seed, asked, answers, max_new_tokens, turn=len(turns))[running],
        )
        stepped = rules.step([episodes[row] for row in running], texts)
        for row, outcome, text, count in zip(running, stepped, texts, counts, strict=True):
            episodes[row], outcomes[row], lengths[row] = outcome.episode, outcome, count
            # An answer may be an edit; what it led to is an outline.
            outlines[row] = outcome.info.get("outline", text)
        turns.append(_measure(questions, outcomes, outlines, lengths))
        running = [
            row for row in running if not (outcomes[row].terminated or outcomes[row].truncated)
        ]
    return turns


def _measure(
    questions: Sequence[Question],
    outcomes: Sequence[Outcome],
    outlines: Sequence[str],
    lengths: Sequence[int],
) -> Evaluation:
    """Where the episodes of one batch stand; those of a question stand next to each other."""
    shape = (len(questions), len(outcomes) // len(questions))
    predictions = [outcome.answer.prediction for outcome in outcomes]
    targets = [question.sample.target for question in questions for _ in range(shape[1])]
    counted = metrics.overlaps(predictions, targets)

    def column(name: str) -> NDArray[Any]:
        return np.array([outcome.info[name] for outcome in outcomes]).reshape(shape)

    return Evaluation(
        indices=np.array([question.index for question in questions]),
        iou=column("iou"),
        boundary=BoundaryF()(predictions, targets).reshape(shape),
        intersections=counted.intersections.reshape(shape),
        unions=counted.unions.reshape(shape),
        valid=column("valid"),
        vertices=column("num_vertices"),
        tokens=np.array(lengths).reshape(shape),
        texts=np.array(outlines, object).reshape(shape),
        fit=MaskIoU()(predictions, targets).reshape(shape),
        tasks=np.array([question.task for question in questions]),
        present=np.array([question.sample.target.area > 0 for question in questions]),
        silent=np.array([each.valid and each.is_empty for each in predictions]).reshape(shape),
    )


def evaluate_turns(
    policy: VLMPolicy,
    rules: ReferringCore,
    indices: Sequence[int] | NDArray[np.integer[Any]],
    *,
    on_batch: Callable[[int], None] | None = None,
    left_out: LeftOut | None = None,
    world: World | None = None,
    **sampling: Any,
) -> list[Evaluation]:
    """Ask about all samples and measure where their episodes stand after every turn.

    ``on_batch`` is called with the number of questions after every batch, of whatever rank.
    ``left_out`` is told of samples that cannot be asked about; by default they are an error. The
    rest is as for `ask`.

    Returns:
        One evaluation per turn, as many as the longest episode has; others stay as they ended.

    Raises:
        UnusableSampleError: No sample can be asked about, or one cannot and is not to be left out.
    """
    left_out = LeftOut("error") if left_out is None else left_out
    world = World() if world is None else world
    numbers = [int(index) for index in indices]
    # Smaller batches keep all ranks busy if there are few questions.
    size = max(1, min(64, math.ceil(len(numbers) / world.size)))
    batches = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    played = ask(policy, rules, batches, left_out=left_out, world=world, **sampling)
    parts = []
    for batch, turns in zip(batches, played, strict=True):
        if turns:
            parts.append(turns)
        if on_batch is not None:
            on_batch(len(batch))
    if not parts:
        raise UnusableSampleError(f"no sample can be asked about: {left_out.summary()}")
    longest = max(map(len, parts))
    joined = []
    for turn in range(longest):
        some = [vars(turns[min(turn, len(turns) - 1)]) for turns in parts]
        columns = {name: np.concatenate([one[name] for one in some]) for name in some[0]}
        joined.append(Evaluation(**columns))
    return joined


def evaluate(
    policy: VLMPolicy,
    core: ReferringCore,
    indices: Sequence[int] | NDArray[np.integer[Any]],
    **settings: Any,
) -> Evaluation:
    """`evaluate_turns` for questions that are answered once."""
    return evaluate_turns(policy, core, indices, **settings)[-1]


def collect_answers(
    policy: VLMPolicy,
    core: ReferringCore,
    folder: Path,
    asked: dict[str, Any],
    *,
    questions: int,
    max_new_tokens: int,
    resume: bool,
    console: Console,
    left_out: LeftOut,
) -> Answers | None:
    """Ask the first questions of a data set and keep the answers in a file as they come.

    The answers are the same on any number of ranks and after an interruption: ranks share out whole
    batches, and those that the file holds whole are not asked again. The folder keeps
    ``answers.jsonl``, ``left_out.json``, and in ``asked.json`` what decides the answers, ``asked``:
    ``temperature``, ``answers`` (to each question), ``batch_size``, ``seed`` and whatever else.
    Answers by other settings are not added to, nor any without ``resume``.

    Returns:
        All that the file holds; None on a rank that is not the main one.

    Raises:
        RunExistsError: There are answers already, and ``resume`` is not given.
        WrongOptionError: They were made with other settings.
        UnusableSampleError: No question can be asked, or one cannot and is not to be left out.
    """
    answers, batch_size = asked["answers"], asked["batch_size"]
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
    sampling = {name: asked[name] for name in ("temperature", "answers", "seed")}
    sampling["max_new_tokens"] = max_new_tokens
    played = ask(policy, core, batches, left_out=left_out, world=world, **sampling)
    total, count, status = 0.0, 0, "" if batches else "answered before"
    with progress_bar(console) as progress:
        task = progress.add_task("answering", total=questions, status=status)
        progress.update(task, completed=questions - sum(map(len, batches)))
        for batch, turns in zip(batches, played, strict=True):
            if turns and world.is_main:
                (told,) = turns
                rows = zip(told.indices, told.texts, told.tokens.tolist(), strict=True)
                given = [(names[index], list(map(AnswerRecord, *pair))) for index, *pair in rows]
                append_answers(path, [row for row in given if row[0] not in known])
                total, count = total + float(told.fit.sum()), count + told.fit.size
                status = f"score {total / count:.3f}"
            progress.update(task, advance=len(batch), status=status)
    if not world.is_main:
        return None
    write_json(noted, left_out.reasons)
    found = read_answers(path)
    lengths = [each.tokens or 0 for some in found.values() for each in some]
    if not lengths:
        raise UnusableSampleError(f"no question can be asked: {left_out.summary()}")
    if left_out:
        warn(console, left_out.summary())
    cut_off = sum(tokens >= max_new_tokens for tokens in lengths) / len(lengths)
    if cut_off > 0.01:
        warn(
            console,
            f"{cut_off:.0%} of the answers were cut off at {max_new_tokens} tokens; see "
            f"--max-new-tokens",
        )
    return found
