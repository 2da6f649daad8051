r"""Teach a policy to look again: behaviour cloning on the second turn of the refine environments.

The policy answers questions as it can; then it is shown its own outline, drawn and written as the
environment does, and taught to say ``done`` if it was good and else to write the true one; and also
the plain question with the true outline. The report compares the first answer with the last. What
comes out is where ``run_gspo.py`` can start in these environments, in which a policy that never saw
a second turn earns nothing:

    python experiments/run_bc_refine.py
    python experiments/run_gspo.py --env SimpleSegRefine-Scenes-v0 --turns 2 \
        --refine-template "{outline} {question}" --policy runs/bc-refine/policy
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from agents.behavior_cloning import BehaviorCloning, BehaviorCloningConfig
from agents.demonstrations import Demonstration
from agents.policy import VLMPolicy
from agents.refinement import demonstrate_refinement
from experiments.brief_errors import brief_errors
from experiments.evaluation import ask, question_noise
from experiments.launch import command_words, fit_to_deepspeed, launched
from experiments.policies import open_policy
from experiments.progress import progress_bar
from experiments.questions import open_rules
from experiments.trainer import train_and_report
from experiments.training_arguments import TrainingArguments
from seg_env.envs.refine_rules import RefineRules

BATCH = 64
"""Questions asked at a time."""


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
    max_new_tokens: int = 128
    """Longest answer in tokens."""
    output_dir: Path = Path("runs/bc-refine")
    """Folder of the run; the policy is written to ``policy/`` in it."""


def main(args: Args) -> dict[str, Any]:
    """Run the job; returns what ``scores.json`` holds."""
    with launched(args.deepspeed) as (_, console):
        args.cloning = fit_to_deepspeed(args.cloning, args.deepspeed, console)
        args.cloning.seed = args.seed
        rules = open_rules(args.env, **args.environment())
        if not isinstance(rules, RefineRules):
            raise SystemExit(f"--env {args.env} has one turn; use a SimpleSegRefine environment")
        policy = open_policy(args.policy, args.precision, trust_remote_code=args.trust_remote_code)
        demonstrations = own_demonstrations(policy, rules, args, console)
        agent = BehaviorCloning(
            policy, demonstrations, args.cloning, max_new_tokens=args.max_new_tokens
        )
        return train_and_report(agent, args, title="Looking again", console=console)


def own_demonstrations(
    policy: VLMPolicy, rules: RefineRules, args: Args, console: Console
) -> list[Demonstration]:
    """Demonstrations about the policy's own first answers, sampled at temperature 1."""
    count = min(args.scenes, len(rules.core.dataset))
    order = np.random.default_rng(args.seed).permutation(len(rules.core.dataset))[:count]
    found: list[Demonstration] = []
    policy.model.eval()
    with progress_bar(console) as progress:
        task = progress.add_task("first answers", total=count, status="")
        for start in range(0, count, BATCH):
            some = order[start : start + BATCH].tolist()
            questions = [rules.core.ask(index) for index in some]
            firsts, _ = ask(
                policy,
                questions,
                temperature=1.0,
                answers=1,
                max_new_tokens=args.max_new_tokens,
                noise=question_noise(args.seed, some, 1, args.max_new_tokens),
            )
            found += demonstrate_refinement(
                policy,
                rules,
                questions,
                firsts,
                content=args.content,
                epsilon=args.epsilon,
                decimals=args.decimals,
                pad=True,
            )
            progress.advance(task, len(some))
    return found


if __name__ == "__main__":
    with brief_errors():
        main(tyro.cli(Args, args=command_words(), description=__doc__))
