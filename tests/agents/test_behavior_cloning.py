"""Behaviour cloning learns its demonstrations, by a curriculum, and can be interrupted."""

import numpy as np
import pytest
import torch
from agents_fixtures import (
    OUTLINES_ONLY,
    answer_of,
    parameters_of,
    same_parameters,
    scene_demonstrations,
    small_policy,
)

from agents.behavior_cloning import BehaviorCloning, BehaviorCloningConfig, cloning_loss
from agents.demonstrations import collate, demonstrate, draw
from seg_env.data.scenes import Scenes
from seg_env.grammar import decode
from seg_env.tasks import TASKS, question


@pytest.fixture(scope="module")
def policy():
    return small_policy()


@pytest.fixture(scope="module")
def demonstrations(policy):
    return scene_demonstrations(policy.processor, 4)


@pytest.mark.rounding
def test_four_demonstrations_are_learned_by_heart(demonstrations):
    policy = small_policy()
    # Three pictures at a time, drawn anew for each update.
    config = BehaviorCloningConfig(batch_size=3, learning_rate=1e-2, **OUTLINES_ONLY)
    agent = BehaviorCloning(policy, demonstrations, config)
    losses = []
    agent.learn(140, lambda update, metrics: losses.append(metrics["train/loss"]))
    assert len(losses) == agent.update == 140
    assert losses[0] > 4
    assert losses[-1] < 0.02
    samples = [Scenes("train", size=64)[i] for i in range(4)]
    observations = {
        "image": [sample.image for sample in samples],
        "prompt": [question(sample, "text->mask") for sample in samples],
    }
    assert agent.act(observations) == [answer_of(policy, one) for one in demonstrations]
    # A single environment's observation is answered by a list of one.
    single = {key: value[2] for key, value in observations.items()}
    assert agent.act(single) == [answer_of(policy, demonstrations[2])]


@pytest.mark.parametrize(
    "ways", [((0, False), (0, True)), ((0, False), (1, False)), ((0, False), (4, False))]
)
def test_layers_that_are_checkpointed_and_dialogues_in_parts_give_the_same_gradient(ways):
    """Unequally many dialogues about each image, of unequal lengths."""
    found = {}
    for dialogues, checkpointed in ways:
        policy = small_policy()
        shown = scene_demonstrations(policy.processor, 3, TASKS[:3])
        chosen = [(one, one.dialogues[:count]) for one, count in zip(shown, (2, 3, 1), strict=True)]
        batch = collate(chosen, policy.pad_id)
        policy.model.train()
        if checkpointed:
            policy.checkpoint_gradients()
        loss = cloning_loss(policy, batch, None, dialogues)
        loss.backward()
        gradients = {name: each.grad for name, each in policy.model.named_parameters()}
        own = {name: value for name, value in gradients.items() if value is not None}
        found[dialogues, checkpointed] = loss.detach(), own
    whole, other = (found[way] for way in ways)
    torch.testing.assert_close(other, whole, rtol=1e-4, atol=1e-5)


def test_a_demonstration_teaches_the_answer_and_its_end(policy, demonstrations):
    (dialogue,) = demonstrations[0].dialogues
    sample = Scenes("train", size=64)[0]
    written = policy.tokenizer.decode(list(dialogue.tokens[dialogue.answer_start :]))
    assert written.endswith("]]]<end>")
    answer = decode(written.removesuffix("<end>"))
    assert answer.valid
    assert len(answer.rings) == len(sample.target.outline(0.03))
    asked = policy.tokenizer.decode(list(dialogue.tokens[: dialogue.answer_start]))
    assert asked == question(sample, "text->mask") + "<assistant>"


def test_prefix_and_dialogue_together_are_the_prompt_that_is_asked(policy, demonstrations):
    sample = Scenes("train", size=64)[0]
    inputs = policy.prepare([sample.image], [question(sample, "text->mask")])
    (dialogue,) = demonstrations[0].dialogues
    taught = [*demonstrations[0].prefix, *dialogue.tokens[: dialogue.answer_start]]
    assert taught == inputs["input_ids"][0].tolist()
    torch.testing.assert_close(
        torch.from_numpy(demonstrations[0].inputs["pixel_values"]).float(),
        inputs["pixel_values"],
        rtol=0,
        atol=1e-3,
    )


