"""Every family of models answers and learns in groups as it would one answer at a time."""

import warnings

import pytest
import torch
from agents_fixtures import cloned_policy, scene_environment
from family_models import (
    FAMILIES,
    aya_vision,
    build,
    florence2,
    kimi_k25,
    lfm2_vl,
    random_answers,
    short_window,
)

from agents.gspo import GSPO, GSPOConfig
from agents.policy import families
from agents.policy.checks import try_sharing
from agents.policy.families import select_prompts
from agents.policy.sampling import sample
from agents.policy.scoring import score
from agents.policy.shared_prefix import PackedGroups

GROUP = 3
FALLBACKS = {
    short_window: "longer than the 12 tokens",
    lfm2_vl: "layers of type 'conv'",
    florence2: "encoder-decoder",
    kimi_k25: "sharing raises RuntimeError",
}
every_family = pytest.mark.parametrize("family", [*FAMILIES, aya_vision])
SOME = ["llava", "qwen3_vl", "paligemma", "idefics3"]
some_families = pytest.mark.parametrize("family", SOME)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise_of(case, group_size, longest):
    """Uniform noise for answers to the prompts of a case."""
    return torch.rand(len(case.batch["input_ids"]) * group_size, longest, generator=seeded())


def plain_log_probs(case, tokens, mask):
    """Log-probabilities by one forward pass per answer: no padding, cache or positions of ours."""
    rows = []
    for row, (answer, length) in enumerate(zip(tokens, mask.sum(-1), strict=True)):
        logits = case.logits(row // GROUP, answer[:length])
        logits = logits.masked_fill(case.policy.forbidden, -torch.inf)
        chosen = logits.log_softmax(-1).gather(-1, answer[:length, None]).squeeze(-1)
        rows.append(torch.nn.functional.pad(chosen, (0, len(answer) - length)))
    return torch.stack(rows)


def gradients(case, log_probs):
    weights = torch.randn(log_probs.shape, generator=seeded(1))
    case.policy.model.zero_grad()
    (log_probs * weights).sum().backward()
    named = case.policy.model.named_parameters()
    return {name: value.grad.clone() for name, value in named if value.grad is not None}


def assert_same_gradients(found, wanted):
    assert found.keys() == wanted.keys()
    largest = max(gradient.norm() for gradient in wanted.values())
    for name, gradient in wanted.items():
        # A parameter without influence, such as the bias of attention keys, has only rounding.
        scale = max(gradient.norm(), 1e-3 * largest)
        assert (found[name] - gradient).norm() / scale < 1e-4, name


def tried(family):
    """A case of a family after it was found out whether its prompts can be shared."""
    case = build(family)
    try_sharing(case.policy, case.batch)
    return case


def assert_same_as_plain(case):
    tokens, mask = random_answers(case, GROUP)
    wanted = plain_log_probs(case, tokens, mask)
    wanted_gradients = gradients(case, wanted)
    for shared in (None, False):
        found = score(case.policy, case.batch, tokens, mask, shared=shared).log_probs
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        assert_same_gradients(gradients(case, found), wanted_gradients)


@every_family
def test_scores_and_gradients_equal_those_of_one_answer_at_a_time(family):
    case = tried(family)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_as_plain(case)
    assert case.policy.shares_prefix(case.batch, 7)


@every_family
@pytest.mark.parametrize("shared", [True, False])
def test_samples_have_the_log_probs_of_one_answer_at_a_time(family, shared):
    case = tried(family)
    case.policy.shared_prefix = shared
    noise = noise_of(case, GROUP, 12)
    drawn = sample(case.policy, case.batch, group_size=GROUP, max_new_tokens=12, noise=noise)
    assert drawn.lengths.max() == 12
    wanted = plain_log_probs(case, drawn.tokens, drawn.mask).detach()
    torch.testing.assert_close(drawn.log_probs, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FALLBACKS)
def test_what_cannot_share_says_so_once_and_comes_out_right(family):
    case = tried(family)
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always", UserWarning)
        noise = noise_of(case, GROUP, 9)
        drawn = sample(case.policy, case.batch, group_size=GROUP, max_new_tokens=9, noise=noise)
        assert_same_as_plain(case)
    (notice,) = [str(notice.message) for notice in notices if notice.category is UserWarning]
    assert notice.startswith("every answer of this")
    assert FALLBACKS[family] in notice
    wanted = plain_log_probs(case, drawn.tokens, drawn.mask).detach()
    torch.testing.assert_close(drawn.log_probs, wanted, rtol=0, atol=1e-5)


def test_an_unknown_family_that_comes_out_wrong_is_found_out():
    case = build(aya_vision)

    def count_columns(module, given, hidden):
        return hidden + 0.1 * torch.arange(hidden.shape[1])[:, None]

    case.policy.model.get_decoder().layers[0].register_forward_hook(count_columns)
    try_sharing(case.policy, case.batch)
    with pytest.warns(UserWarning, match="apart"):
        assert not case.policy.shares_prefix(case.batch, 7)


def test_an_unknown_family_that_nobody_has_tried_does_not_share():
    case = build(aya_vision)
    with pytest.warns(UserWarning, match="nobody has tried"):
        assert not case.policy.shares_prefix(case.batch, 7)
    case.policy.shared_prefix = False
    assert not case.policy.needs_trial


def test_an_agent_tries_an_unknown_family_when_it_is_built(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", families.FAMILIES - {"llava"})
    policy = cloned_policy()
    config = GSPOConfig(
        prompts_per_update=2, group_size=2, max_new_tokens=8, muon=False, kl_coefficient=0.1
    )
    agent = GSPO(policy, scene_environment(config), config)
    assert policy.sharing_trial == agent._reference.sharing_trial == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        agent.learn(1)


def test_an_unknown_family_that_fails_is_found_out():
    case = build(aya_vision)

    def refuse(module, given):
        if given[0].shape[1] == 1:
            raise KeyError("no such cache")

    case.policy.model.get_decoder().layers[0].register_forward_pre_hook(refuse)
    try_sharing(case.policy, case.batch)
    with pytest.warns(UserWarning, match="sharing raises KeyError: 'no such cache'"):
        assert not case.policy.shares_prefix(case.batch, 7)


@pytest.mark.parametrize("shared", [True, False])
def test_a_prompt_goes_through_the_decoder_once(shared):
    case = build("llava")
    case.policy.shared_prefix = shared
    tokens, mask = random_answers(case, GROUP)
    seen, images = [], []
    layer = case.policy.model.get_decoder().layers[0]
    layer.register_forward_hook(lambda module, given, _: seen.append(given[0].shape[:2].numel()))
    tower = case.policy.model.model.vision_tower
    tower.register_forward_hook(lambda module, given, _: images.append(len(given[0])))
    score(case.policy, case.batch, tokens, mask)
    prompts, width = case.batch["input_ids"].shape
    answer = tokens.shape[1] - 1  # the last token is predicted, and read by nobody
    once = prompts * (width + GROUP * answer)
    assert seen == [once if shared else prompts * GROUP * (width + answer)]
    assert images == [prompts if shared else prompts * GROUP]
    noise = noise_of(case, GROUP, 3)
    sample(case.policy, case.batch, group_size=GROUP, max_new_tokens=3, noise=noise)
    assert seen[1] == prompts * width * (1 if shared else GROUP)


@pytest.mark.parametrize("family", [*SOME, "qwen2_5_vl"])
def test_gradients_are_the_same_with_checkpointing(family):
    case = build(family)
    tokens, mask = random_answers(case, GROUP)
    case.policy.model.train()
    exact = score(case.policy, case.batch, tokens, mask).log_probs
    wanted = gradients(case, exact)
    ran = []
    layer = case.policy.model.get_decoder().layers[0].mlp
    layer.register_forward_pre_hook(lambda *_: ran.append(torch.is_grad_enabled()))
    case.policy.checkpoint_gradients()
    found = score(case.policy, case.batch, tokens, mask).log_probs
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)
    again = gradients(case, found)
    assert_same_gradients(again, wanted)
    for name, gradient in wanted.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-5)
    assert len(ran) == 2, "the layer runs again in the backward pass"


