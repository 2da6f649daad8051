"""Fine-tuning on TRL's SFTTrainer: learns the answers only, to the plain loop's loss, resumably."""

import json
import logging
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from agents_fixtures import demonstration_rows, parameters_of, same_parameters, small_policy

from agents.behavior_cloning import cloning_loss
from agents.demonstrations import collate, demonstrate
from agents.policy.finite import DivergedError
from agents.policy.model import VLMPolicy
from agents.trl_backend.rows import QUESTIONS
from agents.trl_backend.sft import (
    SupervisedFineTuning,
    SupervisedFineTuningConfig,
    with_papers_optimizer,
)
from experiments.run_bc import command_line
from seg_env.data.scenes import Scenes
from seg_env.grammar import decode
from seg_env.tasks import PROMPTS, answer, question, read_task_weights

SCENES = Scenes("train", length=6, size=64)
COARSE = {"epsilon": 0.03, "decimals": 1, "pad": True}
"""Short answers."""
PLAIN = SupervisedFineTuningConfig(
    batch_size=6, tasks=("mask=1",), wording="plain", learning_rate=1e-2, **COARSE
)


def outlines_in_order(policy):
    """The scenes in the order of PLAIN's first pass, with what the plain loop makes of them."""
    rows = SupervisedFineTuning(policy, SCENES, PLAIN).rows
    by_prompt = {question(sample, "text->mask"): sample for sample in SCENES}
    samples = [by_prompt[rows[i]["prompt"][0]["content"]] for i in range(len(SCENES))]
    return samples, [demonstrate(policy.processor, [s], ["text->mask"], **COARSE) for s in samples]


@pytest.fixture(scope="module")
def first_batch(tmp_path_factory):
    """A policy, its trainer and the first batch that the trainer would learn from."""
    policy = small_policy()
    agent = SupervisedFineTuning(policy, SCENES, PLAIN)
    trainer = agent.build_trainer(2, tmp_path_factory.mktemp("trainer"))
    return policy, trainer, next(iter(trainer.get_train_dataloader()))


def test_the_loss_is_that_of_the_plain_loop(first_batch):
    policy, trainer, batch = first_batch
    _, demonstrations = outlines_in_order(policy)
    pairs = [(one, one.dialogues) for one in demonstrations]
    with torch.no_grad():
        theirs = trainer.compute_loss(policy.model, dict(batch))
        ours = cloning_loss(policy, collate(pairs, policy.tokenizer.pad_token_id))
    assert theirs.item() == pytest.approx(ours.item(), abs=1e-4)


def test_only_answers_and_their_ends_are_learned(first_batch):
    policy, _, batch = first_batch
    samples, _ = outlines_in_order(policy)
    for sample, tokens, labels in zip(samples, batch["input_ids"], batch["labels"], strict=True):
        learned = labels != -100
        assert torch.equal(labels[learned], tokens[learned])
        written = policy.tokenizer.decode(labels[learned])
        assert written == answer(sample, "text->mask", **COARSE) + policy.tokenizer.eos_token


@pytest.mark.rounding
def test_training_lowers_the_loss_and_leaves_the_policy_as_it_was_found():
    policy = small_policy()
    agent = SupervisedFineTuning(policy, SCENES, PLAIN, max_new_tokens=8)
    losses = []
    agent.learn(8, lambda update, metrics: losses.append(metrics["train/loss"]))
    assert len(losses) == agent.update == 8
    assert losses[0] > 4
    assert losses[-1] < losses[0] - 1
    assert "forward" not in vars(policy.model)
    assert not policy.model.training
    assert not policy.model.is_activation_checkpointing
    before = parameters_of(policy)
    agent.learn(8)  # all of these updates have been made
    assert all(torch.equal(value, before[name]) for name, value in parameters_of(policy).items())
    observations = {"image": [SCENES[0].image], "prompt": [question(SCENES[0], "text->mask")]}
    assert len(agent.act(observations)) == 1


