"""GSPO on TRL's GRPOTrainer: our losses, rewards and settings, an ordinary policy at the end."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import tyro
from agents_fixtures import parameters_of, same_parameters, scene_environment, small_policy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForImageTextToText

from agents.advantages import group_advantages
from agents.gspo import GSPOConfig
from agents.losses import LOSSES, policy_loss
from agents.policy.model import VLMPolicy
from agents.policy.scoring import score
from agents.settings import TRLOptions
from agents.trl_backend.gspo import LOSS_TYPES, TRLGSPO, arguments_of
from agents.trl_backend.rows import QuestionRows
from experiments import run_gspo
from rewards import Reward
from seg_env.envs.referring import open_questions
from seg_env.grammar import encode

REWARDS = "mask_iou=1.0 format=0.1"
CONFIG = GSPOConfig(
    prompts_per_update=4, group_size=2, minibatches=2, max_new_tokens=24, learning_rate=1e-3
)


class Digits(Reward):
    """Tells answers of random weights apart: the share of digits, which any policy can raise."""

    name = "digits"

    def __call__(self, predictions, targets):
        return np.array([sum(map(str.isdigit, p.text)) / (len(p.text) + 1) for p in predictions])


TELLING = (*REWARDS.split(), (Digits(), 1.0))


def questions(rewards=TELLING):
    return open_questions("SimpleSeg-Scenes-v0", split="train", size=64, rewards=rewards)


def gradient_of(loss, policy):
    policy.model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("loss", LOSS_TYPES)
def test_the_loss_and_its_gradient_are_ours(loss, tmp_path):
    policy = small_policy()
    # TRL knows no excluded tokens when it scores, so both score with all of them.
    policy.forbidden = torch.zeros_like(policy.forbidden)
    shape = {"prompts_per_update": 3, "group_size": 4, "minibatches": 1}
    config = replace(CONFIG, loss=loss, clip_low=0.05, clip_high=0.1, **shape)
    agent = TRLGSPO(policy, questions(), config)
    trainer = agent.build_trainer(1, tmp_path)
    asked = [agent.core.ask(index) for index in range(3)]
    inputs = policy.prepare([q.image for q in asked], [q.prompt for q in asked])
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 100, (12, 7), generator=generator)
    mask = (torch.arange(7) < torch.randint(2, 8, (12, 1), generator=generator)).long()
    advantages = torch.randn(12, generator=generator)
    with torch.no_grad():
        noise = 0.3 * torch.randn(12, 7, generator=generator)
        old_log_probs = score(policy, inputs, tokens, mask).log_probs + noise * mask

    policy.model.eval()  # as in training, but for the number of accumulated steps
    theirs = trainer.compute_loss(
        policy.model,
        {
            "prompt_ids": inputs["input_ids"].repeat_interleave(4, 0),
            "prompt_mask": inputs["attention_mask"].repeat_interleave(4, 0),
            "completion_ids": tokens,
            "completion_mask": mask,
            "pixel_values": inputs["pixel_values"].repeat_interleave(4, 0),
            "num_images": [1] * 12,
            "num_items_in_batch": mask.sum(),
            "advantages": advantages,
            "old_per_token_logps": old_log_probs,
        },
    )
    their_gradient = gradient_of(theirs, policy)
    scores = score(policy, inputs, tokens, mask)
    lengths = {"dr_grpo": CONFIG.max_new_tokens, "dapo": mask.sum().item() / len(mask)}
    ours, metrics = policy_loss(
        *(scores.log_probs, old_log_probs, advantages, mask, config.clip_low, config.clip_high),
        level=LOSSES[loss].level,
        tokens_per_answer=lengths.get(loss),
    )
    assert 0.2 < metrics["clip_fraction"] < 0.8
    assert theirs.item() == pytest.approx(ours.item(), abs=1e-5)
    torch.testing.assert_close(their_gradient, gradient_of(ours, policy), atol=1e-5, rtol=1e-4)


def test_answers_earn_what_they_earn_in_the_environment():
    config = replace(CONFIG, prompts_per_update=2)
    env = scene_environment(config, rewards=REWARDS)
    env.reset(options={"indices": np.array([3, 3, 5, 5])})
    target = env.dataset[3].target.outline(epsilon=0.01)
    texts = [encode(target), "no outline", "[[[0.1,0.1],[0.9,0.1],[0.9,0.9]]]", ""]
    _, earned, *_ = env.step(texts)
    logged = {}
    core, policy = questions(REWARDS), small_policy()
    policy.end_ids = [1]
    asked = [core.ask(3), core.ask(5)]
    found = TRLGSPO(policy, core, config).advantage(
        completions=[[{"role": "assistant", "content": text}] for text in texts],
        completion_ids=[[2, 1], [1], [1, 2, 3], [4]],
        question=[asked[0], asked[0], asked[1], asked[1]],
        log_metric=logged.__setitem__,
        trainer_state=None,
    )
    expected = group_advantages(torch.tensor(earned, dtype=torch.float32), 2, spread_floor=0.2)
    assert found == pytest.approx(expected.tolist())
    assert logged["rollout/reward"] == pytest.approx(np.mean(earned))
    assert logged["rollout/tokens"] == 7 / 4
    assert logged["rollout/truncated"] == 0.5
    assert logged["rollout/valid"] == 0.5
    assert {"rollout/reward/mask_iou", "rollout/reward/format"} < logged.keys()


def test_advantages_of_anything_but_whole_groups_are_refused():
    core = questions()
    one, other = core.ask(0), core.ask(1)
    reward = TRLGSPO(small_policy(), core, CONFIG).advantage
    for asked in ([one, other], [one, one, one]):
        with pytest.raises(ValueError, match="do not come in whole groups of 2"):
            reward(
                completions=[[{"content": ""}]] * len(asked),
                completion_ids=[[1]] * len(asked),
                question=asked,
                log_metric=print,
            )


def test_rows_follow_from_the_seed_and_an_image_is_read_once_for_its_group_and_all_passes():
    core, policy = questions(), small_policy()
    read = []
    ask = core.ask
    core.ask = lambda index, **given: read.append(index) or ask(index, **given)
    rows = QuestionRows(policy, core, seed=1)
    first = rows({"row": [0, 0, 1, 1]})
    assert len(read) == 2
    assert rows({"row": [0, 0, 1, 1]})["question"] == first["question"]  # a second pass
    assert len(read) == 2
    assert first["images"][0][0] is first["images"][1][0] is first["question"][0].image
    rows({"row": [2, 2, 3, 3]})
    assert len(read) == 4
    again = QuestionRows(policy, questions(), seed=1)({"row": [1]})
    assert again["prompt"][0] == first["prompt"][2]
    core.prompt_template = "<image> {expression}"
    assert rows({"row": [9]})["prompt"][0][0]["content"].startswith("< image> ")


def test_settings_become_those_of_trl(tmp_path):
    policy = small_policy()
    config = GSPOConfig(
        prompts_per_update=8, group_size=4, minibatches=2, epochs=3, prompts_per_forward=2
    )
    agent = TRLGSPO(policy, questions(), config)
    theirs = agent.trainer_arguments(10, tmp_path)
    assert (theirs.loss_type, theirs.importance_sampling_level) == ("grpo", "sequence")
    assert (theirs.num_generations, theirs.num_iterations) == (4, 3)
    assert theirs.per_device_train_batch_size == 2 * 4
    assert theirs.gradient_accumulation_steps == 2  # of the 4 prompts of a minibatch, 2 at a time
    assert theirs.steps_per_generation == 4
    assert theirs.generation_batch_size == 8 * 4
    assert theirs.max_steps == 10 * 2 * 3
    assert theirs.logging_steps == 2 * 3
    assert (theirs.epsilon, theirs.epsilon_high) == (0.01, 0.015)
    assert theirs.scale_rewards == "none"  # the reward function has scaled them
    assert theirs.vllm_importance_sampling_clip_max == config.importance_cap
    assert set(policy.forbidden.nonzero().flatten().tolist()) == set(
        theirs.generation_kwargs["suppress_tokens"]
    )
    agent.options = TRLOptions(use_vllm=True)
    words = agent.trainer_arguments(10, tmp_path).generation_kwargs["bad_words"]
    assert "<image>" in words
    assert policy.tokenizer.eos_token not in words
    options = TRLOptions(fsdp="shard_grad_op", gradient_checkpointing=True)
    sharded = arguments_of(options, [], [])
    assert sharded["fsdp_config"]["reshard_after_forward"] is False
    assert not sharded["activation_checkpointing"]  # FSDP has its own
    assert sharded["fsdp_config"]["activation_checkpointing"]


def test_processes_share_out_a_rollout():
    config = replace(CONFIG, prompts_per_update=12, prompts_per_forward=0)
    agent = TRLGSPO(small_policy(), questions(), config)
    assert agent.share_out(2) == {
        "per_device_train_batch_size": 6,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 2,
    }
    with pytest.raises(ValueError, match="use a multiple of 10"):
        agent.share_out(5)
    agent.options = TRLOptions(rows_per_forward=4)
    with pytest.raises(ValueError, match="set prompts_per_forward or rows_per_forward"):
        agent.share_out(2)


def test_what_trl_cannot_do_is_refused():
    policy, core = small_policy(), questions()
    constrained = small_policy()
    constrained.constraint = object()  # whatever it would rule
    with pytest.raises(ValueError, match="another policy than the one that is sampled"):
        TRLGSPO(constrained, core, CONFIG)
    with pytest.raises(ValueError, match=r"loss='luspo' has no counterpart.*use one of gspo, grpo"):
        TRLGSPO(policy, core, GSPOConfig(loss="luspo"))
    with pytest.raises(ValueError, match=r"dynamic_sampling=True has no counterpart"):
        TRLGSPO(policy, core, GSPOConfig(dynamic_sampling=True))
    with pytest.raises(ValueError, match="muon=True needs whole matrices"):
        TRLGSPO(policy, core, CONFIG, TRLOptions(fsdp="full_shard"))
    with pytest.raises(ValueError, match=r"use --trl.fsdp off, or --trl.lora-rank 0"):
        TRLGSPO(policy, core, CONFIG, TRLOptions(fsdp="full_shard", lora_rank=4))
    sharded = TRLGSPO(policy, core, replace(CONFIG, muon=False), TRLOptions(fsdp="full_shard"))
    with pytest.raises(ValueError, match=r"shards over several GPUs.*1 processes on cpu"):
        sharded.learn(1)
    with pytest.raises(ValueError, match="policy that was loaded from a folder"):
        TRLGSPO(policy, core, replace(CONFIG, kl_coefficient=0.1))


@pytest.mark.parametrize(
    ("package", "options"),
    [("vllm", TRLOptions(use_vllm=True)), ("peft", TRLOptions(lora_rank=4))],
)
def test_a_package_that_is_missing_is_named(package, options, monkeypatch):
    monkeypatch.setattr("agents.settings.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=f"needs the package {package}.*pip install"):
        TRLGSPO(small_policy(), questions(), replace(CONFIG, muon=False), options)


def test_three_updates_change_the_policy_and_leave_it_as_it_was_found(tmp_path):
    """Its weights are random, so it would write the image's placeholder if it could."""
    policy = small_policy()
    agent = TRLGSPO(policy, questions(), CONFIG)
    before, seen = parameters_of(policy), {}
    agent.learn(3, seen.__setitem__)
    assert list(seen) == [1, 2, 3]
    assert agent.update == 3
    for metrics in seen.values():
        assert all(np.isfinite(value) for value in metrics.values())
        assert {"rollout/reward", "rollout/iou", "train/clip_fraction"} < metrics.keys()
    assert any(not torch.equal(value, before[k]) for k, value in parameters_of(policy).items())
    assert "forward" not in vars(policy.model)
    assert not policy.model.training
    agent.save(tmp_path / "saved")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    assert same_parameters(policy, SimpleNamespace(model=loaded))
    assert not list(tmp_path.rglob("*.bin"))


