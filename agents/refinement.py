"""Demonstrations of the second look: a policy's own first outlines, and what they should have been.

Learning from one's own mistakes shows the states in which one will have to do better (DAgger,
arXiv 1011.0686, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence

from agents.demonstrations import Demonstration, show, write_dialogue
from agents.policy.model import VLMPolicy
from seg_env.envs.core import Question
from seg_env.envs.refine_rules import RefineRules
from seg_env.tasks import answer


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
    """The first turn and the second one of ``N`` episodes, each with the answer to be given.

    In the first turn that is the true outline. The second is asked about the outline of the first
    answer, as the environment draws and writes it: the answer is ``done`` if it is good enough and
    else the true outline. It is left out where the first answer was no outline.

    Args:
        policy: Whose processor is used.
        rules: What episodes consist of.
        questions: ``N`` questions.
        firsts: ``N`` first answers, the policy's own.
        content: Mask IoU from which an outline is good enough.
        epsilon: Outline tolerance, see `seg_env.tasks.answer`.
        decimals: Digits of coordinates.
        pad: Whether coordinates have a fixed width.

    Returns:
        At most ``2 N`` demonstrations.
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
            frame=rules.core.answer_frame,
        )
        replies = [(start, truth)]
        if outcome.episode.outline is not None:
            replies.append((outcome.episode, "done" if outcome.info["iou"] >= content else truth))
        for episode, reply in replies:
            seen = rules.observe(episode)
            dialogue = write_dialogue(policy.processor, "text->mask", seen["prompt"], reply)
            found.append(show(policy.processor, seen["image"], [dialogue]))
    return found
