"""Adapters are all that is trained, and open anywhere; the KL penalty needs no second model."""

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from agents_fixtures import (
    OUTLINES_ONLY,
    cloned_policy,
    parameters_of,
    same_parameters,
    scene_demonstrations,
    scene_environment,
    small_inputs,
)
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText

from agents.annotators.loading import load_model
from agents.behavior_cloning import BehaviorCloning, BehaviorCloningConfig
from agents.gspo import GSPO, GSPOConfig
from agents.policy import adapters
from agents.policy.adapters import (
    adapter_parameters,
    add_adapter,
    has_adapter,
    load_adapter,
    merge_adapter,
)
from agents.policy.loading import CheckpointError, CheckpointMissingError, recorded_frame
from agents.policy.model import VLMPolicy
from agents.policy.sampling import evaluation_mode, sample
from agents.policy.scoring import score
from agents.ppo import PPO, PPOConfig
from agents.training.optim import split_parameters
from seg_env.errors import WrongOptionError

ROOT = Path(__file__).parents[3]
SETTINGS = {
    **{"prompts_per_update": 4, "group_size": 4, "max_new_tokens": 24, "learning_rate": 1e-2},
    **{"adam_epsilon": 1e-4, "epochs": 1},
}
AGENTS = {
    "gspo": (GSPO, GSPOConfig, {"clip_low": 0.2, "clip_high": 0.2}),
    "ppo": (PPO, PPOConfig, {"fit_critic": False}),
}
every_agent = pytest.mark.parametrize("kind", AGENTS)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a policy that has learned a little."""
    folder = tmp_path_factory.mktemp("base")
    cloned_policy().save(folder)
    return folder


def adapted(base, rank=4, **options):
    """That policy with a new adapter."""
    policy = VLMPolicy.from_pretrained(base, device="cpu")
    add_adapter(policy.model, rank, **options)
    return policy


def make_agent(policy, kind="gspo", **settings):
    agent, config, more = AGENTS[kind]
    config = config(**SETTINGS | more | settings)
    # Quarrelling rewards, so that no group earns the same.
    rewards = "mask_iou=1.0 length_penalty=0.5 centroid_distance=0.5"
    return agent(policy, scene_environment(config, rewards=rewards), config)


def learn(agent, updates=2):
    rows = []
    agent.learn(updates, lambda update, metrics: rows.append(metrics))
    return rows


def own_weights(policy):
    """The weights of the model itself, by the names that they have without an adapter."""
    return {
        name.replace(".base_layer", ""): value
        for name, value in parameters_of(policy).items()
        if ".lora_" not in name
    }


def log_probs(policy):
    """Of fixed answers, scored over a shared prompt."""
    inputs = small_inputs(policy)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 40, (6, 7), generator=generator)
    with torch.no_grad(), evaluation_mode(policy.model):
        return score(policy, inputs, tokens, torch.ones_like(tokens)).log_probs


@every_agent
def test_rewards_move_the_adapter_and_nothing_else(kind, base):
    policy = adapted(base)
    start = parameters_of(policy)
    rows = learn(make_agent(policy, kind))
    assert all(row["rollout/reward"] != 0 for row in rows)
    end = parameters_of(policy)
    moved = {name for name, value in start.items() if not torch.equal(value, end[name])}
    assert moved == set(adapter_parameters(policy.model)), "both matrices of every layer"
    assert all(".lora_" in name for name in moved)
    found, wanted = own_weights(policy), parameters_of(VLMPolicy.from_pretrained(base))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_behaviour_cloning_moves_the_adapter_and_nothing_else(base):
    policy = adapted(base, targets=("q_proj", "v_proj"))
    config = BehaviorCloningConfig(batch_size=4, learning_rate=1e-2, **OUTLINES_ONLY)
    learn(BehaviorCloning(policy, scene_demonstrations(policy.processor, 8), config))
    assert {name.split(".")[-4] for name in adapter_parameters(policy.model)} == {
        "q_proj",
        "v_proj",
    }
    assert all(weights.any() for weights in adapter_parameters(policy.model).values())
    start = parameters_of(VLMPolicy.from_pretrained(base))
    assert all(torch.equal(value, start[name]) for name, value in own_weights(policy).items())


def test_a_new_adapter_changes_nothing_and_follows_from_its_seed(base):
    plain = VLMPolicy.from_pretrained(base, device="cpu")
    state = torch.get_rng_state()
    policy, again, other = adapted(base), adapted(base), adapted(base, seed=1)
    assert torch.equal(torch.get_rng_state(), state), "nothing else is drawn otherwise for it"
    assert torch.equal(log_probs(policy), log_probs(plain))
    assert same_parameters(policy, again)
    assert not same_parameters(policy, other)


@pytest.mark.parametrize(
    ("targets", "inside", "outside"),
    [
        (("decoder",), "language_model", ("vision_tower", "projector", "lm_head")),
        (("all-linear",), "vision_tower", ("lm_head",)),
        (("up_proj",), "up_proj", ("down_proj", "q_proj")),
    ],
)
def test_targets(targets, inside, outside, base):
    names = list(adapter_parameters(adapted(base, targets=targets).model))
    assert any(inside in name for name in names)
    assert not any(part in name for part in outside for name in names)


def test_layers_that_are_not_there_are_refused(base):
    with pytest.raises(WrongOptionError, match="--lora-targets qkv: PEFT can adapt no such layers"):
        adapted(base, targets=("qkv",))
    with pytest.raises(WrongOptionError, match="save it first"):
        add_adapter(cloned_policy().model, 2)


def test_the_package_that_is_missing_is_named(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(WrongOptionError, match=r"pip install 'simpleseg-rl\[lora\]'"):
        adapted(base)


def test_an_adapter_goes_to_adamw_with_muon_too(base):
    hidden, rest = split_parameters(adapted(base).model, muon=True)
    assert not hidden
    assert rest


@every_agent
def test_the_penalty_without_a_second_model_is_that_with_one(kind, base):
    rows, weights = [], []
    for with_copy in (False, True):
        policy = adapted(base)
        agent = make_agent(policy, kind, kl_coefficient=0.5)
        assert agent._reference is policy
        if with_copy:
            agent._reference = VLMPolicy.from_pretrained(base, device="cpu")
        rows.append([row["train/reference_kl"] for row in learn(agent, 3)])
        weights.append(adapter_parameters(policy.model))
    assert rows[0] == pytest.approx(rows[1], abs=1e-5)
    assert rows[0][-1] > 1e-3, "it has moved away"
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=1e-5, rtol=0)


def parameter_bytes():
    """Memory of all parameters that there are in this process."""
    gc.collect()
    found = {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
        for each in gc.get_objects()
        if type(each) is nn.Parameter
    }
    return sum(found.values())


def test_the_penalty_keeps_no_second_model(base):
    policies = adapted(base), VLMPolicy.from_pretrained(base, device="cpu")
    size = sum(each.nbytes for each in policies[1].model.parameters())
    for policy, more in zip(policies, (0, size), strict=True):
        before = parameter_bytes()
        agent = make_agent(policy, kl_coefficient=0.1)
        assert parameter_bytes() - before == more
        del agent


PEAK = """
import sys
import torch
from agents.embedded.tiny import build_model, build_processor
from agents.policy.adapters import add_adapter
from agents.policy.model import VLMPolicy
from experiments.benchmarks.memory import resident_mib
from experiments.benchmarks.train_legs import SHAPES
from test_adapters import learn, make_agent

