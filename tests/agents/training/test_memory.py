"""What an update needs in memory, from shapes alone, is what autograd keeps and processes use."""

import copy
from dataclasses import replace

import pytest
import torch
from family_models import FAMILIES, TEXT, build
from transformers import PreTrainedConfig, Qwen2_5_VLConfig

from agents.embedded.tiny import TinyConfig, build_model, build_processor
from agents.policy.adapters import add_adapter
from agents.policy.model import VLMPolicy
from agents.policy.scoring import score
from agents.training.memory import (
    BFLOAT16,
    FLOAT32,
    Update,
    count_weights,
    decoder_layer,
    empty_model,
    kept_activations,
    needs_of,
    tower_layer,
)
from agents.training.optim import Engine
from agents.training.settings import OptimizerSettings
from experiments.benchmarks.train_legs import Work
from experiments.benchmarks.update_memory import WAYS, measure
from seg_env.errors import WrongOptionError

GROUP, LENGTH = 4, 40
WIDE = TinyConfig(
    image_size=196, patch_size=14, vision_width=96, vision_layers=2, width=128, layers=3, heads=4
)


def llava():
    """A policy, a prompt of 196 image tokens, and patches of its image."""
    processor = build_processor(WIDE)
    policy = VLMPolicy(build_model(WIDE, processor), processor)
    image = torch.zeros(196, 196, 3, dtype=torch.uint8).numpy()
    return policy, policy.prepare([image], ["a red circle"]), 196, 196


def qwen():
    """The same of Qwen2.5-VL's form: rotated towers, windows, and keys that heads share."""
    case = build("qwen2_5_vl")
    config = copy.deepcopy(case.policy.model.config)
    text = {
        **TEXT,
        "hidden_size": 128,
        "intermediate_size": 320,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [4, 6, 6],
        },
    }
    tower = {
        "depth": 2,
        "hidden_size": 96,
        "intermediate_size": 200,
        "num_heads": 4,
        "out_hidden_size": 128,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [1],
    }
    picture = config.image_token_id
    config = Qwen2_5_VLConfig(text_config=text, vision_config=tower, image_token_id=picture)
    model = type(case.policy.model)(config)
    model.generation_config = case.policy.model.generation_config
    tokens = torch.full((1, 110), 7)
    tokens[:, 4:104] = picture
    inputs = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "pixel_values": torch.randn(400, 1176),
        "image_grid_thw": torch.tensor([[1, 20, 20]]),
    }
    return VLMPolicy(model, case.policy.processor), inputs, 100, 400


def kept_bytes(policy, inputs):
    """What autograd holds after a forward pass, but weights, pixels and logits."""
    tokens = torch.full((GROUP, LENGTH), 9)
    owned = [*policy.model.parameters(), inputs["pixel_values"]]
    known = {each.untyped_storage().data_ptr() for each in owned}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that none is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        score(policy, inputs, tokens, torch.ones_like(tokens))
    logits = GROUP * LENGTH * len(policy.forbidden) * FLOAT32
    return sum(count for count, _ in found.values()) - logits


@pytest.mark.parametrize("kind", ["float32", "autocast", "bfloat16", "frozen", "adapters", "both"])
@pytest.mark.parametrize("make", [llava, qwen])
def test_what_autograd_keeps_is_what_was_counted(make, kind):
    policy, inputs, image_tokens, patches = make()
    rank = 4 if kind in ("adapters", "both") else 0
    half = kind in ("bfloat16", "both")
    empty = empty_model(policy.model.config)
    if half:
        policy.model.to(torch.bfloat16)
    if kind == "frozen":
        policy.freeze_vision()
    if rank:
        policy.model.name_or_path = "saved elsewhere"  # an adapter names its model
        add_adapter(policy.model, rank)
    if half or kind == "autocast":
        policy.precision = "bfloat16"
    policy.model.train()
    update = Update(
        prompts=1,
        group_size=GROUP,
        prompts_per_forward=1,
        minibatches=1,
        prompt_tokens=inputs["input_ids"].shape[1],
        image_tokens=image_tokens,
        patches=patches,
        pixels=inputs["pixel_values"].numel(),
        answer_tokens=LENGTH,
        weights=BFLOAT16 if half else FLOAT32,
        computed=FLOAT32 if policy.precision == "float32" else BFLOAT16,
        freeze_vision=kind == "frozen",
        lora_rank=rank,
    )
    predicted = sum(kept_activations(empty, update, 1).values())
    if kind == "autocast":
        predicted += BFLOAT16 * count_weights(empty, update).linear
    assert predicted == pytest.approx(kept_bytes(policy, inputs), rel=0.1)


