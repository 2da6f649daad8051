"""What is made sure of before a policy that the project did not make is trained."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from agents.policy.checks import BlindPolicyError, VisionReport, compare_images
from agents.policy.model import VLMPolicy
from agents.screening import prepare_usable
from experiments.common.answer_length import spread_evenly
from seg_env.envs.core import Question, ReferringCore
from seg_env.envs.left_out import LeftOut, UnusableSampleError, ask_each
from seg_env.errors import WrongOptionError
from seg_env.tasks import answer

QUESTIONS = 8
"""True answers that are scored with and without their image."""
CANDIDATES = 64
"""Samples that they are chosen from, spread evenly over the data set."""


class TooFewImagesError(WrongOptionError):
    """There are not two images to compare."""


def compare_on_questions(policy: VLMPolicy, core: ReferringCore) -> VisionReport:
    """Score true answers to some questions with their image, with another one and a blank one.

    Raises:
        TooFewImagesError: There are not two questions about different images.
        UnusableSampleError: None of the samples looked at can be used.
    """
    chosen = _different_images(policy, core)
    answers = [answer(one.sample, one.task, frame=core.answer_frame) for one in chosen]
    images, prompts = [one.image for one in chosen], [one.prompt for one in chosen]
    return compare_images(policy, images, prompts, answers)


def require_vision(policy: VLMPolicy, core: ReferringCore, console: Console) -> dict[str, Any]:
    """Make sure that images reach the model; says aloud what was found.

    Returns:
        The figures, empty where there are not two images to compare.

    Raises:
        BlindPolicyError: They do not.
        UnusableSampleError: None of the samples looked at can be used.
    """
    try:
        report = compare_on_questions(policy, core)
    except TooFewImagesError as error:
        console.print(
            f"[yellow]not checked whether the policy sees: {error}[/yellow]", soft_wrap=True
        )
        return {}
    if not report.sees:
        raise BlindPolicyError(f"{report.sentence} --no-vision-check trains it all the same.")
    console.print(report.sentence, highlight=False, soft_wrap=True)
    return report.to_json()


def _different_images(policy: VLMPolicy, core: ReferringCore) -> list[Question]:
    """Some questions about things that are there, each about an image of its own."""
    places = spread_evenly(len(core.dataset), CANDIDATES)
    found: dict[bytes, Question] = {}
    left_out = LeftOut()
    for index in places:
        for question in ask_each(core, [index], left_out):
            usable, _ = prepare_usable(policy, [question], left_out)
            if usable and question.sample.target.area:
                found.setdefault(question.image.tobytes(), question)
        if len(found) == QUESTIONS:
            break
    if len(left_out) == len(places):
        raise UnusableSampleError(f"no sample can be used: {left_out.summary()}")
    if len(found) < 2:
        raise TooFewImagesError(
            f"{core.dataset.name} ({core.dataset.split}) has not two images with an object to ask "
            f"about"
        )
    return list(found.values())
