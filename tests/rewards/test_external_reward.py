"""A reward from a package of one's own, named by its import path, decides what is learned."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from agents_fixtures import cloned_policy, scene_environment

from agents.gspo import GSPO, GSPOConfig
from experiments.common.policies import EMBEDDED, SHIPPED
from experiments.evaluation.loop import evaluate
from seg_env.envs.referring import open_questions

ROOT = Path(__file__).parents[2]
SOURCE = '''
import numpy as np

from rewards import Reward


def counts(predictions):
    return np.array([sum(map(len, answer.rings)) for answer in predictions], dtype=float)


class FewVertices(Reward):
    """1 for a triangle, 0 from 30 vertices and for an answer that cannot be read."""

    def __call__(self, predictions, targets):
        readable = [answer.valid and len(answer.rings) > 0 for answer in predictions]
        return np.array(readable) * (1 - np.clip(counts(predictions) - 3, 0, 27) / 27)


class ManyVertices(Reward):
    """0 for a triangle, 1 from 30 vertices."""

    def __call__(self, predictions, targets):
        return np.clip(counts(predictions) - 3, 0, 27) / 27
'''


@pytest.fixture
def package(tmp_path):
    """A package that is nowhere in the repository; its folder is to be put on the path."""
    folder = tmp_path / "site" / "somebodys_rewards"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "size.py").write_text(SOURCE)
    yield folder.parent
    for name in [name for name in sys.modules if name.startswith("somebodys_rewards")]:
        del sys.modules[name]


def sampled_vertices(policy):
    """Vertices of one sampled answer to each of 96 held-out questions."""
    core = open_questions("SimpleSeg-Scenes-v0", split="val", size=64)
    found = evaluate(policy, core, np.arange(96), temperature=1.0, max_new_tokens=100)
    return found.vertices[:, 0].astype(float)


@pytest.mark.parametrize(("name", "direction"), [("FewVertices", -1), ("ManyVertices", 1)])
def test_gspo_optimises_a_reward_from_outside(package, monkeypatch, name, direction):
    monkeypatch.syspath_prepend(package)
    policy = cloned_policy()
    before = sampled_vertices(policy)
    config = GSPOConfig(
        prompts_per_update=8,
        group_size=8,
        max_new_tokens=100,
        learning_rate=3e-3,
        final_rate=0.1,
        muon=False,
        spread_floor=0.02,
        minibatches=1,
    )
    env = scene_environment(config, rewards=f"somebodys_rewards.size:{name}=1.0 mask_iou=0")
    seen = []
    GSPO(policy, env, config).learn(24, lambda update, metrics: seen.append(metrics))
    assert {f"rollout/reward/{name}", "rollout/reward/mask_iou"} <= seen[0].keys()

    change = direction * (sampled_vertices(policy) - before)
    standard_error = change.std(ddof=1) / np.sqrt(len(change))
    assert change.mean() > 1
    assert change.mean() > 4 * standard_error


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("name", "direction"), [("FewVertices", -1), ("ManyVertices", 1)])
def test_the_shipped_policy_follows_it_from_the_command_line(package, tmp_path, name, direction):
    assert SHIPPED[EMBEDDED].exists()
    command = [
        *(sys.executable, "experiments/run_gspo.py", "--output-dir", str(tmp_path / "run")),
        *("--rewards", f"somebodys_rewards.size:{name}=1.0", "mask_iou=0"),
        *("--updates", "8", "--gspo.prompts-per-update", "8", "--gspo.learning-rate", "2e-4"),
        "--gspo.no-muon",
        *("--evaluation.questions", "64", "--evaluation.answers", "2", "--evaluation.every", "0"),
    ]
    environment = os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    before, after = (scores[when]["sampled"]["vertices"] for when in ("before", "after"))
    assert direction * (after - before) > 1.5
