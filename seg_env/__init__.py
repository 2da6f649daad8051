"""Segmentation by polygon text as reinforcement learning (SimpleSeg, arXiv 2601.19228).

Importing the package registers the ``SimpleSeg-*`` environments with Gymnasium; everything heavier
is imported when an environment is made.
"""

from seg_env.registration import ENVIRONMENT_IDS, REFINE_IDS, register_environments

__version__ = "0.1.0"
__all__ = ["ENVIRONMENT_IDS", "REFINE_IDS", "__version__", "register_environments"]

register_environments()
