"""What test_distributed.py starts on two ranks: small trainings of every kind, one after another.

    torchrun --nproc_per_node 2 tests/distributed_job.py FOLDER

Also imported there, to do the same in one process.
"""

import json
import sys
from pathlib import Path

import gymnasium as gym
import muon_network
import torch
from agents_fixtures import OUTLINES_ONLY, scene_demonstrations, small_policy

from agents.behavior_cloning import BehaviorCloning, BehaviorCloningConfig
from agents.gspo import GSPO, GSPOConfig
from agents.policy.adapters import add_adapter
from agents.policy.model import VLMPolicy
from agents.ppo import PPO, PPOConfig
from agents.training.distributed import World, destroy_process_group, init_process_group

UPDATES, HALF = 5, 3
STEADY = {"adam_epsilon": 1e-4, "muon_precision": "float32"}
"""Settings under which steps differ no more than gradients do, by their last bits.

AdamW divides every gradient by its own size. With an epsilon far below those that there are, one
that is nothing but rounding becomes a whole step: that of the value head's bias, which is zero once
least squares have fitted it, or that of the biases of keys, which move no attention. And Muon in
bfloat16 rounds to 1 in 256 what it then amplifies.
"""

KINDS = {
    "plain-2": (None, 2),
    "zero1-1": ("zero1", 1),
    "zero2-1": ("zero2", 1),
    "zero2-2": ("zero2", 2),
    "zero3-1": ("zero3", 1),
    "zero3-2": ("zero3", 2),
}
"""Name of a training: how it is shared out, and minibatches."""
ADAPTED = ("zero1", "zero2")
"""How trainings of an adapter are shared out."""
RESUMED = {"zero2-2": "zero3-2", "zero3-2": "zero3-2", "plain-2": "zero2-2"}
"""Training of which the checkpoint is resumed, and as what."""

MUON = ("zero1", "zero2")
"""How behaviour cloning with Muon is shared out."""
WITH_MUON = {"muon": True, "learning_rate": 1e-3, "weight_decay": 0.1, "max_grad_norm": 0.5}
"""Settings of those: gradients are several times as long as they may be."""

TOWERS = (("zero1", True), ("zero2", False), ("zero3", False))
"""How towers with a learning rate of their own are shared out, and whether with Muon."""
OWN_RATE = {"vision_learning_rate": 1e-4}


def make_agent(folder, choice=None, minibatches=2):
    """A GSPO agent on the policy that the test saved."""
    config = GSPOConfig(minibatches=minibatches, kl_coefficient=0.01, **settings(folder, choice))
    return GSPO(VLMPolicy.from_pretrained(folder / "policy"), make_env(config), config)


def make_adapted_agent(folder, choice):
    """A GSPO agent that trains an adapter, of which the KL penalty takes the model without it."""
    changed = settings(folder, choice) | {"learning_rate": 1e-3}
    config = GSPOConfig(minibatches=2, kl_coefficient=0.1, **changed)
    policy = VLMPolicy.from_pretrained(folder / "policy")
    add_adapter(policy.model, 4)
    return GSPO(policy, make_env(config), config)


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
        **STEADY,
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
    with agent.engine.gathered_weights():
        state = agent.policy.model.state_dict()
        return {name: value.detach().clone() for name, value in state.items()}


def make_cloning_agent(choice=None, **changes):
    """A behaviour cloning agent."""
    policy = small_policy()
    config = BehaviorCloningConfig(
        batch_size=4,
        deepspeed=choice,
        **OUTLINES_ONLY | STEADY | {"learning_rate": 1e-4} | changes,
    )
    return BehaviorCloning(policy, scene_demonstrations(policy.processor, 8), config)


def clone(agent, checkpoint=None):
    """Let a behaviour cloning agent learn a little; returns the metrics of the updates."""
    rows = []

    def on_update(update, metrics):
        rows.append(metrics)
        if checkpoint is not None and update == HALF:
            agent.save(checkpoint)
            keep_shares(checkpoint / "shares.pt", agent)

    agent.learn(UPDATES, on_update)
    return rows


def keep_shares(path, agent):
    """Write all weights, and what every rank has of the optimizer's state, by group."""
    optimizer = agent.engine.optimizer
    own = [
        optimizer.state[partition]
        for group in optimizer.param_groups
        for partition in group["params"]
    ]
    found = {"weights": weights_of(agent), "shares": World.current().gather(own)}
    if World.current().is_main:
        torch.save(found, path)


def keep(folder, name, agent, rows):
    """Write down what a training came to."""
    weights = weights_of(agent)
    if World.current().is_main:
        torch.save(weights, folder / f"{name}.pt")
        (folder / f"{name}.json").write_text(json.dumps(rows))


def main(folder):
    """Train in every way; rank 0 writes metrics and weights."""
    init_process_group()
    for name in KINDS:
        agent = make_agent(folder, *KINDS[name])
        keep(folder, name, agent, learn(agent, checkpoint=folder / "checkpoints" / name))
    for written, name in RESUMED.items():
        agent = make_agent(folder, *KINDS[name])
        agent.load(folder / "checkpoints" / written)
        keep(folder, f"{written}-as-{name}", agent, learn(agent))
    for choice in ADAPTED:
        agent, checkpoint = make_adapted_agent(folder, choice), folder / "checkpoints" / "adapter"
        keep(folder, f"adapter-{choice}", agent, learn(agent, checkpoint=checkpoint))
    agent = make_adapted_agent(folder, "zero2")
    agent.load(checkpoint)
    keep(folder, "adapter-zero2-as-zero2", agent, learn(agent))
    for choice in (None, "zero3"):
        agent = make_critical_agent(folder, choice)
        keep(folder, f"ppo-{choice}", agent, learn(agent))
    agent = make_cloning_agent(muon=False)
    keep(folder, "cloning-None", agent, clone(agent))
    agent = make_cloning_agent("zero2", muon=False)
    keep(folder, "cloning-zero2", agent, clone(agent))
    for choice in MUON:
        agent = make_cloning_agent(choice, **WITH_MUON)
        assert any(len(each.pieces) == 2 for each in agent.engine.optimizer.matrices)
        rows = clone(agent, folder / "checkpoints" / f"muon-{choice}")
        keep(folder, f"muon-{choice}", agent, rows)
    agent = make_cloning_agent("zero2", **WITH_MUON)
    agent.load(folder / "checkpoints" / "muon-zero2")
    keep(folder, "muon-zero2-as-zero2", agent, clone(agent))
    for choice, muon in TOWERS:
        agent = make_cloning_agent(choice, **WITH_MUON | OWN_RATE | {"muon": muon})
        keep(folder, f"tower-{choice}-{muon}", agent, clone(agent))
    muon_network.train_on_ranks(folder / "networks")
    destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