@some_families
def test_sampling_while_training_with_checkpointing(family):
    case = build(family)
    arguments = {"group_size": GROUP, "max_new_tokens": 8, "noise": noise_of(case, GROUP, 8)}
    wanted = sample(case.policy, case.batch, **arguments)
    case.policy.checkpoint_gradients()
    case.policy.model.train()
    case.policy.model.get_decoder().layers[1].eval()
    drawn = sample(case.policy, case.batch, **arguments)
    assert torch.equal(drawn.tokens, wanted.tokens)
    assert case.policy.model.training
    assert not case.policy.model.get_decoder().layers[1].training, "modes stay as they were"


@some_families
def test_bfloat16_is_close(family):
    case = build(family)
    tokens, mask = random_answers(case, GROUP)
    exact = score(case.policy, case.batch, tokens, mask).log_probs
    wanted = gradients(case, exact)
    case.policy.precision = "bfloat16"
    rounded = score(case.policy, case.batch, tokens, mask).log_probs
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().mean() < 0.1
    found = gradients(case, rounded)
    together = torch.cat([wanted[name].flatten() for name in wanted])
    error = torch.cat([(found[name] - wanted[name]).flatten() for name in wanted])
    assert error.norm() / together.norm() < 0.2
    noise = noise_of(case, 2, 5)
    drawn = sample(case.policy, case.batch, group_size=2, max_new_tokens=5, noise=noise)
    assert drawn.log_probs.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_freezing_stops_the_gradients_of_tower_and_projector_only(family):
    case = build(family)
    tokens, mask = random_answers(case)
    wanted = score(case.policy, case.batch, tokens, mask).log_probs
    case.policy.freeze_vision()
    found = score(case.policy, case.batch, tokens, mask).log_probs
    assert torch.equal(found, wanted)
    found.sum().backward()
    named = dict(case.policy.model.named_parameters())
    frozen = {name for name, value in named.items() if value.grad is None}
    vision = ("visual", "vision_tower", "vision_model", "projector", "connector")
    assert frozen == {name for name in named if any(part in name for part in vision)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("picks", [[1], [2, 0], [0, 0, 2, 1, 1], []])
def test_prompts_are_selected_with_their_images(family, picks):
    case = build(family)
    chosen = select_prompts(case.batch, torch.tensor(picks, dtype=torch.long))
    for key, value in chosen.items():
        whole = [prompt[key] for prompt in (case.prompts[pick] for pick in picks)]
        if key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
            assert value.tolist() == case.batch[key][picks].tolist()
        elif picks:
            assert torch.equal(value, torch.cat(whole)), key
        else:
            assert len(value) == 0


def test_rows_that_belong_to_nobody_are_an_error():
    inputs = {"input_ids": torch.zeros(2, 5), "pixel_values": torch.zeros(7, 3, 4, 4)}
    with pytest.raises(ValueError, match="'pixel_values' has 7 rows for 2 prompts"):
        select_prompts(inputs, torch.tensor([0]))


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (3, 1)])
def test_attention_over_packed_groups_has_the_derivatives_of_its_value(heads, softcap):
    generator = seeded()

    def states(count):
        shape = (2, count, 3 + 2 * 2, 3)
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        return drawn.requires_grad_()

    groups = PackedGroups(torch.tensor([[0, 1, 1], [1, 1, 1]]), group_size=2, length=2)

    def attend(query, key, value):
        mask = torch.ones(3, 3, dtype=torch.bool).tril()
        return groups.attend(torch.nn.Identity(), query, key, value, mask, 0.4, softcap)

    inputs = (states(heads[0]), states(heads[1]), states(heads[1]))
    assert torch.autograd.gradcheck(attend, inputs)


