"""GSPO improves what it is rewarded for, encodes each picture once, and can be interrupted."""

import numpy as np
import pytest
import torch
from agents_fixtures import (
    cloned_policy,
    parameters_of,
    same_parameters,
    scene_environment,
    small_policy,
)

from agents.advantages import best_advantages, group_advantages
from agents.gspo import GSPO, GSPOConfig
from agents.on_policy import PRICE_GAIN, PRICE_RESPONSE
from agents.rollout import Prompts, Rollout
from agents.training.settings import OptimizerSettings
from rewards import Reward
from seg_env.tasks import question


class Signs(Reward):
    """Share of the characters of an answer that no outline has: easy to find and to increase."""

    def __call__(self, predictions, targets):
        texts = [prediction.text for prediction in predictions]
        return np.array(
            [sum(each in "!#$%&" for each in text) / max(1, len(text)) for text in texts]
        )


class Broken(Reward):
    def __call__(self, predictions, targets):
        raise ZeroDivisionError("a bug in a reward")


class Witness(Reward):
    """Remembers what it was asked to score."""

    def __call__(self, predictions, targets):
        self.texts = [prediction.text for prediction in predictions]
        self.sizes = [target.size for target in targets]
        return np.arange(len(predictions), dtype=float)


def make_agent(policy=None, reward=None, weight=1.0, dataset=None, **settings):
    config = GSPOConfig(
        **{
            "prompts_per_update": 4,
            "group_size": 4,
            "max_new_tokens": 8,
            "learning_rate": 3e-3,
            "final_rate": 0.1,
            "muon": False,
            "minibatches": 2,
            "spread_floor": 0.2,
            **settings,
        }
    )
    asked = {} if dataset is None else {"dataset": dataset, "size": None}
    env = scene_environment(config, rewards=[(reward or Signs(), weight)], **asked)
    return GSPO(policy or small_policy(), env, config)


def learn(agent, updates):
    rows = []
    agent.learn(updates, lambda update, metrics: rows.append(metrics))
    return rows


@pytest.mark.rounding
@pytest.mark.parametrize("weight", [1.0, -1.0])
def test_what_is_rewarded_becomes_more_and_what_is_punished_becomes_less(weight):
    agent = make_agent(
        weight=weight, group_size=16, learning_rate=5e-3, clip_low=0.2, clip_high=0.2
    )
    signs = [row["rollout/reward/Signs"] for row in learn(agent, 60)]
    before, after = np.mean(signs[:3]), np.mean(signs[-3:])
    if weight > 0:
        assert after > 0.8
        assert before < 0.2
    else:
        assert after < 0.3 * before


def test_a_constant_reward_changes_nothing():
    agent = make_agent(weight=0.0)
    before = parameters_of(agent.policy)
    rows = learn(agent, 2)
    assert [row["rollout/degenerate_groups"] for row in rows] == [1, 1]
    assert all(
        torch.equal(value, before[name]) for name, value in parameters_of(agent.policy).items()
    )


def test_the_first_step_after_sampling_is_exactly_on_policy():
    (row,) = learn(make_agent(minibatches=1), 1)
    assert row["train/ratio_max"] == pytest.approx(1, abs=1e-5)
    assert row["train/approx_kl"] == pytest.approx(0, abs=1e-6)
    assert row["train/clip_fraction"] == 0
    # All ratios are 1, so the loss is minus the mean advantage, which is 0.
    assert row["train/policy_loss"] == pytest.approx(0, abs=1e-5)


@pytest.mark.rounding
def test_later_steps_on_a_rollout_are_clipped():
    (row,) = learn(make_agent(epochs=4, clip_low=1e-4, clip_high=1e-4), 1)
    assert row["train/clip_fraction"] > 0.2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_sampler_and_scorer_agree_in_every_precision(precision):
    policy = cloned_policy()
    policy.precision = precision
    (row,) = learn(make_agent(policy, minibatches=1, max_new_tokens=40), 1)
    assert row["train/ratio_max"] == pytest.approx(1, abs=1e-5)


def test_every_answer_is_scored_as_the_answer_to_its_own_question(pictures):
    witness = Witness()
    agent = make_agent(reward=witness, dataset=pictures, prompts_per_update=8)
    rollout, _ = agent.collect()
    assert rollout.rewards.tolist() == list(range(32))
    assert agent.policy.texts(rollout.tokens, rollout.mask) == witness.texts
    numbers = []
    for row, size in enumerate(witness.sizes):
        prompt = row // 4
        number = pictures.sizes.index(size)
        numbers.append(number)
        asked = agent.policy.tokenizer.decode(rollout.inputs["input_ids"][prompt])
        assert f"rectangle {number}" in asked
        shown = agent.policy.prepare([pictures[number].image], ["?"])["pixel_values"]
        assert torch.equal(rollout.inputs["pixel_values"][prompt], shown[0])
    assert len(set(numbers)) > 2


