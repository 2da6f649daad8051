r"""Teach a policy to look again: behaviour cloning on the second turn of the refine environments.

The policy answers questions as well as it can. It is then shown its own outline, drawn and written
as the environment does, and taught to say ``done`` if it was good and else to write the true one.
It is also taught to answer the plain question with the true outline. The report compares the first
answer with the last. The result is where ``run_gspo.py`` can start in these environments, in which
a policy that never saw a second turn earns nothing:

    python experiments/run_refine.py
    python experiments/run_gspo.py --env SimpleSegRefine-Scenes-v0 --turns 2 \
        --refine-template "{outline} {question}" --policy runs/bc-refine/policy
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro
from rich.console import Console

from agents.settings import BehaviorCloningConfig
from experiments.common.arguments import FIRST, TrainingArguments
from experiments.common.command import opening, run_command
from experiments.common.logs import progress_bar
from experiments.common.policies import GrammarOptions
from seg_env.envs.left_out import LeftOut
from seg_env.envs.referring import open_questions, open_rules
from seg_env.envs.refine import RefineRules
from seg_env.errors import WrongOptionError

if TYPE_CHECKING:
    from agents.demonstrations import Demonstration
    from agents.policy.model import VLMPolicy


@dataclass
class Args(TrainingArguments):
    """Teach a policy to look again, from its own first answers."""

    env: str = "SimpleSegRefine-Scenes-v0"
    """Environment id, one of the refine environments."""
    turns: int | None = 2
    """Turns of an episode."""
    refine_template: str | None = "{outline} {question}"
    """Prompt from the second outline on: short, as the embedded policy reads letter by letter what
    it was not taught as words."""
    cloning: BehaviorCloningConfig = field(
        default_factory=lambda: BehaviorCloningConfig(
            batch_size=32, learning_rate=1e-3, points_until=0.0, boxes_until=0.0, outline_share=1.0
        )
    )
    """Settings of behaviour cloning."""
    updates: int = 300
    """Optimizer steps."""
    scenes: int = 6000
    """Questions of the training split that are answered and then demonstrated."""
    content: float = 0.5
    """Mask IoU from which a first answer is good enough to say done."""
    epsilon: float = 0.01
    """Douglas-Peucker tolerance of the outlines taught, as a share of the perimeter."""
    decimals: int = 2
    """Digits of coordinates."""
    rewards: tyro.conf.Suppress[tuple[str, ...]] = ("mask_iou=1.0",)
    grammar: tyro.conf.Suppress[GrammarOptions] = field(default_factory=GrammarOptions)
    output_dir: Path = Path("runs/bc-refine")


def main(args: Args) -> dict[str, Any]:
    """Run the job; returns what ``scores.json`` holds."""
    from agents.behavior_cloning import BehaviorCloning
    from agents.demonstrations import require_plain_prompts
    from experiments.common.launch import fit_to_adapter, fit_to_deepspeed, launched
    from experiments.common.policies import describe_data, longest_answer
    from experiments.common.run import Run

    with launched(args.deepspeed) as (world, console):
        with opening():
            args.configure(args.cloning)
            fit_to_deepspeed(args.cloning, args.deepspeed, console)
            fit_to_adapter(args.cloning, args.lora_rank, console)
            policy = args.open_policy(console)
            rules = open_rules(args.env, **args.environment(), frame=policy.answer_frame)
            if not isinstance(rules, RefineRules):
                raise WrongOptionError(
                    f"--env {args.env} has one turn; use a SimpleSegRefine environment"
                )
            length = args.answer_length()
            longest = longest_answer(length, policy, rules, console)
            require_plain_prompts(policy.processor, rules.ask(0).image)
        run = Run(args, policy, console, world, length)
        left_out = LeftOut(args.on_error)
        demonstrations = own_demonstrations(policy, rules, args, longest, console, left_out)
        with opening():
            agent = BehaviorCloning(policy, demonstrations, args.cloning, max_new_tokens=longest)
        agent.left_out = left_out
        return run.train(agent, "Looking again", learned_from=describe_data(rules.dataset))


def own_demonstrations(
    policy: VLMPolicy,
    rules: RefineRules,
    args: Args,
    longest: int,
    console: Console,
    left_out: LeftOut,
) -> list[Demonstration]:
    """Demonstrations about the policy's own first answers, sampled at temperature 1."""
    from agents.demonstrations import demonstrate_refinement
    from experiments.evaluation.loop import ask

    once = args.environment() | {"turns": None, "refine_template": None}
    questions = open_questions(args.env, **once, frame=policy.answer_frame)
    count = min(args.scenes, len(rules.dataset))
    order = np.random.default_rng(args.seed).permutation(len(rules.dataset))[:count].tolist()
    batches = [order[start : start + 64] for start in range(0, count, 64)]
    sampling: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": longest, "seed": args.seed}
    asked = ask(policy, questions, batches, left_out=left_out, **sampling)
    found: list[Demonstration] = []
    with progress_bar(console) as progress:
        task = progress.add_task("first answers", total=count, status="")
        for batch, firsts in zip(batches, asked, strict=True):
            for first in firsts:
                found += demonstrate_refinement(
                    policy,
                    rules,
                    [rules.ask(index) for index in first.indices.tolist()],
                    [texts[0] for texts in first.texts],
                    content=args.content,
                    epsilon=args.epsilon,
                    decimals=args.decimals,
                    pad=True,
                )
            progress.advance(task, len(batch))
    return found


command_line = partial(run_command, Args, main, __doc__, FIRST)
"""Run what the command line, or the words given, ask for."""


if __name__ == "__main__":
    command_line()
