"""Arguments of the commands that train; needs no deep-learning library."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from rich.console import Console

from agents.settings import OnPolicyConfig
from agents.training.settings import OptimizerSettings
from experiments.common.policies import (
    EMBEDDED,
    SHIPPED,
    AnswerLength,
    GrammarOptions,
    PrecisionChoice,
    WeightsChoice,
    open_policy,
)
from experiments.common.trackers import TrackerName
from rewards.composite import DEFAULT_REWARDS
from seg_env.data.rasters import Stretch
from seg_env.data.sources import has_split
from seg_env.envs.left_out import OnError
from seg_env.envs.vector import ReferringSegmentationVectorEnv
from seg_env.errors import WrongOptionError
from seg_env.frames import AUTO, UNIT_ANSWERS, AnswerFrame
from seg_env.registration import ENVIRONMENT_IDS, REFINE_IDS
from seg_env.tasks import DEFAULT_TASK, TaskMixture
from seg_env.tasks.queries import QueryStyle

if TYPE_CHECKING:
    from agents.policy.model import VLMPolicy
    from agents.training.distributed import World

SCENES = "SimpleSeg-Scenes-v0"
"""The environment that needs no data."""
FIRST = {
    "What learns": ("policy", "lora-rank"),
    "From what": ("env", "dataset", "data-root", "difficulty", "negatives", "task", "rewards"),
    "How long": ("updates", "evaluation.questions"),
    "The run": ("seed", "output-dir", "resume", "backend"),
}
"""The options of training commands that people want first; no command has all of them."""


@dataclass
class EvaluationPlan:
    """What is measured on held-out questions."""

    split: str = "val"
    """Split to evaluate on; if --dataset lacks it, a tenth of the images is held out."""
    dataset: str | None = None
    """Data to measure on instead of those that are learned from, named as by --dataset."""
    questions: int = 512
    """Questions before and after training; the first ones of the split. With 0 nothing is measured,
    which is required where TRL shards weights."""
    answers: int = 4
    """Sampled answers per question, at temperature 1."""
    every: int = 25
    """Updates between the small evaluations of the learning curve; 0 for none."""
    curve_questions: int = 128
    """Questions of the small evaluations, one greedy and one sampled answer each."""


@dataclass
class PolicyArguments:
    """Which policy answers."""

    policy: str | None = None
    """A transformers folder, a hub id, or ``embedded`` (default), the policy that comes with the
    project."""
    frame: str = AUTO
    """Frame of the numbers that the policy writes; auto: the one its folder records, else its
    family's. Others are unit, permille, pixels, qwen2.5-vl, florence, paligemma, pixel:WxH, or a
    model type such as qwen3_vl. It is trained and measured in this frame, and records it."""
    max_new_tokens: AnswerLength = "auto"
    """Longest answer in tokens; auto: 128 for the shipped policies, and for others measured on
    ground-truth outlines in their own tokens."""
    precision: PrecisionChoice = "auto"
    """float32, bfloat16 under autocast, or auto: bfloat16 where the hardware has it."""
    trust_remote_code: bool = False
    """Run code that comes with a hub model; only for models you have read."""
    seed: int = 0
    """Seed of all random choices."""

    @property
    def is_shipped(self) -> bool:
        """Whether the policy is one of the project's own, or a new one."""
        return self.policy is None or self.policy in SHIPPED

    def answer_length(self) -> AnswerLength:
        """Tokens of the longest answer: 128 for ``"auto"`` with policies of the project's own.

        It is what the longest honest outline of an easy scene needs, with some room.
        """
        return 128 if self.max_new_tokens == "auto" and self.is_shipped else self.max_new_tokens

    def open_policy(self, console: Console, **options: Any) -> VLMPolicy:
        """Open the named policy with ``options`` of `policies.open_policy`, and print its frame."""
        return open_policy(
            self.policy or EMBEDDED,
            self.precision,
            frame=self.frame,
            console=console,
            trust_remote_code=self.trust_remote_code,
            **options,
        )