def test_going_on_from_a_checkpoint_gives_the_same_weights(tmp_path):
    config = replace(CONFIG, epochs=2)
    whole = TRLGSPO(small_policy(), questions(), config)
    whole.learn(3, lambda update, _: whole.save(tmp_path / "some") if update == 2 else None)
    resumed = TRLGSPO(small_policy(seed=1), questions(), config)
    resumed.load(tmp_path / "some")
    assert resumed.update == 2
    assert not same_parameters(resumed.policy, whole.policy)
    updates = []
    resumed.learn(3, lambda update, _: updates.append(update))
    assert updates == [3]
    assert same_parameters(resumed.policy, whole.policy)


def test_adapters_are_trained_and_merged(tmp_path):
    policy = small_policy()
    agent = TRLGSPO(policy, questions(), replace(CONFIG, muon=False), TRLOptions(lora_rank=2))
    before = parameters_of(policy)
    agent.learn(2, lambda update, _: agent.save(tmp_path / "one") if update == 1 else None)
    after = parameters_of(policy)
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("q_proj" in name for name in changed)
    assert not any("norm" in name or "embed" in name for name in changed)
    resumed = TRLGSPO(small_policy(), questions(), agent.config, agent.options)
    resumed.load(tmp_path / "one")
    resumed.learn(2)
    assert same_parameters(resumed.policy, policy)


