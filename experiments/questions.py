"""Opening the questions of a registered environment; needs no deep-learning library."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

import seg_env  # noqa: F401  (registers the environments)
from seg_env.envs.core import ReferringCore


def open_questions(env_id: str, **arguments: Any) -> ReferringCore:
    """The questions of a registered environment, without its episodes."""
    return ReferringCore(**{**gym.spec(env_id).kwargs, **arguments})
