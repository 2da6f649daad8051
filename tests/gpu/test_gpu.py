"""What only a GPU can show: kernels, policies, updates and memory on CUDA.

    pytest -m gpu -s tests/gpu

`SIMPLESEG_TEST_DEVICE=cpu` runs what does not need the device itself, to try the tests out.
"""

import copy
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from agents_fixtures import cloned_policy, parameters_of, scene_environment, small_policy
from family_models import FAMILIES, TOKENIZER, FamilyCase, build, random_answers
from transformers import AutoConfig, GenerationConfig, Qwen2_5_VLForConditionalGeneration

from agents.embedded.tiny import IMAGE
from agents.gspo import GSPO, GSPOConfig
from agents.policy.adapters import add_adapter
from agents.policy.attention import attend, attend_backward, find_kernel
from agents.policy.model import VLMPolicy
from agents.policy.sampling import sample
from agents.policy.scoring import score
from agents.ppo import PPO, PPOConfig
from agents.settings import TRLOptions
from agents.training.memory import BFLOAT16, Update, empty_model, needs_of
from agents.trl_backend.gspo import TRLGSPO
from experiments.benchmarks.train_legs import Work
from experiments.benchmarks.update_memory import WAYS, measure
from experiments.check_memory import SHAPES
from experiments.common.policies import EMBEDDED, SHIPPED
from seg_env.envs.referring import open_questions

