"""Settings of all agents: what experiments put on their command lines.

Nothing here imports torch or transformers, so that help pages need not wait for them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from agents.training.settings import OptimizerSettings
from seg_env.tasks import TASKS, Task, TaskMixture

if TYPE_CHECKING:
    from agents.training.distributed import World

CriticKind = Literal["shared", "separate"]
LossName = Literal["gspo", "gspo_token", "luspo", "grpo", "dr_grpo", "dapo"]
AdvantageName = Literal["group", "others", "greedy", "terms", "best"]
Wording = Literal["plain", "paper"]
"""The environments' question and the bare answer, or the paper's questions and answer sentences."""


@dataclass
class OnPolicyConfig(OptimizerSettings):
    """Settings of all on-policy agents; SimpleSeg publishes none of these values for RL."""

    questions: int = 0
    """Learn only from this many questions, the first of the data set; 0 for all of them."""
    prompts_per_update: int = 32
    """Prompts per rollout, of all ranks together."""
    group_size: int = 8
    """Answers per prompt, G."""
    minibatches: int = 2
    """Optimizer steps per pass over a rollout; groups are never split."""
    epochs: int = 1
    """Passes over a rollout."""
    prompts_per_forward: int = 2
    """Prompts per forward pass of a rank, sorted by answer length; fewer take less memory, 0 takes
    a whole minibatch at once."""
    final_rate: float = 0.05
    """Last learning rate as a share of the peak."""
    temperature: float = 1.0
    """Sampling temperature; scoring uses the same."""
    max_new_tokens: int = 128
    """Longest answer in tokens; a limit below the longest honest answer makes answers malformed."""
    token_budget: int = 0
    """Average answer length to aim for, in tokens: answers pay a price per token, which is adapted
    until the average fits. 0 for no price."""
    kl_coefficient: float = 0.0
    """Weight of the KL divergence to the policy training started from, which PPO subtracts from
    every token's reward; 0 keeps no copy of that policy."""
    importance_cap: float = 2.0
    """Cap of the importance weights for the difference between scorer and sampler."""

    def prompts_of(self, world: World) -> slice:
        """Which of an update's prompts a rank asks: a contiguous block.

        Raises:
            ValueError: A minibatch would have no prompt, or they cannot be split among ranks so
                that each minibatch has the same prompts as in a single process, every
                ``minibatches``-th of all.
        """
        count, parts = self.prompts_per_update, world.size * self.minibatches
        if not 1 <= self.minibatches <= count:
            raise ValueError(
                f"minibatches={self.minibatches} of prompts_per_update={count}: each needs a "
                "prompt, so 1 to as many as there are prompts"
            )
        if world.size > 1 and count % parts:
            raise ValueError(
                f"prompts_per_update={count} cannot be shared out among {world.size} processes "
                f"times minibatches={self.minibatches}: make it a multiple of {parts}"
            )
        return world.block(count, "prompts_per_update")

    def rows_of(self, world: World) -> int:
        """Number of questions of a rank's vector environment: whole groups."""
        share = self.prompts_of(world)
        return (share.stop - share.start) * self.group_size


@dataclass
class GSPOConfig(OnPolicyConfig):
    """Settings of GSPO and of other losses that compare the answers of a group."""

    loss: LossName = "gspo"
    """gspo: a ratio per answer; gspo_token: the same, its gradient taken token by token; luspo: the
    same times length; grpo, dr_grpo, dapo: a ratio per token, averaged over answers, over a
    constant, or over tokens. dr_grpo does not divide by the standard deviation of a group."""
    clip_low: float | None = None
    """Ratios below ``1 - clip_low`` are clipped; by default it suits the loss, 0.01 for gspo."""
    clip_high: float | None = None
    """Ratios above ``1 + clip_high`` are clipped; by default it suits the loss, 0.015 for gspo."""
    advantage: AdvantageName = "group"
    """What an answer's reward is compared with. group: the mean of its group, over the group's
    standard deviation; others: the mean of the other answers, not divided (RLOO); greedy: the
    reward of the likeliest answer, which is the first of each group (ReMax); terms: as group, each
    reward by itself (GDPO); best: the best answer of a group is imitated (RAFT)."""
    imitation: float = 0.0
    """Added to the advantage of the best answer of each group."""
    learned_answers: int = 0
    """Answers of each group to learn from: those with the highest and lowest rewards, in the mix
    that varies most (PODS, arXiv 2504.13818). 0 for all."""
    spread_floor: float = 0.2
    """Least standard deviation of a group that rewards are divided by; 1e-4 is the published form,
    which turns groups in which every answer misses into full-strength noise."""
    dynamic_sampling: bool = False
    """Replace questions whose answers all earned the same reward."""
    dynamic_rounds: int = 3
    """Most further rounds of questions in an update."""

    @property
    def advantage_floor(self) -> float | None:
        """Minimum that advantages are divided by; None where they are not divided."""
        return None if self.loss == "dr_grpo" else self.spread_floor


