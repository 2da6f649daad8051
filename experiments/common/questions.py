"""Opening the questions of a registered environment; needs no deep-learning library."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

import seg_env  # noqa: F401  (registers the environments)
from seg_env.envs.core import ReferringCore
from seg_env.envs.episodes import EpisodeRules
from seg_env.envs.refine_rules import find_refine_rules
from seg_env.envs.step_modes import find_rules
from seg_env.registration import REFINE_IDS


def open_rules(env_id: str, **arguments: Any) -> EpisodeRules[Any]:
    """What an episode of a registered environment consists of, with its questions."""
    find = find_refine_rules if env_id in REFINE_IDS else find_rules
    return find(**{**gym.spec(env_id).kwargs, **arguments})


def open_questions(env_id: str, **arguments: Any) -> ReferringCore:
    """The questions of a registered environment, without its episodes."""
    return ReferringCore(**{**gym.spec(env_id).kwargs, **arguments})