DEVICE = os.environ.get("SIMPLESEG_TEST_DEVICE", "cuda")
ON_CUDA = DEVICE == "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ON_CUDA and not torch.cuda.is_available(), reason="no CUDA device"),
]
needs_cuda = pytest.mark.skipif(not ON_CUDA, reason="speaks of CUDA's own kernels or memory")
GROUP = 3


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch):
    """Float32 that is float32; by default patches are embedded in TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def to_device(case):
    """The same policy and prompts on the device."""
    policy = VLMPolicy(copy.deepcopy(case.policy.model).to(DEVICE), case.policy.processor)
    prompts = [{key: value.to(DEVICE) for key, value in each.items()} for each in case.prompts]
    return FamilyCase(policy, prompts, case.answer_types)


# -- kernels


@pytest.mark.parametrize("width", [8, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["plain", "padded", "causal"])
def test_kernels_equal_the_formula(kind, dtype, width):
    """In float32 to 1e-5; in half precision as far as its rounding lets them."""
    queries, keys = (37, 37) if kind == "causal" else (70, 45)
    shapes = [(2, 3, queries, width), (2, 3, keys, width), (2, 3, keys, width)]
    generator = seeded()
    drawn = [
        torch.randn(each, generator=generator).to(DEVICE, dtype) for each in shapes + shapes[:1]
    ]
    *given, change = drawn
    bias = None
    if kind == "padded":
        bias = torch.zeros(2, 1, 1, keys, device=DEVICE)
        bias[0, ..., :5] = torch.finfo(torch.float32).min
    scaling, causal = width**-0.5, kind == "causal"
    output, total = attend(*given, scaling=scaling, bias=bias, causal=causal)
    found = attend_backward(
        change, *given, output, total, scaling=scaling, bias=bias, causal=causal
    )

    exact = [each.double().requires_grad_() for each in given]
    scores = exact[0] @ exact[1].transpose(2, 3) * scaling
    scores = scores if bias is None else scores + bias.double()
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
    wanted = scores.softmax(-1) @ exact[2]
    gradients = torch.autograd.grad((wanted * change.double()).sum(), exact)
    bound = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    assert relative_error(total, scores.logsumexp(-1)) < bound
    assert relative_error(output, wanted) < bound
    for ours, theirs in zip(found, gradients, strict=True):
        assert relative_error(ours, theirs) < 2 * bound


def relative_error(found, wanted):
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@needs_cuda
def test_cuda_kernels_are_taken_where_they_can_be():
    single = torch.zeros(1, 1, 1, 64, device=DEVICE)
    half = single.bfloat16()
    bias = torch.zeros(1, 1, 1, 1, device=DEVICE)
    assert find_kernel(half, half, None) == "flash"
    assert find_kernel(half, half, bias) == "efficient"
    assert find_kernel(single, single, None) == "efficient"


# -- policies


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_gradients_of_groups_are_those_of_single_answers_and_of_the_processor(family):
    case = build(family)
    there = to_device(case)
    tokens, mask = random_answers(case, GROUP)
    weights = torch.randn(tokens.shape, generator=seeded(1))

    def scored(case, shared, device):
        case.policy.model.zero_grad()
        arguments = (case.policy, case.batch, tokens.to(device), mask.to(device))
        found = score(*arguments, shared=shared).log_probs
        (found * weights.to(device)).sum().backward()
        parameters = case.policy.model.parameters()
        return found, torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])

    wanted, wanted_gradient = scored(case, False, "cpu")
    for shared in (True, False):
        found, gradient = scored(there, shared, DEVICE)
        torch.testing.assert_close(found.cpu(), wanted, rtol=0, atol=5e-5)
        assert (gradient.cpu() - wanted_gradient).norm() / wanted_gradient.norm() < 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_close_to_float32(family):
    there = to_device(build(family))
    tokens, mask = (each.to(DEVICE) for each in random_answers(there, GROUP))
    exact = score(there.policy, there.batch, tokens, mask).log_probs
    there.policy.precision = "bfloat16"
    for shared in (True, False):
        rounded = score(there.policy, there.batch, tokens, mask, shared=shared).log_probs
        assert rounded.dtype == torch.float32
        assert 0 < (rounded - exact).abs().mean() < 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_noise_samples_the_same_answers(family):
    case = build(family)
    there = to_device(case)
    noise = torch.rand(len(case.prompts) * GROUP, 16, generator=seeded())
    settings = {"group_size": GROUP, "max_new_tokens": 16}
    ours = sample(case.policy, case.batch, noise=noise, **settings)
    theirs = sample(there.policy, there.batch, noise=noise.to(DEVICE), **settings)
    assert torch.equal(theirs.tokens.cpu(), ours.tokens)
    torch.testing.assert_close(theirs.log_probs.cpu(), ours.log_probs, rtol=0, atol=5e-5)


def test_the_embedded_policy_answers_as_on_a_processor(tmp_path):
    policy, there = (
        VLMPolicy.from_pretrained(SHIPPED[EMBEDDED], device=device) for device in ("cpu", DEVICE)
    )
    envs = scene_environment(GSPOConfig(prompts_per_update=4, group_size=2))
    observations, _ = envs.reset(seed=0)
    images, prompts = list(observations["image"]), list(observations["prompt"])
    answers = []
    for each in (policy, there):
        inputs = each.prepare(images, prompts)
        drawn = sample(each, inputs, group_size=1, max_new_tokens=120, temperature=0.0)
        answers.append(each.texts(drawn.tokens, drawn.mask))
    assert answers[0] == answers[1]
    there.save(tmp_path)
    again = VLMPolicy.from_pretrained(tmp_path, device="cpu")
    for name, value in policy.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


# -- updates

SMALL_UPDATE = {"prompts_per_update": 4, "group_size": 4, "max_new_tokens": 24}


def on_device(policy, precision="float32"):
    return VLMPolicy(policy.model.to(DEVICE), policy.processor, precision=precision)


def assert_moved(policy, before):
    after = parameters_of(policy)
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(after[name].cpu(), before[name].cpu()) for name in before)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("muon", [True, False])
def test_an_update_of_gspo(precision, muon, tmp_path):
    config = GSPOConfig(**SMALL_UPDATE, minibatches=2, muon=muon)
    rows = {}
    for device in ("cpu", DEVICE):
        policy = cloned_policy()
        policy.model.to(device)
        policy = VLMPolicy(policy.model, policy.processor, precision=precision)
        before = parameters_of(policy)
        agent = GSPO(policy, scene_environment(config), config)
        agent.learn(2, lambda _, metrics, device=device: rows.setdefault(device, metrics))
        assert_moved(policy, before)
    if precision == "float32":  # the same noise, so the same answers and rewards
        for name in ("rollout/reward", "rollout/iou"):
            assert rows[DEVICE][name] == pytest.approx(rows["cpu"][name], abs=1e-4), name
    agent.save(tmp_path)
    resumed = GSPO(on_device(cloned_policy(), precision), scene_environment(config), config)
    resumed.load(tmp_path)
    resumed.learn(3)
    assert_moved(resumed.policy, parameters_of(policy))


def test_an_update_of_an_adapter(tmp_path):
    pytest.importorskip("peft")
    cloned_policy().save(tmp_path / "base")
    policy = VLMPolicy.from_pretrained(tmp_path / "base", device=DEVICE)
    add_adapter(policy.model, 4)
    before = parameters_of(policy)
    config = GSPOConfig(**SMALL_UPDATE, muon=False, kl_coefficient=0.01)
    GSPO(policy, scene_environment(config), config).learn(2)
    after = parameters_of(policy)
    moved = {name for name in before if not torch.equal(after[name].cpu(), before[name].cpu())}
    assert moved
    assert all(".lora_" in name for name in moved)
    policy.save(tmp_path / "adapter")
    opened = VLMPolicy.from_pretrained(tmp_path / "adapter", device=DEVICE)
    assert_moved(opened, parameters_of(cloned_policy()))


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_an_update_of_ppo(critic):
    config = PPOConfig(**SMALL_UPDATE, muon=False, critic=critic)
    policy = on_device(cloned_policy())
    before = parameters_of(policy)
    agent = PPO(policy, scene_environment(config), config)
    agent.learn(2)
    assert_moved(policy, before)


def test_checkpointed_layers_give_the_same_gradient():
    case = to_device(build("qwen2_5_vl"))
    tokens, mask = (each.to(DEVICE) for each in random_answers(case, GROUP))

    def gradient():
        case.policy.model.zero_grad()
        score(case.policy, case.batch, tokens, mask).log_probs.sum().backward()
        parameters = case.policy.model.parameters()
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])

    plain = gradient()
    case.policy.checkpoint_gradients()
    case.policy.model.train()
    assert relative_error(gradient(), plain.double()) < 1e-5


@pytest.mark.parametrize("rank", [0, 2])
def test_an_update_of_trl(rank):
    if rank:
        pytest.importorskip("peft")
    config = GSPOConfig(**SMALL_UPDATE, minibatches=2, muon=False, learning_rate=1e-3)
    policy = on_device(cloned_policy())
    before = parameters_of(policy)
    core = open_questions(
        "SimpleSeg-Scenes-v0", split="train", size=64, rewards="mask_iou=1.0 format=0.1"
    )
    agent = TRLGSPO(policy, core, replace(config, epochs=1), TRLOptions(lora_rank=rank))
    agent.learn(2)
    assert_moved(policy, before)


def test_a_run_under_deepspeed(tmp_path):
    small_policy().save(tmp_path / "small")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "1"]
    words = ["--deepspeed", "zero2", "--policy", str(tmp_path / "small"), "--updates", "2"]
    words += [
        "--gspo.prompts-per-update",
        "2",
        "--gspo.group-size",
        "2",
        "--gspo.max-new-tokens",
        "8",
    ]
    words += ["--evaluation.questions", "4", "--evaluation.every", "0"]
    words += ["--output-dir", str(tmp_path / "run")]
    command = [*launcher, "experiments/run_gspo.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "report.md").exists()


# -- memory

GIB = 2**30


def wide_policy():
    """Qwen2.5-VL-7B's form with random bfloat16 weights."""
    config = AutoConfig.from_pretrained(SHAPES / "qwen2.5-vl-7b")
    config.image_token_id = TOKENIZER.convert_tokens_to_ids(IMAGE)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(DEVICE):
            model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.generation_config = GenerationConfig(
        eos_token_id=TOKENIZER.eos_token_id, pad_token_id=TOKENIZER.pad_token_id
    )
    return VLMPolicy(model.eval(), SimpleNamespace(tokenizer=TOKENIZER))


