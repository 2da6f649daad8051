"""Demonstrations for behaviour cloning: tokenized questions and perfect answers about pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agents.policy import VLMPolicy
from seg_env.tasks import Task, answer, question
from seg_env.types import Sample


@dataclass(frozen=True)
class Dialogue:
    """One question with its answer, as tokens that follow the picture."""

    task: Task
    """What is asked."""
    tokens: tuple[int, ...]
    """Question and answer, the end token included."""
    answer_start: int
    """Index of the first token of the answer; only the answer is learned."""


@dataclass(frozen=True)
class Demonstration:
    """A picture with everything that is asked about it."""

    inputs: dict[str, Tensor]
    """What the processor makes of the picture, ``(1, ...)`` tensors, without any text."""
    prefix: tuple[int, ...]
    """Tokens up to the end of the picture: shared by all dialogues."""
    dialogues: tuple[Dialogue, ...]
    """Questions and answers about this picture."""


@dataclass(frozen=True)
class DemonstrationBatch:
    """``B`` pictures and ``N`` dialogues about them."""

    inputs: dict[str, Tensor]
    """Model inputs of the shared prefixes, ``B`` rows."""
    rows: Tensor
    """``(N,)`` index of the picture each dialogue is about."""
    tokens: Tensor
    """``(N, T)`` dialogue tokens, padded on the right."""
    mask: Tensor
    """``(N, T)``, 1 on real tokens."""
    learn: Tensor
    """``(N, T)`` bool, true on answer tokens."""


def demonstrate(
    policy: VLMPolicy,
    samples: Sequence[Sample],
    tasks: Sequence[Task],
    *,
    epsilon: float,
    decimals: int,
    pad: bool,
) -> Demonstration:
    """Ask every task of every sample; all samples must be about one picture.

    Args:
        policy: Its processor and chat format are used.
        samples: Samples that share their picture.
        tasks: Tasks asked of each sample.
        epsilon: Outline tolerance, see `seg_env.tasks.answer`.
        decimals: Digits of coordinates.
        pad: Whether coordinates have a fixed width.
    """
    tokenizer, image_token = policy.tokenizer, policy.processor.image_token
    dialogues = []
    for sample in samples:
        for task in tasks:
            asked = policy.chat_text(question(sample, task)).split(image_token)[-1]
            reply = answer(sample, task, epsilon=epsilon, decimals=decimals, pad=pad)
            start = len(tokenizer(asked, add_special_tokens=False).input_ids)
            text = asked + reply + tokenizer.eos_token
            tokens = tokenizer(text, add_special_tokens=False).input_ids
            dialogues.append(Dialogue(task, tuple(tokens), start))
    inputs = policy.prepare([samples[0].image], [question(samples[0], tasks[0])])
    tokens = inputs.pop("input_ids")[0].tolist()
    inputs.pop("attention_mask")
    end = len(tokens) - tokens[::-1].index(policy.tokenizer.convert_tokens_to_ids(image_token))
    return Demonstration(inputs, tuple(tokens[:end]), tuple(dialogues))


def collate(
    chosen: Sequence[tuple[Demonstration, Sequence[Dialogue]]], pad_id: int
) -> DemonstrationBatch:
    """Stack pictures and the dialogues chosen for each; prefixes must be of one length."""
    prefixes = torch.tensor([demonstration.prefix for demonstration, _ in chosen])
    inputs = {"input_ids": prefixes, "attention_mask": torch.ones_like(prefixes)}
    for key in chosen[0][0].inputs:
        inputs[key] = torch.cat([demonstration.inputs[key] for demonstration, _ in chosen]).float()
    pairs = [(row, dialogue) for row, (_, some) in enumerate(chosen) for dialogue in some]
    width = max(len(dialogue.tokens) for _, dialogue in pairs)
    tokens = np.full((len(pairs), width), pad_id)
    mask = np.zeros((len(pairs), width), dtype=np.int64)
    learn = np.zeros((len(pairs), width), dtype=np.bool_)
    for number, (_, dialogue) in enumerate(pairs):
        length = len(dialogue.tokens)
        tokens[number, :length] = dialogue.tokens
        mask[number, :length] = 1
        learn[number, dialogue.answer_start : length] = True
    rows = torch.tensor([row for row, _ in pairs])
    return DemonstrationBatch(
        inputs, rows, torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(learn)
    )


def batches(
    demonstrations: Sequence[Demonstration],
    batch_size: int,
    task_weights: dict[Task, float],
    rng: np.random.Generator,
    pad_id: int,
) -> Iterator[DemonstrationBatch]:
    """Endless batches; every object of a picture is asked one task drawn by weight."""
    while True:
        order = rng.permutation(len(demonstrations))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            picked = [demonstrations[i] for i in order[start : start + batch_size]]
            yield collate([(one, _draw(one, task_weights, rng)) for one in picked], pad_id)


def _draw(
    demonstration: Demonstration, task_weights: dict[Task, float], rng: np.random.Generator
) -> list[Dialogue]:
    """One dialogue per object; dialogues of an object stand next to each other."""
    tasks = list(dict.fromkeys(dialogue.task for dialogue in demonstration.dialogues))
    weights = np.array([task_weights.get(task, 0.0) for task in tasks])
    objects = len(demonstration.dialogues) // len(tasks)
    picks = rng.choice(len(tasks), size=objects, p=weights / weights.sum())
    return [demonstration.dialogues[i * len(tasks) + pick] for i, pick in enumerate(picks)]
