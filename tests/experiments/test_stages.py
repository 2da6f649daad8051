"""What stages are worth: which runs are made, what arms share, and the numbers of the table."""

import json

import numpy as np
import pytest
import tyro
from scipy import stats

from experiments import run_pipeline, stages
from experiments.sweeps.stages_report import compare_stages
from experiments.sweeps.stages_studies import STUDIES

GAINS = {"plain/sft": 0.30, "plain/rl": 0.36, "pretrained/pretrain": 0.2}
GAINS |= {"pretrained/sft": 0.40, "pretrained/rl": 0.50, "made/sft": 0.29}


def summary(value):
    return {"questions": 64, "giou": value, "ciou": value + 0.05}


@pytest.fixture
def finished(tmp_path):
    """What the runs of three seeds leave; the seeds differ by a point, and by nothing else."""
    for seed in (0, 1, 2):
        for name, value in GAINS.items():
            run, stage = name.split("/")
            value += 0.01 * seed
            greedy, sampled = summary(value), summary(value - 0.1)
            scores = {"greedy": greedy, "sampled": sampled, "updates": 5, "minutes": 1.0}
            if stage == "rl":
                scores = {"after": {**greedy, "sampled": sampled}, "updates": 5, "minutes": 1.0}
            folder = tmp_path / f"{run}-{seed}" / stage
            folder.mkdir(parents=True)
            (folder / "scores.json").write_text(json.dumps(scores))
    for pictures in ("pictures-web", "pictures-made"):
        (tmp_path / pictures).mkdir()
        (tmp_path / pictures / "report.json").write_text("{}")
    return tmp_path


def test_finished_runs_are_compared_and_not_made_again(finished):
    found = stages.main(stages.Args("table", output_dir=finished))
    arms = found["arms"]
    each = arms["SFT"]["greedy gIoU"]["each"]
    assert each == pytest.approx([30, 31, 32])
    low, high = stats.t.interval(0.95, 2, loc=31, scale=stats.sem(each))
    assert arms["SFT"]["greedy gIoU"]["interval"] == pytest.approx([low, high], abs=1e-2)
    # Paired by seed: the seeds' own differences cancel.
    assert arms["pre-train + SFT + RL"]["greedy gIoU"]["difference"] == pytest.approx(20)
    interval = arms["pre-train + SFT + RL"]["greedy gIoU"]["difference_interval"]
    assert interval == pytest.approx([20, 20])
    assert [arm["paper"] for arm in arms.values()] == [65.5, 70.1, 75.2, 78.5]
    text = (finished / "table.md").read_text()
    assert "| pre-train + SFT | 40.0, 41.0, 42.0 | 41.0 [38.5, 43.5] | +10.0 [+10.0" in text
    assert "| 70.1 |" in text
    assert "64 questions of the test split" in text
    assert (finished / "table.png").stat().st_size > 5000
    assert json.loads((finished / "table.json").read_text()) == found


def test_made_data_are_compared_with_the_sft_runs_of_the_table(finished):
    found = stages.main(stages.Args("data", output_dir=finished))
    made = found["arms"]["made by the pipeline"]
    assert made["greedy gIoU"]["difference"] == pytest.approx(-1)
    assert found["arms"]["clean scenes"]["stage"] == "plain/sft"
    assert found["arms"]["made with wrong labels"]["greedy gIoU"]["difference"] == pytest.approx(
        -10
    )
    assert "paper" not in (finished / "data.md").read_text()


def plans(study, seed, **given):
    """The steps of every run of a study, by its name."""
    args = stages.Args(study, **given)
    found = {}
    for run in STUDIES[study].runs:
        words = stages.pipeline_words(args, run, seed)
        folder = run.folder(args.output_dir, seed)
        settings = tyro.cli(run_pipeline.Args, args=[*words, "--output-dir", str(folder)])
        steps = run_pipeline.plan_steps(settings)
        found[run.name] = {step.stage: run_pipeline.parse(step) for step in steps}
    return found


def test_arms_of_the_table_are_trained_and_asked_alike(tmp_path):
    found = plans("table", 1, output_dir=tmp_path, sft="--updates 7", questions=9)
    plain, pretrained = found["plain"], found["pretrained"]
    assert (list(plain), list(pretrained)) == (["sft", "rl"], ["pretrain", "sft", "rl"])
    assert pretrained["pretrain"].data == str(tmp_path / "pictures-web")
    assert plain["sft"].policy is None
    assert pretrained["sft"].policy == str(tmp_path / "pretrained-1" / "pretrain" / "policy")
    for stage in ("sft", "rl"):
        ours, theirs = vars(plain[stage]), vars(pretrained[stage])
        differ = {name for name in ours if ours[name] != theirs[name]}
        # What cannot see yet is shown where things are before their outlines.
        assert differ <= {"policy", "output_dir", "cloning"}
    assert plain["sft"].updates == pretrained["sft"].updates == 7
    assert plain["sft"].seed == 1
    assert plain["rl"].evaluation.split == pretrained["pretrain"].evaluation.split == "test"
    assert plain["rl"].evaluation.questions == plain["sft"].evaluation.questions == 9


def test_clean_and_made_data_differ_in_nothing_else(tmp_path):
    found = plans("data", 0, output_dir=tmp_path)
    clean, made = vars(found["plain"]["sft"]), vars(found["made"]["sft"])
    assert {name for name in clean if clean[name] != made[name]} == {"data", "output_dir"}
    assert made["data"] == str(tmp_path / "pictures-made")
    options = STUDIES["data"].pictures[0].words
    assert options[options.index("--scenes") + 1] == str(clean["scenes"])
    assert "--mask-fray" not in options, "the detector knows the truth"
    wrong = vars(found["pretrained"]["pretrain"])
    differ = {name for name in clean if clean[name] != wrong[name]}
    assert differ == {"data", "output_dir", "scenes"}, "all records are used"
    # What is in the table as well is trained for both.
    table = plans("table", 0, output_dir=tmp_path)
    assert vars(table["plain"]["sft"]) == clean
    assert vars(table["pretrained"]["pretrain"]) == wrong


def test_unknown_studies_and_single_seeds_are_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"(?s)no study 'tabel'.*table: What is each stage worth"):
        stages.main(stages.Args("tabel"))
    with pytest.raises(SystemExit, match="needs 2 to 10 different"):
        stages.main(stages.Args("table", seeds=(1,), output_dir=tmp_path))


def test_intervals_do_not_depend_on_the_order_of_seeds(finished):
    found = compare_stages("table", STUDIES["table"], (2, 0, 1), finished)["arms"]["SFT"]
    assert np.sort(found["greedy gIoU"]["each"]) == pytest.approx([30, 31, 32])
    assert found["greedy gIoU"]["mean"] == pytest.approx(31)
