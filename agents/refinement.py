"""Demonstrations of the second look: a policy's own first outlines, and what they should have been.

Learning from one's own mistakes shows the states in which one will have to do better (DAgger,
arXiv 1011.0686, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence

from agents.demonstrations import Demonstration, show, write_dialogue
from agents.policy import VLMPolicy
from seg_env.envs.core import Question
from seg_env.envs.refine_rules import RefineRules
from seg_env.tasks import answer


def demonstrate_refinement(
    policy: VLMPolicy,
    rules: RefineRules,
    questions: Sequence[Question],
    firsts: Sequence[str],
    *,
    epsilon: float,
    decimals: int,
    pad: bool,
) -> list[Demonstration]:
    """The first turn and the second one of ``N`` episodes, each with the true outline as answer.

    The second is asked about the outline of the first answer, as the environment draws and writes
    it; it is left out where the first answer was none.

    Args:
        policy: Whose processor is used.
        rules: What episodes consist of.
        questions: ``N`` questions.
        firsts: ``N`` first answers, the policy's own.
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
            start.question.sample, "text->mask", epsilon=epsilon, decimals=decimals, pad=pad
        )
        episodes = [start, outcome.episode] if outcome.episode.outline is not None else [start]
        for seen in map(rules.observe, episodes):
            dialogue = write_dialogue(policy.processor, "text->mask", seen["prompt"], truth)
            found.append(show(policy.processor, seen["image"], [dialogue]))
    return found
