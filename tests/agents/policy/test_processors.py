"""Tiny models of other families with their real processors, against transformers itself.

    pytest -m processors

The reference is transformers alone: its processor, asked for one prompt with one image, and one
forward pass over that prompt with one answer.
"""

import json
import shutil
import warnings
from functools import cache

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from processor_families import PROCESSOR_FAMILIES, qwen2_vl_processor, real_qwen_vocabulary
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2_5_VLProcessor
from transformers.utils import is_torchvision_available

from agents.demonstrations import demonstration_of, require_plain_prompts, write_dialogue
from agents.policy.families import FAMILIES, select_prompts
from agents.policy.loading import CheckpointError
from agents.policy.model import VLMPolicy
from agents.policy.processing import (
    ImageTokensError,
    count_image_features,
    count_image_tokens,
    prepare_inputs,
)
from agents.policy.sampling import sample
from agents.policy.scoring import score
from seg_env.errors import WrongOptionError
from seg_env.frames import FAMILY_OF_MODEL

pytestmark = pytest.mark.processors

SIZES = ((50, 90), (120, 64), (50, 4000))
PROMPTS = (
    "Output the polygon coordinates of the red star in the image.",
    "it",
    "Output the polygon coordinates of the large bar to the left of [0.5, 0.25].",
)
GROUP = 2
ANSWER_TYPES = {"token_type_ids": {"paligemma": 1}}
"""What inputs about types of tokens hold for an answer, where it is not 0."""
WITHOUT = {"florence2", "kimi_vl"}
"""Families whose numbers are known and whose processors are not tried here: an encoder-decoder, and
one with code of its own."""
every_family = pytest.mark.parametrize("family", PROCESSOR_FAMILIES)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """What saves the folder of a family in a layout, once."""
    root = tmp_path_factory.mktemp("families")

    @cache
    def save(family, layout="transformers"):
        case = PROCESSOR_FAMILIES[family]
        if case.needs_torchvision and not is_torchvision_available():
            pytest.skip(f"the processor of {family} needs torchvision")
        folder = root / f"{family}-{layout}"
        if layout == "transformers":
            return case.save(folder)
        shutil.copytree(save(family), folder)
        return case.to_hub_layout(folder)

    return save


@pytest.fixture
def open_family(folders):
    """What opens a fresh policy of a family."""

    def open_it(family, layout="transformers"):
        policy = VLMPolicy.from_pretrained(folders(family, layout), device="cpu")
        policy.model.eval()
        return policy

    return open_it


@cache
def images():
    """Noise of unequal sizes, one image far longer than high."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def answers_for(policy, longest=6):
    """Answers of unequal lengths, a single token among them."""
    generator = torch.Generator().manual_seed(0)
    allowed = (~policy.forbidden).nonzero().squeeze(-1)
    rows = len(PROMPTS) * GROUP
    tokens = allowed[torch.randint(len(allowed), (rows, longest), generator=generator)]
    lengths = torch.randint(1, longest + 1, (rows,), generator=generator)
    lengths[0], lengths[1] = longest, 1
    return tokens, (torch.arange(longest) < lengths[:, None]).long()


def ask_transformers(policy, image, prompt):
    """One prompt as transformers itself prepares it."""
    processor = policy.processor
    pillow = Image.fromarray(image)
    if processor.chat_template is None:
        text = f"{processor.image_token}{prompt}"
        inputs = dict(processor(text=text, images=pillow, return_tensors="pt"))
        inputs.pop("labels")
        return inputs
    content = [{"type": "image", "image": pillow}, {"type": "text", "text": prompt}]
    return dict(
        processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    )


def reference(policy, image, prompt, answer):
    """Log-probabilities of one answer by the model's own forward pass: no padding, no cache."""
    inputs = ask_transformers(policy, image, prompt)
    family = policy.model.config.model_type
    for key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if key in inputs:
            kind = ANSWER_TYPES.get(key, {}).get(family, 0)
            added = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}
            added = added.get(key, torch.full_like(answer, kind))
            inputs[key] = torch.cat([inputs[key], added[None].to(inputs[key].dtype)], 1)
    logits = policy.model(**inputs).logits[0, -len(answer) - 1 : -1].float()
    logits = logits.masked_fill(policy.forbidden, -torch.inf)
    return logits.log_softmax(-1).gather(-1, answer[:, None]).squeeze(-1)