def plain_update(**changes):
    return Update(
        **{
            **{"prompts": 4, "group_size": 4, "prompts_per_forward": 1, "minibatches": 2},
            **{"prompt_tokens": 100, "image_tokens": 64, "patches": 64, "pixels": 3 * 64 * 64},
            "answer_tokens": 20,
            **changes,
        }
    )


@pytest.mark.parametrize("muon", [False, True])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_weights_gradients_and_states_are_counted_to_the_byte(muon, half, frozen):
    policy, *_ = llava()
    model = policy.model.to(torch.bfloat16 if half else torch.float32)
    if frozen:
        policy.freeze_vision()
    engine = Engine(model, OptimizerSettings(muon=muon))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    gradients = sum(each.grad.nbytes for each in model.parameters() if each.grad is not None)
    engine.step(1e-4)
    states = engine.state_dict().values()
    kept = sum(v.nbytes for state in states for key, v in state.items() if key != "step")
    update = plain_update(muon=muon, weights=BFLOAT16 if half else FLOAT32, freeze_vision=frozen)
    counted = count_weights(empty_model(model.config), update)
    assert counted.loaded == sum(each.nbytes for each in model.parameters())
    assert counted.trained * update.weights == gradients
    assert counted.optimizer == kept


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_counted_from_its_configuration(family):
    model = build(family).policy.model
    empty = empty_model(model.config)
    update = plain_update(prompts=2, minibatches=1)
    assert count_weights(empty, update).loaded == sum(each.nbytes for each in model.parameters())
    layers = decoder_layer(empty), tower_layer(empty)
    assert [(each.width, each.mlp) for each in layers] == [(32, 48), (16, 24)]
    assert min(need.total for need in needs_of(empty, update)) > count_weights(empty, update).loaded


def peak(model, **changes):
    return max(need.total for need in needs_of(model, plain_update(**changes)))


def test_what_saves_memory_saves_it_and_what_takes_more_takes_it():
    policy, *_ = llava()
    model = empty_model(policy.model.config)
    usual = peak(model)
    for less in (
        {"checkpointing": True},
        {"freeze_vision": True},
        {"muon": True},
        {"lora_rank": 8},
        {"answer_tokens": 10},
        {"computed": BFLOAT16},
        {"ranks": 2, "stage": 1},
    ):
        assert peak(model, **{"muon": False} | less) < peak(model, muon=False), less
    assert peak(model, reference=True) > usual
    assert peak(model, lora_rank=8, reference=True) < peak(model, lora_rank=8) + usual / 10
    assert peak(model, lora_rank=8, four_bits=True) < peak(model, lora_rank=8)
    assert peak(model, lora_rank=8, lora_targets=("q_proj",)) < peak(model, lora_rank=8)
    stages = [
        {"stage": stage, "ranks": 8, "prompts_per_forward": 1, "muon": False} for stage in (1, 2, 3)
    ]
    assert peak(model, **stages[0]) > peak(model, **stages[1]) > peak(model, **stages[2])


def test_a_tower_of_unknown_form_is_named():
    policy, *_ = llava()
    model = empty_model(policy.model.config)
    model.config.vision_config = PreTrainedConfig(hidden_size=96)
    with pytest.raises(WrongOptionError, match="'llava' does not tell how wide its layers are"):
        needs_of(model, plain_update())


USUAL = ("all weights, AdamW", "checkpointing")
WORK = Work("30m", 256, 48, 4, 1, "float32", "sdpa", "cpu", seed=0)


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=() if way in USUAL else pytest.mark.slow) for way in WAYS]
)
def test_an_update_needs_what_was_predicted(way):
    found = measure(WORK, WAYS[way])
    assert found["peak"] == pytest.approx(found["measured"], rel=0.15)


@pytest.mark.slow
def test_parts_of_a_minibatch_keep_the_gradients_of_those_before():
    found = measure(replace(WORK, prompts=4), WAYS["all weights, AdamW"])
    assert found["peak"] == pytest.approx(found["measured"], rel=0.15)
    alone = measure(replace(WORK, prompts=2), WAYS["all weights, AdamW"])
    assert found["measured"] > alone["measured"] + 0.8 * 30e6 * FLOAT32
