r"""Warm start: teach a tiny policy from nothing to outline procedural scenes, by behaviour cloning.

The shipped policy was made by this script (docs/learning.md has the command, and tells how it was
chosen). It leaves out two parts of the paper's recipe: answer sentences and real photos.

    python experiments/run_bc.py --output-dir runs/bc

It also learns from annotated images, and goes on from a policy (docs/stages.md):

    python experiments/run_bc.py --dataset runs/annotate --output-dir runs/web
    python experiments/run_bc.py --policy runs/web/policy --cloning.points-until 0 \
        --cloning.boxes-until 0 --output-dir runs/sft

With several ranks each of them has its share of the images:

    torchrun --nproc_per_node 8 experiments/run_bc.py --deepspeed zero2

Tasks that give a place, and questions about objects that are not there:

    python experiments/run_bc.py --task "text->mask=0.6 point->mask=0.2 bbox->mask=0.2" \
        --negatives 0.1

Large policies, on the data of any environment, are taught through TRL's SFTTrainer, which has
options of its own:

    python experiments/run_bc.py --backend trl --help
    python experiments/run_bc.py --backend trl --policy FOLDER --env SimpleSeg-RefCOCO-v0
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import tyro
from rich.console import Console

from agents.embedded import TinyConfig
from agents.settings import (
    BehaviorCloningConfig,
    OnPolicyConfig,
    SupervisedFineTuningConfig,
    with_papers_optimizer,
)
from experiments.common.arguments import FIRST, SCENES, EvaluationPlan, RunArguments
from experiments.common.command import command_words, opening, run_command
from experiments.common.policies import (
    WeightsChoice,
    choose_precision,
    describe_data,
    weights_type,
)
from rewards.mask_iou import MaskIoU
from seg_env.data.scenes import Scenes
from seg_env.data.scenes.layout import Difficulty
from seg_env.envs.left_out import LeftOut
from seg_env.envs.referring import open_questions
from seg_env.errors import WrongOptionError
from seg_env.geometry.polygon import VertexOrder
from seg_env.grammar.answers import read_answer
from seg_env.tasks import DEFAULT_TASK, TaskMixture, answer, read_task_weights
from seg_env.tasks.queries import QueryStyle

if TYPE_CHECKING:
    from agents.policy.model import VLMPolicy
    from experiments.common.cloning_data import LabelledImages
    from experiments.common.run import Run


@dataclass
class Args(RunArguments):
    """Teach a tiny policy from nothing to outline procedural scenes."""

    backend: Literal["plain", "trl"] = "plain"
    """Who trains: this project, or TRL's SFTTrainer."""
    updates: int = 1600
    """Optimizer steps."""
    cloning: BehaviorCloningConfig = field(
        default_factory=lambda: BehaviorCloningConfig(
            learning_rate=3e-3, final_rate=0.02, soft_targets=1.0
        )
    )
    """Settings of behaviour cloning."""
    model: TinyConfig = field(default_factory=TinyConfig)
    """Shape of a new policy."""
    policy: str | None = None  # type: ignore[assignment]
    """What to start from instead of random weights: ``embedded``, a transformers folder, or a hub
    id; of the kind of the embedded policy, whose prompts all have one length up to the image's
    end."""
    data: str | None = None
    """Another name of --dataset: annotated images to learn from instead of scenes."""
    difficulty: str | None = "easy"
    """Scenes to learn from and to be measured on: easy, medium, hard."""
    scenes: int = 20_000
    """Training scenes; every object of each is asked about. With --data: most images used."""
    mixture: str | None = None
    """Difficulties of the training scenes with their shares, ``"easy=0.7 medium=0.3"``; by default
    all are of --difficulty. ``alike`` are easy scenes in which only colour tells objects apart."""
    mirror: bool = False
    """Also learn from every image mirrored, with left and right swapped in words, too."""
    negatives: float | None = 0.0
    """Share of the scenes with a question about an object that is not there."""
    task: str | None = None
    """What is asked once the policy knows where things are, instead of outlines, boxes and points
    by expression: a task, or several with weights."""
    queries: QueryStyle = field(default_factory=QueryStyle)
    """How places given in questions are drawn and written."""
    epsilon: float = 0.01
    """Douglas-Peucker tolerance of the outlines taught, as a share of the perimeter."""
    order: VertexOrder = "canonical"
    """Order of the vertices taught: canonical (clockwise from the topmost), random-start (clockwise
    from any), either-direction, unordered."""
    decimals: int = 2
    """Digits of coordinates; a step is 1.3 pixels of a 128-pixel scene."""
    evaluation: EvaluationPlan = field(default_factory=lambda: EvaluationPlan(every=250))
    """What is measured before, during and after, on held-out scenes."""
    checkpoint_every: int = 250
    output_dir: Path = Path("runs/bc")
    env: tyro.conf.Suppress[str] = SCENES
    trust_remote_code: tyro.conf.Suppress[bool] = False

    def __post_init__(self) -> None:
        self.dataset, self.data = self.dataset or self.data, None

    def environment(self) -> dict[str, Any]:
        """Arguments of the environment; scenes measured on are of the kind learned from."""
        found = super().environment()
        scenes = self.dataset in (None, "scenes")
        if not scenes:
            found.pop("difficulty", None)
        if not scenes or not self.negatives:
            found.pop("negatives", None)
        return found


