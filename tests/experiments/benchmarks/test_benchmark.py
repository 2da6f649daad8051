"""The reward benchmark measures what it says and finds no score that differs."""

import json
import sys

import pytest

from experiments import benchmark
from experiments.benchmarks.rewards import BATCHED, HOTCOCO, OURS, benchmark_rewards


def test_reward_benchmark_writes_what_it_measures(tmp_path, capsys):
    benchmark_rewards(json=tmp_path / "rewards.json", group=3, objects=2, rounds=2)
    results = json.loads((tmp_path / "rewards.json").read_text())
    assert results["differences_from_pycocotools"] == 0
    low, high = results["ratio_vs_pycocotools_batched_range"]
    assert 0 < low <= results["ratio_vs_pycocotools_batched"] <= high
    figures = results["microseconds_per_prediction"]
    assert {OURS, BATCHED, "rasterio, full frame"} <= set(figures)
    assert all(0 < figure["min"] <= figure["median"] for figure in figures.values())
    assert "differ from pycocotools" in " ".join(capsys.readouterr().out.split())


def test_hotcoco_stands_beside_pycocotools(tmp_path, capsys):
    benchmark_rewards(json=tmp_path / "rewards.json", group=3, objects=2, rounds=2)
    results = json.loads((tmp_path / "rewards.json").read_text())
    assert results["differences_from_hotcoco"] == 0
    assert results["ratio_vs_hotcoco_batched"] > 0
    assert HOTCOCO in results["microseconds_per_prediction"]
    assert (results["left_out"], "hotcoco" in results["versions"]) == ([], True)


def test_without_hotcoco_the_benchmark_names_it_as_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    benchmark_rewards(json=tmp_path / "rewards.json", group=3, objects=2, rounds=2)
    results = json.loads((tmp_path / "rewards.json").read_text())
    assert HOTCOCO not in results["microseconds_per_prediction"]
    assert "left out: hotcoco, which is not installed" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["rewards", "train", "evaluate", "serve"])
def test_every_benchmark_explains_itself(name, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        benchmark.command_line([name, "--help"])
    told = capsys.readouterr().out
    assert "--json" in told
    assert len(told.splitlines()) <= 60


def test_a_benchmark_that_there_is_not_is_refused(capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        benchmark.command_line(["cloning"])
    told = capsys.readouterr().err
    assert all(name in told for name in ("rewards", "train", "evaluate"))


def test_answers_are_timed_that_a_server_scores(tmp_path, capsys):
    path = tmp_path / "serve.json"
    benchmark.command_line(["serve", "--json", str(path), "--answers", "520", "--clients", "2"])
    found = json.loads(path.read_text())
    assert found["answers_per_second"] > 0
    assert found["answers_per_second_without_http"] > 0
    assert "served to 2 clients at once" in capsys.readouterr().out
