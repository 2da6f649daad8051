"""The table of environment ids."""

from __future__ import annotations

import gymnasium as gym

DATASETS = {
    "SimpleSeg-Scenes-v0": "scenes",
    "SimpleSeg-RefCOCO-v0": "refcoco",
    "SimpleSeg-RefCOCOPlus-v0": "refcoco+",
    "SimpleSeg-RefCOCOg-v0": "refcocog",
    "SimpleSeg-RefCLEF-v0": "refclef",
}
"""Environment id to the data set it asks about (``+`` is not a legal character in an id)."""

ENVIRONMENT_IDS: tuple[str, ...] = tuple(DATASETS)
"""Environments of one outline; ``step_mode="vertex"`` has it drawn vertex by vertex."""
REFINE_IDS: tuple[str, ...] = tuple(
    name.replace("SimpleSeg-", "SimpleSegRefine-") for name in DATASETS
)
"""Environments of several turns about one outline, for the same data sets in the same order."""


def register_environments() -> None:
    """Make the ids known to ``gymnasium.make`` and ``make_vec``; safe to call again.

    ``max_episode_steps`` stays unset: episodes end by themselves, and a limit of one would report
    the end after one answer as a truncation too.
    """
    for names, step_mode in ((ENVIRONMENT_IDS, "answer"), (REFINE_IDS, "refine")):
        for identifier, dataset in zip(names, DATASETS.values(), strict=True):
            if identifier not in gym.registry:
                gym.register(
                    id=identifier,
                    entry_point="seg_env.envs.referring:ReferringSegmentationEnv",
                    vector_entry_point="seg_env.envs.vector:ReferringSegmentationVectorEnv",
                    kwargs={"dataset": dataset, "step_mode": step_mode},
                )