@dataclass
class TRLArgs(RunArguments):
    """Teach a policy from a data set through TRL's SFTTrainer."""

    backend: Literal["plain", "trl"] = "trl"
    """Who trains: this project, or TRL's SFTTrainer."""
    data: str | None = None
    """Another name of --dataset."""
    sft: SupervisedFineTuningConfig = field(default_factory=SupervisedFineTuningConfig)
    """Settings of fine-tuning."""
    paper: bool = False
    """The paper's optimizer: Muon, and 256 questions in every update over all processes, from which
    ``--sft.accumulation`` follows. Its rates are the defaults of ``--sft`` already."""
    checkpoint_every: int = 100
    output_dir: Path = Path("runs/bc_trl")
    lora_rank: tyro.conf.Suppress[int] = 0
    lora_alpha: tyro.conf.Suppress[int] = 32
    lora_targets: tyro.conf.Suppress[tuple[str, ...]] = ()
    merge_adapter: tyro.conf.Suppress[bool] = False
    load_in_4bit: tyro.conf.Suppress[bool] = False
    deepspeed: tyro.conf.Suppress[str | None] = None
    freeze_vision: tyro.conf.Suppress[bool] = False
    vision_learning_rate: tyro.conf.Suppress[float | None] = None
    gradient_checkpointing: tyro.conf.Suppress[bool] = False
    weights: tyro.conf.Suppress[WeightsChoice] = "auto"

    def __post_init__(self) -> None:
        self.dataset, self.data = self.dataset or self.data, None