def test_models_of_qwen_form_place_images_without_being_told_which_tokens_they_are():
    case = build("qwen2_5_vl")
    tokens, mask = random_answers(case, GROUP)
    untold = {key: value for key, value in case.batch.items() if key != "mm_token_type_ids"}
    wanted = plain_log_probs(case, tokens, mask)
    for shared in (None, False):
        torch.testing.assert_close(
            score(case.policy, untold, tokens, mask, shared=shared).log_probs,
            wanted,
            rtol=0,
            atol=1e-5,
        )


@some_families
def test_hidden_states_are_those_that_tokens_were_predicted_from(family):
    case = build(family)
    policy = case.policy
    tokens, mask = random_answers(case, GROUP)
    assert score(policy, case.batch, tokens, mask).hidden is None
    for shared in (None, False):
        scores = score(policy, case.batch, tokens, mask, hidden=True, shared=shared)
        assert scores.hidden.shape == (*tokens.shape, 32)
        assert (scores.hidden[mask == 0] == 0).all()
        logits = policy.model.get_output_embeddings()(scores.hidden)
        again = policy.log_softmax(logits, 1.0).gather(-1, tokens[..., None]).squeeze(-1)
        torch.testing.assert_close(again * mask, scores.log_probs, rtol=0, atol=1e-5)
        (gradient,) = torch.autograd.grad(
            scores.hidden.sum(), policy.model.get_decoder().layers[0].mlp.up_proj.weight
        )
        assert gradient.norm() > 0
