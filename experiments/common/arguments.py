"""What every experiment that trains an agent in an environment is told on its command line."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
from rich.console import Console

from agents.on_policy_config import OnPolicyConfig
from agents.policy.model import VLMPolicy
from agents.training.distributed import World
from experiments.common.answer_length import AnswerLength
from experiments.common.constrained import GrammarOptions
from experiments.common.policies import EMBEDDED, PrecisionChoice, answer_length, open_policy
from experiments.common.run import EvaluationPlan
from rewards.composite import DEFAULT_REWARDS
from seg_env.envs.vector import ReferringSegmentationVectorEnv
from seg_env.frames import AUTO, UNIT_ANSWERS, AnswerFrame
from seg_env.registration import ENVIRONMENT_IDS, REFINE_IDS
from seg_env.tasks import DEFAULT_TASK, TaskMixture
from seg_env.tasks.queries import QueryStyle


@dataclass
class TrainingArguments:
    """Which policy learns what, and where the results go."""

    env: str = "SimpleSeg-Scenes-v0"
    """Environment id."""
    policy: str = EMBEDDED
    """``embedded``, taught by expression only; ``embedded-tasks``, which reads points, boxes and
    outlines too; a transformers folder; or a hub id."""
    frame: str = AUTO
    """What the numbers that the policy writes mean: auto (what its folder records, else what its
    family writes), unit, permille, pixels, qwen2.5-vl, florence, paligemma, pixel:WxH, or a model
    type such as qwen3_vl. It is trained and measured in this frame, and records it."""
    max_new_tokens: AnswerLength = "auto"
    """Longest answer in tokens; auto: that of the algorithm's settings if they give another one
    than 128, or for the shipped policies; for others measured on outlines of the ground truth in
    their own tokens, one length to learn with and one to be measured with."""
    vision_check: bool = True
    """Refuse to train a policy that images do not reach; not asked of the shipped policies."""
    on_error: Literal["skip", "error"] = "skip"
    """Images that are broken or that the processor refuses: left out and counted, or an error."""
    rewards: tuple[str, ...] = tuple(DEFAULT_REWARDS.split())
    """Rewards as ``name=weight`` or ``package.module:Class=weight``; weight 0 only logs."""
    updates: int = 100
    """Updates to make."""
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
    turns: int | None = None
    """Turns of an episode of the SimpleSegRefine environments: 3 by default."""
    refine_template: str | None = None
    """Their prompt from the second outline on, with {question} and {outline}."""
    negatives: float | None = None
    """Of scenes: share of questions about an object that is not there; see the reward no_target."""
    task: str = DEFAULT_TASK
    """What is given and asked for, or several tasks with weights: "text->mask=0.7
    point->mask=0.3"."""
    queries: QueryStyle = field(default_factory=QueryStyle)
    """How the places that such questions give are drawn and written."""
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
    output_dir: Path = Path("runs/training")
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
            "negatives": self.negatives,
            "task": None if self.task == DEFAULT_TASK else self.task,
            "queries": None if self.queries == QueryStyle() else asdict(self.queries),
            "image_size": self.image_size,
            "turns": self.turns,
            "refine_template": self.refine_template,
        }
        return {name: value for name, value in given.items() if value is not None}

    def open_policy(self, console: Console) -> VLMPolicy:
        """The policy that is named; says which frame it writes in."""
        return open_policy(
            self.policy,
            self.precision,
            frame=self.frame,
            console=console,
            trust_remote_code=self.trust_remote_code,
        )

    def answer_length(self, configured: int = OnPolicyConfig.max_new_tokens) -> AnswerLength:
        """Tokens of the longest answer, or ``"auto"`` where they have to be measured.

        Args:
            configured: What the algorithm's settings say.
        """
        if self.max_new_tokens == "auto" and configured != OnPolicyConfig.max_new_tokens:
            return configured
        return answer_length(self.max_new_tokens, self.policy)

    def open_environment(
        self, config: OnPolicyConfig, world: World, frame: AnswerFrame = UNIT_ANSWERS
    ) -> ReferringSegmentationVectorEnv:
        """The vector environment of a rank.

        Args:
            config: Settings of the algorithm.
            world: The ranks.
            frame: What the numbers in answers mean: the policy's.

        Raises:
            ValueError: The id is not one of this project, the grammar that answers are held to is
                not that of what is asked for, or vertices are to be credited where episodes have
                several turns.
        """
        if self.grammar.constrained and TaskMixture.from_spec(self.task).forms != ("mask",):
            raise ValueError(
                f"--grammar.constrained allows outlines only, and --task {self.task!r} asks for "
                f"other answers; leave one of them out"
            )
        if self.env in REFINE_IDS and config.credits_vertices:
            raise ValueError(
                f"--env {self.env}: a turn earns what it improved, and its vertices nothing of "
                f"their own to be credited with; use --ppo.credit answer, --gspo.vertex-weight 0"
            )
        envs = gym.make_vec(
            self.env,
            num_envs=config.rows_of(world),
            autoreset_mode="Disabled",
            frame=frame,
            **self.environment(),
        )
        if not isinstance(envs, ReferringSegmentationVectorEnv):
            known = ", ".join(ENVIRONMENT_IDS + REFINE_IDS)
            raise ValueError(f"--env {self.env} is not one of {known}")
        return envs