@dataclass
class QuestionArguments(PolicyArguments):
    """What a policy is asked."""

    env: str = SCENES
    """Environment whose data set is asked about, or learned from."""
    dataset: str | None = None
    """Other data than the environment's: a folder or file (COCO, LabelMe, YOLO, images and masks,
    JSON lines, parquet), an id on the hub, my_pkg.data:make, or a name; see docs/own_data.md."""
    data_root: str | None = None
    """Folder of RefCOCO data, or of a --dataset that is a name; by default the variable
    SIMPLESEG_DATA."""
    image_root: str | None = None
    """Folder of the images, if it is not the usual one."""
    per_annotation: bool = False
    """Ask for each object of --dataset; by default one question is for all objects of a kind."""
    split: str = "train"
    """Split to ask about, or to learn from."""
    split_by: str | None = None
    """Whose split of RefCOCO data: unc, umd, google, berkeley."""
    difficulty: str | None = None
    """Difficulty of scenes: easy (default), medium, hard."""
    negatives: float | None = None
    """For scenes: share of questions about an object that is not there; see the reward
    no_target."""
    encoding: str | None = None
    """Of annotation files that are neither UTF-8 nor UTF-16, such as gbk."""
    stretch: Stretch | None = None
    """How images deeper than 8 bits become bytes: over their full range, or percentiles."""
    bands: tuple[int, ...] | None = None
    """Bands of images that have many, from 1: one for gray, three for red, green and blue."""
    on_error: OnError = "skip"
    """Images that are broken or that the processor refuses: left out and counted, or an error."""

    def environment(self) -> dict[str, Any]:
        """Arguments of the environment that are not left at their defaults."""
        found = self._given("split", "data_root", "split_by", "image_root")
        found |= self._given("difficulty", "negatives", "encoding", "stretch", "bands")
        if self.per_annotation:
            found["per_annotation"] = True
        if self.dataset is not None:
            found["dataset"] = self.dataset
            if Path(self.dataset).is_file() and not has_split(self.dataset, self.split):
                del found["split"]  # a single file is used whole, whatever the split
            if self.dataset != "scenes":
                found["on_error"] = "skip" if self.on_error == "skip" else "raise"
        return found

    def _given(self, *names: str) -> dict[str, Any]:
        return {name: given for name in names if (given := getattr(self, name)) is not None}


@dataclass
class TaskArguments(QuestionArguments):
    """What is given and asked for, in which form."""

    task: str = DEFAULT_TASK
    """What is given and asked for, or several tasks with weights: "text->mask=0.7
    point->mask=0.3"."""
    queries: QueryStyle = field(default_factory=QueryStyle)
    """How places given in questions are drawn and written."""
    image_size: int | None = None
    """Side that images are letterboxed to; by default they keep their sizes."""

    def environment(self) -> dict[str, Any]:
        """Arguments of the environment that are not left at their defaults."""
        found = super().environment() | self._given("image_size")
        if self.task != DEFAULT_TASK:
            found["task"] = self.task
        if self.queries != QueryStyle():
            found["queries"] = asdict(self.queries)
        return found


@dataclass
class AdapterArguments:
    """Whether low-rank adapters are trained instead of all weights."""

    lora_rank: int = 0
    """Train adapters of this rank (LoRA), and leave all weights as they are; 0 trains all weights.
    Adapters need a higher learning rate, about ten times that of all weights with AdamW."""
    lora_alpha: int = 32
    """Adapters are scaled by this divided by their rank."""
    lora_targets: tuple[str, ...] = ("decoder",)
    """Layers that get adapters: decoder (its linear layers), all-linear (those of vision tower and
    projector, too), or names of layers, such as q_proj v_proj."""
    merge_adapter: bool = False
    """Write the finished policy as one model with the adapter merged, not as the adapter alone."""
    load_in_4bit: bool = False
    """Keep the weights that adapters are added to in 4 bits (bitsandbytes, on a GPU)."""

    def add_adapter(self, policy: VLMPolicy, seed: int, console: Console) -> None:
        """Give a policy the adapter asked for, and say what is trained."""
        from agents.policy.adapters import adapter_parameters, add_adapter

        add_adapter(
            policy.model,
            self.lora_rank,
            alpha=self.lora_alpha,
            targets=self.lora_targets,
            seed=seed,
        )
        trained = adapter_parameters(policy.model)
        console.print(
            f"adapters of rank {self.lora_rank} on {len(trained) // 2} layers: "
            f"{sum(each.numel() for each in trained.values()) / 1e6:.2f} M weights are trained",
            highlight=False,
        )


