r"""GSPO of a large policy through TRL's GRPOTrainer; it leaves the same report as run_gspo.py.

Started by run_gspo.py. `torchrun` in the place of `python` uses several devices; the first process
measures and writes. docs/scaling.md tells how vLLM, FSDP and LoRA are used.

    python experiments/run_gspo.py --backend trl
    python experiments/run_gspo.py --backend trl --policy FOLDER --gspo.no-muon --trl.lora-rank 16
    torchrun --nproc_per_node 8 experiments/run_gspo.py --backend trl --policy FOLDER \
        --gspo.no-muon --trl.fsdp full_shard --trl.use-vllm --trl.vllm-mode server
"""

from __future__ import annotations

import os
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from agents.policy.model import VLMPolicy
from agents.training.checkpoints import latest_checkpoint
from agents.trl_backend.gspo import TRLGSPO
from agents.trl_backend.options import TRLOptions
from experiments.common.answer_length import longest_answer
from experiments.common.run import train_and_report
from experiments.run_gspo import Args as NativeArgs
from seg_env.envs.rules import open_questions

HONOURED = {
    *("env", "policy", "rewards", "updates", "gspo", "data_root", "split", "split_by"),
    *("difficulty", "image_size", "evaluation", "precision", "trust_remote_code"),
    *("frame", "max_new_tokens", "vision_check", "on_error"),
    *("checkpoint_every", "seed", "output_dir", "resume", "trl"),
}
"""Arguments that this backend carries out; any other must be left at its default."""


@dataclass
class Args(NativeArgs):
    """Improve a policy by GSPO through TRL's GRPOTrainer and show what changed."""

    trl: TRLOptions = field(default_factory=TRLOptions)
    """What only TRL has."""
    output_dir: Path = Path("runs/gspo_trl")
    """Folder of the run."""


def main(args: Args) -> dict[str, Any]:
    """Run the job, in each of its processes; the first returns what ``scores.json`` holds.

    Raises:
        ValueError: An argument has no counterpart in TRL.
    """
    refuse_others(args)
    args.gspo.seed = args.seed
    if args.trl.fsdp != "off":
        args.evaluation.every = 0  # no process has a whole policy to ask while weights are sharded
    first = os.environ.get("RANK", "0") == "0"
    console = Console(quiet=not first)
    policy = open_for_training(args, console)
    core = open_questions(args.env, **args.environment(), frame=policy.answer_frame)
    length = args.answer_length(args.gspo.max_new_tokens)
    args.gspo.max_new_tokens = longest_answer(length, policy, core, console)
    agent: Any = TRLGSPO(policy, core, args.gspo, args.trl, on_error=args.on_error)
    if first:
        return train_and_report(agent, args, title="GSPO on TRL", console=console, length=length)
    follow(agent, args)
    return {}


def refuse_others(args: Args) -> None:
    """Make sure that nothing was asked for that would silently not happen.

    Raises:
        ValueError: An argument has no counterpart in TRL.
    """
    for one in fields(args):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        if one.name not in HONOURED and getattr(args, one.name) != default:
            raise ValueError(
                f"--{one.name.replace('_', '-')} has no counterpart under --backend trl: leave it "
                "out, or leave --backend trl out"
            )


def open_for_training(args: Args, console: Console) -> VLMPolicy:
    """The policy, on this process's device, its weights in float32."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    policy = args.open_policy(console)
    policy.model.float()  # a step at these learning rates is too small to move a bfloat16 weight
    return policy


def follow(agent: TRLGSPO, args: Args) -> None:
    """What the other processes do: train and save when the first one does."""
    folder = args.output_dir / "checkpoints"
    checkpoint = latest_checkpoint(folder) if args.resume else None
    if checkpoint is not None:
        agent.load(checkpoint)

    def on_update(update: int, metrics: dict[str, float]) -> None:
        if update % args.checkpoint_every == 0 and update < args.updates:
            agent.save(folder / f"update_{update:06d}")

    agent.learn(args.updates, on_update)
