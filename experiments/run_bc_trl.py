"""Behaviour cloning of a large policy on any environment's data, through TRL's SFTTrainer.

Started by run_bc.py. It leaves out of the paper's recipe: asking every sentence twice. `torchrun`
in the place of `python` uses several devices.

    python experiments/run_bc.py --backend trl --env SimpleSeg-RefCOCO-v0 --data-root DATA
    python experiments/run_bc.py --backend trl --data /data/annotated
    torchrun --nproc_per_node 8 experiments/run_bc.py --backend trl --policy FOLDER --paper
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from agents.policy.model import VLMPolicy
from agents.training.checkpoints import latest_checkpoint
from agents.trl_backend.sft import (
    SupervisedFineTuning,
    SupervisedFineTuningConfig,
    with_papers_optimizer,
)
from experiments.common.answer_length import AnswerLength, longest_answer
from experiments.common.before_training import require_vision
from experiments.common.cloning_data import open_records
from experiments.common.files import write_json
from experiments.common.logs import RunLog, keep_latest, read_metrics, start_run
from experiments.common.policies import (
    EMBEDDED,
    SHIPPED,
    PrecisionChoice,
    answer_length,
    open_policy,
)
from experiments.common.progress import progress_bar
from experiments.common.report import (
    Evaluations,
    plot_before_after,
    plot_cloning,
    rich_table,
    scores_of,
)
from experiments.common.run import EvaluationPlan, left_out_lines
from experiments.evaluation.loop import Evaluation, evaluate, open_questions
from seg_env.envs.core import ReferringCore
from seg_env.envs.left_out import LeftOut
from seg_env.frames import AUTO, AnswerFrame


@dataclass
class Args:
    """Teach a policy from a data set through TRL's SFTTrainer."""

    env: str = "SimpleSeg-Scenes-v0"
    """Environment id, whose data set is learned from, and whose questions are asked."""
    data: str | None = None
    """Annotated pictures to learn from in place of that data set, for pre-training: a folder of
    experiments/annotate.py, or a .jsonl or .parquet file."""
    policy: str = EMBEDDED
    """``embedded``, ``embedded-tasks``, a transformers folder, or a hub id."""
    updates: int = 100
    """Updates to make."""
    sft: SupervisedFineTuningConfig = field(default_factory=SupervisedFineTuningConfig)
    """Settings of fine-tuning."""
    paper: bool = False
    """The paper's optimizer: Muon, and 256 questions in every update over all processes, from which
    ``--sft.accumulation`` follows. Its rates are the defaults of ``--sft`` already."""
    data_root: str | None = None
    """Folder of RefCOCO data; by default the variable SIMPLESEG_DATA."""
    split: str = "train"
    """Split to learn from."""
    split_by: str | None = None
    """Whose split of RefCOCO data: unc, umd, google, berkeley."""
    difficulty: str | None = None
    """Of scenes: easy (default), medium, hard."""
    evaluation: EvaluationPlan = field(default_factory=EvaluationPlan)
    """What is measured before, during and after; with 0 questions nothing is, as is needed where
    weights are sharded."""
    frame: str = AUTO
    """What the numbers that the policy writes mean: auto (what its folder records, else what its
    family writes), unit, permille, pixels, qwen2.5-vl, florence, paligemma, pixel:WxH, or a model
    type such as qwen3_vl. It is taught and measured in this frame, and records it."""
    max_new_tokens: AnswerLength = "auto"
    """Longest answer of those evaluations, in tokens; auto: 128 for the shipped policies, and for
    others measured on outlines of the ground truth in their own tokens."""
    vision_check: bool = True
    """Refuse to train a policy that images do not reach; not asked of the shipped policies."""
    on_error: Literal["skip", "error"] = "skip"
    """Images that are broken or that the processor refuses: left out and counted, or an error."""
    precision: PrecisionChoice = "auto"
    """float32, bfloat16 under autocast, or auto: bfloat16 where the hardware has it. Weights are
    kept in float32: steps at these learning rates are too small to move a bfloat16 weight."""
    trust_remote_code: bool = False
    """Run code that comes with a hub model; only for models you have read."""
    checkpoint_every: int = 100
    """Updates between checkpoints; the last two are kept."""
    seed: int = 0
    """Seed of the order of samples, tasks and wordings."""
    output_dir: Path = Path("runs/bc_trl")
    """Folder of the run; the policy is written to ``policy/`` in it."""
    resume: bool = False
    """Go on from the last checkpoint in the folder, to the same numbers."""

    def questions(self, split: str, frame: AnswerFrame) -> ReferringCore:
        """The questions of a split, answered in a frame."""
        given = {
            "data_root": self.data_root,
            "split_by": self.split_by,
            "difficulty": self.difficulty,
        }
        found = {name: value for name, value in given.items() if value is not None}
        return open_questions(self.env, split=split, frame=frame, **found)