# Of random weights the likeliest answer earns nothing, so that beside it no answer is punished.
@pytest.mark.rounding
@pytest.mark.parametrize("advantage", ["group", "others", "terms", "best"])
def test_every_advantage_teaches_what_is_rewarded(advantage):
    agent = make_agent(
        advantage=advantage, group_size=16, learning_rate=5e-3, clip_low=0.2, clip_high=0.2
    )
    signs = [row["rollout/reward/Signs"] for row in learn(agent, 40)]
    assert np.mean(signs[-3:]) > 3 * np.mean(signs[:3])


def test_the_baseline_is_what_the_policy_answers_when_it_is_asked():
    agent = make_agent(cloned_policy(), advantage="greedy", max_new_tokens=40)
    rollout, _ = agent.collect()
    texts = agent.policy.texts(rollout.tokens, rollout.mask)
    images, prompts = rollout.asked.images, rollout.asked.texts
    assert texts[::4] == agent.act({"image": images, "prompt": prompts})
    assert texts[1::4] != texts[::4]
    agent.credit(rollout)
    expected = rollout.rewards - rollout.rewards[::4].repeat_interleave(4)
    torch.testing.assert_close(rollout.advantages, expected)


def test_rewards_are_normalised_one_by_one():
    config = GSPOConfig(prompts_per_update=2, group_size=4, max_new_tokens=30, advantage="terms")
    env = scene_environment(config, rewards="mask_iou=1.0 format=0.5 centroid_distance=0")
    agent = GSPO(cloned_policy(), env, config)
    rollout, _ = agent.collect()
    agent.credit(rollout)
    iou, form = (
        group_advantages(torch.tensor(rollout.infos[name]).float(), 4, config.spread_floor)
        for name in ("reward/mask_iou", "reward/format")
    )
    torch.testing.assert_close(rollout.advantages, (iou + 0.5 * form) / 1.5)


def test_the_price_of_tokens_is_normalised_beside_the_rewards():
    settings = {"advantage": "terms", "prompts_per_update": 2, "group_size": 4}
    config = GSPOConfig(**settings, max_new_tokens=30, token_budget=5, loss="dr_grpo")
    agent = GSPO(cloned_policy(), scene_environment(config, rewards="mask_iou=1.0"), config)
    rollout, _ = agent.collect()
    assert agent.price_tokens(rollout)["rollout/token_price"] > 0
    agent.credit(rollout)
    iou = torch.tensor(rollout.infos["reward/mask_iou"]).float()
    cost = rollout.rewards - iou
    assert cost.std() > 0.01
    # dr_grpo divides by no spread.
    expected = group_advantages(iou, 4, None) + group_advantages(cost, 4, None)
    torch.testing.assert_close(rollout.advantages, expected / 2)


def test_imitation_is_added_to_the_best_answers():
    plain, more = make_agent(), make_agent(imitation=0.7)
    rollouts = [agent.collect()[0] for agent in (plain, more)]
    for agent, rollout in zip((plain, more), rollouts, strict=True):
        agent.credit(rollout)
    difference = rollouts[1].advantages - rollouts[0].advantages
    torch.testing.assert_close(difference, 0.7 * best_advantages(rollouts[0].rewards, 4))


def test_only_the_chosen_answers_are_scored():
    agent = make_agent(learned_answers=2, minibatches=1)
    scored = []
    ordinary = agent._score
    agent._score = lambda policy, part: scored.append(part) or ordinary(policy, part)
    learn(agent, 1)
    assert sum(part.prompts for part in scored) == 4
    assert {part.group_size for part in scored} == {2}


@pytest.mark.parametrize("count", [1, 5, -1])
def test_answers_that_cannot_be_chosen_are_refused(count):
    with pytest.raises(ValueError, match=rf"learned_answers={count} of group_size=4: use 2 to 4"):
        make_agent(learned_answers=count)


@pytest.mark.parametrize("rewards", ["mask_iou=1 format=gate", "mask_iou=0"])
def test_rewards_that_cannot_be_normalised_one_by_one_are_refused(rewards):
    config = GSPOConfig(prompts_per_update=2, group_size=4, advantage="terms")
    with pytest.raises(ValueError, match="normalises every reward by itself"):
        GSPO(small_policy(), scene_environment(config, rewards=rewards), config)