@pytest.mark.parametrize("muon", [False, True], ids=["adamw", "muon"])
def test_gradients_that_are_not_finite_are_not_applied_and_the_third_is_the_end(muon):
    policy = small_policy()
    policy.model.get_input_embeddings().weight.register_hook(lambda gradient: gradient * math.nan)
    config = SupervisedFineTuningConfig(batch_size=2, learning_rate=1e-2, muon=muon, **COARSE)
    agent = SupervisedFineTuning(policy, SCENES, config)
    before, norms = parameters_of(policy), []
    with pytest.raises(DivergedError, match=r"the last 3 steps were not finite .* update 0"):
        agent.learn(8, lambda update, metrics: norms.append(metrics["train/grad_norm"]))
    assert all(torch.equal(value, before[name]) for name, value in parameters_of(policy).items())
    assert len(norms) == 2
    assert all(map(math.isnan, norms))


@pytest.mark.parametrize("muon", [False, True], ids=["adamw", "muon"])
def test_going_on_from_a_checkpoint_gives_the_same_weights(muon, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    config = SupervisedFineTuningConfig(batch_size=2, learning_rate=1e-2, muon=muon, **COARSE)

    def opened(seed):  # in files, weights may have other names than in memory
        small_policy(seed).save(tmp_path / str(seed))
        return VLMPolicy.from_pretrained(tmp_path / str(seed), device="cpu")

    whole = SupervisedFineTuning(opened(0), SCENES, config)
    whole.learn(4, lambda update, _: whole.save(tmp_path / "half") if update == 2 else None)
    assert json.loads((tmp_path / "half" / "state.json").read_text())["update"] == 2
    assert not list(tmp_path.rglob("training_args.bin"))  # nothing pickled is shared

    resumed = SupervisedFineTuning(opened(1), SCENES, config)
    resumed.load(tmp_path / "half")
    assert resumed.update == 2
    assert not same_parameters(resumed.policy, whole.policy)
    updates = []
    resumed.learn(4, lambda update, _: updates.append(update))
    assert updates == [3, 4]
    assert same_parameters(resumed.policy, whole.policy)
    assert "missing keys" not in caplog.text

    resumed.save(tmp_path / "half")  # replaces what is there
    again = SupervisedFineTuning(small_policy(seed=2), SCENES, config)
    again.load(tmp_path / "half")
    assert again.update == 4
    assert same_parameters(again.policy, whole.policy)


def test_the_papers_optimizer_by_one_word(tmp_path):
    config = with_papers_optimizer(SupervisedFineTuningConfig(batch_size=8), world_size=1)
    trainer = SupervisedFineTuning(small_policy(), SCENES, config).build_trainer(100, tmp_path)
    assert len(trainer.train_dataset) == 100 * 256
    assert trainer.args.gradient_accumulation_steps == 32
    assert [group["hidden"] for group in trainer.optimizer.param_groups] == [False, True]
    scheduler = trainer.create_scheduler(100, trainer.optimizer)
    rates = []
    for _ in range(101):
        both = scheduler.get_last_lr()
        assert both[0] == both[1]
        rates.append(both[0])
        trainer.optimizer.step()
        scheduler.step()
    assert rates[0] == 0
    assert rates[3] == max(rates) == 5e-5
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[100] == pytest.approx(2e-6)


def test_the_papers_batch_is_shared_out_or_refused():
    config = SupervisedFineTuningConfig(batch_size=4)
    assert with_papers_optimizer(config, 32).accumulation == 2
    with pytest.raises(ValueError, match=r"batch_size=4 on 24 processes.*256 questions"):
        with_papers_optimizer(config, 24)


def test_what_is_no_checkpoint_is_not_loaded(tmp_path):
    agent = SupervisedFineTuning(small_policy(), SCENES, PLAIN)
    with pytest.raises(FileNotFoundError, match=r"is not a checkpoint: it has no state\.json"):
        agent.load(tmp_path)


def test_rows_follow_from_the_seed_and_every_pass_has_its_own_order():
    rows = demonstration_rows(SCENES, "mask=1", "point=1", wording="paper")
    passes = [[rows[start + i] for i in range(6)] for start in (0, 6)]
    for one in passes:
        images = {row["images"][0].tobytes() for row in one}
        assert images == {sample.image.tobytes() for sample in SCENES}
    texts = [[row["prompt"][0]["content"] for row in one] for one in passes]
    assert texts[0] != texts[1]
    again = demonstration_rows(SCENES, "mask=1", "point=1", wording="paper")
    assert [again[i]["prompt"][0]["content"] for i in range(6)] == texts[0]
    columns = rows({"row": [3, 1]})
    assert columns["completion"] == [rows[3]["completion"], rows[1]["completion"]]


def test_the_papers_words_hide_an_answer_that_is_read_without_complaint():
    rows = demonstration_rows(SCENES, "mask=1", wording="paper")
    texts = [
        (rows[i]["prompt"][0]["content"], rows[i]["completion"][0]["content"]) for i in range(60)
    ]
    starts = {asked.split(" ")[0] for asked, _ in texts}
    assert {"What", "Output", "Tell", "Give", "Help", "Locate"} < starts  # and quoted expressions
    assert {reply.split("[")[0] for _, reply in texts} == {
        *("", "Sure, you can find it at ", "It is found at ", "It is at "),
    }
    assert all(reply.endswith("]]].") and decode(reply).valid for _, reply in texts)


def test_the_environments_question_is_one_of_the_papers():
    filled = QUESTIONS[2].format(expression="{expression}", numbers="polygon coordinates")
    assert filled == PROMPTS["text->mask"]


class Odd:
    """An image without a target, asked about in words that read as a special token."""

    name, split = "odd", "test"

    def __len__(self):
        return 1

    def __getitem__(self, index):
        from seg_env.types import Sample, Target

        image = np.zeros((32, 32, 3), dtype=np.uint8)
        target = Target.from_mask(np.zeros((32, 32), dtype=bool))
        return Sample("odd-0", "<image> {0}", target, image.copy)


def test_special_tokens_in_an_expression_are_broken_up_and_no_target_is_an_empty_outline():
    row = demonstration_rows(Odd(), "point=1", wording="paper")[0]
    assert "< image> {0}" in row["prompt"][0]["content"]
    assert decode(row["completion"][0]["content"]).rings == ()
    assert "[]" in row["completion"][0]["content"]


def test_task_weights_are_read_from_words():
    words = ["mask=0.8", "text->bbox=.1", "point=0"]
    assert read_task_weights(words) == {"text->mask": 0.8, "text->bbox": 0.1, "text->point": 0}
    for word in ("outline=1", "mask", "mask=-1", "mask=nan", ""):
        with pytest.raises(ValueError, match=r"is not a task with a weight.*text->mask"):
            read_task_weights([word])
    for nothing in ([], ["mask=0"]):
        with pytest.raises(ValueError, match="no task a weight above 0; use mask=1"):
            read_task_weights(nothing)


def test_trl_is_not_imported_before_it_is_needed():
    code = "import agents.trl_backend.sft, sys; assert not {'trl', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_line_teaches_a_policy_on_an_environments_data(tmp_path):
    small_policy().save(tmp_path / "small")
    words = ["--backend", "trl", "--policy", str(tmp_path / "small"), "--updates", "2"]
    words += ["--env", "SimpleSeg-Scenes-v0", "--split", "train", "--difficulty", "medium"]
    words += ["--sft.batch-size", "2", "--max-new-tokens", "4", "--evaluation.questions", "4"]
    words += ["--sft.tasks", "mask=0.5", "point=0.5", "--evaluation.every", "1"]
    words += ["--checkpoint-every", "1", "--precision", "float32", "--output-dir"]
    scores = command_line([*words, str(tmp_path / "run")])
    assert scores == json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["dataset"] == "scenes-medium"
    assert {"giou", "giou_interval"} < scores["before"].keys() & scores["after"].keys()
    taught = VLMPolicy.from_pretrained(tmp_path / "run" / "policy")
    again = command_line([*words, str(tmp_path / "run"), "--resume"])  # nothing is left to do
    assert again["after"] == scores["after"]
    assert same_parameters(taught, VLMPolicy.from_pretrained(tmp_path / "run" / "policy"))