def references(policy, tokens, mask):
    """The same for all answers, padded with zeros."""
    rows = []
    for row, (answer, length) in enumerate(zip(tokens, mask.sum(-1).tolist(), strict=True)):
        prompt = row // GROUP
        found = reference(policy, images()[prompt], PROMPTS[prompt], answer[:length])
        rows.append(torch.nn.functional.pad(found, (0, tokens.shape[1] - length)))
    return torch.stack(rows)


def gradients(policy, log_probs):
    """Gradients of a weighted sum, by parameter."""
    weights = torch.randn(log_probs.shape, generator=torch.Generator().manual_seed(1))
    policy.model.zero_grad()
    (log_probs * weights).sum().backward()
    named = policy.model.named_parameters()
    return {name: value.grad.clone() for name, value in named if value.grad is not None}


def assert_same_gradients(found, wanted):
    assert found.keys() == wanted.keys()
    largest = max(gradient.norm() for gradient in wanted.values())
    for name, gradient in wanted.items():
        # A parameter without influence, such as the bias of attention keys, has only rounding.
        scale = max(gradient.norm(), 1e-3 * largest)
        assert (found[name] - gradient).norm() / scale < 1e-4, name


def test_every_family_is_tried():
    assert set(FAMILIES) <= set(PROCESSOR_FAMILIES)
    assert set(FAMILY_OF_MODEL) - WITHOUT <= set(PROCESSOR_FAMILIES)


@every_family
def test_a_folder_opens_in_both_layouts_with_the_processor_of_its_family(family, folders):
    found = {}
    for layout in ("transformers", "hub"):
        folder = folders(family, layout)
        policy = VLMPolicy.from_pretrained(folder, device="cpu")
        kind = type(AutoProcessor.from_pretrained(folder))
        assert type(policy.processor) is kind
        assert kind is type(PROCESSOR_FAMILIES[family].processor())
        assert isinstance(policy.model, getattr(transformers, policy.model.config.architectures[0]))
        inputs = policy.prepare(images(), PROMPTS)
        tokens, mask = answers_for(policy)
        with torch.no_grad():
            found[layout] = inputs, score(policy, inputs, tokens, mask).log_probs
    assert (folders(family, "hub") / "preprocessor_config.json").exists()
    (inputs, log_probs), (hub_inputs, hub_log_probs) = found.values()
    assert inputs.keys() == hub_inputs.keys()
    for key, value in inputs.items():
        assert torch.equal(value, hub_inputs[key]), key
    assert torch.equal(log_probs, hub_log_probs)


@every_family
def test_scores_and_gradients_are_those_of_transformers(family, open_family):
    policy = open_family(family)
    tokens, mask = answers_for(policy)
    wanted = references(policy, tokens, mask)
    assert wanted.abs().max() > 1
    wanted_gradients = gradients(policy, wanted)
    assert any("vis" in name for name in wanted_gradients), "the tower learns"
    inputs = policy.prepare(images(), PROMPTS)
    assert (inputs["attention_mask"] == 0).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for shared in (None, False):
            found = score(policy, inputs, tokens, mask, shared=shared).log_probs
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
            assert_same_gradients(gradients(policy, found), wanted_gradients)
    assert policy.shares_prefix(inputs, tokens.shape[1])


@every_family
def test_samples_are_those_of_transformers(family, open_family):
    policy = open_family(family)
    inputs = policy.prepare(images(), PROMPTS)
    noise = torch.rand(len(PROMPTS) * GROUP, 8, generator=torch.Generator().manual_seed(3))
    drawn = []
    for shared in (True, False):
        policy.shared_prefix = shared
        drawn.append(sample(policy, inputs, group_size=GROUP, max_new_tokens=8, noise=noise))
    assert torch.equal(drawn[0].tokens, drawn[1].tokens)
    with torch.no_grad():
        wanted = references(policy, drawn[0].tokens, drawn[0].mask)
    for found in drawn:
        torch.testing.assert_close(found.log_probs, wanted, rtol=0, atol=1e-5)