coefficient, adapter = map(float, sys.argv[1:])
torch.manual_seed(0)
processor = build_processor(SHAPES["30m"])
policy = VLMPolicy(build_model(SHAPES["30m"], processor), processor)
if adapter:
    policy.model.name_or_path = "in no folder"
    add_adapter(policy.model, 4)
settings = {"prompts_per_update": 2, "group_size": 2, "max_new_tokens": 4, "minibatches": 1}
learn(make_agent(policy, muon=False, kl_coefficient=coefficient, **settings), 1)
size = sum(each.nbytes for each in policy.model.parameters()) / 2**20
print("result", size, resident_mib("VmHWM"))
"""


def peak(coefficient, *, adapter):
    """MiB of a model of 32 million parameters, and of a process that trains it, at its most."""
    words = [sys.executable, "-c", PEAK, str(coefficient), str(int(adapter))]
    paths = (str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent))
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    told = subprocess.run(words, env=env, check=True, capture_output=True, text=True).stdout
    return map(float, told.split("result")[1].split())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_penalty_takes_the_memory_of_no_second_model():
    found = {}
    for adapter in (False, True):
        for coefficient in (0, 0.1):
            size, found[adapter, coefficient] = peak(coefficient, adapter=adapter)
    print(f"model of {size:.0f} MiB; peak MiB by (adapter, KL coefficient): {found}")
    assert found[False, 0.1] - found[False, 0] > 0.9 * size
    assert found[True, 0.1] - found[True, 0] < 0.2 * size


def trained_policy(base):
    """A policy whose adapter has learned."""
    policy = adapted(base)
    learn(make_agent(policy))
    return policy


@pytest.fixture(scope="module")
def saved(base, tmp_path_factory):
    """A trained policy and its folder, which is an adapter's."""
    policy, folder = trained_policy(base), tmp_path_factory.mktemp("adapter")
    policy.save(folder)
    return policy, folder


