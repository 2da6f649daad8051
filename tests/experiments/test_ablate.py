"""Comparing settings over seeds: what is run, what is left alone, and the numbers of the table."""

import json

import numpy as np
import pytest
from scipy import stats

from experiments import ablate, summarize
from experiments.sweeps import ablate_report
from experiments.sweeps.ablate_studies import STUDIES, Study

SCRIPT = """
import json, sys
from pathlib import Path

options = dict(zip(sys.argv[1:-1:2], sys.argv[2::2]))
folder = Path(options["--output-dir"])
if options.get("--fail"):
    raise SystemExit("out of luck")
gain = float(options["--gain"]) + 0.01 * int(options["--seed"])
after = {"giou": 0.5 + gain, "sampled": {"giou": 0.4 + gain}}
before = {"giou": 0.5, "questions": 8, "sampled": {"giou": 0.4}}
row = {"update": 0, "eval/greedy_giou": 0.5, "eval/sampled_giou": 0.4}
(folder / "metrics.jsonl").write_text(json.dumps(row))
(folder / "scores.json").write_text(
    json.dumps({"before": before, "after": after, "minutes": 1.0})
)
(folder / "count.txt").open("a").write("x")
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    made = Study(
        "Is B better?", {"A": (str(script), "--gain", "0.1"), "B": (str(script), "--gain", "0.3")}
    )
    monkeypatch.setitem(STUDIES, "toy", made)
    return made


def test_every_arm_runs_with_every_seed_and_is_compared_with_the_first(study, tmp_path):
    found = ablate.main(ablate.Args("toy", output_dir=tmp_path / "out", workers=2))
    gains = found["arms"]["A"]["greedy"]["gains"]
    assert gains == pytest.approx([10, 11, 12])
    low, high = stats.t.interval(0.95, 2, loc=11, scale=stats.sem(gains))
    assert found["arms"]["A"]["greedy"]["interval"] == pytest.approx([low, high], abs=1e-2)
    # Paired by seed: the seeds' own differences cancel.
    assert found["arms"]["B"]["sampled"]["difference"] == pytest.approx(20)
    assert found["arms"]["B"]["sampled"]["difference_interval"] == pytest.approx([20, 20])
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| B | +31.0 [+28.5, +33.5] | +20.0 [+20.0, +20.0] |" in text
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 5000
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == found


def test_finished_runs_are_not_made_again(study, tmp_path):
    for _ in range(2):
        ablate.main(ablate.Args("toy", output_dir=tmp_path / "out", seeds=(0, 1)))
    assert (tmp_path / "out" / "A-0" / "count.txt").read_text() == "x"


def test_a_run_that_was_begun_is_resumed(study, tmp_path):
    script = tmp_path / "resumable.py"
    script.write_text("import sys; print(sys.argv[-1]); sys.exit('--resume' != sys.argv[-1])")
    folder = tmp_path / "begun"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    ablate.run_arm([str(script)], folder, threads=1)
    assert (folder / "log.txt").read_text() == "--resume\n"


def test_a_run_that_fails_shows_its_own_words(study, tmp_path):
    with pytest.raises(SystemExit, match="out of luck"):
        ablate.main(ablate.Args("toy", output_dir=tmp_path, options="--fail 1"))


def test_an_unknown_study_lists_those_that_there_are():
    with pytest.raises(SystemExit, match=r"(?s)no study 'optimiser'.*optimizer: Muon"):
        ablate.main(ablate.Args("optimiser"))


@pytest.mark.parametrize("count", range(2, 11))
def test_intervals_over_seeds_are_students(count):
    values = np.random.default_rng(count).normal(size=count)
    expected = stats.t.interval(0.95, count - 1, loc=values.mean(), scale=stats.sem(values))
    assert summarize.t_interval(values)[1:] == pytest.approx(expected, abs=2e-3)


def test_a_run_that_is_not_finished_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"scores\.json is missing"):
        summarize.main(summarize.Args((tmp_path / "a", tmp_path / "b")))


def test_arms_differ_from_the_baseline_in_their_options():
    for study in STUDIES.values():
        assert len(set(study.arms.values())) == len(study.arms) >= 2


def test_the_report_needs_no_curves(study, tmp_path):
    ablate.main(ablate.Args("toy", output_dir=tmp_path, seeds=(0, 1)))
    folders = {arm: [tmp_path / f"{arm}-{seed}" for seed in (0, 1)] for arm in "AB"}
    for places in folders.values():
        for place in places:
            (place / "metrics.jsonl").unlink()
    assert ablate_report.compare(study, folders, tmp_path)["arms"].keys() == {"A", "B"}
