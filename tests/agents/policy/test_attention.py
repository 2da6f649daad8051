"""Attention with normalizers equals the plain formula, and groups never hold all scores."""

import multiprocessing
from functools import partial

import pytest
import torch

from agents.embedded.tiny import TinyConfig, build_model, build_processor
from agents.policy.attention import attend, attend_backward
from agents.policy.model import VLMPolicy
from agents.policy.scoring import score
from agents.policy.shared_prefix import PackedGroups
from experiments.benchmarks.memory import Memory

BIAS = torch.tensor([[-torch.inf, 0, 0, 0, 0], [0, 0, 0, 0, 0]])[:, None, None]


def states(queries, keys, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, 8)]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [each.to(dtype).requires_grad_() for each in drawn]


def formula(query, key, value, *, bias=None, causal=False, scaling):
    scores = query @ key.transpose(2, 3) * scaling
    scores = scores if bias is None else scores + bias
    if causal:
        scores = scores.masked_fill(~torch.ones_like(scores).tril().bool(), -torch.inf)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


@pytest.mark.parametrize(("bias", "causal"), [(None, False), (BIAS, False), (None, True)])
def test_the_kernel_equals_the_formula(bias, causal):
    given = states(5, 5)
    output, total = attend(*given, scaling=0.4, bias=bias, causal=causal)
    exact = [each.detach().double().requires_grad_() for each in given]
    wanted = formula(*exact, bias=bias, causal=causal, scaling=0.4)
    torch.testing.assert_close((output, total), tuple(each.float() for each in wanted))
    change = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    found = attend_backward(change, *given, output, total, scaling=0.4, bias=bias, causal=causal)
    gradients = torch.autograd.grad((wanted[0] * change).sum(), exact)
    torch.testing.assert_close(found, tuple(each.float() for each in gradients))


HEADS = 8


def attend_in_groups(prompt, length, group_size, heads=HEADS, softcap=None):
    drawn = torch.randn(3, 1, heads, prompt + group_size * length, 16).requires_grad_()
    groups = PackedGroups(torch.ones(1, prompt), group_size, length)
    mask = torch.ones(prompt, prompt, dtype=torch.bool).tril()
    groups.attend(torch.nn.Identity(), *drawn, mask, 0.25, softcap).square().sum().backward()


attend_within_bounds = partial(attend_in_groups, softcap=30.0)
"""No kernel does this."""


def learn_with_checkpointing(prompt, length, group_size):
    """Forward and backward through a policy whose layers run again in the backward pass."""
    shape = TinyConfig(vision_width=32, vision_layers=1, width=128, layers=2, heads=HEADS)
    processor = build_processor(shape)
    policy = VLMPolicy(build_model(shape, processor), processor)
    policy.checkpoint_gradients()
    policy.model.train()
    image = torch.zeros(shape.image_size, shape.image_size, 3, dtype=torch.uint8).numpy()
    inputs = policy.prepare([image], [" red" * prompt])
    assert inputs["input_ids"].shape[1] > prompt
    tokens = torch.full((group_size, length), 9)
    score(policy, inputs, tokens, torch.ones_like(tokens)).log_probs.sum().backward()
    assert policy.model.get_decoder().layers[0].self_attn.q_proj.weight.grad.abs().max() > 0


def attend_plainly(prompt, length, group_size, heads=HEADS):
    query = torch.randn(1, heads, group_size * length, 16).requires_grad_()
    key, value = torch.randn(2, 1, heads, prompt, 16).requires_grad_()
    formula(query, key, value, scaling=0.25)[0].square().sum().backward()


def send_growth(connection, works):
    torch.set_num_threads(1)
    for work, _ in works:
        work(20, 5, 2)  # loads what the first call loads
    memory = Memory("cpu")
    for work, sizes in works:
        work(*sizes)
    connection.send(memory.growth_mib())


LONG, MANY = (1500, 400, 8), (300, 200, 64)
"""Tokens of the prompt, tokens of an answer, answers."""


@pytest.mark.parametrize(
    ("works", "holds_all"),
    [
        ([(attend_in_groups, LONG), (attend_within_bounds, MANY)], False),
        ([(learn_with_checkpointing, LONG)], False),
        ([(attend_plainly, MANY)], True),
    ],
)
def test_no_matrix_of_all_scores_is_held(works, holds_all, monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "100000")  # what is freed goes back at once
    ours, its = multiprocessing.Pipe()
    # The peak of this process may lie far above what it uses now.
    process = multiprocessing.get_context("spawn").Process(target=send_growth, args=(its, works))
    process.start()
    its.close()
    growth = ours.recv()
    process.join()
    smallest = (
        min(4 * HEADS * prompt * length * size for _, (prompt, length, size) in works) / 2**20
    )
    assert (growth > smallest) if holds_all else (growth < 0.75 * smallest)
