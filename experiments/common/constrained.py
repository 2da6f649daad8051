"""Decoding constrained to the grammar, as command lines ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rich.console import Console

from experiments.common.policies import SHIPPED
from seg_env.errors import WrongOptionError
from seg_env.frames import AnswerFrame

if TYPE_CHECKING:
    from agents.policy.model import VLMPolicy

SHIPPED_DECIMALS = 2
"""Digits that the shipped policies were taught to write, all of them always."""


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
    """Set the policy's constraint if the options ask for one.

    Args:
        policy: Changed in place.
        name: How the policy was named on the command line.
        options: What to allow.
        max_new_tokens: Longest answer, within which it must be complete.
        frame: Frame of the answers, of the environment that asks. Where its limits are other ones
            for every image, whole numbers of up to four digits are allowed.
        console: Where that is told.

    Raises:
        ValueError: Answers in the policy's frame are no bracketed numbers, or xgrammar is missing.
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
    taught = name in SHIPPED and options.decimals is None
    if find_spec("xgrammar") is None:
        raise WrongOptionError(
            "--grammar.constrained needs xgrammar: pip install 'simpleseg-rl[grammar]'"
        )
    from agents.policy.constraint import OutlineConstraint

    policy.constraint = OutlineConstraint.for_policy(
        policy,
        decimals=SHIPPED_DECIMALS if taught else options.decimals or 3,
        pad=taught,
        frame=frame.widest(),
        token_budget=max_new_tokens,
        max_vertices=options.max_vertices,
    )
