"""The table of environment ids."""

from __future__ import annotations

import gymnasium as gym

SINGLE = "seg_env.envs.referring:ReferringSegmentationEnv"
BATCHED = "seg_env.envs.vector:ReferringSegmentationVectorEnv"

DATASETS = {
    "SimpleSeg-Scenes-v0": "scenes",
    "SimpleSeg-RefCOCO-v0": "refcoco",
    "SimpleSeg-RefCOCOPlus-v0": "refcoco+",
    "SimpleSeg-RefCOCOg-v0": "refcocog",
    "SimpleSeg-RefCLEF-v0": "refclef",
}
"""Environment id to the data set it asks about (``+`` is not a legal character in an id)."""

ENVIRONMENT_IDS: tuple[str, ...] = tuple(DATASETS)


def register_environments() -> None:
    """Make the ids known to ``gymnasium.make`` and ``make_vec``; safe to call again.

    ``max_episode_steps`` stays unset: an episode ends by itself after one answer, and a limit of
    one would report it as truncated too.
    """
    for identifier, dataset in DATASETS.items():
        if identifier not in gym.registry:
            gym.register(
                id=identifier,
                entry_point=SINGLE,
                vector_entry_point=BATCHED,
                kwargs={"dataset": dataset},
            )
