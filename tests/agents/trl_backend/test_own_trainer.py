"""A user's own GRPOTrainer learns from our rewards: their rows, their model, one line of ours."""

import json

import numpy as np
import pytest
from agents_fixtures import parameters_of, small_policy
from datasets import Dataset, load_dataset
from PIL import Image
from trl import GRPOConfig, GRPOTrainer

import rewards
from rewards import Reward
from seg_env.data import export_jsonlines
from seg_env.data.scenes import Scenes


class Digits(Reward):
    """Tells answers of random weights apart: the share of digits."""

    name = "digits"

    def __call__(self, predictions, targets):
        return np.array([sum(map(str.isdigit, p.text)) / (len(p.text) + 1) for p in predictions])


@pytest.fixture
def rows(tmp_path):
    """An exported data set with the columns that TRL asks for."""
    path = export_jsonlines(Scenes("train", length=4, size=32), tmp_path)
    table = load_dataset("json", data_files=str(path), split="train", cache_dir=tmp_path / "cache")

    def ask(row):
        asked = f"Output the polygon coordinates of {row['expression']} in the image."
        return {"prompt": [{"role": "user", "content": asked}]}

    asked = table.map(ask).to_list()
    for row in asked:
        row["image"] = Image.open(tmp_path / row["image"])
    return Dataset.from_list([{k: v for k, v in row.items() if k != "metadata"} for row in asked])


def test_grpo_trainer_learns_from_our_rewards(rows, tmp_path):
    policy = small_policy()
    before = parameters_of(policy)
    config = GRPOConfig(
        output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=4,
        num_generations=4, max_completion_length=12, learning_rate=1e-3, logging_steps=1,
        save_strategy="no", report_to="none", use_cpu=True, bf16=False, disable_tqdm=True,
    )  # fmt: skip
    spec = [("mask_iou", 1.0), ("format", 0.1), (Digits(), 1.0)]
    trainer = GRPOTrainer(
        policy.model,
        args=config,
        train_dataset=rows,
        processing_class=policy.processor,
        reward_funcs=rewards.for_trl(spec),
    )
    trainer.train()
    logged = [each for each in trainer.state.log_history if "loss" in each]
    assert len(logged) == 2
    for metrics in logged:
        json.dumps(metrics)
        sums = metrics["reward/mask_iou"] + 0.1 * metrics["reward/format"]
        assert metrics["rewards/mask_iou_and_format_and_digits/mean"] == pytest.approx(
            sums + metrics["reward/digits"], abs=1e-5
        )
    after = policy.model.state_dict()
    assert any(not after[name].equal(value) for name, value in before.items())
