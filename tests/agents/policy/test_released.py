"""SimpleSeg's released checkpoints: their answers, their frame, and how they are opened."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from agents_fixtures import small_policy
from family_models import qwen2_5_vl
from PIL import Image
from released_folders import QwenProcessor, kimi_folder  # noqa: F401  (a fixture)

import seg_env  # noqa: F401  (registers the environments)
from agents.embedded.tiny import build_tokenizer
from agents.policy import loading
from agents.policy.families import select_prompts
from agents.policy.loading import recorded_frame
from agents.policy.model import VLMPolicy
from agents.policy.processing import prepare_inputs
from agents.training.checkpoints import write_policy
from agents.trl_backend.rows import ANSWERS
from experiments.common.policies import open_policy
from experiments.evaluate import Args
from experiments.evaluate import main as evaluate
from seg_env.frames import find_answer_frame
from seg_env.geometry.raster import rasterize_rle
from seg_env.grammar import decode, encode

RELEASED = ("sthui/SimpleSeg-Qwen2.5-VL", "sthui/SimpleSeg-Kimi-VL")
SCENES = "SimpleSeg-Scenes-v0"
COUNT = 6


def released_text(rings):
    """Rings as the released script writes them: counter-clockwise, `str` of lists of floats."""
    return str(
        [[[round(float(x), 3), round(float(y), 3)] for x, y in ring[::-1]] for ring in rings]
    )


def test_the_style_is_the_released_one():
    square = np.array([[0.1, 0.25], [0.5, 0.25], [0.5, 0.1254]])
    assert released_text([square]) == "[[[0.5, 0.125], [0.5, 0.25], [0.1, 0.25]]]"


@pytest.mark.parametrize("sentence", sorted(set(ANSWERS)))
def test_their_answers_earn_what_ours_earn(sentence):
    env = gym.make(SCENES, split="val")
    for index in range(COUNT):
        env.reset(options={"index": index})
        outline = env.unwrapped.dataset[index].target.outline(0.005)
        *_, ours = env.step(encode(outline))
        env.reset(options={"index": index})
        *_, theirs = env.step(sentence.format(answer=released_text(outline)))
        assert theirs == pytest.approx(ours)
        assert theirs["valid"]
        assert theirs["issues"] == ""
        assert theirs["iou"] > 0.95


def test_several_parts_are_a_union_whatever_way_they_turn():
    one = np.array([[0.1, 0.1], [0.4, 0.1], [0.4, 0.4], [0.1, 0.4]])
    parts = [one, one + 0.5]
    assert [len(ring) for ring in decode(f"It is at {released_text(parts)}.").rings] == [4, 4]
    mixed = [parts[0], parts[1][::-1]]
    for rings in (parts, mixed):
        found = decode(f"It is at {released_text(rings)}.")
        assert found.valid
        assert rasterize_rle(found.rings, (100, 100)).area == 2 * 30 * 30


def test_a_file_of_their_answers_is_scored(tmp_path):
    dataset = gym.make(SCENES, split="val").unwrapped.dataset
    lines = [
        {"id": s.id, "text": f"It is at {released_text(s.target.outline(0.005))}."}
        for s in (dataset[index] for index in range(COUNT))
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = evaluate(arguments(tmp_path / "out", predictions=path, questions=COUNT))
    assert scores["giou"] > 0.95
    assert scores["well_formed"] == 1


def arguments(folder, **given):
    return Args(output_dir=folder, details=False, pictures=False, **given)


@pytest.mark.parametrize("name", [*RELEASED, "/models/simpleseg-qwen2.5-vl", RELEASED[0] + "/"])
@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "kimi_vl"])
def test_their_numbers_are_fractions_whatever_they_were_made_from(name, model_type):
    assert find_answer_frame("auto", model_type=model_type, model_name=name).family == "unit"


def test_a_frame_that_a_checkpoint_records_comes_first():
    base = find_answer_frame("auto", model_type="qwen2_5_vl", model_name="/models/a")
    trained = find_answer_frame(
        "auto", model_type="qwen2_5_vl", model_name="/models/a", recorded="unit"
    )
    assert (base.family, trained.family) == ("qwen2.5-vl", "unit")
    assert "configuration" in trained.description
    for hostile in ("", "inches", "../unit"):
        found = find_answer_frame("auto", model_type="qwen2_5_vl", recorded=hostile)
        assert found.family == "qwen2.5-vl"


def test_only_a_policy_that_training_changed_records_its_frame(tmp_path):
    policy = small_policy()
    write_policy(tmp_path / "as-it-was", policy)
    assert recorded_frame(VLMPolicy.from_pretrained(tmp_path / "as-it-was").model) is None
    policy.answer_frame = find_answer_frame("permille")
    policy.mark_trained()
    write_policy(tmp_path / "trained", policy)
    loaded = VLMPolicy.from_pretrained(tmp_path / "trained")
    assert recorded_frame(loaded.model) == "permille"
    assert loaded.answer_frame.family == "permille"
    asked = VLMPolicy.from_pretrained(tmp_path / "trained", frame="unit")
    assert asked.answer_frame.family == "unit"
    assert "configuration records permille" in asked.answer_frame.description
    loaded.model.config.answer_frame = ["unit"]
    assert recorded_frame(loaded.model) is None, "a configuration is data from outside"


@pytest.mark.parametrize(
    ("folder", "frame"), [("SimpleSeg-Qwen2.5-VL", "unit"), ("base", "qwen2.5-vl")]
)
def test_the_architecture_of_qwen2_5_vl_is_evaluated_from_a_folder(
    folder, frame, tmp_path, monkeypatch
):
    qwen2_5_vl().policy.model.save_pretrained(tmp_path / folder)
    monkeypatch.setattr(loading, "open_policy_processor", lambda *_, **__: QwenProcessor())
    given = {"policy": str(tmp_path / folder), "questions": 3, "max_new_tokens": 6}
    scores = evaluate(arguments(tmp_path / "out", **given))
    assert scores["frame"].startswith(frame + " (")
    lines = (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert 0 <= scores["giou"] <= 1


def test_code_of_a_checkpoint_is_not_run_unasked(kimi_folder, tmp_path):
    names = r"'kimi_vl'.*configuration_kimi_vl\.py, modeling_kimi_vl\.py.*--trust-remote-code"
    with pytest.raises(ValueError, match=names):
        open_policy(str(kimi_folder), "float32")
    with pytest.raises(ValueError, match="--trust-remote-code"):
        evaluate(arguments(tmp_path / "out", policy=str(kimi_folder), questions=2))
    assert not (tmp_path / "code-was-run").exists()


def test_code_of_a_checkpoint_is_run_when_asked(kimi_folder, tmp_path):
    given = {"policy": str(kimi_folder), "questions": 2, "max_new_tokens": 6}
    scores = evaluate(arguments(tmp_path / "out", trust_remote_code=True, **given))
    assert (tmp_path / "code-was-run").exists()
    assert "unit (" in scores["frame"]
    assert "kimi_vl" in scores["frame"]
    policy = open_policy(str(kimi_folder), "float32", trust_remote_code=True)
    assert type(policy.model).__name__ == "KimiVLForConditionalGeneration"
    assert policy.trust_remote_code, "its checkpoints are read with the same permission"


class KimiVLProcessor:
    """Takes images as Kimi-VL's processor does."""

    def __init__(self):
        self.tokenizer = build_tokenizer()

    def apply_chat_template(self, messages, add_generation_prompt):
        return messages[0]["content"][1]["text"]

    def __call__(self, text, images, return_tensors, padding):
        return {"texts": text, "sizes": [image.size for image in images]}


def test_kimi_vl_is_given_images_in_one_list():
    images = [np.zeros((8, 12, 3), np.uint8), np.zeros((5, 7, 3), np.uint8)]
    found = prepare_inputs(KimiVLProcessor(), images, ["one", "two"])
    assert found == {"texts": ["one", "two"], "sizes": [(12, 8), (7, 5)]}
    assert Image.fromarray(images[0]).size == (12, 8)


def test_patches_of_kimi_vl_are_told_apart_by_height_and_width():
    sizes = [(2, 4), (4, 4), (2, 2)]
    patches = torch.arange(sum(h * w for h, w in sizes))[:, None].expand(-1, 3)
    inputs = {
        "input_ids": torch.zeros(3, 5, dtype=torch.long),
        "pixel_values": patches,
        "image_grid_hws": torch.tensor(sizes),
    }
    found = select_prompts(inputs, torch.tensor([2, 0]))
    assert found["image_grid_hws"].tolist() == [[2, 2], [2, 4]]
    assert found["pixel_values"][:, 0].tolist() == [*range(24, 28), *range(8)]
