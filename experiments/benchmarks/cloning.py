"""Speed of behaviour cloning: the plain loop over shared pictures beside TRL's SFTTrainer."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback

from agents.behavior_cloning import BehaviorCloning, BehaviorCloningConfig, cloning_loss
from agents.demonstrations import Demonstration, collate, demonstrate
from agents.embedded.tiny import TinyConfig, build_model, build_processor
from agents.policy.model import VLMPolicy
from agents.trl_backend.sft import SupervisedFineTuning, SupervisedFineTuningConfig
from experiments.common.logs import write_json
from experiments.common.policies import PrecisionChoice, choose_precision
from seg_env.data.scenes import Scenes
from seg_env.tasks import answer, question
from seg_env.types import Sample

WORDING = {"epsilon": 0.01, "decimals": 2, "pad": True}
"""How run_bc.py writes outlines."""
RATE = 1e-3
"""Learning rate of both; it has no influence on their speed."""

Pictures = list[list[Sample]]
"""Samples of one update by picture."""


def benchmark_cloning(
    json: Path | None = None,
    output_dir: Path | None = None,
    seed: int = 0,
    updates: int = 12,
    pictures: int = 24,
    pairs: int = 14,
    precision: PrecisionChoice = "auto",
    attention: Literal["eager", "sdpa"] = "eager",
) -> None:
    """Time updates of the plain loop and of TRL's SFTTrainer on a policy of the embedded shape.

    Both learn the same outlines of the same easy scenes in the same batches, from the same weights,
    with AdamW, one thread, no gradient checkpointing and the same precision. They take turns in one
    run, ours after each update of theirs; figures are medians of CPU time over the turns after the
    first. `ratio_vs_trl` is theirs / ours for the update alone: forward, backward, clipping and
    optimizer, on tensors that are ready. `ratio_with_data` also counts making the batch: the plain
    loop stacks pictures and tokens that it prepared when the run began, SFTTrainer's collator
    prepares them anew for every row, a picture once for each question about it.

    Args:
        json: File to write the figures to.
        output_dir: Folder to write them to as cloning.json.
        seed: Seed of the weights.
        updates: Updates of each.
        pictures: Pictures per update.
        pairs: How many of them have two objects and so two questions; the others have one. Of easy
            scenes 60 % have two.
        precision: Of both: float32, bfloat16 under autocast, or auto as in run_bc.py.
        attention: Of both: the kernel of attention; the plain one is faster on a CPU here.
    """
    if not 0 <= pairs <= pictures or updates < 2:
        raise SystemExit(
            f"{pairs=} of {pictures=} in {updates=}: use pairs up to pictures, 2+ updates"
        )
    torch.set_num_threads(1)
    chosen = choose_scenes(updates, pictures - pairs, pairs)
    ours, theirs = (
        make_policy(seed, choose_precision(precision), attention) for _ in ("ours", "theirs")
    )
    plain = PlainLoop(ours, chosen)
    turns = TakeTurns(plain)
    run_trl(theirs, chosen, turns)
    seconds = {
        "ours": np.array(plain.seconds),
        "trl": np.array(turns.seconds),
        "ours, batch": np.array(plain.batch_seconds),
        "trl, batch": np.array(turns.batch_seconds[:updates]),
    }
    ratios = seconds["trl"][1:] / seconds["ours"][1:]
    medians = {name: float(np.median(times[1:])) for name, times in seconds.items()}
    results = {
        "ratio_vs_trl": float(np.median(ratios)),
        "ratio_vs_trl_range": [float(ratios.min()), float(ratios.max())],
        "ratio_with_data": (medians["trl"] + medians["trl, batch"])
        / (medians["ours"] + medians["ours, batch"]),
        "seconds_per_update": medians,
        "first_losses": {"ours": plain.losses[0], "trl": turns.losses[0]},
        "settings": {
            **{"seed": seed, "updates": updates, "pictures": pictures, "pairs": pairs},
            **{"precision": ours.precision, "attention": attention},
        },
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "trl")},
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }
    show(results, Console())
    for path in (json, output_dir and output_dir / "cloning.json"):
        if path:
            write_json(path, results)


def choose_scenes(updates: int, singles: int, pairs: int) -> list[Pictures]:
    """The pictures of every update, all different: some with one object, some with two."""
    scenes, found = Scenes("train"), {1: [], 2: []}  # type: ignore[var-annotated]
    number = 0
    while len(found[1]) < updates * singles or len(found[2]) < updates * pairs:
        samples = scenes.samples_of(number)
        found[len(samples)].append(samples)
        number += 1
    return [
        found[1][singles * update :][:singles] + found[2][pairs * update :][:pairs]
        for update in range(updates)
    ]


def make_policy(seed: int, precision: Any, attention: str) -> VLMPolicy:
    """A policy of the embedded shape with random weights."""
    config = TinyConfig()
    processor = build_processor(config)
    torch.manual_seed(seed)
    model = build_model(config, processor)
    model.set_attn_implementation(attention)
    return VLMPolicy(model, processor, precision=precision)


class PlainLoop:
    """The plain loop, one update at a time; what it prepares when a run begins is not timed."""

    def __init__(self, policy: VLMPolicy, chosen: Sequence[Pictures]) -> None:
        """Prepare the demonstrations of all updates."""
        config = BehaviorCloningConfig(learning_rate=RATE, muon=False)
        self.agent = BehaviorCloning(policy, [], config)
        self.demonstrations: list[list[Demonstration]] = [
            [demonstrate(policy.processor, each, ["text->mask"], **WORDING) for each in pictures]  # type: ignore[arg-type]
            for pictures in chosen
        ]
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.batch_seconds: list[float] = []

    def step(self) -> None:
        """Make the next update."""
        agent, policy = self.agent, self.agent.policy
        policy.model.train()
        start = time.process_time()
        pairs = [(one, one.dialogues) for one in self.demonstrations[len(self.seconds)]]
        batch = collate(pairs, policy.tokenizer.pad_token_id)
        ready = time.process_time()
        loss = cloning_loss(policy, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), agent.config.max_grad_norm)
        agent.engine.optimizer.step()
        self.losses.append(loss.item())
        self.seconds.append(time.process_time() - ready)
        self.batch_seconds.append(ready - start)


class TakeTurns(TrainerCallback):
    """Times the updates of a trainer and makes one of the plain loop after each."""

    def __init__(self, plain: PlainLoop) -> None:
        """Take turns with ``plain``."""
        self.plain = plain
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.batch_seconds: list[float] = []
        self._start = 0.0

    def timed(self, collate_rows: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A collator that notes how long it takes."""

        def measure(examples: Any) -> Any:
            start = time.process_time()
            batch = collate_rows(examples)
            self.batch_seconds.append(time.process_time() - start)
            return batch

        return measure

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: object) -> None:
        """The batch is ready."""
        self._start = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: object) -> None:
        """The optimizer has stepped."""
        self.seconds.append(time.process_time() - self._start)
        self.plain.step()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float], **others: object
    ) -> None:
        """Note the loss."""
        if "loss" in logs:
            self.losses.append(logs["loss"])