@every_family
def test_greedy_answers_are_those_of_generate(family, open_family):
    policy = open_family(family)
    drawn = sample(policy, policy.prepare(images(), PROMPTS), max_new_tokens=6, temperature=0)
    for row, (image, prompt) in enumerate(zip(images(), PROMPTS, strict=True)):
        inputs = ask_transformers(policy, image, prompt)
        written = policy.model.generate(
            **inputs,
            max_new_tokens=6,
            do_sample=False,
            suppress_tokens=policy.forbidden.nonzero().squeeze(-1).tolist(),
        )
        answer = written[0, inputs["input_ids"].shape[1] :]
        length = int(drawn.mask[row].sum())
        assert drawn.tokens[row, :length].tolist() == answer[:length].tolist()


@every_family
def test_prompts_are_chosen_and_repeated_with_their_images(family, open_family):
    policy = open_family(family)
    whole = policy.prepare(images(), PROMPTS)
    tokens, mask = answers_for(policy)
    with torch.no_grad():
        wanted = score(policy, whole, tokens, mask).log_probs.view(len(PROMPTS), GROUP, -1)

        def assert_is(inputs, picks):
            rows = (torch.tensor(picks)[:, None] * GROUP + torch.arange(GROUP)).flatten()
            for shared in (None, False):
                found = score(policy, inputs, tokens[rows], mask[rows], shared=shared).log_probs
                found = found.view(len(picks), GROUP, -1)
                torch.testing.assert_close(found, wanted[picks], rtol=0, atol=1e-5)

        for picks in ([1], [2, 0], [2, 2, 0, 1]):
            assert_is(select_prompts(whole, torch.tensor(picks)), picks)


@every_family
def test_image_tokens_are_counted_by_prompt(family, open_family):
    policy = open_family(family)
    inputs = policy.prepare(images(), PROMPTS)
    tokens = count_image_tokens(policy.model, inputs)
    assert tokens.min() > 0
    assert tokens.tolist() == count_image_features(policy.model, inputs).tolist()


@every_family
def test_a_prompt_cannot_ask_for_a_second_image(family, open_family):
    policy = open_family(family)
    spoken = f"the bar {policy.processor.image_token} on the left"
    inputs = policy.prepare(images()[:1] * 2, ["the bar", spoken])
    tokens = count_image_tokens(policy.model, inputs).tolist()
    assert tokens[0] == tokens[1] > 0


@every_family
def test_a_prompt_with_other_image_tokens_than_features_is_named(family, open_family, monkeypatch):
    policy = open_family(family)
    processor = policy.processor
    kind = type(processor)
    token = policy.model.config.image_token_id
    called = kind.__call__

    def shorten(self, *arguments, **options):
        """One image token of the prompt about the bar is lost, as by truncation."""
        found = called(self, *arguments, **options)
        for row, text in enumerate(options["text"]):
            if "bar" in text:
                place = (found["input_ids"][row] == token).nonzero()[-1]
                found["input_ids"][row, place] = policy.pad_id
        return found

    monkeypatch.setattr(kind, "__call__", shorten)
    policy.prepare(images()[:2], PROMPTS[:2])
    with pytest.raises(ImageTokensError, match=r"prompt 2 of the batch \(.*bar") as caught:
        policy.prepare(images(), PROMPTS)
    assert caught.value.row == 2
    assert caught.value.tokens == caught.value.features - 1