@dataclass
class PPOConfig(OnPolicyConfig):
    """Settings of PPO."""

    credit: Literal["answer", "vertex"] = "answer"
    """Where rewards are placed: on the last token of an answer, or on the token that completes each
    vertex, which earns what the vertex added to the reward. Both sum to the same."""
    relative: bool = True
    """Take rewards relative to the group's other answers, as some questions are harder."""
    learning_rate: float = 1.5e-4
    """Peak learning rate."""
    clip_low: float = 0.2
    """Token ratios below ``1 - clip_low`` are clipped."""
    clip_high: float = 0.2
    """Token ratios above ``1 + clip_high`` are clipped."""
    gamma: float = 1.0
    """Discount per token; below 1 long answers would be worth less."""
    lam: float = 1.0
    """Lambda of generalised advantage estimation: 0 relies on the critic, 1 on the rewards alone.
    Below 1, a critic that predicts little misleads."""
    whiten: bool = True
    """Scale advantages to mean 0 and variance 1 over the tokens of a rollout."""
    critic: CriticKind = "shared"
    """A value head on the policy's hidden states, or on those of a copy of the whole model."""
    critic_rate: float = 3.0
    """How many times faster the value head learns than the policy."""
    fit_critic: bool = True
    """Use the first rollout only to fit the value head, by least squares: to an untrained critic,
    late tokens look good or bad whatever they are."""
    value_coefficient: float = 0.1
    """Weight of the critic's loss."""
    value_clip: float = 0.2
    """How far a value may move on one rollout, in units of reward."""
    target_kl: float = 0.0
    """KL divergence per answer, in nats, that kl_coefficient is adapted to; 0 keeps it fixed."""
    kl_horizon: int = 10_000
    """Answers over which kl_coefficient is adapted; fewer adapt it faster."""
    stop_kl: float = 0.05
    """Skip the remaining epochs once the policy has moved this far on a rollout, in nats per token;
    0 never stops."""


@dataclass
class BehaviorCloningConfig(OptimizerSettings):
    """How a policy is taught from demonstrations."""

    batch_size: int = 24
    """Images per step, of all ranks together; one question is asked about each of their objects."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    dialogues_per_forward: int = 16
    """Dialogues per forward pass, sorted by length to save padding; 0 takes all."""
    points_until: float = 0.12
    """Share of the updates in which only centre points are asked for."""
    boxes_until: float = 0.2
    """Share of the updates up to which points and boxes are asked for; then mostly outlines."""
    outline_share: float = 0.8
    """Share of outlines among the questions after boxes_until."""
    soft_targets: float = 0.0
    """Standard deviation of soft targets for coordinates that are one token, in steps of their last
    digit: numbers near the true one get part of the probability. 0 for the true one alone."""
    soft_until: float = 0.8
    """Share of the updates with soft targets; then only the true numbers are learned."""
    tasks: str | None = None
    """Tasks asked after boxes_until instead of outlines, boxes and points by expression, as in
    ``"text->mask=0.7 point->mask=0.3"``; every task needs its demonstrations."""

    @property
    def demonstrated(self) -> tuple[Task, ...]:
        """Every task that is asked at some time, in the order of `TASKS`."""
        progresses = (0.0, self.points_until, self.boxes_until)
        asked = {task for progress in progresses for task in self.task_weights(progress)}
        return tuple(task for task in TASKS if task in asked)

    def task_weights(self, progress: float) -> dict[Task, float]:
        """The curriculum, by the share of updates made: points, then boxes, then outlines."""
        if progress < self.points_until:
            return {"text->point": 1.0}
        if progress < self.boxes_until:
            return {"text->point": 0.5, "text->bbox": 0.5}
        if self.tasks is not None:
            return dict(TaskMixture.from_spec(self.tasks).weights)
        rest = (1 - self.outline_share) / 2
        return {"text->mask": self.outline_share, "text->point": rest, "text->bbox": rest}


@dataclass
class SupervisedFineTuningConfig(OptimizerSettings):
    """How a large policy is taught; rates and warm-up are the paper's (arXiv 2601.19228)."""

    batch_size: int = 8
    """Questions per device and step; the paper's batch is 256 over all devices and steps."""
    accumulation: int = 1
    """Steps whose gradients make one update; see `with_papers_optimizer`."""
    tasks: tuple[str, ...] = ("mask=0.8", "bbox=0.1", "point=0.1")
    """How often each task is asked, as ``name=weight``; the paper publishes no shares. Tasks that
    give a place are named in full, ``point->mask=0.1``."""
    wording: Wording = "paper"
    """"paper": its questions and answer sentences, at random; "plain": the environments' own."""
    epsilon: float = 0.005
    """Douglas-Peucker tolerance of outlines, as a share of the perimeter (the paper's best)."""
    decimals: int = 3
    """Digits of coordinates."""
    pad: bool = False
    """Write every coordinate with all its digits."""
    learning_rate: float = 5e-5
    """Peak learning rate."""
    muon: bool = False
    """Muon on hidden matrices (the paper's choice), AdamW on the rest; not for sharded weights."""
    gradient_checkpointing: bool = True
    """Recompute activations instead of keeping them."""
    workers: int = 0
    """Processes that load images and trace outlines; 0 does it between the steps."""


