"""The three contestants of the training benchmark, each in a process of its own.

A leg makes one update whenever it is told to and says how long its parts took. One update samples
``group_size`` answers of exactly ``new_tokens`` tokens to each of ``prompts`` questions, scores
them, and makes one optimizer step: one forward and one backward pass over all of them.
"""

from __future__ import annotations

import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium as gym
import torch
from transformers import TrainerCallback

from agents.gspo import GSPO
from agents.trl_backend.gspo import TRLGSPO
from experiments.benchmarks.train_memory import Memory
from experiments.benchmarks.train_work import Pool, Work, make_policy
from seg_env.envs.core import ReferringCore
from seg_env.tasks import question

REWARDS = "mask_iou=1.0 format=0.1"


class Turns:
    """The leg's end of the line to whoever runs the benchmark."""

    def __init__(self, connection: Connection, work: Work) -> None:
        """Take turns over ``connection``."""
        self.connection, self.work = connection, work
        self.memory = Memory(work.device)

    def ready(self, **facts: Any) -> None:
        """Everything is loaded: what comes from here on is measured."""
        self.memory.start()
        self.connection.send(("ready", facts))

    def wait(self) -> bool:
        """Wait for the next turn; False when there is none."""
        go: bool = self.connection.recv()
        return go

    def report(self, seconds: dict[str, float]) -> None:
        """Say how long the parts of an update took, and the memory it needed at most so far."""
        self.connection.send(("update", seconds | {"memory": self.memory.growth_mib()}))


class Stopwatch:
    """Adds up the seconds spent in chosen functions; on a GPU it waits for their work."""

    def __init__(self, device: str) -> None:
        """Start at 0."""
        self.device, self.seconds = device, 0.0

    def now(self) -> float:
        """The time when all work so far is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time added up."""

        def measure(*arguments: Any, **named: Any) -> Any:
            start = self.now()
            result = function(*arguments, **named)
            self.seconds += self.now() - start
            return result

        return measure

    def take(self) -> float:
        """The sum so far, which starts again."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class Leg(ABC):
    """One contestant."""

    def __init__(self, work: Work) -> None:
        """Build the policy and its questions."""
        self.work = work
        self.policy = make_policy(work)
        self.pool = Pool(self.policy.processor, work.model_config().image_size)
        self.sampling, self.scoring = Stopwatch(work.device), Stopwatch(work.device)

    def facts(self) -> dict[str, int]:
        """Real sizes."""
        sample = self.pool[0]
        inputs = self.policy.prepare([sample.image], [question(sample, "text->mask")])
        return {
            "prompt_tokens": int(inputs["attention_mask"].sum()),
            "parameters": sum(p.numel() for p in self.policy.model.parameters()),
        }

    def parts(self, total: float) -> dict[str, float]:
        """What an update of ``total`` seconds was spent on."""
        sampling, scoring = self.sampling.take(), self.scoring.take()
        backward = total - sampling - scoring
        parts = {"sampling": sampling, "scoring": scoring, "backward": backward}
        return parts | {"total": total}

    def check_lengths(self, tokens: Sequence[int]) -> None:
        """Make sure that the answers are as long as they should be.

        Raises:
            RuntimeError: They are not.
        """
        rows = self.work.prompts * self.work.group_size
        if list(tokens) != [self.work.new_tokens] * rows:
            raise RuntimeError(f"{rows} answers of {self.work.new_tokens} expected, got {tokens}")

    @abstractmethod
    def run(self, turns: Turns) -> None:
        """Make an update at every turn."""


class OurLeg(Leg):
    """The GSPO agent of this project."""

    def __init__(self, work: Work, *, shared: bool) -> None:
        """With the prompt shared among its answers, or repeated for each."""
        super().__init__(work)
        self.policy.shared_prefix = shared
        envs: Any = gym.make_vec(
            "SimpleSeg-Scenes-v0",
            num_envs=work.prompts * work.group_size,
            autoreset_mode="Disabled",
            dataset=self.pool,
            rewards=REWARDS,
        )
        self.agent = GSPO(self.policy, envs, work.settings())

    def run(self, turns: Turns) -> None:
        """Make an update at every turn."""
        collect = self.sampling.timed(self.agent.collect)
        self.agent._score = self.scoring.timed(self.agent._score)  # type: ignore[method-assign]
        turns.ready(**self.facts())
        while turns.wait():
            start = self.scoring.now()
            rollout, _ = collect()
            self.agent.train(rollout, self.agent.config.learning_rate)
            turns.report(self.parts(self.scoring.now() - start))
            self.check_lengths(rollout.mask.sum(-1).tolist())


class TRLLeg(Leg, TrainerCallback):
    """TRL's GRPOTrainer, set up as `agents.trl_backend.gspo` does."""

    def run(self, turns: Turns) -> None:
        """Make an update at every turn."""
        core = ReferringCore(self.pool, rewards=REWARDS)
        agent = TRLGSPO(self.policy, core, self.work.settings())
        self.turns, self.start = turns, 0.0
        with TemporaryDirectory() as folder:
            trainer = agent.build_trainer(1_000, folder)
            self._time(trainer)
            trainer.add_callback(self)
            turns.ready(**self.facts())
            trainer.train()

    def _time(self, trainer: Any) -> None:
        """Time the parts of an update."""
        generate = self.sampling.timed(trainer._generate_and_score_completions)

        def sample(inputs: Any) -> Any:
            batch = generate(inputs)
            self.check_lengths(batch["completion_mask"].sum(-1).tolist())
            return batch

        trainer._generate_and_score_completions = sample
        trainer.compute_loss = self.scoring.timed(trainer.compute_loss)

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: object) -> Any:
        """Wait for the first turn."""
        return self._next(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: object) -> Any:
        """An update is done."""
        self.turns.report(self.parts(self.scoring.now() - self.start))
        return self._next(control)

    def _next(self, control: Any) -> Any:
        control.should_training_stop = not self.turns.wait()
        self.start = self.scoring.now()
        return control


def work_process(leg: str, work: Work, threads: int, connection: Connection) -> None:
    """What the process of a leg does; whatever goes wrong is told to the other end."""
    try:
        if threads:
            torch.set_num_threads(threads)
        contestant = TRLLeg(work) if leg == "trl" else OurLeg(work, shared=leg == "ours")
        contestant.run(Turns(connection, work))
    except Exception:
        connection.send(("error", traceback.format_exc()))
