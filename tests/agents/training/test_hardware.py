"""What the processor at hand is good at, and how many threads fit it."""

import pytest
import torch

from agents.training import hardware
from agents.training.optim import orthogonalize


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
    assert hardware.limit_threads() == expected
