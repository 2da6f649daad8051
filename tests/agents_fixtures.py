"""Policies small enough for tests, and environments that ask them."""

import copy
import os
from functools import cache

import gymnasium as gym
import numpy as np
import torch

import seg_env  # noqa: F401  (registers the environments)
from agents.behavior_cloning import BehaviorCloning, BehaviorCloningConfig
from agents.demonstrations import demonstrate
from agents.embedded.tiny import TinyConfig, build_model, build_processor
from agents.policy.model import VLMPolicy
from agents.settings import SupervisedFineTuningConfig
from agents.trl_backend.rows import DemonstrationRows
from seg_env.data.scenes import Scenes

THREADS = os.environ.get("OMP_NUM_THREADS", "1")
"""One, unless told otherwise: matrices this small are not worth sharing out, and on a busy machine
threads wait for each other. Processes whose numbers must be the same bit for bit need as many."""
torch.set_num_threads(int(THREADS))

SMALL = TinyConfig(
    image_size=32, patch_size=8, vision_width=32, vision_layers=1, width=32, layers=2, heads=2
)
"""About 60,000 parameters."""

OUTLINES_ONLY = {"points_until": 0.0, "boxes_until": 0.0, "outline_share": 1.0}
"""Settings of a curriculum that has only one stage."""

QUESTIONS = [
    f"Output the polygon coordinates of {expression} in the image."
    for expression in ("the red star", "the large green ring to the left of the bar", "it")
]


def small_policy(seed=0, config=SMALL):
    """A policy with random weights."""
    processor = build_processor(config)
    torch.manual_seed(seed)
    return VLMPolicy(build_model(config, processor), processor)


def random_images(count, seed=0):
    """Pictures of noise, each of another size."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (24 + 4 * i, 40, 3), dtype=np.uint8) for i in range(count)]


def small_inputs(policy):
    """Three pictures with questions of unequal length, so that prompts are padded."""
    inputs = policy.prepare(random_images(len(QUESTIONS)), QUESTIONS)
    assert (inputs["attention_mask"] == 0).any()
    return inputs


def scene_demonstrations(processor, count, tasks=("text->mask",)):
    """Demonstrations of the first easy scenes: coarse outlines, so that answers are short."""
    scenes = Scenes("train", size=64)
    return [
        demonstrate(processor, [scenes[i]], tasks, epsilon=0.03, decimals=2, pad=True)
        for i in range(count)
    ]


def demonstration_rows(dataset, *tasks, **settings):
    """Rows of TRL's trainer for a small policy, by default in the environments' words."""
    config = SupervisedFineTuningConfig(**{"tasks": tasks, "wording": "plain", **settings})
    return DemonstrationRows(small_policy(), dataset, config)


def answer_of(policy, demonstration):
    """The text a demonstration teaches."""
    (dialogue,) = demonstration.dialogues
    tokens = list(dialogue.tokens[dialogue.answer_start :])
    return policy.tokenizer.decode(tokens, skip_special_tokens=True)


def parameters_of(policy):
    """A copy of all weights by name."""
    return {name: value.clone() for name, value in policy.model.state_dict().items()}


def same_parameters(policy, other):
    """Whether two policies are equal bit for bit."""
    ours, theirs = policy.model.state_dict(), other.model.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name]) for name, value in ours.items()
    )


def scene_environment(config, **arguments):
    """The vector environment that an on-policy agent of this configuration needs."""
    return gym.make_vec(
        "SimpleSeg-Scenes-v0",
        num_envs=config.prompts_per_update * config.group_size,
        autoreset_mode="Disabled",
        **{"size": 64, **arguments},
    )


@cache
def _cloned_weights():
    policy = small_policy()
    demonstrations = scene_demonstrations(policy.processor, 300)
    config = BehaviorCloningConfig(batch_size=16, learning_rate=2e-2, **OUTLINES_ONLY)
    BehaviorCloning(policy, demonstrations, config).learn(250)
    return parameters_of(policy)


def cloned_policy():
    """A policy that writes outlines of many lengths, most of them well-formed, of nothing real."""
    policy = small_policy()
    policy.model.load_state_dict(_cloned_weights())
    return policy


def grouped_query_policy():
    """A policy whose attention heads share keys and values, as in larger models."""
    policy = small_policy()
    config = copy.deepcopy(policy.model.config)
    config.text_config.num_attention_heads = 4
    config.text_config.num_key_value_heads = 2
    config.text_config.head_dim = SMALL.width // 4
    torch.manual_seed(1)
    model = type(policy.model)(config)
    model.generation_config = policy.model.generation_config
    return VLMPolicy(model, policy.processor)