@every_family
@pytest.mark.parametrize("height", [1, 3, 4])
def test_thin_images_are_seen_the_right_way_round(family, height, open_family):
    """An image of few rows is not taken for one whose channels come first."""
    policy = open_family(family)
    row = np.random.default_rng(1).integers(0, 256, (1, 60, 3), dtype=np.uint8)
    thin = np.repeat(row, height, axis=0)
    found = policy.prepare([thin], ["it"])["pixel_values"]
    # Turned by hand and told to be so, it is the same image.
    first = policy.processor.image_processor(
        np.ascontiguousarray(thin.transpose(2, 0, 1)),
        input_data_format="channels_first",
        return_tensors="pt",
        **({"crop_to_patches": True} if family == "internvl" else {}),
    )["pixel_values"]
    assert found.shape == first.shape
    torch.testing.assert_close(found, first, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_qwens_processors_refuse_what_is_too_thin(family, open_family):
    with pytest.raises(ValueError, match="aspect ratio"):
        open_family(family).prepare([np.zeros((1, 300, 3), dtype=np.uint8)], ["it"])


@pytest.mark.parametrize("family", ["gemma3", "idefics3", "llava"])
def test_a_prompt_starts_once(family, open_family):
    policy = open_family(family)
    ids = policy.prepare(images()[:1], PROMPTS[:1])["input_ids"][0]
    assert (ids == policy.tokenizer.bos_token_id).sum() == 1


def test_the_real_vocabulary_of_qwen(tmp_path):
    vocabulary = real_qwen_vocabulary()
    if vocabulary is None:
        pytest.skip("the package dashscope brings the vocabulary along")
    case = PROCESSOR_FAMILIES["qwen2_5_vl"]
    processor = lambda: qwen2_vl_processor(Qwen2_5_VLProcessor, vocabulary)  # noqa: E731
    type(case)(case.model_type, processor, case.configure).save(tmp_path)
    policy = VLMPolicy.from_pretrained(tmp_path, device="cpu")
    assert len(policy.tokenizer) > 151_000
    text = "[[[0.512,0.331],[0.51,0.34],[0.6,0.701]]]"
    ids = policy.tokenizer(text).input_ids
    assert policy.tokenizer.decode(ids) == text
    assert len(policy.tokenizer("0.512").input_ids) == 5, "digits are single tokens"
    tokens = torch.tensor([ids, ids[::-1]])
    mask = torch.ones_like(tokens)
    inputs = policy.prepare(images()[:1], PROMPTS[:1])
    with torch.no_grad():
        wanted = torch.stack(
            [reference(policy, images()[0], PROMPTS[0], answer) for answer in tokens]
        )
        for shared in (None, False):
            found = score(policy, inputs, tokens, mask, shared=shared).log_probs
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_what_was_saved_opens_with_transformers_alone(open_family, tmp_path):
    policy = open_family("qwen2_5_vl", "hub")
    policy.save(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.chat_template == policy.processor.chat_template
    ours, theirs = policy.model.state_dict(), model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_processor_without_a_chat_template_is_an_error(folders, tmp_path):
    shutil.copytree(folders("idefics3"), tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    policy = VLMPolicy.from_pretrained(tmp_path / "base", device="cpu")
    with pytest.raises(CheckpointError, match="Idefics3Processor has no chat template"):
        policy.prepare(images()[:1], PROMPTS[:1])


def test_gemma_sees_the_whole_image_from_each_of_its_tokens(open_family):
    """Attention inside an image runs both ways; a causal mask would give other numbers."""
    policy = open_family("gemma3")
    inputs = policy.prepare(images(), PROMPTS)
    tokens, mask = answers_for(policy)
    with torch.no_grad():
        right = score(policy, inputs, tokens, mask).log_probs
        causal = inputs | {"token_type_ids": torch.zeros_like(inputs["token_type_ids"])}
        assert (score(policy, causal, tokens, mask).log_probs - right).abs().max() > 1e-3


def test_processors_are_saved_in_the_layout_they_are_tested_in(folders):
    """The two layouts differ as repositories on the hub differ from what transformers 5 writes."""
    new, hub = folders("llava"), folders("llava", "hub")
    assert "image_processor" in json.loads((new / "processor_config.json").read_text())
    assert "image_processor" not in json.loads((hub / "processor_config.json").read_text())
    assert not (hub / "chat_template.jinja").exists()


PLAIN_PROMPTS = {"llava", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"}
"""Families whose prompts can be cut behind the image."""


@every_family
def test_cloning_shows_the_prompts_that_policies_are_asked_with_or_refuses(family, open_family):
    processor = open_family(family).processor
    image, asked = images()[0], PROMPTS[0]
    whole = prepare_inputs(processor, [image], [asked])["input_ids"][0].tolist()
    if family not in PLAIN_PROMPTS:
        with pytest.raises(WrongOptionError, match="--backend trl"):
            require_plain_prompts(processor, image)
        return
    require_plain_prompts(processor, image)
    shown = demonstration_of(
        processor, image, [write_dialogue(processor, "text->mask", asked, "[]")]
    )
    (dialogue,) = shown.dialogues
    assert [*shown.prefix, *dialogue.tokens[: dialogue.answer_start]] == whole
    grids = {key: value for key, value in shown.inputs.items() if "grid" in key}
    assert all(value.dtype.kind == "i" for value in grids.values())
