"""Every task is taught by demonstrations and by rewards."""

import numpy as np
import pytest
from agents_fixtures import (
    demonstration_rows,
    parameters_of,
    scene_environment,
    small_policy,
)

from agents.behavior_cloning import BehaviorCloning, BehaviorCloningConfig
from agents.demonstrations import demonstrate
from agents.embedded.tiny import build_tokenizer
from agents.gspo import GSPO, GSPOConfig
from agents.trl_backend.rows import word_question
from experiments.common.arguments import TrainingArguments
from experiments.common.policies import EMBEDDED, SHIPPED, open_policy
from experiments.evaluation.loop import evaluate
from seg_env.data.scenes import Scenes
from seg_env.envs.referring import open_questions
from seg_env.grammar.answers import decode_answer
from seg_env.tasks import TASKS, form_of, query_of, question
from seg_env.tasks.queries import refer_to

COARSE = {"epsilon": 0.03, "decimals": 1, "pad": True}
EVERY_TASK = " ".join(f"{task}=1" for task in TASKS)
ABSENT = Scenes("train", size=64, negatives=1.0)


def changed(policy, before):
    after = parameters_of(policy)
    return any(not np.array_equal(after[name], value) for name, value in before.items())


@pytest.fixture(scope="module")
def demonstrations():
    processor = small_policy().processor
    return [demonstrate(processor, ABSENT.samples_of(i), TASKS, **COARSE) for i in range(4)]


@pytest.mark.parametrize("task", [*TASKS, EVERY_TASK])
def test_behaviour_cloning_teaches_every_task(task, demonstrations):
    policy = small_policy()
    config = BehaviorCloningConfig(batch_size=2, points_until=0, boxes_until=0, tasks=task)
    before, losses = parameters_of(policy), []
    BehaviorCloning(policy, demonstrations, config).learn(
        2, lambda update, metrics: losses.append(metrics["train/loss"])
    )
    assert np.isfinite(losses).all()
    assert changed(policy, before)


def test_the_curriculum_ends_in_the_tasks_asked_for():
    config = BehaviorCloningConfig(points_until=0.1, boxes_until=0.2, tasks="bbox->mask")
    assert config.task_weights(0.05) == {"text->point": 1.0}
    assert config.task_weights(0.9) == {"bbox->mask": 1.0}
    assert config.demonstrated == ("text->bbox", "text->point", "bbox->mask")
    assert BehaviorCloningConfig().demonstrated == ("text->mask", "text->bbox", "text->point")


def test_demonstrations_answer_what_is_asked(demonstrations):
    tokenizer = small_policy().tokenizer
    for demonstration in demonstrations:
        said = {}
        for number, dialogue in enumerate(demonstration.dialogues):
            reply = list(dialogue.tokens[dialogue.answer_start : -1])
            asked = tokenizer.decode(list(dialogue.tokens[: dialogue.answer_start]))
            read = decode_answer(tokenizer.decode(reply), form_of(dialogue.task))
            absent = number >= len(demonstration.dialogues) - len(TASKS)
            assert read.valid
            assert read.is_empty == absent
            said[dialogue.task] = asked
            if not absent:
                assert ("[" in asked) == (query_of(dialogue.task) != "text")
        assert "[" not in said["point->mask"]  # the last object is absent: nowhere to point at


@pytest.mark.parametrize("task", [*TASKS, EVERY_TASK])
def test_gspo_learns_from_every_task(task):
    config = GSPOConfig(prompts_per_update=2, group_size=2, minibatches=1, max_new_tokens=8)
    env = scene_environment(config, task=task, negatives=0.2, rewards="no_target=1 format=1")
    policy, metrics = small_policy(), []
    GSPO(policy, env, config).learn(1, lambda update, found: metrics.append(found))
    assert np.isfinite(metrics[0]["train/policy_loss"])
    assert "rollout/reward/no_target" in metrics[0]


def test_a_group_answers_one_question_and_another_one_in_the_next_update(monkeypatch):
    config = GSPOConfig(prompts_per_update=1, group_size=2, minibatches=1, max_new_tokens=4)
    env = scene_environment(config, task="point->mask")
    env.dataset._length = 1
    asked, reset = [], env.reset

    def remember(**arguments):
        found = reset(**arguments)
        asked.append(found[0]["prompt"])
        return found

    monkeypatch.setattr(env, "reset", remember)
    GSPO(small_policy(), env, config).learn(3)
    assert all(one == other for one, other in asked)
    assert len(set(asked)) == 3


def test_rows_give_another_place_in_every_pass():
    scenes = Scenes("val", length=3, size=48)
    rows = demonstration_rows(scenes, "point->mask=1", wording="paper")
    texts = [rows[i]["prompt"][0]["content"] for i in range(30)]
    assert texts == [rows[i]["prompt"][0]["content"] for i in range(30)]
    places = {text[text.index("[") : text.index("]") + 1] for text in texts}
    assert len(places) > 20
    absent = demonstration_rows(ABSENT, "bbox->mask=1")[0]
    assert absent["completion"][0]["content"] == "[]"
    assert "[" not in absent["prompt"][0]["content"]


@pytest.mark.parametrize("task", TASKS)
def test_the_papers_words_ask_every_task(task):
    sample = Scenes("val", size=48)[0]
    reference = refer_to(sample, task)
    rng = np.random.default_rng(0)
    asked = {word_question(sample, task, "paper", rng, reference) for _ in range(60)}
    assert len(asked) == 7
    assert all(reference in text for text in asked)
    assert question(sample, task, reference) in asked


def test_the_tokenizer_writes_every_question():
    tokenizer, sample = build_tokenizer(), Scenes("val", size=48)[0]
    for task in TASKS:
        asked = question(sample, task, refer_to(sample, task))
        tokens = tokenizer(asked, add_special_tokens=False).input_ids
        assert tokenizer.decode(tokens) == asked
        assert tokenizer.pad_token_id not in tokens
    assert len(tokenizer(" at with", add_special_tokens=False).input_ids) == 2


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_tokenizers_can_write_every_question(name):
    from transformers import AutoTokenizer

    shipped = AutoTokenizer.from_pretrained(SHIPPED[name])
    assert shipped.get_vocab() == build_tokenizer().get_vocab()


@pytest.mark.parametrize(("task", "least"), [("text->mask", 0.5), ("point->mask", 0.4)])
def test_one_shipped_policy_knows_expressions_and_places(task, least):
    core = open_questions("SimpleSeg-Scenes-v0", split="test", difficulty="easy", task=task)
    policy = open_policy(EMBEDDED, "float32")
    assert evaluate(policy, core, np.arange(32)).iou.mean() > least


def test_a_warm_start_shows_where_things_are_before_it_asks_its_tasks():
    tasks = "text->mask=0.7 point->mask=0.3"
    shown = BehaviorCloningConfig(tasks=tasks).demonstrated
    assert shown == ("text->mask", "text->bbox", "text->point", "point->mask")


def test_the_command_line_hands_tasks_to_the_environment():
    assert TrainingArguments().environment().keys() == {"split", "rewards"}
    args = TrainingArguments(task="bbox->mask", negatives=0.1)
    assert args.environment()["task"] == "bbox->mask"
    args = TrainingArguments(task="text->point")
    args.grammar.constrained = True
    with pytest.raises(ValueError, match="constrained allows outlines only"):
        args.open_environment(GSPOConfig(), None)
