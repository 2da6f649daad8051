"""Image tokens of each prompt against the features of its image, on inputs made by hand."""

import pickle

import pytest
import torch
from agents_fixtures import random_images, small_policy
from family_models import FAMILIES, PICTURE, aya_vision, build, kimi_k25

from agents.policy.families import IMAGE_ROWS, model_inputs, select_prompts
from agents.policy.processing import (
    ImageTokensError,
    check_image_tokens,
    count_image_features,
    count_image_tokens,
    number_image_rows,
)


def tiles(*counts, tokens=None):
    """InternVL's model, and prompts whose images are cut into so many tiles."""
    case = build("internvl")
    generator = torch.Generator().manual_seed(0)
    rows, width = sum(counts), 4 * max(counts) + 3
    ids = torch.full((len(counts), width), 9)
    for row, count in enumerate(tokens or [4 * count for count in counts]):
        ids[row, 1 : 1 + count] = PICTURE
    pixels = torch.randn(rows, 3, 16, 16, generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    return case.policy, inputs


@pytest.mark.parametrize("family", [*FAMILIES, kimi_k25])
def test_tokens_and_features_are_counted_alike(family):
    case = build(family)
    batch = number_image_rows(case.policy.model, case.batch)
    assert batch.keys() == case.batch.keys(), "a row per prompt needs no numbers"
    tokens = count_image_tokens(case.policy.model, batch)
    assert tokens.tolist() == count_image_features(case.policy.model, batch).tolist()
    check_image_tokens(case.policy.model, batch)


@pytest.mark.parametrize("family", [*FAMILIES, kimi_k25])
@pytest.mark.parametrize("row", [0, 2])
def test_the_prompt_that_does_not_fit_is_named(family, row):
    case = build(family)
    batch = case.batch
    batch["input_ids"][row, (batch["input_ids"][row] == PICTURE).nonzero()[0]] = 9
    with pytest.raises(ImageTokensError, match=f"prompt {row} of the batch holds") as caught:
        check_image_tokens(case.policy.model, batch)
    assert (caught.value.row, caught.value.features - caught.value.tokens) == (row, 1)


def test_mistakes_that_cancel_out_are_found():
    """Totals agree, so the model takes such a batch and puts features in the wrong places."""
    case = build("llava")
    batch = case.batch
    ids = batch["input_ids"]
    ids[1, (ids[1] == PICTURE).nonzero()[0]] = 9
    ids[2, (ids[2] != PICTURE).nonzero()[-1]] = PICTURE
    case.policy.model(**batch)
    with pytest.raises(ImageTokensError) as caught:
        check_image_tokens(case.policy.model, batch)
    assert caught.value.row == 1


def test_families_that_nobody_knows_are_left_to_their_models():
    case = build(aya_vision)
    assert count_image_features(case.policy.model, case.batch) is None
    check_image_tokens(case.policy.model, case.batch)


def test_rows_of_tiles_are_numbered_by_the_tokens_of_their_prompts():
    policy, inputs = tiles(3, 1, 2)
    batch = number_image_rows(policy.model, inputs)
    assert batch[IMAGE_ROWS].tolist() == [3, 1, 2]
    check_image_tokens(policy.model, batch)
    assert IMAGE_ROWS not in model_inputs(policy.model, batch), "models know no such input"
    chosen = select_prompts(batch, torch.tensor([2, 0, 2]))
    wanted = torch.cat([inputs["pixel_values"][4:], inputs["pixel_values"][:3]])
    assert torch.equal(chosen["pixel_values"], torch.cat([wanted, wanted[:2]]))
    assert chosen[IMAGE_ROWS].tolist() == [2, 3, 2]


@pytest.mark.parametrize("tokens", [[12, 4, 4], [12, 4, 7], [12, 0, 12]])
def test_tiles_that_nobody_asked_for_are_an_error(tokens):
    policy, inputs = tiles(3, 1, 2, tokens=tokens)
    with pytest.raises(ImageTokensError, match="their images have 24 features") as caught:
        number_image_rows(policy.model, inputs)
    assert caught.value.row is None


def test_a_policy_names_the_prompt_that_its_processor_got_wrong(monkeypatch):
    policy = small_policy()
    called = type(policy.processor).__call__

    def shorten(self, *arguments, **options):
        found = called(self, *arguments, **options)
        ids = found["input_ids"][-1]
        ids[(ids == policy.model.config.image_token_id).nonzero()[0]] = policy.pad_id
        return found

    monkeypatch.setattr(type(policy.processor), "__call__", shorten)
    message = r"prompt 1 of the batch \('that'\) holds 15 image tokens, but its image has 16 feat"
    with pytest.raises(ImageTokensError, match=message):
        policy.prepare(random_images(2), ["it", "that"])


def test_the_error_crosses_processes():
    error = ImageTokensError(2, 5, 6)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.row) == (str(error), 2)
