"""A frozen tower sees every image once, whoever asks about it."""

import pytest
import torch
from family_models import FAMILIES, build, random_answers

from agents.policy.families import select_prompts, vision_parameters
from agents.policy.sampling import sample
from agents.policy.scoring import score
from agents.policy.vision_cache import ImageFeatures

every_family = pytest.mark.parametrize("family", FAMILIES)


def watch_tower(case):
    """Counts images that go through the vision tower."""
    base = case.policy.model.model
    names = ("visual", "vision_tower", "vision_model")
    (tower,) = (getattr(base, name) for name in names if hasattr(base, name))
    seen = []

    def note(module, arguments, named, output):
        grids = named.get("grid_thw")
        pixels = arguments[0] if arguments else named["pixel_values"]
        per_prompt = case.batch["pixel_values"].shape[1] if pixels.ndim == 4 else 1
        tiles = per_prompt if case.batch["pixel_values"].ndim == 5 else 1
        seen.append(len(pixels) // tiles if grids is None else len(grids))

    tower.register_forward_hook(note, with_kwargs=True)
    return seen


@every_family
def test_the_tower_runs_once_for_each_distinct_image(family):
    case = build(family)
    tokens, mask = random_answers(case)
    wanted = score(case.policy, case.batch, tokens, mask).log_probs
    case.policy.freeze_vision()
    seen = watch_tower(case)
    optimizer = torch.optim.SGD(case.policy.model.parameters(), 1e-3)
    for update in range(2):
        sample(case.policy, case.batch, group_size=2, max_new_tokens=4)
        scores = score(case.policy, case.batch, tokens, mask)
        plain = score(case.policy, case.batch, tokens, mask, shared=False)
        torch.testing.assert_close(scores.log_probs, plain.log_probs, rtol=0, atol=1e-5)
        if update == 0:
            torch.testing.assert_close(scores.log_probs, wanted, rtol=0, atol=1e-5)
        scores.log_probs.sum().backward()
        optimizer.step()
    assert sum(seen) == 3
    # The same images in another order, and beside others.
    again = select_prompts(case.batch, torch.tensor([2, 0, 2]))
    sample(case.policy, again, max_new_tokens=2)
    assert sum(seen) == 3
    again["pixel_values"] = again["pixel_values"] + 1
    sample(case.policy, again, max_new_tokens=2)
    assert sum(seen) == 3 + 2


@every_family
def test_freezing_stops_the_gradients_of_tower_and_projector_only(family):
    case = build(family)
    tokens, mask = random_answers(case)
    case.policy.freeze_vision()
    score(case.policy, case.batch, tokens, mask).log_probs.sum().backward()
    named = dict(case.policy.model.named_parameters())
    frozen = {name for name, value in named.items() if value.grad is None}
    vision = ("visual", "vision_tower", "vision_model", "projector", "connector")
    assert frozen == {name for name in named if any(part in name for part in vision)}


def test_a_tower_that_learns_sees_images_every_time():
    case = build("llava")
    seen = watch_tower(case)
    tokens, mask = random_answers(case)
    for _ in range(2):
        score(case.policy, case.batch, tokens, mask)
    assert seen == [3, 3]


def test_features_of_another_tower_are_not_used():
    case, other = build("llava"), build("llava", seed=1)
    tokens, mask = random_answers(case)
    for one in (case, other):
        one.policy.freeze_vision()
    score(case.policy, case.batch, tokens, mask)
    case.policy.model.load_state_dict(other.policy.model.state_dict())
    torch.testing.assert_close(
        score(case.policy, case.batch, tokens, mask).log_probs,
        score(other.policy, case.batch, tokens, mask).log_probs,
    )


def test_features_of_another_precision_are_not_used():
    case = build("llava")
    case.policy.freeze_vision()
    tokens, mask = random_answers(case)
    exact = score(case.policy, case.batch, tokens, mask).log_probs
    case.policy.precision = "bfloat16"
    score(case.policy, case.batch, tokens, mask)
    case.policy.precision = "float32"
    assert torch.equal(score(case.policy, case.batch, tokens, mask).log_probs, exact)


def test_the_least_recently_used_features_are_dropped():
    case = build("llava")
    for parameter in vision_parameters(case.policy.model):
        parameter.requires_grad_(False)
    seen = watch_tower(case)
    one = 16 * 32 * 4  # tokens, width, bytes of a float32
    features = ImageFeatures(limit=2 * one)

    def look(*picks):
        chosen = select_prompts(case.batch, torch.tensor(picks))
        before = sum(seen)
        features(case.policy.model, chosen, "float32")
        return sum(seen) - before

    assert look(0) == 1
    assert look(1) == 1
    assert look(0) == 0
    assert look(2) == 1  # 1 is dropped: it was not asked for since
    assert look(0) == 0
    assert look(1) == 1
    assert look(0, 1, 2) == 1, "more than fits is still encoded once"
