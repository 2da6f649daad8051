"""A page in the browser on which a policy answers: ask by text, by a click or by a box.

It needs Gradio, and loads nothing from elsewhere.

    simpleseg demo --policy runs/gspo/policy
    simpleseg demo --policy runs/gspo/policy --dataset my_images --split val
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console

from experiments.common.arguments import QuestionArguments
from experiments.common.command import opening, run_command
from experiments.common.policies import (
    EMBEDDED,
    OTHER_WORLD,
    SHIPPED,
    AnswerLength,
    GrammarOptions,
    PrecisionChoice,
    constrain,
    open_policy,
    say_what_is_asked,
)
from rewards.composite import DEFAULT_REWARDS, RewardSum
from seg_env.envs.referring import open_questions
from seg_env.errors import WrongOptionError

if TYPE_CHECKING:
    from experiments.demo.questions import Demo

FIRST = {
    "What is asked": ("dataset", "data-root", "split"),
    "Who answers": ("policy", "others", "frame", "max-new-tokens"),
    "The page": ("host", "port", "rewards", "output-dir"),
}


@dataclass
class Args(QuestionArguments):
    """Serve a page on which a policy answers."""

    split: str = "val"
    """Split whose images the page shows."""
    difficulty: tyro.conf.Suppress[str | None] = None
    others: tuple[str, ...] = ()
    """Further policies that visitors can choose, named as by --policy."""
    host: str = "127.0.0.1"
    """Address to listen on; by default only this machine reaches it. There is no password."""
    port: int = 8000
    """Port to listen on, 0 for any free one."""
    rewards: tuple[str, ...] = tuple(DEFAULT_REWARDS.split())
    """Rewards that are shown, as ``name=weight`` or ``package.module:Class=weight``."""
    max_new_tokens: AnswerLength = "auto"
    """Longest answer in tokens; auto: 128 for the shipped policies, 1024 for others."""
    precision: PrecisionChoice = "float32"
    """float32, bfloat16 under autocast, or auto."""
    output_dir: Path | None = None
    """Folder that keeps questions and answers as answers.jsonl; by default none does."""


def open_demo(args: Args, console: Console) -> Demo:
    """What the page asks and shows, with its policies loaded.

    Raises:
        WrongOptionError: Gradio is missing.
        ValueError: An argument is wrong.
    """
    if find_spec("gradio") is None:
        raise WrongOptionError("the page needs gradio: pip install 'simpleseg-rl[demo]'")
    rewards = RewardSum.from_spec(" ".join(args.rewards))
    from experiments.common.cloning_data import RecordedImages
    from experiments.demo.questions import Demo

    first, length = args.policy or EMBEDDED, args.answer_length()
    policies = {
        name: open_policy(
            name,
            args.precision,
            frame=args.frame,
            console=console,
            trust_remote_code=args.trust_remote_code,
        )
        for name in (first, *args.others)
    }
    dataset = open_questions(args.env, **args.environment()).dataset
    is_own = args.env != Args.env or args.dataset is not None
    if is_own:
        say_what_is_asked(first, dataset, console)
    other_world = OTHER_WORLD.format(policy=first, images="this one")
    demo = Demo(
        policies,
        rewards,
        dataset,
        images=RecordedImages(dataset) if is_own else None,
        note=other_world if first in SHIPPED else "",
        # The images that will come have no known outlines whose length could be measured.
        max_new_tokens=1024 if length == "auto" else length,
        seed=args.seed,
        output_dir=args.output_dir,
    )
    if find_spec("xgrammar") is not None:
        options, quiet = GrammarOptions(constrained=True), Console(quiet=True)
        for name, policy in policies.items():
            frame = policy.answer_frame
            if not frame.writes_tokens:
                constrain(policy, name, options, demo.max_new_tokens, frame, quiet)
                demo.constraints[name], policy.constraint = policy.constraint, None
    return demo


def main(args: Args) -> None:
    """Serve until interrupted."""
    console = Console()
    with opening():
        demo = open_demo(args, console)
        from experiments.demo.server import Server

        server = Server(demo, args.host, args.port)
    try:  # whoever reads the next line may interrupt at once
        console.print(f"open {server.address} in a browser; Ctrl-C ends it")
        server.serve()
    except KeyboardInterrupt:
        console.print("interrupted")


def command_line(words: Sequence[str] | None = None) -> None:
    """Run what the command line, or ``words``, ask for."""
    run_command(Args, main, __doc__, FIRST, words)


if __name__ == "__main__":
    command_line()
