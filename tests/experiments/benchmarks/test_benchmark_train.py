"""The training benchmark lets all legs do the same work, and writes what it measures."""

import json
import multiprocessing
from functools import partial

import numpy as np
import pytest
import torch

from agents.embedded import tiny
from experiments.benchmarks.memory import Memory
from experiments.benchmarks.train import LEGS, benchmark_train, compare, summarize
from experiments.benchmarks.train_legs import SHAPES, Pool, Work, make_policy
from seg_env.tasks import question

WORK = Work("small", 20, 6, 2, 2, "float32", "sdpa", "cpu", seed=0)


def test_benchmark_writes_what_it_measures(tmp_path, capsys):
    small = {"shape": "small", "lengths": ("20:6",), "group_sizes": (2,), "prompts": 2}
    benchmark_train(
        json=tmp_path / "given.json", output_dir=tmp_path, repetitions=1, threads=1, **small
    )
    results = json.loads((tmp_path / "given.json").read_text())
    assert results == json.loads((tmp_path / "train.json").read_text())
    seconds = results["seconds_per_update"]["20:6"]["2"]
    assert seconds.keys() == LEGS.keys()
    for parts in seconds.values():
        assert all(value > 0 for value in parts.values())
        total = sum(parts[name] for name in ("sampling", "scoring", "backward"))
        assert total == pytest.approx(parts["total"])
    expected = seconds["trl"]["total"] / seconds["ours"]["total"]
    assert results["ratio_vs_trl"]["20:6"]["2"] == pytest.approx(expected)
    assert results["sizes"]["20:6"]["prompt_tokens"] > 4 * 4
    assert all(memory >= 0 for memory in results["memory_mib"]["20:6"]["2"].values())
    assert (tmp_path / "train.png").stat().st_size > 10_000
    assert "theirs / ours" in " ".join(capsys.readouterr().out.split())


def test_a_leg_that_fails_says_why():
    broken = Work("small", 20, 6, 2, 2, "float32", "no such attention", "cpu", seed=0)
    with pytest.raises(RuntimeError, match=r"leg 'ours': Traceback[^$]*no such attention"):
        compare(broken, ["ours"], 1, 1, print)


def test_ratios_are_medians_over_rounds_and_growth_is_from_the_smallest_to_the_largest_group():
    def updates(*seconds):
        parts = {"sampling": 0.1, "scoring": 0.1, "backward": 0.1}
        return [{**parts, "total": value, "memory": 7 + value} for value in seconds]

    results = summarize(
        {
            "9:5": {
                4: {"ours": updates(1, 2, 4), "trl": updates(3, 10, 8)},
                8: {"ours": updates(3, 3, 3), "trl": updates(30, 30, 60)},
            }
        }
    )
    assert results["ratio_vs_trl"] == {"9:5": {"4": 3, "8": 10}}
    assert results["ratio_vs_trl_range"]["9:5"]["4"] == [2, 5]
    assert "ratio_vs_repeated" not in results
    assert results["growth"]["9:5"] == {"ours": 3 / 2, "trl": 30 / 8}
    assert results["memory_mib"]["9:5"]["4"] == {"ours": 11, "trl": 17}


def test_questions_have_equally_many_tokens_and_answers_cannot_end():
    policy = make_policy(WORK)
    pool = Pool(policy.processor, 32, count=4)
    prompts = [question(sample, "text->mask") for sample in pool]
    inputs = policy.prepare([sample.image for sample in pool], prompts)
    assert inputs["attention_mask"].all()
    assert (inputs["input_ids"] == policy.model.config.image_token_id).sum(-1).unique() == 16
    assert policy.forbidden[policy.end_ids].all()


def test_shapes_have_the_sizes_they_are_said_to_have(monkeypatch):
    blank = partial(torch.zeros, device="meta")
    monkeypatch.setattr(tiny, "_sine_positions", lambda grid, width: blank(grid * grid, width))
    millions = {}
    for name in SHAPES:
        config = Work(name, 600, 1, 2, 1, "float32", "sdpa", "cpu", 0).model_config()
        with torch.device("meta"):
            model = tiny.build_model(config, tiny.build_processor(config))
        millions[name] = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions == pytest.approx({"small": 0.08, "1m": 1.3, "30m": 32, "2b": 1800}, rel=0.3)


def memory_growth(connection):
    memory = Memory("cpu")
    before = memory.growth_mib()
    kept = np.ones(300 * 2**17)  # 300 MiB
    connection.send((before, memory.growth_mib()))
    del kept


def test_memory_is_counted_from_the_start():
    ours, its = multiprocessing.Pipe()
    # A leg has a process of its own, too: the peak of this one may lie far above what it uses now.
    process = multiprocessing.get_context("spawn").Process(target=memory_growth, args=(its,))
    process.start()
    its.close()
    before, after = ours.recv()
    process.join()
    assert before < 100
    assert after >= before + 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": ("600",)}, "use P:T, tokens of prompt and answer, as 600:120"),
        ({"lengths": ("600:0",)}, "use P:T"),
        ({"group_sizes": (1,)}, "groups of 2 or more"),
        ({"legs": ()}, "name a length and a leg"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
    with pytest.raises(SystemExit, match=message):
        benchmark_train(**arguments)