def main(args: Args) -> dict[str, Any]:
    """Run the job, in each of its processes; the first returns what ``scores.json`` holds."""
    console, start = Console(), time.perf_counter()
    first = os.environ.get("RANK", "0") == "0"
    args.sft.seed = args.seed
    if args.paper:
        args.sft = with_papers_optimizer(args.sft, int(os.environ.get("WORLD_SIZE", "1")))
    policy = open_for_training(args, console if first else Console(quiet=True))
    frame = policy.answer_frame
    core = args.questions(args.evaluation.split, frame)
    dataset = open_records(args.data) if args.data else args.questions(args.split, frame).dataset
    longest = 0  # only the first process asks
    if first:
        length = answer_length(args.max_new_tokens, args.policy)
        longest = longest_answer(length, policy, core, console)
        if args.vision_check and args.policy not in SHIPPED and not args.resume:
            require_vision(policy, core, console)
        # Only now, so that what was refused leaves no folder behind.
        start_run(args.output_dir, args, resume=args.resume)
    agent = SupervisedFineTuning(
        policy, dataset, args.sft, max_new_tokens=longest, on_error=args.on_error
    )
    left_out = LeftOut(args.on_error)
    before = measure_before(agent, core, args, left_out) if first else {}
    checkpoint = latest_checkpoint(args.output_dir / "checkpoints") if args.resume else None
    if checkpoint is not None:
        agent.load(checkpoint)
        console.print(f"resumed after update {agent.update}")
    train(agent, core, args, console if first else Console(quiet=True), first=first)
    agent.save_policy(args.output_dir / "policy")
    if not first:
        return {}
    plot_cloning(read_metrics(args.output_dir), args.output_dir / "learning_curve.png")
    scores = {
        "dataset": core.dataset.name,
        "split": core.dataset.split,
        "updates": agent.update,
        "seed": args.seed,
        "minutes": (time.perf_counter() - start) / 60,
        "frame": policy.answer_frame.description,
    }
    agent.left_out.collect()
    if before:
        after = measure(agent, core, args, left_out)
        scores |= scores_of(before, after)
        pictures = args.output_dir / "before_after.png"
        plot_before_after(core, before["greedy"], after["greedy"], pictures)
        console.print(rich_table(scores, f"Behaviour cloning on {core.dataset.name}"))
    scores["left_out"] = {"measuring": left_out.reasons, "learning": agent.left_out.reasons}
    for line in left_out_lines(scores):
        console.print(f"[yellow]{line}[/yellow]", highlight=False, soft_wrap=True)
    write_json(args.output_dir / "scores.json", scores)
    console.print(f"{scores['minutes']:.1f} minutes, policy in {args.output_dir / 'policy'}")
    return scores


def open_for_training(args: Args, console: Console) -> VLMPolicy:
    """The policy, on this process's device, its weights in float32."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    policy = open_policy(
        args.policy,
        args.precision,
        frame=args.frame,
        console=console,
        trust_remote_code=args.trust_remote_code,
    )
    policy.model.float()
    return policy


def measure_before(
    agent: SupervisedFineTuning, core: ReferringCore, args: Args, left_out: LeftOut
) -> Evaluations:
    """The policy that training starts from; kept, since a resumed run needs it too."""
    store = args.output_dir / "before.json"
    if store.exists():
        stored = json.loads(store.read_text())
        return {kind: Evaluation.from_json(value) for kind, value in stored.items()}
    before = measure(agent, core, args, left_out)
    write_json(store, {kind: value.to_json() for kind, value in before.items()})
    return before


def measure(
    agent: SupervisedFineTuning, core: ReferringCore, args: Args, left_out: LeftOut
) -> Evaluations:
    """Greedy and sampled answers to the held-out questions, or nothing if there are none."""
    plan = args.evaluation
    if not plan.questions:
        return {}
    questions = np.arange(min(plan.questions, len(core.dataset)))
    ways = {"greedy": (0.0, 1), "sampled": (1.0, plan.answers)}
    return {
        kind: evaluate(
            agent.policy,
            core,
            questions,
            temperature=temperature,
            answers=answers,
            max_new_tokens=agent.max_new_tokens,
            seed=args.seed,
            left_out=left_out,
        )
        for kind, (temperature, answers) in ways.items()
    }


def train(
    agent: SupervisedFineTuning, core: ReferringCore, args: Args, console: Console, *, first: bool
) -> None:
    """Train with a progress bar; the first process logs and measures, all of them save."""
    plan, checkpoints = args.evaluation, args.output_dir / "checkpoints"
    some = np.arange(min(plan.curve_questions, plan.questions, len(core.dataset)))
    log = RunLog(args.output_dir, start=agent.update) if first else None
    with progress_bar(console) as progress:
        task = progress.add_task("cloning", total=args.updates, completed=agent.update, status="")

        def on_update(update: int, metrics: dict[str, float]) -> None:
            if log is not None:
                if len(some) and plan.every and update % plan.every == 0:
                    found = _greedy(agent, core, some, args)
                    metrics["eval/greedy_giou"] = float(found.iou.mean())
                    metrics["eval/well_formed"] = float(found.valid.mean())
                log.write(update, metrics)
            progress.update(task, completed=update, status=f"loss {metrics['train/loss']:.3f}")
            if update % args.checkpoint_every == 0:
                agent.save(checkpoints / f"update_{update:06d}")
                if first:
                    keep_latest(checkpoints)

        agent.learn(args.updates, on_update)
    if log is not None:
        log.close()


def _greedy(
    agent: SupervisedFineTuning, core: ReferringCore, some: NDArray[np.int64], args: Args
) -> Evaluation:
    """Greedy answers to a few held-out questions."""
    return evaluate(
        agent.policy,
        core,
        some,
        max_new_tokens=agent.max_new_tokens,
        left_out=LeftOut(args.on_error),
    )