def test_trl_is_not_imported_before_it_is_needed():
    code = "import agents.trl_backend.gspo, sys; assert not {'trl', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_line_trains_measures_and_reports(tmp_path):
    small_policy().save(tmp_path / "small")
    words = ["--policy", str(tmp_path / "small"), "--updates", "2", "--precision", "float32"]
    words += ["--backend", "trl"]
    words += ["--gspo.prompts-per-update", "2", "--gspo.group-size", "2", "--gspo.minibatches", "1"]
    words += [
        "--gspo.max-new-tokens",
        "8",
        "--evaluation.questions",
        "4",
        "--evaluation.every",
        "1",
    ]
    words += ["--gspo.kl-coefficient", "0.1", "--checkpoint-every", "1"]
    words += ["--output-dir", str(tmp_path / "run")]
    scores = run_gspo.main(tyro.cli(run_gspo.Args, args=words))
    assert scores == json.loads((tmp_path / "run" / "scores.json").read_text())
    assert {"giou", "giou_interval"} < scores["before"].keys() & scores["after"].keys()
    assert (tmp_path / "run" / "report.md").exists()
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {"rollout/reward", "eval/greedy_giou", "time/elapsed"} <= set(board.Tags()["scalars"])
    assert {"eval/answers", "before_after"} <= set(board.Tags()["images"])
    taught = VLMPolicy.from_pretrained(tmp_path / "run" / "policy")
    (tmp_path / "run" / "scores.json").unlink()
    again = run_gspo.main(tyro.cli(run_gspo.Args, args=[*words, "--resume"]))
    assert again["after"] == scores["after"]
    assert same_parameters(taught, VLMPolicy.from_pretrained(tmp_path / "run" / "policy"))


def test_an_argument_without_counterpart_is_refused():
    names = {field.name for field in fields(run_gspo.Args)}
    assert names > run_gspo.HONOURED
    for name in names - run_gspo.HONOURED:
        option = name.replace("_", "-")
        with pytest.raises(ValueError, match=f"--{option} has no counterpart under --backend trl"):
            run_gspo.main(run_gspo.Args(backend="trl", **{name: "other"}))
    with pytest.raises(ValueError, match="no counterpart without --backend trl"):
        run_gspo.main(run_gspo.Args(trl=TRLOptions(lora_rank=2)))
