"""Muon's update, against torch's in bfloat16 and against singular values in float32."""

import pytest
import torch
from torch import nn

from agents.training import hardware, optim
from agents.training.optim import Muon, orthogonalize

SHAPES = [(6, 4), (4, 6), (24, 24), (128, 512)]


def matrices(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator) for shape in SHAPES]


def after_steps(make, gradients=3):
    """Weights and states of all matrices once an optimizer has stepped them."""
    parameters = [nn.Parameter(each) for each in matrices(0)]
    optimizer = make(parameters)
    for seed in range(1, gradients + 1):
        for parameter, gradient in zip(parameters, matrices(seed, 1e-3), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return parameters, [optimizer.state[parameter] for parameter in parameters]


def test_steps_in_bfloat16_are_torchs_bit_for_bit():
    ours, our_states = after_steps(lambda each: Muon(each, 1e-2, 0.1, "bfloat16"))
    theirs, their_states = after_steps(
        lambda each: torch.optim.Muon(
            each, 1e-2, 0.1, optim.MOMENTUM, adjust_lr_fn="match_rms_adamw"
        )
    )
    assert all(map(torch.equal, ours, theirs))
    for state, other in zip(our_states, their_states, strict=True):
        assert state.keys() == other.keys()  # checkpoints of either can be gone on from
        assert torch.equal(state["momentum_buffer"], other["momentum_buffer"])


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_singular_values_go_where_the_polynomial_takes_them(precision, tolerance):
    first, third, fifth = optim.COEFFICIENTS
    for matrix in matrices(5, scale=30.0):
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        values = values / values.norm()
        for _ in range(optim.ROUNDS):
            values = first * values + third * values**3 + fifth * values**5
        found = orthogonalize(matrix, precision)
        assert found.dtype == getattr(torch, precision)
        apart = found.double() - left @ values.diag() @ right
        assert torch.linalg.matrix_norm(apart, 2) < tolerance
        spectrum = torch.linalg.svdvals(found.double())
        assert ((spectrum > 0.3) & (spectrum < 1.3)).all()


def test_a_matrix_of_zeros_stays_one():
    assert not orthogonalize(torch.zeros(3, 5), "float32").any()


def test_a_parameter_without_a_gradient_is_left_alone():
    kept, moved = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    moved.grad = torch.eye(3)
    optimizer = Muon([kept, moved], 1e-2, 0.1)
    optimizer.step()
    assert torch.equal(kept, torch.ones(3, 3))
    assert kept not in optimizer.state
    assert not torch.equal(moved, torch.ones(3, 3))


@pytest.mark.parametrize(
    ("instructions", "multiplies", "computes"),
    [
        (("avx2", "avx512_f"), False, False),
        (("avx2", "avx512_f", "avx512_bf16"), True, False),
        (("avx2", "avx512_f", "avx512_bf16", "amx_bf16"), True, True),
        (("neon", "bf16"), True, False),
    ],
)
def test_bfloat16_is_used_where_the_processor_has_instructions_for_it(
    instructions, multiplies, computes, monkeypatch
):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(instructions, True))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert hardware.multiplies_bfloat16(cpu) == multiplies
    assert hardware.computes_in_bfloat16(cpu) == computes
    expected = torch.bfloat16 if multiplies else torch.float32
    assert orthogonalize(torch.eye(2)).dtype == expected
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert hardware.multiplies_bfloat16(cpu) == ("neon" in instructions)


@pytest.mark.parametrize(
    ("siblings", "quota", "cores"),
    [
        (["0", "1", "2", "3"], None, 4),
        (["0,2", "1,3", "0,2", "1,3"], "max 100000", 2),
        (["0-1", "0-1", "2-3", "2-3"], "100000 100000", 1),
        (["0", "1", "2", "3"], "350000 100000", 3),
        (["0", "1", "2", "3"], "20000 100000", 1),
        (None, None, 4),
    ],
)
def test_threads_of_one_core_count_as_one(siblings, quota, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "_allowed_processors", lambda: set(range(4)))
    for index, text in enumerate(siblings or ()):
        folder = tmp_path / f"cpu{index}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text + "\n")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert hardware.usable_cores(tmp_path, tmp_path / "cpu.max") == cores


@pytest.mark.parametrize(("asked", "now", "expected"), [(None, 8, 2), (None, 1, 1), ("8", 8, 8)])
def test_a_number_of_threads_that_the_user_set_stays(asked, now, expected, monkeypatch):
    for name in hardware.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    threads = [now]
    monkeypatch.setattr(hardware, "usable_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    assert hardware.fit_threads() == expected
