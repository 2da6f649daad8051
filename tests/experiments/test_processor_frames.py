"""Tiny Qwen-VLs with their real processors are asked and measured in the numbers they write.

pytest -m processors
"""

import json
from dataclasses import dataclass

import gymnasium as gym
import pytest
from processor_families import PROCESSOR_FAMILIES
from scripted_policy import ScriptedPolicy, write_tree

from agents.gspo import GSPO, GSPOConfig
from agents.policy.model import VLMPolicy
from experiments import evaluate, run_gspo
from experiments.common.arguments import EvaluationPlan
from experiments.evaluate import Args as EvaluateArgs
from seg_env.data import open_dataset

pytestmark = pytest.mark.processors

ENV = "SimpleSeg-RefCOCO-v0"
SIZES = ((224, 448), (448, 224), (224, 224))
"""``(H, W)``; Qwen2.5-VL's processor makes them smaller, by halves where it must."""
OUTLINES = (
    [(56, 28), (336, 28), (336, 196), (168, 196), (168, 112), (56, 112)],
    [(28, 56), (196, 56), (196, 392), (28, 392)],
    [(0, 0), (112, 0), (112, 168), (0, 168)],
)
WRITES = {"qwen2_5_vl": "qwen2.5-vl", "qwen2_vl": "permille", "qwen3_vl": "permille"}
"""What `--frame auto` finds out about a family."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("tree"), SIZES, OUTLINES, ("train", "val"))


@pytest.fixture(scope="module", params=WRITES)
def family(request, tmp_path_factory):
    """A family and a folder of it, whose processor makes images a quarter as large."""
    folder = PROCESSOR_FAMILIES[request.param].save(tmp_path_factory.mktemp(request.param))
    return request.param, folder


def scripted(folder):
    """What is opened from a folder, made to write perfect outlines in the frame found."""
    opened = VLMPolicy.from_pretrained(folder, device="cpu")
    opened.processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 112 * 224}
    opened.processor.save_pretrained(folder)
    opened = VLMPolicy.from_pretrained(folder, device="cpu")
    outlines = {f"shape {number}": corners for number, corners in enumerate(OUTLINES, 1)}
    policy = ScriptedPolicy(
        opened.model, opened.processor, opened.answer_frame.family, outlines=outlines
    )
    policy.answer_frame = opened.answer_frame
    return policy


@dataclass
class ScriptedArgs(run_gspo.Args):
    """The command line of run_gspo.py, answered by a script."""

    def open_policy(self, console):
        return scripted(self.policy)


def test_perfect_answers_are_perfect_in_run_gspo(family, tree, tmp_path):
    name, folder = family
    args = ScriptedArgs(
        env=ENV,
        policy=str(folder),
        data_root=str(tree),
        updates=0,
        vision_check=False,  # a script looks at nothing
        evaluation=EvaluationPlan(questions=3, answers=2, every=0),
        output_dir=tmp_path / "run",
    )
    args.gspo.prompts_per_update = args.gspo.group_size = 2
    scores = run_gspo.main(args)
    assert scores["frame"].startswith(WRITES[name])
    assert scores["before"]["giou"] == scores["before"]["ciou"] == 1.0
    assert scores["before"]["sampled"]["giou"] == 1.0
    assert scores["before"]["well_formed"] == 1.0


def test_perfect_answers_are_perfect_in_a_rollout(family, tree):
    policy = scripted(family[1])
    config = GSPOConfig(prompts_per_update=3, group_size=2, max_new_tokens=300, muon=False)
    envs = gym.make_vec(
        ENV,
        num_envs=6,
        autoreset_mode="Disabled",
        data_root=str(tree),
        frame=policy.answer_frame,
    )
    agent = GSPO(policy, envs, config)
    for _ in range(2):
        assert agent.collect()[1]["rollout/iou"] == 1.0


def test_scores_before_training_are_those_of_the_evaluator(family, tree, tmp_path):
    name, folder = family
    args = run_gspo.Args(
        env=ENV,
        policy=str(folder),
        data_root=str(tree),
        updates=2,
        evaluation=EvaluationPlan(questions=3, answers=1, every=0),
        output_dir=tmp_path / "run",
    )
    args.gspo.prompts_per_update = args.gspo.group_size = 2
    scores = run_gspo.main(args)
    found = evaluate.main(
        EvaluateArgs(env=ENV, policy=str(folder), data_root=str(tree), output_dir=tmp_path / "eval")
    )
    assert found["frame"] == scores["frame"]
    assert scores["frame"].startswith(WRITES[name])
    assert (found["giou"], found["ciou"]) == (scores["before"]["giou"], scores["before"]["ciou"])
    lines = [json.loads(line) for line in (tmp_path / "eval" / "answers.jsonl").open()]
    tokens = [line["tokens"] for line in lines]
    assert sum(tokens) / len(tokens) == scores["before"]["tokens"]


def test_the_frame_is_that_of_the_image_the_processor_makes(family, tree):
    name, folder = family
    policy = scripted(folder)
    sample = open_dataset("refcoco", data_root=tree, split="val")[0]
    grid = policy.prepare([sample.image], ["shape 1"])["image_grid_thw"][0]
    patch = policy.processor.image_processor.patch_size
    frame = policy.answer_frame.for_image(sample.target.size)
    if WRITES[name] == "qwen2.5-vl":
        assert frame.size[::-1] == (grid[1] * patch, grid[2] * patch) == (112, 224)
    else:
        assert frame.limits == (1000, 1000)