@dataclass
class RunArguments(QuestionArguments, AdapterArguments):
    """Arguments of every command that trains."""

    policy: str = EMBEDDED
    max_new_tokens: AnswerLength = "auto"
    """Longest answer in tokens; auto: that of the algorithm's settings if it is not 128, or for the
    shipped policies; for others measured on ground-truth outlines in their own tokens, one length
    for training and one for evaluation."""
    vision_check: bool = True
    """Refuse to train a policy that images do not reach; shipped policies are not checked."""
    updates: int = 100
    """Updates to make."""
    evaluation: EvaluationPlan = field(default_factory=EvaluationPlan)
    """What is measured before, during and after."""
    deepspeed: str | None = None
    """Shard the training state among the ranks: zero1, zero2, zero3, or the path of a DeepSpeed
    configuration (JSON). By default every rank has all of it."""
    freeze_vision: bool = False
    """Train neither the vision tower nor its projector."""
    vision_learning_rate: float | None = None
    """Peak learning rate of tower and projector; by default that of all weights, whose schedule it
    follows."""
    gradient_checkpointing: bool = False
    """Recompute activations instead of keeping them."""
    weights: WeightsChoice = "auto"
    """Type of the weights: bfloat16 takes half the memory, with float32 copies of what is trained
    in the optimizer; auto: float32 on a CPU and as saved elsewhere."""
    checkpoint_every: int = 25
    """Updates between checkpoints; the last two are kept."""
    track: tuple[TrackerName, ...] = ("tensorboard",)
    """Where metrics and pictures are shown besides the run's folder: tensorboard, trackio, wandb,
    swanlab, several of them, or none. Nothing leaves the machine unless the variables WANDB_MODE
    or SWANLAB_MODE say so."""
    push_to_hub: str | None = None
    """Upload the finished policy to the Hugging Face hub under this name, such as me/my-policy."""
    output_dir: Path = Path("runs/training")
    """Folder of the run; the policy is written to ``policy/`` in it."""
    resume: bool = False
    """Go on from the last checkpoint in the folder, to the same numbers."""

    def configure(self, config: OptimizerSettings) -> None:
        """Copy options that are given outside an agent's settings into them.

        Raises:
            WrongOptionError: A tower that is not trained is given a learning rate.
        """
        if self.freeze_vision and self.vision_learning_rate is not None:
            raise WrongOptionError(
                f"--vision-learning-rate {self.vision_learning_rate} is for a tower that "
                "--freeze-vision does not train: leave one of them out"
            )
        if self.vision_learning_rate is not None and config.learning_rate <= 0:
            raise WrongOptionError(
                f"--vision-learning-rate {self.vision_learning_rate} follows the learning rate of "
                f"all weights, which is {config.learning_rate}: give one above 0"
            )
        config.seed, config.vision_learning_rate = self.seed, self.vision_learning_rate

    def open_policy(self, console: Console, **options: Any) -> VLMPolicy:
        """Open the named policy, ready to be trained, with an adapter if one is asked for.

        Raises:
            WrongOptionError: Options of adapters are given, and no rank; or contradict each other.
        """
        for option in ("load_in_4bit", "merge_adapter"):
            if getattr(self, option) and not self.lora_rank:
                raise WrongOptionError(
                    f"--{option.replace('_', '-')} is of adapters: give their --lora-rank, too"
                )
        if self.load_in_4bit and self.merge_adapter:
            raise WrongOptionError(
                "--merge-adapter adds to weights, which --load-in-4bit has only 4 bits of: leave "
                "one of them out; --policy opens the adapter that is saved by its own base model"
            )
        policy = super().open_policy(
            console, load_in_4bit=self.load_in_4bit, weights=self.weights, **options
        )
        if self.lora_rank:
            self.add_adapter(policy, self.seed, console)
        self.prepare(policy)
        return policy

    def prepare(self, policy: VLMPolicy) -> None:
        """Set which parts of a policy are trained, and whether activations are kept."""
        if self.freeze_vision:
            policy.freeze_vision()
        if self.gradient_checkpointing:
            policy.checkpoint_gradients()

    def environment(self) -> dict[str, Any]:
        """Arguments of the training environment; of data without splits it gets one part."""
        parted = {"part": "train"} if self.is_parted else {}
        return super().environment() | parted

    def held_out(self) -> dict[str, Any]:
        """Arguments of the held-out environment: another split, or the other part."""
        if (other := self.evaluation.dataset) is not None:
            of_scenes = () if other == "scenes" else ("difficulty", "negatives")
            unsaid = ("data_root", "image_root", "split_by", *of_scenes)
            named: dict[str, Any] = dict.fromkeys(unsaid)
            named |= {"dataset": other, "split": self.evaluation.split, "per_annotation": False}
            return replace(self, **named).environment()
        if self.is_parted:
            return self.environment() | {"part": "held-out"}
        return self.environment() | {"split": self.evaluation.split}

    @property
    def is_parted(self) -> bool:
        """Whether --dataset has no split to measure on, so that a tenth of it is held out.

        Raises:
            WrongOptionError: It has that split, but not the one to learn from.
        """
        if self.dataset is None or self.evaluation.dataset is not None:
            return False
        if not has_split(self.dataset, self.evaluation.split):
            return True
        if not has_split(self.dataset, self.split):
            raise WrongOptionError(
                f"--dataset {self.dataset} has the split {self.evaluation.split!r} and no "
                f"{self.split!r}: name the one to learn from by --split"
            )
        return False

    def answer_length(self, configured: int = OnPolicyConfig.max_new_tokens) -> AnswerLength:
        """Tokens of the longest answer; ``configured`` is what the algorithm's settings say."""
        if self.max_new_tokens == "auto" and configured != OnPolicyConfig.max_new_tokens:
            return configured
        return super().answer_length()


