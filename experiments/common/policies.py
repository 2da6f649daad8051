"""Opening the policy that a command line names, constraining it, and checking that it sees.

Needs no deep-learning library before a policy is opened.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.console import Console

from experiments.common.logs import warn
from seg_env.data.base import Dataset, not_asked
from seg_env.data.readers.refer import EMBEDDED_NAME
from seg_env.envs.core import Question, ReferringCore
from seg_env.envs.left_out import LeftOut, UnusableSampleError, ask_each, loading
from seg_env.errors import WrongOptionError
from seg_env.frames import AUTO, AnswerFrame
from seg_env.tasks import answer

if TYPE_CHECKING:
    import torch

    from agents.policy.checks import VisionReport
    from agents.policy.model import Precision, VLMPolicy

PrecisionChoice = Literal["auto", "float32", "bfloat16"]
WeightsChoice = Literal["auto", "float32", "bfloat16"]
AnswerLength = int | Literal["auto"]
"""Tokens of the longest answer, or ``"auto"``."""

EMBEDDED = "embedded"
"""The policy that reinforcement learning starts from; it knows every task of `seg_env.tasks`."""
SHIPPED = {EMBEDDED: Path(__file__).parents[2] / "agents" / "embedded" / "policy"}
"""Folder of the policy that comes with the project, by the name that command lines know."""
OTHER_WORLD = (
    "{policy} was made for procedural scenes of 128 pixels and has not seen images such as "
    "{images}: expect little of it before it is trained on them"
)
"""Said once when a shipped policy is asked about other images."""


def open_policy(
    name: str,
    precision: PrecisionChoice,
    *,
    frame: str = AUTO,
    console: Console | None = None,
    trust_remote_code: bool = False,
    weights: WeightsChoice = "auto",
    load_in_4bit: bool = False,
) -> VLMPolicy:
    """Load one of `SHIPPED`, a folder, or a hub id, and say what its numbers mean.

    Raises:
        CheckpointError: It cannot be opened; says in one line what is missing.
        WrongOptionError: The weights are less precise than the computation asked for.
        ValueError: There is no such frame.
    """
    from agents.policy.loading import CheckpointMissingError
    from agents.policy.model import VLMPolicy

    if not Path(name).exists() and (name.startswith((".", "/")) or name.count("/") > 1):
        raise CheckpointMissingError(
            f"--policy {name}: no such folder; give one, a hub id, or {' or '.join(SHIPPED)}"
        )
    policy = VLMPolicy.from_pretrained(
        SHIPPED.get(name, name),
        precision=choose_precision(precision, weights),
        dtype=weights_type(weights),
        trust_remote_code=trust_remote_code,
        frame=frame,
        load_in_4bit=load_in_4bit,
    )
    if console is not None:
        message = f"{name}: answers in frame {policy.answer_frame.description}"
        console.print(message, highlight=False, markup=False, soft_wrap=True)
    return policy


def say_what_is_asked(policy: str, dataset: Dataset, console: Console) -> None:
    """Say what a data set leaves out, and that a shipped policy has not seen such images."""
    lines = [f"{count} {reason}" for reason, count in not_asked(dataset).items()]
    lines = [f"{describe_data(dataset)}: {line}" for line in lines]
    if policy in SHIPPED and not dataset.name.startswith(("scenes", EMBEDDED_NAME)):
        images = f"those of {describe_data(dataset)}"
        lines.append(OTHER_WORLD.format(policy=policy, images=images))
    for line in lines:
        console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)


def describe_data(dataset: Dataset) -> str:
    """The name of a data set in reports."""
    return f"{dataset.name} ({dataset.split})"


def choose_precision(choice: PrecisionChoice, weights: WeightsChoice = "auto") -> Precision:
    """What ``"auto"`` means here: bfloat16 where the hardware is faster in it, else float32.

    Weights in bfloat16 are always computed with in bfloat16.

    Raises:
        WrongOptionError: float32 is asked for with such weights.
    """
    if weights == "bfloat16":
        if choice == "float32":
            raise WrongOptionError(
                "--precision float32 cannot be had from --weights bfloat16: leave one of them out"
            )
        return "bfloat16"
    if choice != "auto":
        return choice
    import torch

    from agents.training.hardware import computes_in_bfloat16

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return "bfloat16" if computes_in_bfloat16(device) else "float32"


def weights_type(choice: WeightsChoice) -> torch.dtype | None:
    """The type that weights are loaded in; None for `VLMPolicy.from_pretrained`'s own choice."""
    import torch

    return {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}[choice]


@dataclass
class GrammarOptions:
    """Which answers a policy can write."""

    constrained: bool = False
    """Only outlines, complete within the longest answer: other tokens get no probability, in
    sampling, training and evaluation. Not for policies that answer in sentences."""
    decimals: int | None = None
    """Most digits after the point; by default 2, always written, for the shipped policies, else
    3."""
    max_vertices: int | None = None
    """Most vertices of a ring."""


