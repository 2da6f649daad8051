"""Agents on episodes of several turns: who goes on, what is asked, credited, learned, measured."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
import tyro
from agents_fixtures import cloned_policy, same_parameters
from identity_tasks import TwoTurns, act_turns, digits_policy
from rich.console import Console

from agents.demonstrations import demonstrate_refinement
from agents.gspo import GSPO, GSPOConfig
from agents.on_policy import choose_sources
from agents.ppo import PPO, PPOConfig
from agents.training.distributed import World
from experiments import run_gspo, run_ppo, run_refine
from experiments.evaluation.loop import evaluate_turns
from seg_env.data.scenes import Scenes
from seg_env.envs.left_out import LeftOut
from seg_env.envs.referring import ReferringSegmentationEnv, open_rules
from seg_env.envs.vector import ReferringSegmentationVectorEnv
from seg_env.grammar import decode, encode

REFINE = "SimpleSegRefine-Scenes-v0"
TEMPLATE = "{outline} {question}"
SETTINGS = {
    "prompts_per_update": 4,
    "group_size": 4,
    "max_new_tokens": 60,
    "learning_rate": 1e-3,
    "muon": False,
}
AGENTS = {"gspo": (GSPO, GSPOConfig), "ppo": (PPO, PPOConfig)}


def make_agent(name="gspo", turns=2, **settings):
    agent_type, config_type = AGENTS[name]
    config = config_type(**SETTINGS | settings)
    env = gym.make_vec(
        REFINE,
        num_envs=config.prompts_per_update * config.group_size,
        autoreset_mode="Disabled",
        size=64,
        turns=turns,
        refine_template=TEMPLATE,
    )
    return agent_type(cloned_policy(), env, config)


def learn(agent, updates):
    rows = []
    agent.learn(updates, lambda update, metrics: rows.append(metrics))
    return rows


def prompts_of(agent, rollout):
    texts = agent.policy.tokenizer.batch_decode(rollout.inputs["input_ids"])
    return [text.replace("<pad>", "").replace("<image>", "") for text in texts]


def test_an_environment_goes_on_from_where_another_one_stands():
    envs = ReferringSegmentationVectorEnv(
        Scenes(split="val", length=16, size=48),
        step_mode="refine",
        num_envs=4,
        autoreset_mode="Disabled",
    )
    envs.reset(options={"indices": [3, 3, 5, 5]})
    corners = [f"[[[0.1,0.1],[0.{n},0.1],[0.{n},0.9]]]" for n in (3, 5, 7, 9)]
    before, *_ = envs.step(corners)
    after = envs.fork([1, 1, 2, 2])
    assert [after["prompt"][row] for row in range(4)] == [
        before["prompt"][row] for row in (1, 1, 2, 2)
    ]
    np.testing.assert_array_equal(after["image"], before["image"][[1, 1, 2, 2]])
    # Each goes its own way from there.
    _, _, _, _, infos = envs.step(["move 0 0.2 0.2", "done", "done", "delete 9"])
    assert infos["outline"].tolist() == [
        corners[1].replace("0.1,0.1", "0.2,0.2", 1),
        corners[1],
        corners[2],
        corners[2],
    ]
    for sources, error in (([0, 1, 2], ValueError), ([0, 1, 2, 4], IndexError)):
        with pytest.raises(error):
            envs.fork(sources)
    with pytest.raises(TypeError, match="credit whole answers"):
        envs.vertex_credit(corners)


def test_a_group_goes_on_from_one_of_its_episodes_that_has_not_ended():
    ended = np.array([0, 1, 1, 0, 1, 1, 1, 1], dtype=bool)
    first, last = np.zeros(2), np.full(2, 0.999)
    # The second group has none left and takes up what is left elsewhere.
    assert choose_sources(ended, 4, first).tolist() == [0] * 8
    assert choose_sources(ended, 4, last).tolist() == [3] * 8
    draws = np.random.default_rng(0).random((1000, 1))
    chosen = [choose_sources(np.zeros(4, dtype=bool), 4, draw)[0] for draw in draws]
    assert np.bincount(chosen).min() > 200, "each as likely as the others"


def test_a_rollout_has_the_groups_of_all_turns():
    agent = make_agent(turns=3)
    rollout, metrics = agent.collect()
    assert rollout.prompts == 12
    assert rollout.group_size == 4
    texts = agent.policy.texts(rollout.tokens, rollout.mask)
    prompts = prompts_of(agent, rollout)
    # From the second turn on, an outline of the same question's group stands in the prompt.
    going_on = 0
    for group in range(4):
        outlines = {text for text in texts[group * 4 : group * 4 + 4] if decode(text).valid}
        later = prompts[4 + group]
        going_on += any(outline in later for outline in outlines)
    assert going_on >= 2
    assert {"rollout/iou", "rollout/turn_2/iou", "rollout/turn_3/reward"} <= metrics.keys()
    # What a turn earned is the improvement: turns of each question's line add up to its IoU.
    assert metrics["rollout/turn_2/reward"] == pytest.approx(rollout.rewards[16:32].mean().item())


def test_the_picture_is_encoded_once_per_turn_for_a_whole_group():
    agent = make_agent(minibatches=2, prompts_per_forward=0)
    seen = []
    tower = agent.policy.model.model.vision_tower
    tower.register_forward_hook(lambda module, args, output: seen.append(len(output[0])))
    learn(agent, 1)
    assert seen == [4, 4, 4, 4]  # two turns of sampling, then two minibatches of both turns


@pytest.mark.parametrize("name", AGENTS)
def test_it_goes_on_where_it_was_interrupted(name, tmp_path):
    whole = make_agent(name)
    rows = []

    def note(update, metrics):
        rows.append(metrics)
        if update == 1:
            whole.save(tmp_path / "half")

    whole.learn(2, note)
    resumed = make_agent(name)
    resumed.load(tmp_path / "half")
    (again,) = learn(resumed, 2)
    timeless = {key for key in again if not key.startswith("time/")}
    assert {key: again[key] for key in timeless} == {key: rows[1][key] for key in timeless}
    assert same_parameters(resumed.policy, whole.policy)


def test_vertices_cannot_be_credited_there():
    with pytest.raises(TypeError, match="credit whole answers"):
        make_agent("ppo", credit="vertex").collect()


def test_command_lines_say_so_before_anything_is_trained():
    arguments = run_ppo.Args(env=REFINE)
    with pytest.raises(ValueError, match=r"--env SimpleSegRefine.*use --ppo.credit answer"):
        arguments.open_environment(arguments.ppo, World())
    arguments.ppo.credit = "answer"
    assert arguments.open_environment(arguments.ppo, World()).num_envs == 256


@pytest.mark.rounding
@pytest.mark.parametrize("name", AGENTS)
def test_both_turns_of_an_easy_task_are_learned(name):
    agent_type, config_type = AGENTS[name]
    config = config_type(
        prompts_per_update=4,
        group_size=16,
        minibatches=1,
        epochs=2,
        max_new_tokens=1,
        learning_rate=3e-3,
        muon=False,
        warmup=0.0,
        clip_low=0.2,
        clip_high=0.3,
    )
    agent = agent_type(digits_policy(), TwoTurns(64), config)
    learn(agent, 50)
    assert act_turns(agent) == [1, 1]


def test_measuring_episodes_equals_playing_them_one_by_one():
    agent = make_agent()
    arguments = {"split": "val", "size": 64, "turns": 3, "refine_template": TEMPLATE}
    turns = evaluate_turns(
        agent.policy, open_rules(REFINE, **arguments), [2, 5, 7], max_new_tokens=60
    )
    env = ReferringSegmentationEnv(step_mode="refine", **arguments)
    for row, index in enumerate((2, 5, 7)):
        observation, _ = env.reset(options={"index": index})
        for turn in range(3):
            (text,) = agent.act(observation)
            observation, _, terminated, _, info = env.step(text)
            assert turns[turn].texts[row] == [info["outline"]]
            assert turns[turn].iou[row] == pytest.approx(info["iou"])
            if terminated:
                break
    assert len(turns) <= 3


def test_demonstrations_show_the_policys_own_outline_and_what_to_do_about_it():
    policy = cloned_policy()
    rules = open_rules(REFINE, split="train", size=64, turns=2, refine_template=TEMPLATE)
    questions = [rules.ask(index) for index in range(3)]
    first = "[[[0.10,0.10],[0.90,0.10],[0.50,0.80]]]"
    found = demonstrate_refinement(
        policy,
        rules,
        questions,
        [first, "no outline", encode(questions[2].sample.target.rings)],
        content=0.9,
        epsilon=0.03,
        decimals=1,
        pad=True,
    )
    assert len(found) == 5  # there is nothing to look at again after "no outline"
    asked, replies = [], []
    for demonstration in found:
        (dialogue,) = demonstration.dialogues
        tokens = list(dialogue.tokens)
        asked.append(policy.tokenizer.decode(tokens[: dialogue.answer_start]))
        answered = tokens[dialogue.answer_start :]
        replies.append(policy.tokenizer.decode(answered, skip_special_tokens=True))
    assert [first in text for text in asked] == [False, True, False, False, False]
    assert replies.pop() == "done"  # the last first answer was perfect
    assert all(decode(reply).valid for reply in replies)
    plain, drawn = (found[row].inputs["pixel_values"] for row in (0, 1))
    assert (plain != drawn).any(), "the outline is drawn"


def test_first_answers_are_demonstrated_about_and_no_later_ones():
    policy, args = cloned_policy(), run_refine.Args(scenes=6, decimals=1)
    rules = open_rules(REFINE, **args.environment())
    console, left_out = Console(quiet=True), LeftOut("error")
    found = run_refine.own_demonstrations(policy, rules, args, 60, console, left_out)
    dialogues = [each for one in found for each in one.dialogues]
    asked = [policy.tokenizer.decode(each.tokens[: each.answer_start]) for each in dialogues]
    assert sum("[" not in text for text in asked) == 6, "each question is asked once by itself"
    assert 6 < len(found) <= 12


def test_a_run_reports_what_the_second_turn_adds(tmp_path):
    cloned_policy().save(tmp_path / "policy")
    common = [
        *("--policy", str(tmp_path / "policy"), "--precision", "float32", "--updates", "2"),
        *("--evaluation.questions", "6", "--evaluation.answers", "1", "--evaluation.every", "2"),
        *("--evaluation.curve-questions", "4"),
    ]
    taught = run_refine.main(
        tyro.cli(
            run_refine.Args,
            args=[
                *common,
                *("--scenes", "12", "--cloning.batch-size", "4", "--decimals", "1"),
                *("--output-dir", str(tmp_path / "bc"), "--max-new-tokens", "40"),
            ],
        )
    )
    scores = run_gspo.main(
        tyro.cli(
            run_gspo.Args,
            args=[
                *common,
                *("--env", REFINE, "--turns", "2", "--refine-template", TEMPLATE),
                *("--gspo.prompts-per-update", "2", "--gspo.group-size", "3"),
                *("--gspo.max-new-tokens", "40", "--output-dir", str(tmp_path / "rl")),
            ],
        )
    )
    for found, folder in ((taught, "bc"), (scores, "rl")):
        assert json.loads((tmp_path / folder / "scores.json").read_text()) == found
        after = found["after"]
        difference = after["giou"] - after["first"]["giou"]
        assert after["improvement"]["giou"] == pytest.approx(difference)
        difference = after["sampled"]["giou"] - after["sampled_first"]["giou"]
        assert after["sampled"]["improvement"]["giou"] == pytest.approx(difference)
        report = (tmp_path / folder / "report.md").read_text()
        assert "first answer" in report
        for name in ("turns.png", "first_last.png"):
            assert f"({name})" in report
            assert (tmp_path / folder / name).stat().st_size > 5000
        assert (tmp_path / folder / "policy" / "model.safetensors").exists()


def test_a_single_turn_is_refused_where_two_are_taught(tmp_path):
    arguments = run_refine.Args(
        env="SimpleSeg-Scenes-v0", turns=None, refine_template=None, output_dir=tmp_path
    )
    with pytest.raises(ValueError, match="has one turn"):
        run_refine.main(arguments)


def test_prompts_lose_the_padding_that_all_of_them_share():
    agent = make_agent()
    rollout, _ = agent.collect()
    whole = rollout.inputs["attention_mask"]
    first = rollout.select(torch.arange(4))
    assert first.inputs["attention_mask"].shape[1] < whole.shape[1]
    assert first.inputs["attention_mask"][:, 0].any()
    for row in range(4):
        ours = first.inputs["input_ids"][row][first.inputs["attention_mask"][row].bool()]
        theirs = rollout.inputs["input_ids"][row][whole[row].bool()]
        assert torch.equal(ours, theirs)
