"""The cloning benchmark lets both loops learn the same, and writes what it measures."""

import json

import pytest

from experiments.benchmarks.cloning import benchmark_cloning, choose_scenes


def test_every_update_has_new_pictures_with_as_many_objects_as_asked_for():
    chosen = choose_scenes(updates=3, singles=1, pairs=2)
    assert [[len(samples) for samples in pictures] for pictures in chosen] == [[1, 2, 2]] * 3
    names = [samples[0].id[:25] for pictures in chosen for samples in pictures]
    assert len(set(names)) == len(names)


def test_cloning_benchmark_writes_what_it_measures(tmp_path, capsys):
    file = tmp_path / "cloning.json"
    benchmark_cloning(json=file, updates=3, pictures=2, pairs=1, precision="float32")
    results = json.loads(file.read_text())
    low, high = results["ratio_vs_trl_range"]
    assert 0 < low <= results["ratio_vs_trl"] <= high
    assert results["ratio_with_data"] > 0
    assert all(seconds > 0 for seconds in results["seconds_per_update"].values())
    losses = results["first_losses"]
    assert losses["ours"] == pytest.approx(losses["trl"], abs=1e-3)  # pixels are kept in 16 bits
    assert "theirs / ours" in capsys.readouterr().out


def test_a_benchmark_that_cannot_run_says_so():
    with pytest.raises(SystemExit, match="use pairs up to pictures"):
        benchmark_cloning(pictures=2, pairs=3)
