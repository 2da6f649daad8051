"""Data sets: procedural scenes and readers of annotated images."""

from seg_env.data.base import Dataset
from seg_env.data.scenes import Scenes

__all__ = ["Dataset", "Scenes"]
