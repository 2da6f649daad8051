"""Memory of updates, measured and as predicted by `agents.training.memory`.

Each is measured in a process of its own. It first makes an update and discards it, so that
libraries are loaded and have compiled what they compile for every shape (half a MiB for each length
of an answer, in bfloat16 on a CPU). What a policy, its optimizer and two more updates need above
that is measured.
"""

from __future__ import annotations

import gc
import os
import traceback
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

import gymnasium as gym
import torch

from agents.gspo import GSPO
from agents.policy.adapters import add_adapter
from agents.policy.model import VLMPolicy
from agents.training.memory import BFLOAT16, FLOAT32, Update, empty_model, needs_of
from experiments.benchmarks.memory import Memory
from experiments.benchmarks.train_legs import REWARDS, Pool, Work, make_policy
from seg_env.tasks import question

UPDATES = 2
THRESHOLD = {"MALLOC_MMAP_THRESHOLD_": "100000"}
"""Environment of the processes that are measured: freed memory goes back at once."""


@dataclass(frozen=True)
class Way:
    """How the weights are trained."""

    muon: bool = False
    freeze_vision: bool = False
    checkpointing: bool = False
    bfloat16: bool = False
    """Whether weights are in bfloat16; computation is then, too."""
    autocast: bool = False
    """Whether computation is in bfloat16 while weights are in float32."""
    reference: bool = False
    lora_rank: int = 0


WAYS = {
    "all weights, AdamW": Way(),
    "Muon": Way(muon=True),
    "KL reference": Way(reference=True),
    "frozen tower": Way(freeze_vision=True),
    "checkpointing": Way(checkpointing=True),
    "autocast to bfloat16": Way(autocast=True),
    "bfloat16 weights": Way(bfloat16=True),
    "bfloat16 weights, checkpointing": Way(bfloat16=True, checkpointing=True),
    "adapters": Way(lora_rank=8),
    "adapters, checkpointing": Way(lora_rank=8, checkpointing=True),
}
"""What is measured."""


def predict(policy: VLMPolicy, work: Work, way: Way, prompt_tokens: int) -> dict[str, float]:
    """Predicted bytes of each phase of an update, and the largest as ``"peak"``."""
    config = work.model_config()
    patches = (config.image_size // config.patch_size) ** 2
    update = Update(
        prompts=work.prompts,
        group_size=work.group_size,
        prompts_per_forward=work.settings().prompts_per_forward,
        minibatches=1,
        prompt_tokens=prompt_tokens,
        image_tokens=patches,
        patches=patches,
        pixels=3 * config.image_size**2,
        answer_tokens=work.new_tokens,
        weights=BFLOAT16 if way.bfloat16 else FLOAT32,
        computed=BFLOAT16 if policy.precision == "bfloat16" else FLOAT32,
        muon=way.muon,
        freeze_vision=way.freeze_vision,
        checkpointing=way.checkpointing,
        reference=way.reference,
        lora_rank=way.lora_rank,
    )
    needs = needs_of(empty_model(policy.model.config), update)
    found = {need.phase: need.total for need in needs}
    return found | {"peak": max(found.values())}


def make_agent(work: Work, way: Way) -> GSPO:
    """An agent that trains as a way says."""
    policy = make_policy(work)
    if way.bfloat16:
        policy.model.to(torch.bfloat16)
    if way.bfloat16 or way.autocast:
        policy.precision = "bfloat16"
    if way.freeze_vision:
        policy.freeze_vision()
    if way.checkpointing:
        policy.checkpoint_gradients()
    if way.lora_rank:
        policy.model.name_or_path = work.shape  # an adapter names its model, which is in no folder
        add_adapter(policy.model, way.lora_rank)
    pool: Any = Pool(policy.processor, work.model_config().image_size)
    envs: Any = gym.make_vec(
        "SimpleSeg-Scenes-v0",
        num_envs=work.prompts * work.group_size,
        autoreset_mode="Disabled",
        dataset=pool,
        rewards=REWARDS,
    )
    kl = 0.01 if way.reference else 0.0
    return GSPO(policy, envs, replace(work.settings(), muon=way.muon, kl_coefficient=kl))


def measure(work: Work, way: Way) -> dict[str, float]:
    """Bytes predicted, and measured in a process of its own.

    Raises:
        RuntimeError: It failed; the message has its traceback.
    """
    with mock.patch.dict(os.environ, THRESHOLD):
        context = get_context("spawn")
        ours, its = context.Pipe()
        process = context.Process(target=_send_growth, args=(its, work, way), daemon=True)
        process.start()
    its.close()
    try:
        found = ours.recv()
    except EOFError:
        found = "its process ended, perhaps for lack of memory"
    process.join()
    if isinstance(found, str):
        raise RuntimeError(f"{way}: {found}")
    return dict(found)


def _send_growth(connection: Connection, work: Work, way: Way) -> None:
    """What the process does; an error is sent as text."""
    try:
        make_agent(work, way).learn(1)
        gc.collect()
        memory = Memory(work.device)
        agent = make_agent(work, way)
        agent.learn(UPDATES)
        config = work.model_config()
        sample = Pool(agent.policy.processor, config.image_size)[0]
        inputs = agent.policy.prepare([sample.image], [question(sample, "text->mask")])
        found = predict(agent.policy, work, way, inputs["input_ids"].shape[1])
        connection.send(found | {"measured": memory.growth_mib() * 2**20})
    except Exception:
        connection.send(traceback.format_exc())