def test_the_loss_is_the_mean_negative_log_probability_of_the_answer(policy, demonstrations):
    batch = collate([(one, one.dialogues) for one in demonstrations], policy.tokenizer.pad_token_id)
    loss = cloning_loss(policy, batch)
    total, count = 0.0, 0
    for row, one in enumerate(demonstrations):
        (dialogue,) = one.dialogues
        sequence = torch.tensor([[*one.prefix, *dialogue.tokens]])
        logits = policy.model(
            input_ids=sequence, pixel_values=batch.inputs["pixel_values"][row : row + 1]
        ).logits[0]
        start = len(one.prefix) + dialogue.answer_start
        log_probs = logits[start - 1 : -1].log_softmax(-1)
        answer = sequence[0, start:, None]
        total -= log_probs.gather(-1, answer).sum().item()
        count += len(answer)
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_the_curriculum_asks_where_then_how_large_then_for_outlines():
    config = BehaviorCloningConfig(points_until=0.25, boxes_until=0.5, outline_share=0.8)
    assert config.task_weights(0.0) == config.task_weights(0.24) == {"text->point": 1.0}
    assert config.task_weights(0.25) == {"text->point": 0.5, "text->bbox": 0.5}
    late = config.task_weights(0.5)
    assert late == config.task_weights(0.99)
    assert late["text->mask"] == 0.8
    assert sum(late.values()) == pytest.approx(1)


@pytest.fixture(scope="module")
def questions_of_scene(policy):
    """Everything that is asked about one scene with several objects."""
    scenes = Scenes("train", "medium", size=64)
    samples = next(found for i in range(9) if len(found := scenes.samples_of(i)) > 2)
    return len(samples), demonstrate(
        policy.processor, samples, TASKS, epsilon=0.02, decimals=1, pad=True
    )


def test_every_object_of_a_picture_is_asked_one_question_drawn_by_weight(questions_of_scene):
    objects, demonstration = questions_of_scene
    assert len(demonstration.dialogues) == objects * len(TASKS)
    weights = {"text->mask": 0.5, "text->point": 0.5}
    asked = {dialogue.tokens: dialogue.task for dialogue in demonstration.dialogues}
    counts = dict.fromkeys(TASKS, 0)
    for seed in range(100):
        batch = collate(draw([demonstration], 1, weights, np.random.default_rng(seed)), 0)
        assert len(batch.tokens) == objects
        assert batch.rows.tolist() == [0] * objects
        for tokens, mask in zip(batch.tokens, batch.mask, strict=True):
            counts[asked[tuple(tokens[mask.bool()].tolist())]] += 1
    assert counts["text->bbox"] == 0
    assert counts["text->mask"] / (100 * objects) == pytest.approx(0.5, abs=0.1)


def test_going_on_from_a_checkpoint_gives_the_same_weights(demonstrations, tmp_path):
    config = BehaviorCloningConfig(batch_size=2, seed=3, **OUTLINES_ONLY)

    def save_half_way(agent):
        return lambda update, metrics: agent.save(tmp_path / "half") if update == 3 else None

    whole = BehaviorCloning(small_policy(), demonstrations, config)
    start = parameters_of(whole.policy)
    whole.learn(6, save_half_way(whole))
    assert any(
        not torch.equal(value, start[name]) for name, value in parameters_of(whole.policy).items()
    )

    resumed = BehaviorCloning(small_policy(seed=1), demonstrations, config)
    resumed.load(tmp_path / "half")
    assert resumed.update == 3
    assert not same_parameters(resumed.policy, whole.policy)
    resumed.learn(6)
    assert same_parameters(resumed.policy, whole.policy)


def test_learning_less_than_was_learned_already_does_nothing(demonstrations):
    agent = BehaviorCloning(small_policy(), demonstrations, BehaviorCloningConfig(batch_size=2))
    agent.update = 5
    before = parameters_of(agent.policy)
    agent.learn(5)
    assert all(
        torch.equal(value, before[name]) for name, value in parameters_of(agent.policy).items()
    )