MEASURED = ("all weights, AdamW", "frozen tower", "checkpointing", "bfloat16 weights", "adapters")


@pytest.mark.parametrize("way", MEASURED)
def test_an_update_needs_what_was_predicted(way):
    """In a process of its own (docs/scaling.md)."""
    if WAYS[way].lora_rank:
        pytest.importorskip("peft")
    precision = "bfloat16" if ON_CUDA else "float32"
    work = Work("30m", 600, 120, 8, 1, precision, "sdpa", DEVICE, seed=0)
    found = measure(work, WAYS[way])
    told = ", ".join(f"{found[name] / 2**20:.0f} MiB {name}" for name in ("peak", "measured"))
    print(f"\n{way}, {precision} on {DEVICE}: {told}")
    assert found["peak"] == pytest.approx(found["measured"], rel=0.15)


@needs_cuda
@pytest.mark.timeout(300)
def test_memory_of_a_group_of_a_7b_policy():
    """Forward and backward of 8 answers of 400 tokens to a prompt of 600 (docs/scaling.md)."""
    policy = wide_policy()
    picture = policy.model.config.image_token_id
    ids = torch.randint(5, len(TOKENIZER), (1, 600), generator=seeded())
    ids[ids == picture] = 5
    ids[:, 20:540] = picture
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(
            40 * 52, 3 * 2 * 14 * 14, generator=seeded(), dtype=torch.float32
        ),
        "image_grid_thw": torch.tensor([[1, 40, 52]]),
        "mm_token_type_ids": (ids == picture).int(),
    }
    batch = {key: value.to(DEVICE) for key, value in batch.items()}
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    tokens = torch.randint(5, len(TOKENIZER), (8, 400), generator=seeded(1)).to(DEVICE)
    mask = torch.ones_like(tokens)
    for parameter in policy.model.parameters():
        parameter.requires_grad_(False)
    for layer in policy.model.get_decoder().layers:  # as with adapters: every layer keeps its input
        layer.self_attn.q_proj.weight.requires_grad_(True)
    gradients = sum(p.numel() for p in policy.model.parameters() if p.requires_grad) * 2 / GIB
    empty = empty_model(policy.model.config)
    update = Update(
        **{"prompts": 1, "group_size": 8, "prompts_per_forward": 1, "minibatches": 1},
        **{"prompt_tokens": 600, "image_tokens": 520, "patches": 40 * 52, "answer_tokens": 400},
        pixels=batch["pixel_values"].numel(),
        **{"weights": BFLOAT16, "computed": BFLOAT16, "lora_rank": 1, "lora_targets": ("q_proj",)},
    )
    peaks = {}
    for name, shared, checkpointing in (
        ("shared", True, False),
        ("shared, checkpointing", True, True),
        ("repeated, checkpointing", False, True),
    ):
        if checkpointing:
            policy.checkpoint_gradients()
            policy.model.train()
        policy.model.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        found = score(policy, batch, tokens, mask, shared=shared)
        kept = (torch.cuda.memory_allocated() - start) / GIB
        forward = (torch.cuda.max_memory_allocated() - start) / GIB
        found.log_probs.sum().backward()
        peak = (torch.cuda.max_memory_allocated() - start) / GIB
        peaks[name] = peak
        if shared:
            needs = needs_of(empty, replace(update, checkpointing=checkpointing))
            (wanted,) = (need.parts for need in needs if need.phase == "forward")
            parts = ("activations of the decoder", "logits")
            wanted = sum(wanted[part] for part in parts) / GIB
            assert forward == pytest.approx(wanted, rel=0.15)
        print(
            f"\n7B, {name}: {forward:.2f} GiB forward, {kept:.2f} kept, {peak:.2f} at the most, "
            f"gradients {gradients:.2f}"
        )
        del found
    assert peaks["shared, checkpointing"] < peaks["shared"]
    assert peaks["shared, checkpointing"] < peaks["repeated, checkpointing"]
