"""Agents that learn to write outlines, and the policy that they train.

Names are imported when they are used: ``import agents`` imports neither torch nor transformers.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# GNU OpenMP threads wait for each other by spinning for milliseconds: if another process wants one
# of their cores, an update takes thirty times as long. This spin count is enough on idle cores; it
# is read when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if TYPE_CHECKING:
    from agents.behavior_cloning import BehaviorCloning as BehaviorCloning
    from agents.gspo import GSPO as GSPO
    from agents.policy.model import VLMPolicy as VLMPolicy
    from agents.ppo import PPO as PPO
    from agents.settings import BehaviorCloningConfig as BehaviorCloningConfig
    from agents.settings import GSPOConfig as GSPOConfig
    from agents.settings import PPOConfig as PPOConfig

_HOMES = {
    "BehaviorCloning": "agents.behavior_cloning",
    "BehaviorCloningConfig": "agents.settings",
    "GSPO": "agents.gspo",
    "GSPOConfig": "agents.settings",
    "PPO": "agents.ppo",
    "PPOConfig": "agents.settings",
    "VLMPolicy": "agents.policy.model",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