def test_a_picture_is_encoded_once_for_its_whole_group():
    agent = make_agent(minibatches=2, prompts_per_update=4, group_size=4)
    seen = []
    tower = agent.policy.model.model.vision_tower
    tower.register_forward_hook(lambda module, args, output: seen.append(len(output[0])))
    learn(agent, 1)
    assert seen == [4, 2, 2]  # sampling, then two minibatches


@pytest.mark.rounding
def test_splitting_a_minibatch_to_save_memory_changes_nothing_but_rounding():
    whole, split = (
        make_agent(cloned_policy(), minibatches=1, prompts_per_forward=count, max_new_tokens=30)
        for count in (0, 1)
    )
    first, second = learn(whole, 1)[0], learn(split, 1)[0]
    for key in ("train/policy_loss", "train/entropy", "train/grad_norm"):
        assert first[key] == pytest.approx(second[key], rel=1e-4, abs=1e-5)


def test_metrics_and_the_learning_rate_of_every_update():
    agent = make_agent(learning_rate=1e-3, warmup=0.4)
    rows = learn(agent, 3)
    schedule = OptimizerSettings(1e-3, warmup=0.4, final_rate=0.1)
    for update, row in enumerate(rows):
        assert all(np.isfinite(value) for value in row.values())
        expected = schedule.rate_at(update, 3)
        assert row["train/learning_rate"] == pytest.approx(expected)
    expected = {
        *("rollout/reward", "rollout/iou", "rollout/valid", "rollout/tokens", "rollout/vertices"),
        *("train/policy_loss", "train/clip_fraction", "train/approx_kl", "train/entropy"),
        *("train/grad_norm", "rollout/degenerate_groups", "time/collect", "time/train"),
    }
    assert expected <= rows[0].keys()


@pytest.mark.parametrize(
    "settings", [{}, {"kl_coefficient": 0.1}, {"muon": True, "epochs": 2}, {"average": 0.9}]
)
def test_going_on_from_a_checkpoint_gives_the_same_weights(tmp_path, settings):
    whole = make_agent(**settings)
    rows = []

    def save_half_way(update, metrics):
        rows.append(metrics)
        if update == 2:
            whole.save(tmp_path / "half")

    whole.learn(4, save_half_way)
    resumed = make_agent(**settings)
    resumed.load(tmp_path / "half")
    assert resumed.update == 2
    assert not same_parameters(resumed.policy, whole.policy)
    for ours, theirs in zip(learn(resumed, 4), rows[2:], strict=True):
        timeless = {key for key in ours if not key.startswith("time/")}
        assert {key: ours[key] for key in timeless} == {key: theirs[key] for key in timeless}
    assert same_parameters(resumed.policy, whole.policy)


def test_a_frozen_tower_stays_and_all_else_moves(tmp_path):
    def frozen():
        policy = small_policy()
        policy.freeze_vision()
        return policy

    agent = make_agent(frozen(), weight_decay=0.1)
    before = parameters_of(agent.policy)
    learn(agent, 1)
    agent.save(tmp_path / "half")
    learn(agent, 2)
    after = parameters_of(agent.policy)
    vision = [name for name in after if "vision_tower" in name or "projector" in name]
    assert len(vision) > 10
    for name, value in after.items():
        assert torch.equal(value, before[name]) is (name in vision), name
    assert not agent.engine.state_dict().keys() & set(vision)
    resumed = make_agent(frozen(), weight_decay=0.1)
    resumed.load(tmp_path / "half")
    learn(resumed, 2)
    assert same_parameters(resumed.policy, agent.policy)


@pytest.mark.parametrize("kind", ["bfloat16", "vision rate", "checkpointing"])
def test_every_way_to_train_is_resumed_to_the_same_numbers(kind, tmp_path):
    def agent():
        policy = small_policy()
        if kind == "bfloat16":
            policy.model.to(torch.bfloat16)
            policy.precision = "bfloat16"
        if kind == "checkpointing":
            policy.checkpoint_gradients()
        rate = 1e-3 if kind == "vision rate" else None
        return make_agent(policy, muon=True, kl_coefficient=0.01, vision_learning_rate=rate)

    whole, resumed = agent(), agent()
    before = parameters_of(whole.policy)
    learn(whole, 1)
    whole.save(tmp_path / "half")
    rows = learn(whole, 2)
    resumed.load(tmp_path / "half")
    again = learn(resumed, 2)
    assert again[-1]["train/policy_loss"] == rows[-1]["train/policy_loss"]
    assert same_parameters(resumed.policy, whole.policy)
    after = parameters_of(whole.policy)
    assert sum(not torch.equal(after[name], before[name]) for name in after) > len(after) / 2