def test_merged_is_unmerged(saved, base, tmp_path):
    policy, folder = saved
    wanted = log_probs(policy)
    assert not torch.allclose(wanted, log_probs(VLMPolicy.from_pretrained(base)), atol=1e-2)
    opened = VLMPolicy.from_pretrained(folder, device="cpu")
    merged = policy.copy()
    merge_adapter(merged.model)
    merged.save(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    assert not list(tmp_path.glob("adapter*"))
    for one in (opened, merged, VLMPolicy.from_pretrained(tmp_path, device="cpu")):
        assert not has_adapter(one.model)
        assert all(weights.requires_grad for weights in one.model.parameters())
        torch.testing.assert_close(log_probs(one), wanted, atol=1e-5, rtol=0)
    inputs = small_inputs(policy)
    answers = [sample(one, inputs, temperature=0).tokens for one in (policy, opened)]
    assert torch.equal(*answers)


def test_a_saved_adapter_is_peft_s(saved):
    policy, folder = saved
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "processor_config.json"} <= names
    assert not {"config.json", "model.safetensors"} & names
    theirs = AutoModelForImageTextToText.from_pretrained(folder)  # transformers and PEFT alone
    weights = theirs.state_dict()
    for name, value in adapter_parameters(policy.model).items():
        assert torch.equal(weights[name], value)


def test_a_saved_adapter_records_its_frame(base, tmp_path):
    policy = VLMPolicy.from_pretrained(base, device="cpu", frame="permille")
    add_adapter(policy.model, 2)
    learn(make_agent(policy))
    policy.save(tmp_path)
    opened = VLMPolicy.from_pretrained(tmp_path, device="cpu")
    assert recorded_frame(opened.model) == opened.answer_frame.family == "permille"


def test_an_adapter_upon_an_adapter(saved, tmp_path):
    policy = adapted(saved[1])
    torch.testing.assert_close(log_probs(policy), log_probs(saved[0]), atol=1e-5, rtol=0)
    learn(make_agent(policy))
    policy.save(tmp_path)
    opened = VLMPolicy.from_pretrained(tmp_path, device="cpu")
    torch.testing.assert_close(log_probs(opened), log_probs(policy), atol=1e-5, rtol=0)


def test_weights_of_the_model_may_be_bfloat16(base):
    policy = VLMPolicy.from_pretrained(base, device="cpu", dtype=torch.bfloat16)
    add_adapter(policy.model, 4)
    assert {each.dtype for each in adapter_parameters(policy.model).values()} == {torch.float32}
    start = own_weights(policy)
    assert {each.dtype for each in start.values()} == {torch.bfloat16}
    rows = learn(make_agent(policy, kl_coefficient=0.1))
    assert all(row["train/grad_norm"] > 0 for row in rows)
    assert all(torch.equal(value, start[name]) for name, value in own_weights(policy).items())
    assert all(each.any() for each in adapter_parameters(policy.model).values())


def test_an_adapter_learns_the_same_with_gradient_checkpointing(base):
    found = []
    for checkpointing in (False, True):
        policy = adapted(base)
        if checkpointing:
            policy.model.activation_checkpointing_enable()
        learn(make_agent(policy, kl_coefficient=0.1))
        found.append(adapter_parameters(policy.model))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=1e-5, rtol=0)


def test_a_checkpoint_goes_on_to_the_same_numbers(base, tmp_path):
    whole = make_agent(adapted(base), kl_coefficient=0.1)
    rows = learn(whole, 4)
    half = make_agent(adapted(base), kl_coefficient=0.1)
    half.learn(4, lambda update, _: half.save(tmp_path / "half") if update == 2 else None)
    again = make_agent(adapted(base, seed=7), kl_coefficient=0.1)
    again.load(tmp_path / "half")
    found = learn(again, 4)
    for row, other in zip(found, rows[2:], strict=True):
        assert {key: value for key, value in row.items() if not key.startswith("time/")} == {
            key: value for key, value in other.items() if not key.startswith("time/")
        }
    assert same_parameters(again.policy, whole.policy)
    sizes = [path.stat().st_size for path in (tmp_path / "half" / "policy").glob("*.safetensors")]
    assert sum(sizes) < (base / "model.safetensors").stat().st_size / 2
    with pytest.raises(CheckpointError, match="another rank or of other layers"):
        load_adapter(adapted(base, rank=2).model, tmp_path / "half" / "policy")


def damaged(saved, folder, **entries):
    """A copy of a saved adapter with other entries in its configuration."""
    folder.mkdir(exist_ok=True)
    for path in saved[1].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | entries))
    return folder


