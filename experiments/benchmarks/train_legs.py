"""The contestants of the training benchmark, each in a process of its own, with the same work.

A leg makes one update whenever it is told to and says how long its parts took. One update samples
``group_size`` answers of exactly ``new_tokens`` tokens to each of ``prompts`` questions, scores
them, and makes one optimizer step: one forward and one backward pass over all of them.
"""

from __future__ import annotations

import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium as gym
import torch
from transformers import TrainerCallback

from agents.embedded.tiny import TinyConfig, build_model, build_processor
from agents.gspo import GSPO, GSPOConfig
from agents.policy.model import Precision, VLMPolicy
from agents.trl_backend.gspo import TRLGSPO
from experiments.benchmarks.memory import Memory
from seg_env.data.scenes import Scenes
from seg_env.envs.core import ReferringCore
from seg_env.tasks import question
from seg_env.types import Sample

REWARDS = "mask_iou=1.0 format=0.1"
large = partial(TinyConfig, patch_size=14, initializer_range=0.02)
SHAPES = {
    "small": TinyConfig(
        patch_size=8, vision_width=32, vision_layers=1, width=32, layers=2, heads=2
    ),
    "1m": TinyConfig(patch_size=8, vision_layers=2, width=128),
    "30m": large(vision_width=384, vision_layers=6, width=512, layers=6, heads=8),
    "2b": large(vision_width=1024, vision_layers=24, width=2048, layers=28, heads=16),
}
"""Policies of LLaVA form with random weights: 60 thousand, 1.3, 32 and 1,800 million parameters."""


@dataclass(frozen=True)
class Work:
    """What all legs of one comparison have to do."""

    shape: str
    """A key of `SHAPES`."""
    prompt_tokens: int
    """Upper bound on image tokens, which fill a square; the question comes on top."""
    new_tokens: int
    """Tokens of every answer."""
    group_size: int
    prompts: int
    """Questions per update."""
    precision: Precision
    attention: str
    device: str
    seed: int

    def model_config(self) -> TinyConfig:
        """The shape with images of the wanted number of tokens."""
        shape = SHAPES[self.shape]
        return replace(shape, image_size=int(self.prompt_tokens**0.5) * shape.patch_size)

    def settings(self) -> GSPOConfig:
        """Settings of one step per rollout."""
        return GSPOConfig(
            prompts_per_update=self.prompts,
            group_size=self.group_size,
            minibatches=1,
            muon=False,
            learning_rate=1e-6,
            max_new_tokens=self.new_tokens,
            seed=self.seed,
        )


class Pool(list[Sample]):
    """Scenes whose questions have equally many tokens, so that no prompt is padded."""

    name, split = "scenes-pool", "train"

    def __init__(self, processor: Any, size: int, count: int = 16) -> None:
        """Choose ``count`` of the first scenes with images of ``size`` pixels."""
        scenes = Scenes("train", size=max(size, 32))
        by_length: dict[int, list[Sample]] = defaultdict(list)
        for index in range(8 * count):
            sample = scenes[index]
            tokens = processor.tokenizer.encode(question(sample, "text->mask"))
            by_length[len(tokens)].append(sample)
        super().__init__(max(by_length.values(), key=len)[:count])


def make_policy(work: Work) -> VLMPolicy:
    """A policy with random weights that never ends an answer before its last token."""
    config = work.model_config()
    processor = build_processor(config)
    torch.manual_seed(work.seed)
    with torch.device(work.device):  # billions of weights are drawn there in no time
        model = build_model(config, processor)
    model.set_attn_implementation(work.attention)
    policy = VLMPolicy(model, processor, precision=work.precision)
    policy.forbidden[policy.end_ids] = True
    return policy


