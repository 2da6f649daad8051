"""The arithmetic of large policies: shared prompts, sharded states."""

import json

import pytest

from experiments.benchmarks.budget import (
    Setting,
    activations_gib,
    benchmark_budget,
    states_gib,
    work,
)


def test_a_shared_prompt_counts_once_per_group():
    setting = Setting(group_size=8, prompt_tokens=600, new_tokens=100)
    assert setting.tokens(shared=True) == 600 + 8 * 100
    assert setting.tokens(shared=False) == 8 * (600 + 100)
    ratio = (
        work(setting, shared=False)["prefill_petaflop"]
        / work(setting, shared=True)["prefill_petaflop"]
    )
    assert ratio == pytest.approx(8)
    kept = [activations_gib(setting, shared)["keys and values"] for shared in (True, False)]
    assert kept[1] / kept[0] == pytest.approx(5600 / 1400)


def test_states_are_sixteen_bytes_per_weight_and_are_divided_as_zero_says():
    setting = Setting(gpus=4, decoder=2.0**30, vision=0)
    assert states_gib(setting) == {"one GPU or DDP": 16, "zero1": 7, "zero2": 5.5, "zero3": 4}
    alone = states_gib(Setting(gpus=1))
    assert len(set(alone.values())) == 1


def test_what_is_printed_is_written(tmp_path, capsys):
    benchmark_budget(Setting(), json=tmp_path / "given.json", output_dir=tmp_path)
    results = json.loads((tmp_path / "budget.json").read_text())
    assert results == json.loads((tmp_path / "given.json").read_text())
    printed = capsys.readouterr().out
    assert "nothing was run" in printed
    assert f"{results['gib_per_gpu_of_states']['zero3']:.1f}" in printed
    assert results["update"]["shared"]["seconds"] < results["update"]["repeated"]["seconds"]
