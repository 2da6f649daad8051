"""Every kernel of attention equals the plain formula, and none holds all scores."""

import multiprocessing

import pytest
import torch

from agents.policy import attention
from agents.policy.attention import Kernel
from agents.policy.shared_prefix import PackedGroups
from experiments.benchmarks.train_legs import Memory

BIAS = torch.tensor([[-torch.inf, 0, 0, 0, 0], [0, 0, 0, 0, 0]])[:, None, None]


def states(queries, keys, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, 8)]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [each.to(dtype).requires_grad_() for each in drawn]


def formula(query, key, value, *, bias=None, causal=False, scaling, softcap=None):
    scores = query @ key.transpose(2, 3) * scaling
    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
    scores = scores if bias is None else scores + bias
    if causal:
        scores = scores.masked_fill(~torch.ones_like(scores).tril().bool(), -torch.inf)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


class InBlocks(Kernel):
    def _kind(self, *given):
        return "blocks"


@pytest.mark.parametrize(("bias", "causal"), [(None, False), (BIAS, False), (None, True)])
@pytest.mark.parametrize(
    "kernel",
    [Kernel(0.4), InBlocks(0.4), Kernel(0.4, softcap=1.5)],
    ids=["cpu", "blocks", "capped"],
)
def test_kernels_equal_the_formula(kernel, bias, causal, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 2)
    given = states(5, 5)
    output, total = kernel.forward(*given, bias=bias, causal=causal)
    exact = [each.detach().double().requires_grad_() for each in given]
    settings = {"scaling": kernel.scaling, "softcap": kernel.softcap}
    wanted = formula(*exact, bias=bias, causal=causal, **settings)
    torch.testing.assert_close((output, total), tuple(w.float() for w in wanted))
    change = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    found = kernel.backward(*given, change, output, total, bias=bias, causal=causal)
    gradients = torch.autograd.grad((wanted[0] * change).sum(), exact)
    torch.testing.assert_close(found, tuple(each.float() for each in gradients))


def attend_to_groups(prompt, length, group_size, heads=8):
    drawn = torch.randn(3, 1, heads, prompt + group_size * length, 16).requires_grad_()
    groups = PackedGroups(torch.ones(1, prompt), group_size, length)
    mask = torch.ones(prompt, prompt, dtype=torch.bool).tril()
    groups.attend(torch.nn.Identity(), *drawn, mask, 0.25, None).square().sum().backward()


def attend_in_blocks(prompt, length, group_size, heads=8):
    query = torch.randn(1, heads, group_size * length, 16)
    key, value = torch.randn(2, 1, heads, prompt, 16)
    kernel = Kernel(0.25, softcap=30.0)
    output, total = kernel.forward(query, key, value)
    kernel.backward(query, key, value, output, output, total)


def attend_plainly(prompt, length, group_size, heads=8):
    query = torch.randn(1, heads, group_size * length, 16).requires_grad_()
    key, value = torch.randn(2, 1, heads, prompt, 16).requires_grad_()
    formula(query, key, value, scaling=0.25)[0].square().sum().backward()


def send_growth(connection, attend):
    torch.set_num_threads(1)
    attend(20, 5, 2)  # loads what the first call loads
    memory = Memory("cpu")
    memory.start()
    attend(*LONG)
    connection.send(memory.growth_mib())


LONG = (1500, 400, 8)
"""Tokens of the prompt, tokens of an answer, answers."""


@pytest.mark.parametrize("attend", [attend_to_groups, attend_in_blocks, attend_plainly])
def test_no_matrix_of_all_scores_is_held(attend):
    ours, its = multiprocessing.Pipe()
    # The peak of this process may lie far above what it uses now.
    process = multiprocessing.get_context("spawn").Process(target=send_growth, args=(its, attend))
    process.start()
    its.close()
    growth = ours.recv()
    process.join()
    prompt, length, group_size = LONG
    matrix = 4 * 8 * group_size * length * prompt / 2**20
    assert (growth > matrix) if attend is attend_plainly else (growth < 0.75 * matrix)
