"""Demonstrations for behaviour cloning: tokenized questions and perfect answers about images."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from agents.policy.model import VLMPolicy
from agents.policy.processing import chat_text, prepare_inputs
from seg_env.envs.core import Question
from seg_env.envs.left_out import loading
from seg_env.envs.refine import RefineRules
from seg_env.errors import WrongOptionError
from seg_env.frames import UNIT_ANSWERS, AnswerFrame
from seg_env.geometry.polygon import VertexOrder
from seg_env.tasks import DEFAULT_TASK, Task, answer, askable, form_of, question
from seg_env.tasks.queries import QueryStyle, check_places, refer_to
from seg_env.types import Sample


@dataclass(frozen=True)
class Dialogue:
    """One question with its answer, as tokens that follow the image."""

    task: Task
    tokens: tuple[int, ...]
    """Question and answer, the end token included."""
    answer_start: int
    """Index of the first token of the answer; only the answer is learned."""


@dataclass(frozen=True)
class Demonstration:
    """An image with everything that is asked about it."""

    inputs: dict[str, NDArray[Any]]
    """The processor's output for the image alone, ``(1, ...)`` arrays; floating-point numbers as
    float16."""
    prefix: tuple[int, ...]
    """Tokens up to the end of the image: shared by all dialogues."""
    dialogues: tuple[Dialogue, ...]
    too_long: tuple[str, ...] = ()
    """Ids of samples that are left out because no outline of them is short enough."""


@dataclass(frozen=True)
class DemonstrationBatch:
    """``B`` images and ``N`` dialogues about them."""

    inputs: dict[str, Tensor]
    """Model inputs of the shared prefixes, ``B`` rows."""
    rows: Tensor
    """``(N,)`` index of the image each dialogue is about."""
    tokens: Tensor
    """``(N, T)`` dialogue tokens, padded on the right."""
    mask: Tensor
    """``(N, T)``, 1 on real tokens."""
    learn: Tensor
    """``(N, T)`` bool, true on answer tokens."""

    def select(self, dialogues: Tensor, width: int) -> DemonstrationBatch:
        """Some dialogues by their indices, their first ``width`` tokens, and all images."""
        return DemonstrationBatch(
            self.inputs,
            self.rows[dialogues],
            *(each[dialogues, :width] for each in (self.tokens, self.mask, self.learn)),
        )


def demonstrate(
    processor: Any,
    samples: Sequence[Sample],
    tasks: Sequence[Task],
    *,
    epsilon: float,
    decimals: int,
    pad: bool,
    queries: QueryStyle | None = None,
    frame: AnswerFrame = UNIT_ANSWERS,
    longest: int | None = None,
    order: VertexOrder = "canonical",
) -> Demonstration:
    """Ask every task about every sample; where a task gives a place and none exists, ask by text.

    All samples are of one image. See `seg_env.tasks.answer` for how outlines are written;
    ``queries`` says how places given in questions are drawn and written. Outlines of more than
    ``longest`` tokens, the end token included, are simplified with two or four times the tolerance;
    samples whose outlines are still too long are left out. ``order`` is the order of vertices; if
    it is random, it depends only on the sample's id and the task.
    """
    check_places(tasks, frame)
    dialogues, too_long = [], []
    written: dict[str, Any] = {"decimals": decimals, "pad": pad, "frame": frame}
    for sample in samples:
        tolerance = epsilon
        if longest is not None and any(form_of(task) == "mask" for task in tasks):
            for tolerance in (epsilon, 2 * epsilon, 4 * epsilon):
                outline = answer(sample, DEFAULT_TASK, epsilon=tolerance, **written)
                if len(processor.tokenizer(outline, add_special_tokens=False).input_ids) < longest:
                    break
            else:
                too_long.append(sample.id)
                continue
        for task in tasks:
            possible = askable(sample, task)
            numbers = frame.for_image(sample.target.size)
            place = refer_to(sample, possible, style=queries, frame=numbers)
            prompt = question(sample, possible, place)
            rng = np.random.default_rng(
                zlib.crc32(f"{sample.id} {task}".encode("utf-8", "surrogatepass"))
            )
            reply = answer(sample, task, epsilon=tolerance, order=order, rng=rng, **written)
            dialogues.append(write_dialogue(processor, task, prompt, reply))
    shown = demonstration_of(processor, samples[0].image, dialogues)
    return replace(shown, too_long=tuple(too_long))


def demonstrate_refinement(
    policy: VLMPolicy,
    rules: RefineRules,
    questions: Sequence[Question],
    firsts: Sequence[str],
    *,
    content: float,
    epsilon: float,
    decimals: int,
    pad: bool,
) -> list[Demonstration]:
    """The two turns of ``N`` episodes, each with its target answer.

    Learning from its own mistakes shows a policy the states in which it has to do better (DAgger,
    arXiv 1011.0686, section 3). The first target is the true outline. The second turn shows the
    outline of the policy's first answer, drawn and written as the environment does; its target is
    ``done`` if that outline's mask IoU is at least ``content``, else the true outline. It is left
    out where the first answer was no outline.
    """
    begun = [rules.begin(question) for question in questions]
    found = []
    for start, outcome in zip(begun, rules.step(begun, firsts), strict=True):
        truth = answer(
            start.question.sample,
            "text->mask",
            epsilon=epsilon,
            decimals=decimals,
            pad=pad,
            frame=rules.answer_frame,
        )
        replies = [(start, truth)]
        if outcome.episode.outline is not None:
            replies.append((outcome.episode, "done" if outcome.info["iou"] >= content else truth))
        for episode, reply in replies:
            seen = rules.observe(episode)
            dialogue = write_dialogue(policy.processor, "text->mask", seen["prompt"], reply)
            found.append(demonstration_of(policy.processor, seen["image"], [dialogue]))
    return found


def write_dialogue(processor: Any, task: Task, asked: str, reply: str) -> Dialogue:
    """A question and its answer as tokens, in the policy's chat format."""
    tokenizer = processor.tokenizer
    before = chat_text(processor, asked).split(processor.image_token)[-1]
    start = len(tokenizer(before, add_special_tokens=False).input_ids)
    text = before + reply + tokenizer.eos_token
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    return Dialogue(task, tuple(tokens), start)


