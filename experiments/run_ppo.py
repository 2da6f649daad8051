"""Improve a policy by PPO with a critic and show what changed.

As ``run_gspo.py``, with an advantage for every token: a value head on the policy's hidden states
says what an answer may still earn, and each vertex earns what it added to the reward. The report
has the curves of the critic besides, in ``training_curves.png``.

    python experiments/run_ppo.py
    python experiments/run_ppo.py --ppo.credit answer --ppo.critic separate
    python experiments/run_ppo.py --env SimpleSeg-RefCOCO-v0 --data-root DATA --policy FOLDER
    torchrun --nproc_per_node 8 experiments/run_ppo.py --deepspeed zero2
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from agents.ppo import PPO, PPOConfig
from experiments.common.answer_length import longest_answer
from experiments.common.arguments import TrainingArguments
from experiments.common.brief import brief_errors
from experiments.common.constrained import constrain
from experiments.common.files import write_atomically
from experiments.common.launch import command_words, fit_to_deepspeed, launched
from experiments.common.logs import read_metrics
from experiments.common.report_curves import plot_training
from experiments.common.run import train_and_report


@dataclass
class Args(TrainingArguments):
    """Improve a policy by PPO with a critic and show what changed."""

    ppo: PPOConfig = field(default_factory=lambda: PPOConfig(credit="vertex"))
    """Settings of the algorithm."""
    updates: int = 240
    """Updates to make."""
    output_dir: Path = Path("runs/ppo")
    """Folder of the run."""


def main(args: Args) -> dict[str, Any]:
    """Run the job; returns what ``scores.json`` holds."""
    with launched(args.deepspeed) as (world, console):
        args.ppo = fit_to_deepspeed(args.ppo, args.deepspeed, console)
        args.ppo.seed = args.seed
        policy = args.open_policy(console)
        envs = args.open_environment(args.ppo, world, policy.answer_frame)
        length = args.answer_length(args.ppo.max_new_tokens)
        args.ppo.max_new_tokens = longest_answer(length, policy, envs.core, console)
        frame = envs.core.answer_frame
        longest = args.ppo.max_new_tokens
        constrain(policy, args.policy, args.grammar, longest, frame, console)
        agent = PPO(policy, envs, args.ppo, on_error=args.on_error)
        scores = train_and_report(agent, args, title="PPO", console=console, length=length)
        if world.is_main:
            add_curves(args.output_dir)
        return scores


def add_curves(folder: Path) -> None:
    """Draw the critic's curves and put them into the report of a finished run."""
    plot_training(read_metrics(folder), folder / "training_curves.png")
    report = folder / "report.md"
    text = (
        "\nThe critic (what it foresees of the rewards), the distance to the policy that sampled "
        "and to the one\nthat training started from, and what is clipped:\n\n"
        "![Training curves](training_curves.png)\n"
    )
    write_atomically(report, report.read_text() + text)


if __name__ == "__main__":
    with brief_errors():
        main(tyro.cli(Args, args=command_words(), description=__doc__))