def main(args: Args) -> dict[str, Any]:
    """Run the job; returns what ``scores.json`` holds."""
    from agents.behavior_cloning import BehaviorCloning
    from agents.demonstrations import require_plain_prompts
    from agents.policy.soft_targets import SoftTargets
    from experiments.common.cloning_data import demonstrate_images
    from experiments.common.launch import fit_to_adapter, fit_to_deepspeed, launched
    from experiments.common.run import Run

    with launched(args.deepspeed) as (world, console):
        with opening():
            args.configure(args.cloning)
            fit_to_deepspeed(args.cloning, args.deepspeed, console)
            fit_to_adapter(args.cloning, args.lora_rank, console)
            if args.task is not None:
                args.cloning.tasks = str(TaskMixture.from_spec(args.task))
            policy = build_policy(args, console)
            if args.cloning.soft_targets and not SoftTargets(policy.tokenizer, 1.0, "cpu"):
                console.print("targets are hard: no number is one token of this policy's tokenizer")
                args.cloning.soft_targets = 0.0
            require_plain_prompts(policy.processor, Scenes("val")[0].image)
            images = open_images(args)
        run = Run(args, policy, console, world, args.answer_length())
        console.print(f"{policy.model.num_parameters() / 1e6:.2f} M parameters")
        left_out = LeftOut(args.on_error)
        # Every rank has all demonstrations, as it does not know which it will be asked for.
        demonstrations = demonstrate_images(
            images,
            policy.processor,
            tasks=args.cloning.demonstrated,
            queries=args.queries,
            epsilon=args.epsilon,
            decimals=args.decimals,
            order=args.order,
            workers=max(1, (os.cpu_count() or 1) // world.size),
            console=console,
            frame=policy.answer_frame,
            # Longer ones cannot be answered, and memory grows with the square of the length.
            longest=None
            if args.dataset is None
            else max(run.max_new_tokens, OnPolicyConfig.max_new_tokens),
            left_out=left_out,
        )
        if len(demonstrations) < args.cloning.batch_size:
            raise WrongOptionError(
                f"{args.dataset or 'the scenes'} have {len(demonstrations)} images to learn from, "
                f"fewer than a batch of {args.cloning.batch_size}: give more, or a smaller "
                f"--cloning.batch-size"
            )
        with opening():
            agent = BehaviorCloning(
                policy, demonstrations, args.cloning, max_new_tokens=run.max_new_tokens
            )
        agent.left_out = left_out
        return run.train(
            agent,
            "Behaviour cloning",
            learned_from=f"{args.scenes} scenes (train), {args.mixture or args.difficulty}"
            if args.dataset is None
            else describe_data(open_questions(args.env, **args.environment()).dataset),
            facts={"ceiling": best_possible(args, run, policy)} if run.leads else None,
            tasks=learned_last(args),
        )


def learned_last(args: Args) -> TaskMixture:
    """The tasks of the last update, which a curriculum may not have got beyond."""
    progress = 1 - 1 / max(1, args.updates)
    return TaskMixture.from_spec(args.cloning.task_weights(progress))


def best_possible(args: Args, run: Run, policy: VLMPolicy) -> dict[str, float]:
    """Score, and length in tokens, of outlines as they are taught, on the held-out questions."""
    samples = [
        sample for index in run.questions if (sample := run.core.dataset[int(index)]).target.area
    ]
    if not samples:
        return {}
    written: dict[str, Any] = {
        "epsilon": args.epsilon,
        "decimals": args.decimals,
        "frame": policy.answer_frame,
    }
    texts = [answer(sample, DEFAULT_TASK, pad=True, **written) for sample in samples]
    read = [
        read_answer(text, sample.target.size, policy.answer_frame)
        for text, sample in zip(texts, samples, strict=True)
    ]
    ids = policy.tokenizer(texts, add_special_tokens=False).input_ids
    return {
        "giou": float(MaskIoU()(read, [sample.target for sample in samples]).mean()),
        "tokens": float(np.mean([len(tokens) + 1 for tokens in ids])),
    }


def open_images(args: Args) -> LabelledImages:
    """What is demonstrated: scenes, or annotated images."""
    from experiments.common.cloning_data import (
        JoinedImages,
        LookalikeScenes,
        MirroredImages,
        RecordedImages,
    )

    images: LabelledImages
    if args.dataset is not None:
        dataset = open_questions(args.env, **args.environment()).dataset
        images = RecordedImages(dataset, args.scenes)
    else:
        shares = read_shares(args.mixture or f"{args.difficulty}=1")
        images = JoinedImages(
            [
                LookalikeScenes(count)
                if kind == "alike"
                else Scenes("train", kind, length=count, negatives=args.negatives or 0.0)
                for kind, share in shares.items()
                if (count := round(args.scenes * share))
            ]
        )
    return MirroredImages(images) if args.mirror else images


def read_shares(mixture: str) -> dict[Any, float]:
    """Shares of kinds of scenes that sum to 1, by a text such as ``"easy=0.5 medium=0.5"``."""
    shares: dict[Any, float] = {}
    for word in mixture.split():
        name, _, weight = word.partition("=")
        try:
            shares[name] = float(weight)
        except ValueError:
            shares[name] = math.nan
        if name not in (*get_args(Difficulty), "alike") or not 0 <= shares[name] < math.inf:
            raise WrongOptionError(
                f"--mixture {mixture!r}: {word!r} is no share; write easy, alike, medium or "
                f"hard with a number, as in 'easy=0.5 medium=0.5'"
            )
    if not (total := sum(shares.values())):
        raise WrongOptionError(f"--mixture {mixture!r} has no share above 0")
    return {name: share / total for name, share in shares.items()}


def build_policy(args: Args, console: Console) -> VLMPolicy:
    """The policy to start from; random weights follow from the seed."""
    import torch

    from agents.embedded.tiny import build_model, build_processor
    from agents.policy.loading import policy_frame
    from agents.policy.model import VLMPolicy

    if args.policy is not None:
        policy = args.open_policy(console)
    elif args.lora_rank:
        raise WrongOptionError("--lora-rank adapts a policy that there is: name it by --policy")
    else:
        torch.manual_seed(args.seed)
        processor = build_processor(args.model)
        model = build_model(args.model, processor)
        model.to("cuda" if torch.cuda.is_available() else "cpu", weights_type(args.weights))
        policy = VLMPolicy(
            model,
            processor,
            precision=choose_precision(args.precision, args.weights),
            answer_frame=policy_frame(args.frame, model, processor, "a new policy"),
        )
        args.prepare(policy)
    if policy.device.type == "cpu":
        # Its backward is twice as fast at these lengths.
        policy.model.set_attn_implementation("eager")
    return policy


def train_on_trl(args: TRLArgs) -> dict[str, Any]:
    """Run the job under TRL, in each of its processes; the first one measures and writes."""
    from agents.trl_backend.sft import SupervisedFineTuning
    from experiments.common.launch import trainer_process
    from experiments.common.run import Run

    world, console = trainer_process()
    with opening():
        if args.paper:
            args.sft = with_papers_optimizer(args.sft, int(os.environ.get("WORLD_SIZE", "1")))
        args.sft.seed = args.seed
        policy = args.open_policy(console)
        policy.model.float()  # steps at these learning rates are too small for bfloat16 weights
        questions = open_questions(args.env, **args.environment(), frame=policy.answer_frame)
    run = Run(args, policy, console, world, args.answer_length())
    with opening():
        agent = SupervisedFineTuning(
            policy,
            questions.dataset,
            args.sft,
            max_new_tokens=run.max_new_tokens,
            on_error=args.on_error,
        )
    return run.train(
        agent,
        "Behaviour cloning on TRL",
        learned_from=describe_data(questions.dataset),
        save_policy=agent.save_policy,
        tasks=TaskMixture.from_spec(read_task_weights(args.sft.tasks)),
    )


def command_line(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what the command line, or ``words``, ask for; the backends have options of their own."""
    words = command_words(words)
    if ("--backend", "trl") in pairwise(words) or "--backend=trl" in words:
        return run_command(TRLArgs, train_on_trl, __doc__, FIRST, words)
    return run_command(Args, main, __doc__, FIRST, words)


if __name__ == "__main__":
    command_line()
