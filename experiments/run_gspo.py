r"""Main job: improve a policy by GSPO and show what changed.

With no arguments it takes the embedded warm-started policy, asks it for outlines in procedural
scenes, where three in ten of the objects asked for are absent, trains it for some minutes on two
cores, and writes a report to ``runs/gspo``: ``report.md``, ``learning_curve.png``,
``before_after.png``, ``scores.json``, ``metrics.jsonl``, TensorBoard events, checkpoints and the
improved policy.

    python experiments/run_gspo.py
    python experiments/run_gspo.py --rewards mask_iou=1.0 format=0.1 my_pkg.rewards:Compactness=0.2
    python experiments/run_gspo.py --env SimpleSeg-RefCOCO-v0 --data-root DATA --policy FOLDER

On many GPUs, each with its share of the prompts (see ``experiments/common/launch.py``):

    torchrun --nproc_per_node 8 experiments/run_gspo.py --deepspeed zero2
    deepspeed --hostfile hosts experiments/run_gspo.py --deepspeed zero3

An adapter instead of all weights:

    python experiments/run_gspo.py --policy FOLDER --lora-rank 16 --gspo.learning-rate 3e-4

With vLLM or FSDP, through TRL's GRPOTrainer; see docs/scaling.md:

    torchrun --nproc_per_node 8 experiments/run_gspo.py --backend trl --policy FOLDER \
        --gspo.no-muon --trl.fsdp full_shard --trl.use-vllm --trl.vllm-mode server
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from agents.settings import GSPOConfig, TRLOptions
from experiments.common.arguments import FIRST, SCENES, TrainingArguments
from experiments.common.command import opening, run_command
from seg_env.errors import WrongOptionError

HONOURED = {
    *("env", "policy", "rewards", "updates", "gspo", "data_root", "split", "split_by"),
    *("difficulty", "negatives", "image_size", "evaluation", "precision", "trust_remote_code"),
    *("frame", "max_new_tokens", "vision_check", "on_error"),
    *("dataset", "image_root", "per_annotation"),
    *("checkpoint_every", "seed", "output_dir", "resume", "backend", "trl"),
    *("lora_rank", "lora_alpha", "track", "push_to_hub"),
}
"""Arguments that TRL carries out; any other must be left at its default."""


@dataclass
class Args(TrainingArguments):
    """Improve a policy by GSPO and show what changed."""

    difficulty: str | None = None
    """Difficulty of scenes: easy, medium (default), hard."""
    negatives: float | None = None
    """For scenes: share of questions about an object that is not there, 0.3 by default; the answer
    is ``[]``, see the reward no_target."""
    gspo: GSPOConfig = field(default_factory=GSPOConfig)
    """Settings of the algorithm."""
    backend: Literal["plain", "trl"] = "plain"
    """Who trains: this project, or TRL's GRPOTrainer."""
    trl: TRLOptions = field(default_factory=TRLOptions)
    """Settings that only TRL has."""
    output_dir: Path = Path("runs/gspo")

    def __post_init__(self) -> None:
        """Choose scenes from which a cloned policy still has something to learn."""
        if self.env == SCENES and self.dataset in (None, "scenes"):
            self.difficulty = self.difficulty or "medium"
            self.negatives = 0.3 if self.negatives is None else self.negatives


def main(args: Args) -> dict[str, Any]:
    """Run the job; returns what ``scores.json`` holds."""
    if args.backend == "trl":
        return train_on_trl(args)
    if args.trl != TRLOptions():
        raise WrongOptionError("--trl… has no counterpart without --backend trl: leave it out")
    from agents.gspo import GSPO
    from experiments.common.run import train_on_policy

    return train_on_policy(args, args.gspo, GSPO, "GSPO")


def train_on_trl(args: Args) -> dict[str, Any]:
    """Run the job under TRL, in each of its processes; the first one measures and writes.

    Raises:
        WrongOptionError: An argument has no counterpart in TRL and would be ignored.
    """
    defaults = Args()
    for name, given in vars(args).items():
        if name not in HONOURED and given != getattr(defaults, name):
            raise WrongOptionError(
                f"--{name.replace('_', '-')} has no counterpart under --backend trl: leave it "
                "out, or leave --backend trl out"
            )
    if args.lora_rank:  # adapters are TRL's there
        args.trl = replace(args.trl, lora_rank=args.lora_rank, lora_alpha=args.lora_alpha)
        args.lora_rank = 0
    from agents.trl_backend.gspo import TRLGSPO
    from experiments.common.launch import trainer_process
    from experiments.common.policies import describe_data, longest_answer
    from experiments.common.run import Run
    from seg_env.envs.referring import open_questions

    args.gspo.seed = args.seed
    if args.trl.fsdp != "off":
        args.evaluation.every = 0  # no process has a whole policy to ask while weights are sharded
    world, console = trainer_process()
    with opening():
        policy = args.open_policy(console)
        policy.model.float()  # steps at these learning rates are too small for bfloat16 weights
        core = open_questions(args.env, **args.environment(), frame=policy.answer_frame)
        length = args.answer_length(args.gspo.max_new_tokens)
        args.gspo.max_new_tokens = longest_answer(length, policy, core, console)
    run = Run(args, policy, console, world, length)
    with opening():
        agent = TRLGSPO(policy, core, args.gspo, args.trl, on_error=args.on_error)
        agent.share_out(int(os.environ.get("WORLD_SIZE", "1")))  # or tells how it could be
    return run.train(agent, "GSPO on TRL", learned_from=describe_data(core.dataset))


command_line = partial(run_command, Args, main, __doc__, FIRST)
"""Run what the command line, or the words given, ask for."""


if __name__ == "__main__":
    command_line()
