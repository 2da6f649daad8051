"""Main job: improve a policy by GSPO and show what changed.

With no arguments it takes the embedded warm-started policy, asks it for outlines of easy procedural
scenes, trains it for some minutes on two cores, and writes a report to ``runs/gspo``:
``report.md``, ``learning_curve.png``, ``before_after.png``, ``scores.json``, ``metrics.jsonl``,
TensorBoard events, checkpoints and the improved policy.

    python experiments/run_gspo.py
    python experiments/run_gspo.py --rewards mask_iou=1.0 format=0.1 my_pkg.rewards:Compactness=0.2
    python experiments/run_gspo.py --env SimpleSeg-RefCOCO-v0 --data-root DATA --policy FOLDER

On many GPUs, each with its share of the prompts (see ``experiments/common/launch.py``):

    torchrun --nproc_per_node 8 experiments/run_gspo.py --deepspeed zero2
    deepspeed --hostfile hosts experiments/run_gspo.py --deepspeed zero3

With vLLM, FSDP or LoRA, through TRL's GRPOTrainer:

    python experiments/run_gspo.py --backend trl --help
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from agents.gspo import GSPO, GSPOConfig
from experiments.common.answer_length import longest_answer
from experiments.common.arguments import TrainingArguments
from experiments.common.brief import brief_errors
from experiments.common.constrained import constrain
from experiments.common.launch import command_words, fit_to_deepspeed, launched
from experiments.common.run import train_and_report


@dataclass
class Args(TrainingArguments):
    """Improve a policy by GSPO and show what changed."""

    gspo: GSPOConfig = field(default_factory=GSPOConfig)
    """Settings of the algorithm."""
    output_dir: Path = Path("runs/gspo")
    """Folder of the run."""


def main(args: Args) -> dict[str, Any]:
    """Run the job; returns what ``scores.json`` holds."""
    with launched(args.deepspeed) as (world, console):
        args.gspo = fit_to_deepspeed(args.gspo, args.deepspeed, console)
        args.gspo.seed = args.seed
        policy = args.open_policy(console)
        envs = args.open_environment(args.gspo, world, policy.answer_frame)
        length = args.answer_length(args.gspo.max_new_tokens)
        args.gspo.max_new_tokens = longest_answer(length, policy, envs.core, console)
        frame = envs.core.answer_frame
        longest = args.gspo.max_new_tokens
        constrain(policy, args.policy, args.grammar, longest, frame, console)
        agent = GSPO(policy, envs, args.gspo, on_error=args.on_error)
        return train_and_report(agent, args, title="GSPO", console=console, length=length)


def command_line(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the backend that the command line names, with the rest of its words.

    Args:
        words: What is read instead of the command line.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--backend", choices=("plain", "trl"), default="plain")
    chosen, rest = parser.parse_known_args(command_words(words))
    if chosen.backend == "trl":
        from experiments import run_gspo_trl

        return run_gspo_trl.main(
            tyro.cli(run_gspo_trl.Args, args=rest, description=run_gspo_trl.__doc__)
        )
    return main(tyro.cli(Args, args=rest, description=__doc__))


if __name__ == "__main__":
    with brief_errors():
        command_line()