def refusal(folder, kind=CheckpointError):
    """What opening a policy says, which must be one line and name the folder."""
    with pytest.raises(kind) as caught:
        VLMPolicy.from_pretrained(folder, device="cpu")
    (message,) = str(caught.value).splitlines()
    assert str(folder) in message
    return message


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"base_model_name_or_path": None}, "names no model that the adapter belongs to"),
        ({"base_model_name_or_path": 7}, "names no model that the adapter belongs to"),
        ({"base_model_name_or_path": "/no/where"}, "is an adapter of /no/where: no such folder"),
        ({"base_model_name_or_path": "x" * 5000}, "File name too long"),
        ({"peft_type": "VERA"}, "peft_type=VERA"),
        ({"use_dora": True}, "use_dora=True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
        ({"megatron_config": {"x": 1}, "megatron_core": "evil"}, "megatron_config="),
        ({"alpha_pattern": {"(a+)+$": 3}}, "alpha_pattern="),
        ({"entry_of_next_year": "on"}, "entry_of_next_year=on"),
        ({"lora_alpha": "many"}, "no usable numbers"),
        ({"lora_alpha": float("nan")}, "no usable numbers"),
        ({"r": 10**9}, "is not of rank 1000000000"),
        ({"r": 0}, "no usable numbers"),
    ],
)
def test_a_configuration_is_data_from_outside(entries, reason, saved, tmp_path):
    assert reason in refusal(damaged(saved, tmp_path, **entries))


def test_an_adapter_of_itself_is_refused(saved, tmp_path):
    folder = damaged(saved, tmp_path, base_model_name_or_path=str(tmp_path))
    assert "is an adapter upon more than 8 others" in refusal(folder)


def test_patterns_of_layers_are_never_run(saved, tmp_path):
    folder = damaged(saved, tmp_path, target_modules="(.*.*.*.*.*.*)+$", exclude_modules="(a+)+$")
    policy = VLMPolicy.from_pretrained(folder, device="cpu")
    assert same_parameters(policy, VLMPolicy.from_pretrained(saved[1], device="cpu"))


def test_weights_that_are_pickled_or_do_not_fit_are_refused(saved, tmp_path):
    folder = damaged(saved, tmp_path)
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    name = min(weights)
    for other, reason in (
        ({name.replace("layers.0", "layers.9"): weights[name]}, "is not of rank 4"),
        ({"base_model.model.lm_head.weight": weights[name]}, "is no matrix of LoRA"),
        ({name: weights[name].T.contiguous()}, "is not of rank 4"),
    ):
        save_file({key: value for key, value in weights.items() if key != name} | other, path)
        assert reason in refusal(folder)
    moved = {key.replace("layers.0", "layers.9"): value for key, value in weights.items()}
    save_file(moved, path)
    assert "has no such layer" in refusal(folder)
    path.unlink()
    (folder / "adapter_model.bin").write_bytes(b"")
    assert "adapter_model.bin, which may hold code, is never read" in refusal(folder)


def test_a_bare_adapter_opens_by_its_base_model(saved, base, tmp_path):
    wanted = log_probs(saved[0])
    bare = tmp_path / "bare"
    damaged(saved, bare, base_model_name_or_path="../base")
    for path in bare.iterdir():
        if not path.name.startswith("adapter"):
            path.unlink()
    message = refusal(bare, CheckpointMissingError)
    assert message.startswith(f"{bare} is an adapter of ../base: no such folder")
    assert "base_model_name_or_path" in message
    (tmp_path / "base").symlink_to(base)
    torch.testing.assert_close(
        log_probs(VLMPolicy.from_pretrained(bare)), wanted, atol=1e-5, rtol=0
    )


def test_an_adapter_on_the_hub_opens_from_the_cache(saved, base, tmp_path, monkeypatch):
    commit = "0" * 40
    for name, folder in (("adapter", saved[1]), ("model", base)):
        repository = tmp_path / f"models--someone--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(commit)
        shutil.copytree(folder, repository / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name, policy in (
        ("adapter", saved[0]),
        ("model", VLMPolicy.from_pretrained(base, device="cpu")),
    ):
        opened = VLMPolicy.from_pretrained(f"someone/{name}", device="cpu")
        torch.testing.assert_close(log_probs(opened), log_probs(policy), atol=1e-5, rtol=0)


def test_only_policies_are_adapted(saved):
    with pytest.raises(CheckpointError, match="is an adapter, which only policies can have"):
        load_model(AutoModelForImageTextToText, str(saved[1]), "cpu")


def test_four_bits_need_a_gpu(base):
    if torch.cuda.is_available():
        pytest.skip("speaks of machines without a CUDA device")
    with pytest.raises(WrongOptionError, match="--load-in-4bit needs a CUDA device"):
        VLMPolicy.from_pretrained(base, load_in_4bit=True)
