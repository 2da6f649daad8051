"""What test_distributed.py starts on two ranks: small trainings of every kind, one after another.

    torchrun --nproc_per_node 2 tests/distributed_job.py FOLDER

Also imported there, to do the same in one process.
"""

import json
import sys
from pathlib import Path

import gymnasium as gym
import torch
from agents_fixtures import OUTLINES_ONLY, scene_demonstrations, small_policy

from agents.behavior_cloning import BehaviorCloning, BehaviorCloningConfig
from agents.distributed import World, join_world, leave_world
from agents.gspo import GSPO, GSPOConfig
from agents.policy import VLMPolicy
from agents.ppo import PPO, PPOConfig

UPDATES, HALF = 5, 3

KINDS = {
    "plain-2": (None, 2),
    "zero1-1": ("zero1", 1),
    "zero2-1": ("zero2", 1),
    "zero2-2": ("zero2", 2),
    "zero3-1": ("zero3", 1),
    "zero3-2": ("zero3", 2),
}
"""Name of a training: how it is shared out, and minibatches."""
RESUMED = {"zero2-2": "zero3-2", "zero3-2": "zero3-2", "plain-2": "zero2-2"}
"""Training of which the checkpoint is resumed, and as what."""


def make_agent(folder, choice=None, minibatches=2):
    """A GSPO agent on the policy that the test saved."""
    config = GSPOConfig(minibatches=minibatches, kl_coefficient=0.01, **settings(folder, choice))
    return GSPO(VLMPolicy.from_pretrained(folder / "policy"), make_env(config), config)


def make_critical_agent(folder, choice):
    """A PPO agent, which trains a critic beside the policy."""
    config = PPOConfig(minibatches=1, epochs=2, **settings(folder, choice))
    return PPO(VLMPolicy.from_pretrained(folder / "policy"), make_env(config), config)


def settings(folder, choice):
    """What all agents here have in common."""
    if choice == "zero3":  # the shipped configuration leaves parameters as small as these whole
        choice = str(folder / "zero3.json")
    return {
        "prompts_per_update": 4,
        "group_size": 4,
        "prompts_per_forward": 1,
        "max_new_tokens": 24,
        "learning_rate": 3e-4,
        "muon": False,
        "deepspeed": choice,
    }


def make_env(config):
    """This rank's share of the questions."""
    rows = config.rows_of(World.current())
    return gym.make_vec("SimpleSeg-Scenes-v0", num_envs=rows, autoreset_mode="Disabled", size=64)


def learn(agent, updates=UPDATES, checkpoint=None):
    """Train; returns the metrics of the updates."""
    rows = []

    def on_update(update, metrics):
        rows.append({key: value for key, value in metrics.items() if not key.startswith("time/")})
        if checkpoint is not None and update == HALF:
            agent.save(checkpoint)

    agent.learn(updates, on_update)
    return rows


def weights_of(agent):
    """A copy of all weights by name."""
    with agent.engine.whole_weights():
        state = agent.policy.model.state_dict()
        return {name: value.detach().clone() for name, value in state.items()}


def clone(updates=UPDATES, choice=None):
    """A behaviour cloning agent that has learned a little."""
    policy = small_policy()
    config = BehaviorCloningConfig(
        batch_size=4, learning_rate=1e-4, muon=False, deepspeed=choice, **OUTLINES_ONLY
    )
    agent = BehaviorCloning(policy, scene_demonstrations(policy.processor, 8), config)
    rows = []
    agent.learn(updates, lambda update, metrics: rows.append(metrics))
    return agent, rows


def keep(folder, name, agent, rows):
    """Write down what a training came to."""
    weights = weights_of(agent)
    if World.current().is_main:
        torch.save(weights, folder / f"{name}.pt")
        (folder / f"{name}.json").write_text(json.dumps(rows))


def main(folder):
    """Train in every way; rank 0 writes metrics and weights."""
    join_world()
    for name in KINDS:
        agent = make_agent(folder, *KINDS[name])
        keep(folder, name, agent, learn(agent, checkpoint=folder / "checkpoints" / name))
    for written, name in RESUMED.items():
        agent = make_agent(folder, *KINDS[name])
        agent.load(folder / "checkpoints" / written)
        keep(folder, f"{written}-as-{name}", agent, learn(agent))
    for choice in (None, "zero3"):
        agent = make_critical_agent(folder, choice)
        keep(folder, f"ppo-{choice}", agent, learn(agent))
    for choice in (None, "zero2"):
        keep(folder, f"cloning-{choice}", *clone(choice=choice))
    leave_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