class Leg:
    """One contestant, which makes an update whenever the parent process asks for one."""

    def __init__(self, work: Work, connection: Connection) -> None:
        self.work, self.connection = work, connection
        self.policy = make_policy(work)
        self.pool = Pool(self.policy.processor, work.model_config().image_size)

    def now(self) -> float:
        """The time when all work so far is done, also on a GPU."""
        if self.work.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its seconds are counted as a part of the update."""

        def measure(*arguments: Any, **named: Any) -> Any:
            start = self.now()
            result = function(*arguments, **named)
            self.seconds[part] += self.now() - start
            return result

        return measure

    def ready(self) -> None:
        """Send the real sizes; everything is loaded, and memory is measured from here on."""
        sample = self.pool[0]
        inputs = self.policy.prepare([sample.image], [question(sample, "text->mask")])
        facts = {
            "prompt_tokens": int(inputs["attention_mask"].sum()),
            "parameters": sum(p.numel() for p in self.policy.model.parameters()),
        }
        self.memory = Memory(self.work.device)
        self._await_turn(facts)

    def report(self) -> None:
        """Send the seconds of the update's parts, and the most memory so far."""
        total = self.now() - self.start
        rest = total - sum(self.seconds.values())
        parts = {**self.seconds, "backward": rest, "total": total}
        self._await_turn(parts | {"memory": self.memory.growth_mib()})

    def _await_turn(self, message: dict[str, Any]) -> None:
        """Send the result of the last turn, and wait for the next; EOFError after the last one."""
        self.connection.send(message)
        self.connection.recv()
        self.seconds = {"sampling": 0.0, "scoring": 0.0}
        self.start = self.now()

    def check_lengths(self, tokens: Sequence[int]) -> None:
        """Make sure that the answers are as long as they should be."""
        rows = self.work.prompts * self.work.group_size
        if list(tokens) != [self.work.new_tokens] * rows:
            raise RuntimeError(f"{rows} answers of {self.work.new_tokens} expected, got {tokens}")


class OurLeg(Leg):
    """The GSPO agent of this project."""

    def run(self, *, shared: bool) -> None:
        """Make an update at every turn, with the prompt shared among its answers or repeated."""
        self.policy.shared_prefix = shared
        envs: Any = gym.make_vec(
            "SimpleSeg-Scenes-v0",
            num_envs=self.work.prompts * self.work.group_size,
            autoreset_mode="Disabled",
            dataset=self.pool,
            rewards=REWARDS,
        )
        agent: Any = GSPO(self.policy, envs, self.work.settings())
        collect = self.timed("sampling", agent.collect)
        agent._score = self.timed("scoring", agent._score)
        self.ready()
        while True:
            rollout, _ = collect()
            agent.train(rollout, agent.config.learning_rate)
            self.check_lengths(rollout.mask.sum(-1).tolist())
            self.report()


class TRLLeg(Leg, TrainerCallback):
    """TRL's GRPOTrainer, set up as `agents.trl_backend.gspo` does."""

    def run(self) -> None:
        """Make an update at every turn."""
        core = ReferringCore(self.pool, rewards=REWARDS)
        agent = TRLGSPO(self.policy, core, self.work.settings())
        with TemporaryDirectory() as folder:
            trainer: Any = agent.build_trainer(1_000, folder)
            generate = self.timed("sampling", trainer._generate_and_score_completions)

            def sample(inputs: Any) -> Any:
                batch = generate(inputs)
                self.check_lengths(batch["completion_mask"].sum(-1).tolist())
                return batch

            trainer._generate_and_score_completions = sample
            trainer.compute_loss = self.timed("scoring", trainer.compute_loss)
            trainer.add_callback(self)
            trainer.train()

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: object) -> None:
        """Wait for the first turn."""
        self.ready()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: object) -> None:
        """Report an update that is done."""
        self.report()


def work_process(leg: str, work: Work, threads: int, connection: Connection) -> None:
    """What the process of a leg does; an error is sent to the parent process, as text."""
    try:
        if threads:
            torch.set_num_threads(threads)
        if leg == "trl":
            TRLLeg(work, connection).run()
        else:
            OurLeg(work, connection).run(shared=leg == "ours")
    except (EOFError, ConnectionError):  # the parent process wants no more
        pass
    except Exception:
        connection.send(traceback.format_exc())
