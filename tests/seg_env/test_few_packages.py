"""The environment and the rewards need few packages, whatever else is installed."""

import subprocess
import sys

ALLOWED = ["gymnasium", "numpy", "scipy", "pillow", "shapely", "rasterio"]
PROGRAM = """
import importlib.metadata as metadata
import re
import sys

def with_what_they_need(names):
    found, todo = set(), list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name not in found:
            found.add(name)
            needs = metadata.requires(name) or []
            todo += [re.match(r"[\\w.-]+", need)[0] for need in needs if ";" not in need]
    return found

allowed = with_what_they_need(sys.argv[1:])
owners = metadata.packages_distributions()
own = {"seg_env", "rewards"}

class OnlyThese:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        distributions = {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners.get(top, ())}
        if distributions and top not in own and not distributions & allowed:
            raise ImportError(f"{name} is needed, and belongs to none of {sorted(allowed)}")

sys.meta_path.insert(0, OnlyThese())
import gymnasium as gym
import numpy as np
import rewards
import seg_env

ANSWER = "[[[0.1,0.1],[0.6,0.1],[0.6,0.7]]]"
for name in ("SimpleSeg-Scenes-v0", "SimpleSegRefine-Scenes-v0", "SimpleSeg-RefCOCO-v0"):
    words = "mask_iou=1 boundary_iou=0.1 boundary_f=0.1"
    env = gym.make(name, render_mode="rgb_array", rewards=words)
    env.reset(seed=0)
    env.step(ANSWER)
    env.render()
envs = gym.make_vec("SimpleSeg-Scenes-v0", num_envs=2, split="val")
envs.reset(seed=0)
envs.step(["[]", ANSWER])
assert "torch" not in sys.modules
"""


def test_environments_and_rewards_run_with_them_alone():
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *ALLOWED], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