def test_checkpointing_learns_the_same():
    agents = [make_agent(small_policy()) for _ in range(2)]
    agents[1].policy.checkpoint_gradients()
    rows = [learn(agent, 2)[-1] for agent in agents]
    timeless = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
    assert timeless[1] == pytest.approx(timeless[0], rel=1e-4, abs=1e-5)
    ours, theirs = (parameters_of(agent.policy) for agent in agents)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_saving_does_not_disturb_training(tmp_path):
    saving, plain = make_agent(), make_agent()
    saving.learn(2, lambda update, metrics: saving.save(tmp_path / str(update)))
    plain.learn(2)
    assert same_parameters(saving.policy, plain.policy)


def test_seeds_choose_other_questions_and_answers():
    same, again, other = (
        learn(make_agent(seed=seed), 1)[0]["rollout/reward"] for seed in (0, 0, 1)
    )
    assert same == again != other


@pytest.mark.rounding
def test_the_penalty_holds_the_policy_near_the_one_it_started_from():
    def distance(coefficient):
        agent = make_agent(minibatches=1, group_size=8, kl_coefficient=coefficient)
        rows = learn(agent, 12)
        assert rows[0]["train/reference_kl"] == pytest.approx(0, abs=1e-6)
        return rows[-1]["train/reference_kl"]

    free, held = distance(1e-9), distance(3.0)
    assert 0 < held < 0.5 * free


def test_the_price_of_tokens_by_hand():
    agent = make_agent(token_budget=4)
    rollout, _ = agent.collect()
    rewards, lengths = rollout.rewards.clone(), rollout.mask.sum(-1)
    excess = lengths.float().mean().item() / 4 - 1
    first = agent.price_tokens(rollout)["rollout/token_price"]
    assert first == pytest.approx((PRICE_GAIN + PRICE_RESPONSE) * excess)
    torch.testing.assert_close(rollout.rewards, rewards - first * (lengths / 4 - 1))
    second = agent.price_tokens(rollout)["rollout/token_price"]
    assert second == pytest.approx((2 * PRICE_GAIN + PRICE_RESPONSE) * excess)


@pytest.mark.rounding
@pytest.mark.parametrize("budget", [4, 12])
def test_answers_come_to_cost_their_budget(budget):
    agent = make_agent(
        cloned_policy(),
        token_budget=budget,
        group_size=16,
        max_new_tokens=24,
        learning_rate=3e-3,
        clip_low=0.2,
        clip_high=0.2,
    )
    tokens = [row["rollout/tokens"] for row in learn(agent, 60)]
    assert np.mean(tokens[-10:]) == pytest.approx(budget, rel=0.15)


def test_only_the_first_questions_are_asked(pictures):
    agent = make_agent(dataset=pictures, questions=2, prompts_per_update=16)
    asked = {text for _ in range(2) for text in agent.collect()[0].asked.texts}
    assert asked == {question(pictures[k], "text->mask") for k in range(2)}


def test_a_bug_in_a_reward_is_not_swallowed():
    with pytest.raises(ZeroDivisionError, match="a bug in a reward"):
        make_agent(reward=Broken()).learn(1)


def test_the_environment_must_ask_as_many_questions_as_the_agent_answers():
    config = GSPOConfig(prompts_per_update=2, group_size=4)
    env = scene_environment(GSPOConfig(prompts_per_update=3, group_size=4))
    with pytest.raises(ValueError, match=r"12 questions.*needs 8"):
        GSPO(small_policy(), env, config)


def test_parts_of_a_rollout_hold_whole_groups():
    rows = torch.arange(6)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], *[[1, 1, 0, 0]] * 4])
    rollout = Rollout(
        asked=Prompts(
            images=["a", "b", "c"],
            texts=["0", "1", "2"],
            inputs={"input_ids": torch.arange(3)[:, None], "attention_mask": torch.ones(3, 1)},
        ),
        tokens=rows[:, None].expand(6, 4),
        mask=mask,
        choice_mask=mask,
        sampler_log_probs=torch.zeros(6, 4),
        old_log_probs=torch.zeros(6, 4),
        rewards=rows.float(),
        advantages=-rows.float(),
    )
    part = rollout.select(torch.tensor([2, 1]))
    assert part.inputs["input_ids"].tolist() == [[2], [1]]
    assert (part.asked.images, part.asked.texts) == (["c", "b"], ["2", "1"])
    assert part.rewards.tolist() == [4, 5, 2, 3]
    assert part.advantages.tolist() == [-4, -5, -2, -3]
    assert part.tokens.tolist() == [[4, 4], [5, 5], [2, 2], [3, 3]]  # no wider than needed
