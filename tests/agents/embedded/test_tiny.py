"""The embedded form of policy: an ordinary transformers folder, with a tokenizer of its own."""

import string
from pathlib import Path

import numpy as np
import pytest
import torch
from agents_fixtures import random_images, same_parameters, small_inputs, small_policy
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText, AutoProcessor

from agents.embedded.tiny import (
    ANSWER_PIECES,
    PROMPT_WORDS,
    TinyConfig,
    build_model,
    build_processor,
)
from agents.policy.model import VLMPolicy
from seg_env.data.scenes import Scenes
from seg_env.grammar import encode
from seg_env.tasks import question

TOKENIZER = build_processor(TinyConfig()).tokenizer


def read_back(text):
    return TOKENIZER.decode(TOKENIZER(text, add_special_tokens=False).input_ids)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    policy = small_policy()
    folder = tmp_path_factory.mktemp("policy")
    policy.save(folder)
    return policy, folder


def test_a_saved_policy_is_read_by_transformers_alone(saved):
    policy, folder = saved
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    question = [{"type": "image"}, {"type": "text", "text": "the red star"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True
    )
    images = random_images(1)
    read = processor(text=[text], images=[images], return_tensors="pt")
    ours = policy.prepare(images, ["the red star"])
    assert read["input_ids"].tolist() == ours["input_ids"].tolist()
    assert torch.equal(read["pixel_values"], ours["pixel_values"])
    with torch.no_grad():
        assert torch.equal(model(**read).logits, policy.model(**ours).logits)
    # Left to itself, transformers takes torchvision where there is one, which rounds otherwise.
    default = AutoProcessor.from_pretrained(folder)(text=[text], images=[images])
    gaps = (torch.tensor(np.array(default["pixel_values"])) - ours["pixel_values"]).abs()
    assert gaps.max() < 1.01 * 2 / 255
    assert (gaps > 1e-6).float().mean() < 0.1


def test_a_saved_policy_comes_back_equal(saved):
    policy, folder = saved
    again = VLMPolicy.from_pretrained(folder)
    assert same_parameters(again, policy)
    assert again.end_ids == policy.end_ids == [policy.tokenizer.eos_token_id]
    inputs = small_inputs(policy)
    for key, value in again.prepare(random_images(3), [""] * 3).items():
        assert value.dtype == inputs[key].dtype
    torch.testing.assert_close(
        again.encode(inputs).next_logits, policy.encode(inputs).next_logits, rtol=0, atol=1e-5
    )


def test_a_saved_policy_holds_no_pickle(saved):
    suffixes = {path.suffix for path in Path(saved[1]).rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".jinja"}


def test_the_default_policy_is_tiny():
    model = build_model(TinyConfig(), build_processor(TinyConfig()))
    assert 1e6 < sum(parameter.numel() for parameter in model.parameters()) < 3e6


@given(st.text(string.printable, max_size=200))
def test_printable_text_survives_the_tokenizer(text):
    assert read_back(text) == text


@given(st.text(max_size=60))
def test_any_text_is_tokenized(text):
    ids = TOKENIZER(text, add_special_tokens=False).input_ids
    assert all(0 <= index < len(TOKENIZER) for index in ids)
    assert len(ids) <= 4 * len(text) + 1


def test_words_and_pieces_are_single_tokens():
    for text in [*ANSWER_PIECES, *(f" {word}" for word in PROMPT_WORDS)]:
        assert len(TOKENIZER(text, add_special_tokens=False).input_ids) == 1, text


def test_a_vertex_takes_two_tokens():
    square = np.array([[0.12, 0.12], [0.34, 0.12], [0.34, 0.56], [0.12, 0.56]])
    texts = [encode([square[:count]], 2, pad=True) for count in (3, 4)]
    lengths = [len(TOKENIZER(text, add_special_tokens=False).input_ids) for text in texts]
    assert lengths[1] - lengths[0] == 2


@pytest.mark.parametrize("difficulty", ["easy", "medium", "hard"])
def test_questions_about_scenes_are_a_few_words_long(difficulty):
    # Words that are missing from the vocabulary would be spelled letter by letter.
    for sample in (Scenes("val", difficulty)[i] for i in range(20)):
        asked = question(sample, "text->mask")
        tokens = TOKENIZER(asked, add_special_tokens=False).input_ids
        assert len(tokens) <= 2 * len(asked.split()), asked