def with_papers_optimizer(
    config: SupervisedFineTuningConfig, world_size: int
) -> SupervisedFineTuningConfig:
    """Settings with the paper's optimizer: Muon, on 256 questions in every update.

    Its rates, 5e-5 to 2e-6 by a cosine after a warm-up of 0.03, are the defaults already.

    Raises:
        ValueError: 256 questions cannot be split evenly among batches and processes.
    """
    papers_batch = 256
    accumulation, left = divmod(papers_batch, config.batch_size * world_size)
    if left or not accumulation:
        raise ValueError(
            f"batch_size={config.batch_size} on {world_size} processes does not share out the "
            f"paper's {papers_batch} questions an update: their product must divide it"
        )
    return replace(config, accumulation=accumulation, muon=True)


@dataclass
class TRLOptions:
    """How TRL's GRPOTrainer samples, what it trains and how it shards the weights."""

    use_vllm: bool = False
    """Sample with vLLM instead of ``model.generate``."""
    vllm_mode: Literal["colocate", "server"] = "colocate"
    """On the training GPUs, or on servers started by ``trl vllm-serve``."""
    vllm_server_base_url: str | None = None
    """Address of such a server, as http://node7:8000; by default this machine's port 8000."""
    vllm_gpu_memory_utilization: float = 0.3
    """Colocated: share of each GPU's memory that vLLM takes."""
    vllm_tensor_parallel_size: int = 1
    """Colocated: GPUs that one copy of the model is spread over."""
    vllm_max_model_length: int | None = None
    """Colocated: longest prompt and answer together, in tokens; by default the model's limit."""
    vllm_sleep: bool = False
    """Colocated: give vLLM's memory back while the trainer needs it."""
    lora_rank: int = 0
    """Train low-rank adapters of this rank (PEFT) instead of all weights; 0 for all weights. The
    policy that is saved has them merged."""
    lora_alpha: int = 32
    """Adapters are scaled by this divided by their rank."""
    lora_dropout: float = 0.0
    """Dropout in front of the adapters."""
    lora_targets: str = "all-linear"
    """Layers that get adapters, all-linear or a regular expression; the output layer never does."""
    fsdp: Literal["off", "full_shard", "shard_grad_op"] = "off"
    """Shard weights, gradients and optimizer over all processes (full_shard), or gather the weights
    once per forward and backward (shard_grad_op)."""
    fsdp_offload: bool = False
    """Keep shards in CPU memory."""
    gradient_checkpointing: bool = False
    """Recompute activations instead of keeping them."""
    rows_per_forward: int = 0
    """Answers per device and forward pass; 0 takes those of ``prompts_per_forward`` prompts."""
    workers: int = 0
    """Processes that load images; 0 does it between the steps."""

    def check(self) -> None:
        """Make sure that the options agree and what they need is installed.

        Raises:
            ModuleNotFoundError: It is not; the message names the package and the way out.
            ValueError: They do not agree.
        """
        if self.lora_rank and self.fsdp != "off":
            raise ValueError(
                f"lora_rank={self.lora_rank} with fsdp={self.fsdp!r}: adapters are small, so every "
                "process keeps the model; use --trl.fsdp off, or --trl.lora-rank 0"
            )
        for needed, option, package, releases in (
            (self.use_vllm, "--trl.use-vllm", "vllm", '"vllm>=0.22,<=0.31"'),
            (self.lora_rank > 0, "--trl.lora-rank", "peft", "peft"),
        ):
            if needed and find_spec(package) is None:
                raise ModuleNotFoundError(
                    f"{option} needs the package {package}, which is not installed: "
                    f"pip install {releases}, or leave {option} out",
                    name=package,
                )