@dataclass
class TrainingArguments(RunArguments, TaskArguments):  # defaults are those of the first
    """Which policy learns what in an environment, and where the results go."""

    rewards: tuple[str, ...] = tuple(DEFAULT_REWARDS.split())
    """Rewards as ``name=weight`` or ``package.module:Class=weight``; weight 0 only logs."""
    grammar: GrammarOptions = field(default_factory=GrammarOptions)
    """Which answers the policy can write."""
    rollouts_every: int = 10
    """Updates between rollouts that are kept for ``simpleseg inspect``; those of the first and the
    last update are always kept. 0 keeps none."""
    rollouts_kept: int = 32
    """Most rollouts kept at a time, at most 2 MiB of each; in longer runs they are further
    apart."""
    turns: int | None = None
    """Turns of an episode of the SimpleSegRefine environments: 3 by default."""
    refine_template: str | None = None
    """Their prompt once there is an outline, with {question} and {outline}."""

    def environment(self) -> dict[str, Any]:
        """Arguments of the environment that are not left at their defaults."""
        given = self._given("turns", "refine_template") | {"rewards": " ".join(self.rewards)}
        return super().environment() | given

    def open_environment(
        self, config: OnPolicyConfig, world: World, frame: AnswerFrame = UNIT_ANSWERS
    ) -> ReferringSegmentationVectorEnv:
        """The vector environment of a rank, whose answers are in ``frame``.

        Raises:
            ValueError: The id is not one of this project, or options contradict each other.
        """
        if self.env not in (known := ENVIRONMENT_IDS + REFINE_IDS):
            raise ValueError(f"--env {self.env} is not one of {', '.join(known)}")
        if self.env not in REFINE_IDS and (self.turns, self.refine_template) != (None, None):
            raise ValueError(
                f"--env {self.env} has one turn, and --turns and --refine-template are for "
                f"{', '.join(REFINE_IDS)}: leave them out"
            )
        if self.grammar.constrained and TaskMixture.from_spec(self.task).forms != ("mask",):
            raise ValueError(
                f"--grammar.constrained allows outlines only, and --task {self.task!r} asks for "
                f"other answers; leave one of them out"
            )
        if self.env in REFINE_IDS and getattr(config, "credit", "answer") == "vertex":
            raise ValueError(
                f"--env {self.env}: a turn earns what it improved, and its vertices nothing of "
                f"their own to be credited with; use --ppo.credit answer"
            )
        envs = gym.make_vec(
            self.env,
            num_envs=config.rows_of(world),
            autoreset_mode="Disabled",
            frame=frame,
            **self.environment(),
        )
        assert isinstance(envs, ReferringSegmentationVectorEnv)
        return envs