def run_trl(policy: VLMPolicy, chosen: Sequence[Pictures], turns: TakeTurns) -> None:
    """Train with SFTTrainer on one row for each object."""
    samples = [sample for pictures in chosen for picture in pictures for sample in picture]
    rows = [
        {
            "prompt": [{"role": "user", "content": question(sample, "text->mask")}],
            "completion": [
                {"role": "assistant", "content": answer(sample, "text->mask", **WORDING)}  # type: ignore[arg-type]
            ],
            "images": [sample.image],
        }
        for sample in samples
    ]

    def columns(batch: dict[str, Sequence[int]]) -> dict[str, list[Any]]:
        return {name: [rows[index][name] for index in batch["row"]] for name in rows[0]}

    config = SupervisedFineTuningConfig(
        batch_size=len(rows) // len(chosen), learning_rate=RATE, gradient_checkpointing=False
    )
    scenes: Any = Scenes("train")  # replaced below by the chosen rows
    agent = SupervisedFineTuning(policy, scenes, config)
    with TemporaryDirectory() as folder:
        trainer = agent.build_trainer(len(chosen), folder)
        trainer.train_dataset.set_transform(columns)
        trainer.data_collator = turns.timed(trainer.data_collator)
        trainer.add_callback(turns)
        trainer.train()


def show(results: dict[str, Any], console: Console) -> None:
    """Print the figures as a table."""
    settings, seconds = results["settings"], results["seconds_per_update"]
    questions = settings["pictures"] + settings["pairs"]
    table = Table(
        title=f"Behaviour cloning: {questions} outlines in {settings['pictures']} pictures per "
        f"update, {settings['precision']}"
    )
    table.add_column("")
    for heading in ("CPU seconds per update", "making the batch"):
        table.add_column(heading, justify="right")
    for name, label in (("ours", "plain loop"), ("trl", "TRL's SFTTrainer")):
        table.add_row(label, f"{seconds[name]:.3f}", f"{seconds[f'{name}, batch']:.3f}")
    console.print(table)
    low, high = results["ratio_vs_trl_range"]
    losses = results["first_losses"]
    console.print(
        f"theirs / ours: {results['ratio_vs_trl']:.2f} ({low:.2f}-{high:.2f}), with the batch "
        f"{results['ratio_with_data']:.2f}; first losses {losses['ours']:.4f} and "
        f"{losses['trl']:.4f}"
    )
