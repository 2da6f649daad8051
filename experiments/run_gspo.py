"""Main job: improve a policy by GSPO and show what changed.

With no arguments it takes the embedded warm-started policy, asks it for outlines of easy procedural
scenes, trains it for some minutes on two cores, and writes a report to ``runs/gspo``:
``report.md``, ``learning_curve.png``, ``before_after.png``, ``scores.json``, ``metrics.jsonl``,
TensorBoard events, checkpoints and the improved policy.

    python experiments/run_gspo.py
    python experiments/run_gspo.py --rewards mask_iou=1.0 format=0.1 my_pkg.rewards:Compactness=0.2
    python experiments/run_gspo.py --env SimpleSeg-RefCOCO-v0 --data-root DATA --policy FOLDER

On many GPUs, each with its share of the prompts (see ``experiments/launch.py``):

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

import gymnasium as gym
import tyro

from agents.gspo import GSPO, GSPOConfig
from experiments.constrained import GrammarOptions, constrain
from experiments.launch import command_words, fit_to_deepspeed, launched
from experiments.policies import EMBEDDED, PrecisionChoice, open_policy
from experiments.trainer import EvaluationPlan, train_and_report
from seg_env.envs.vector import ReferringSegmentationVectorEnv
from seg_env.registration import ENVIRONMENT_IDS


@dataclass
class Args:
    """Improve a policy by GSPO and show what changed."""

    env: str = "SimpleSeg-Scenes-v0"
    """Environment id."""
    policy: str = EMBEDDED
    """``embedded``, a transformers folder, or a hub id."""
    rewards: tuple[str, ...] = ("mask_iou=1.0", "centroid_distance=0.5", "format=0.1")
    """Rewards as ``name=weight`` or ``package.module:Class=weight``; weight 0 only logs."""
    updates: int = 100
    """Updates to make."""
    gspo: GSPOConfig = field(default_factory=GSPOConfig)
    """Settings of the algorithm."""
    grammar: GrammarOptions = field(default_factory=GrammarOptions)
    """Which answers the policy can write."""
    data_root: str | None = None
    """Folder of RefCOCO data; by default the variable SIMPLESEG_DATA."""
    split: str = "train"
    """Split to learn from."""
    split_by: str | None = None
    """Whose split of RefCOCO data: unc, umd, google, berkeley."""
    difficulty: str | None = None
    """Of scenes: easy (default), medium, hard."""
    image_size: int | None = None
    """Side that pictures are letterboxed to; by default they keep their sizes."""
    evaluation: EvaluationPlan = field(default_factory=EvaluationPlan)
    """What is measured before, during and after."""
    precision: PrecisionChoice = "auto"
    """float32, bfloat16 under autocast, or auto: bfloat16 where the hardware has it."""
    deepspeed: str | None = None
    """Share out what it takes to train among the ranks: zero1, zero2, zero3, or the path of a
    DeepSpeed configuration (JSON). By default every rank has all of it."""
    trust_remote_code: bool = False
    """Run code that comes with a hub model; only for models you have read."""
    checkpoint_every: int = 25
    """Updates between checkpoints; the last two are kept."""
    seed: int = 0
    """Seed of the choice of scenes and of sampling."""
    output_dir: Path = Path("runs/gspo")
    """Folder of the run."""
    resume: bool = False
    """Go on from the last checkpoint in the folder, to the same numbers."""

    def environment(self) -> dict[str, Any]:
        """Arguments of the environment that are not left at their defaults."""
        given = {
            "split": self.split,
            "rewards": " ".join(self.rewards),
            "data_root": self.data_root,
            "split_by": self.split_by,
            "difficulty": self.difficulty,
            "image_size": self.image_size,
        }
        return {name: value for name, value in given.items() if value is not None}


def main(args: Args) -> dict[str, Any]:
    """Run the job; returns what ``scores.json`` holds."""
    with launched(args.deepspeed) as (world, console):
        args.gspo = fit_to_deepspeed(args.gspo, args.deepspeed, console)
        args.gspo.seed = args.seed
        policy = open_policy(args.policy, args.precision, trust_remote_code=args.trust_remote_code)
        constrain(policy, args.policy, args.grammar, args.gspo.max_new_tokens)
        envs = gym.make_vec(
            args.env,
            num_envs=args.gspo.rows_of(world),
            autoreset_mode="Disabled",
            **args.environment(),
        )
        if not isinstance(envs, ReferringSegmentationVectorEnv):
            raise ValueError(f"--env {args.env} is not one of {', '.join(ENVIRONMENT_IDS)}")
        agent = GSPO(policy, envs, args.gspo)
        return train_and_report(agent, args, title="GSPO", console=console)


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
    command_line()