def constrain(
    policy: VLMPolicy,
    name: str,
    options: GrammarOptions,
    max_new_tokens: int,
    frame: AnswerFrame,
    console: Console,
) -> None:
    """Set the policy's constraint if the options ask for one; ``name`` is what --policy says.

    Raises:
        ValueError: Answers in the frame are no bracketed numbers, or xgrammar is missing.
    """
    if not options.constrained:
        return
    if frame.writes_tokens:
        raise ValueError(
            f"--grammar.constrained allows bracketed numbers, and frame "
            f"{frame.family!r} writes location tokens: leave it out, or choose "
            f"another --frame"
        )
    if frame.depends_on_image:
        console.print(
            f"frame {frame.family} has other limits for every image: the grammar allows whole "
            f"numbers of up to four digits, and so also those beyond a border. --image-size gives "
            f"all images the same limits",
            highlight=False,
            soft_wrap=True,
        )
    if find_spec("xgrammar") is None:
        raise WrongOptionError(
            "--grammar.constrained needs xgrammar: pip install 'simpleseg-rl[grammar]'"
        )
    from agents.policy.constraint import OutlineConstraint

    taught = name in SHIPPED and options.decimals is None  # to write two digits, always
    policy.constraint = OutlineConstraint.for_policy(
        policy,
        decimals=2 if taught else options.decimals or 3,
        pad=taught,
        frame=frame.widest(),
        token_budget=max_new_tokens,
        max_vertices=options.max_vertices,
    )


class TooFewImagesError(WrongOptionError):
    """There are not two images to compare."""


def compare_on_questions(policy: VLMPolicy, core: ReferringCore) -> VisionReport:
    """Score true answers to up to eight questions with their image, another one and a blank one.

    Raises:
        TooFewImagesError: There are not two questions about different images.
        UnusableSampleError: None of the samples looked at can be used.
    """
    from agents.policy.checks import compare_images
    from agents.screening import prepare_usable

    places = spread_evenly(len(core.dataset), 64)
    found: dict[bytes, Question] = {}
    left_out = LeftOut()
    for index in places:
        usable, _ = prepare_usable(policy, ask_each(core, [index], left_out), left_out)
        for question in usable:
            if question.sample.target.area:
                found.setdefault(question.image.tobytes(), question)
        if len(found) == 8:
            break
    if len(left_out) == len(places):
        raise UnusableSampleError(f"no sample can be used: {left_out.summary()}")
    if len(found) < 2:
        raise TooFewImagesError(
            f"{core.dataset.name} ({core.dataset.split}) has not two images with an object to ask "
            f"about"
        )
    answers = [answer(one.sample, one.task, frame=core.answer_frame) for one in found.values()]
    images = [one.image for one in found.values()]
    prompts = [one.prompt for one in found.values()]
    return compare_images(policy, images, prompts, answers)


def require_vision(policy: VLMPolicy, core: ReferringCore, console: Console) -> dict[str, Any]:
    """Make sure that images reach the model; prints and returns the figures.

    There are none if the data set has fewer than two images to compare.

    Raises:
        BlindPolicyError: They do not.
        UnusableSampleError: None of the samples looked at can be used.
    """
    from agents.policy.checks import BlindPolicyError

    try:
        report = compare_on_questions(policy, core)
    except TooFewImagesError as error:
        warn(console, f"not checked whether the policy sees: {error}")
        return {}
    if not report.sees:
        raise BlindPolicyError(f"{report.sentence} --no-vision-check trains it all the same.")
    console.print(report.sentence, highlight=False, soft_wrap=True)
    return report.to_json()


def longest_answer(
    choice: AnswerLength, policy: VLMPolicy, core: ReferringCore, console: Console
) -> int:
    """Tokens of the longest answer, the end token included; prints what was measured.

    ``"auto"`` is a fifth more than 99 % of up to 256 true answers have, for the longest task.

    Raises:
        WrongOptionError: No answer can be written with the number given.
        UnusableSampleError: No target can be read.
    """
    if choice != "auto":
        if choice < 1:
            raise WrongOptionError(f"--max-new-tokens {choice}: use at least 1, or auto")
        return choice
    lengths, left_out = [], LeftOut()
    for index in spread_evenly(len(core.dataset), 256):
        try:
            with loading():
                sample = core.dataset[index]
                texts = [answer(sample, task, frame=core.answer_frame) for task in core.tasks.tasks]
        except UnusableSampleError as error:  # counted where it is asked about
            left_out.add(str(index), error)
            continue
        tokens = policy.tokenizer(texts, add_special_tokens=False).input_ids
        lengths.append([len(row) + 1 for row in tokens])
    if not lengths:
        raise UnusableSampleError(f"no true answer can be written: {left_out.summary()}")
    high = float(np.quantile(lengths, 0.99, axis=0).max())
    found = math.ceil(high * 1.2)
    console.print(
        f"longest answer: {found} tokens (99% of {len(lengths)} true answers of "
        f"{core.dataset.name} ({core.dataset.split}) have at most {high:.0f}, plus a fifth)",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return found


def spread_evenly(total: int, count: int) -> list[int]:
    """At most ``count`` of ``total`` places, the first and the last among them."""
    found: list[int] = np.unique(
        np.linspace(0, max(0, total - 1), min(count, total)).astype(int)
    ).tolist()
    return found
