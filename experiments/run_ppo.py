"""Improve a policy by PPO with a critic and show what changed.

Like ``run_gspo.py``, with an advantage for every token: a value head on the policy's hidden states
says what an answer may still earn, and each vertex earns what it added to the reward.

    python experiments/run_ppo.py
    python experiments/run_ppo.py --ppo.credit answer --ppo.critic separate
    python experiments/run_ppo.py --env SimpleSeg-RefCOCO-v0 --data-root DATA --policy FOLDER
    torchrun --nproc_per_node 8 experiments/run_ppo.py --deepspeed zero2
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from agents.settings import PPOConfig
from experiments.common.arguments import FIRST, TrainingArguments
from experiments.common.command import run_command


@dataclass
class Args(TrainingArguments):
    """Improve a policy by PPO with a critic and show what changed."""

    ppo: PPOConfig = field(default_factory=lambda: PPOConfig(credit="vertex"))
    """Settings of the algorithm."""
    updates: int = 240
    output_dir: Path = Path("runs/ppo")


def main(args: Args) -> dict[str, Any]:
    """Run the job; returns what ``scores.json`` holds."""
    from agents.ppo import PPO
    from experiments.common.run import train_on_policy

    return train_on_policy(args, args.ppo, PPO, "PPO")


command_line = partial(run_command, Args, main, __doc__, FIRST)
"""Run what the command line, or the words given, ask for."""


if __name__ == "__main__":
    command_line()