def demonstration_of(
    processor: Any, image: NDArray[np.uint8], dialogues: Sequence[Dialogue]
) -> Demonstration:
    """An image ``(H, W, 3) uint8`` with its dialogues.

    Raises:
        UnusableSampleError: The processor refuses the image.
    """
    with loading():
        inputs = prepare_inputs(processor, [image], [""])
    tokens = inputs.pop("input_ids")[0].tolist()
    inputs.pop("attention_mask")
    image_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    end = len(tokens) - tokens[::-1].index(image_id)
    # Continuous values take half as many bytes; whole numbers (grids, masks) stay exact.
    arrays = {
        key: (value.half() if value.is_floating_point() else value).cpu().numpy()
        for key, value in inputs.items()
    }
    return Demonstration(arrays, tuple(tokens[:end]), tuple(dialogues))


def require_plain_prompts(processor: Any, image: NDArray[np.uint8]) -> None:
    """Make sure that demonstrations contain exactly the prompts that a policy is asked.

    Demonstrations split prompts after the image tokens and join them again. Families that write
    more around an image, or words before it that depend on the rest, would learn another prompt.

    Raises:
        WrongOptionError: The policy would learn another prompt.
    """
    asked = "What is it?"
    whole = prepare_inputs(processor, [image], [asked])["input_ids"][0].tolist()
    shown = demonstration_of(processor, image, [write_dialogue(processor, "text->mask", asked, "")])
    dialogue = shown.dialogues[0]
    if [*shown.prefix, *dialogue.tokens[: dialogue.answer_start]] != whole:
        raise WrongOptionError(
            f"prompts of {type(processor).__name__} cannot be cut behind the image, which this "
            f"trainer does to share it among questions: use --backend trl"
        )


def collate(
    chosen: Sequence[tuple[Demonstration, Sequence[Dialogue]]],
    pad_id: int,
    device: torch.device | str = "cpu",
) -> DemonstrationBatch:
    """Stack images and the dialogues chosen for each; prefixes must be of one length."""
    prefixes = torch.tensor([demonstration.prefix for demonstration, _ in chosen])
    inputs = {"input_ids": prefixes, "attention_mask": torch.ones_like(prefixes)}
    for key in chosen[0][0].inputs:
        arrays = [demonstration.inputs[key] for demonstration, _ in chosen]
        values = torch.from_numpy(np.concatenate(arrays))
        inputs[key] = values.float() if values.is_floating_point() else values
    rows = torch.tensor([row for row, (_, some) in enumerate(chosen) for _ in some])
    dialogues = [dialogue for _, some in chosen for dialogue in some]
    sequences = [torch.tensor(dialogue.tokens) for dialogue in dialogues]
    tokens = pad_sequence(sequences, batch_first=True, padding_value=pad_id)
    places = torch.arange(tokens.shape[1])
    mask = places < torch.tensor([[len(sequence)] for sequence in sequences])
    learn = mask & (places >= torch.tensor([[dialogue.answer_start] for dialogue in dialogues]))
    inputs = {key: value.to(device) for key, value in inputs.items()}
    return DemonstrationBatch(
        inputs, *(each.to(device) for each in (rows, tokens, mask.long(), learn))
    )


def draw(
    demonstrations: Sequence[Demonstration],
    count: int,
    task_weights: dict[Task, float],
    rng: np.random.Generator,
) -> list[tuple[Demonstration, list[Dialogue]]]:
    """Draw random images; every object of an image gets one task, drawn by weight."""
    drawn = rng.choice(len(demonstrations), size=count, replace=False, shuffle=False)
    chosen = []
    for demonstration in map(demonstrations.__getitem__, drawn):
        # Dialogues of an object stand next to each other.
        tasks = list(dict.fromkeys(dialogue.task for dialogue in demonstration.dialogues))
        weights = np.array([task_weights.get(task, 0.0) for task in tasks])
        starts = range(0, len(demonstration.dialogues), len(tasks))
        picks = rng.choice(len(tasks), size=len(starts), p=weights / weights.sum())
        asked = [
            demonstration.dialogues[start + pick] for start, pick in zip(starts, picks, strict=True)
        ]
        chosen.append((demonstration, asked))
    return chosen


def learned_tokens(chosen: Sequence[tuple[Demonstration, Sequence[Dialogue]]]) -> int:
    """Number of tokens in all answers."""
    return sum(len(each.tokens) - each.answer_start for _, some in chosen for each in some)
