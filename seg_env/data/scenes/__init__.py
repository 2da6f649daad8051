"""Procedural scenes: shapes that expressions tell apart, with their masks."""

from seg_env.data.scenes.dataset import Scenes, Split

__all__ = ["Scenes", "Split"]
