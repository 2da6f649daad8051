"""Sweeps: what is run and what is left alone, what cannot be compared, numbers of the table."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro
from matplotlib.figure import Figure
from scipy import stats

from experiments import annotate, run_bc, run_gspo, run_pipeline, run_ppo, sweep
from experiments.common.comparison import t_interval
from seg_env.errors import ExplainedError

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys
from pathlib import Path

options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = Path(options["--output-dir"])
if options.get("--fail"):
    raise SystemExit("out of luck")
gain = float(options["--gain"]) + 0.01 * int(options["--seed"])
after = {"giou": 0.5 + gain, "questions": 8, "sampled": {"giou": 0.4 + gain}}
before = {"giou": 0.5, "questions": 8, "sampled": {"giou": 0.4}}
before["tokens"], after["tokens"] = 20.0, 20 + 100 * float(options["--gain"])
row = {"update": 0, "eval/greedy_giou": 0.5, "eval/sampled_giou": 0.4}
config = {"seed": int(options["--seed"]), "gain": options["--gain"], "output_dir": str(folder)}
(folder / "config.json").write_text(json.dumps(config | json.loads(options.get("--more", "{}"))))
(folder / "metrics.jsonl").write_text(json.dumps(row))
(folder / "scores.json").write_text(
    json.dumps(
        {"before": before, "after": after, "minutes": 1.0, "updates": 5}
        | {"ceiling": {"giou": 0.9, "tokens": 25.0}}
    )
)
(folder / "count.txt").open("a").write("x")
"""
NAMES = (
    *("agents", "budget", "clip", "constrained", "epsilon", "group-size", "length", "optimizer"),
    *("order", "rewards", "rl-absent", "rl-easy", "rl-medium", "rl-photos", "spread-floor"),
    *("stages-data", "stages", "ways", "weights"),
)


def write_sweep(folder, first="--gain 0.1", second="--gain 0.3", more=""):
    """A sweep of two arms of a script that takes no time."""
    (folder / "job.py").write_text(SCRIPT)
    path = folder / "toy.toml"
    path.write_text(
        f'question = "Is B better?"\nscript = "{folder / "job.py"}"\n{more}\n'
        f"[arms]\nA = '{first}'\nB = '{second}'\n"
    )
    return str(path)


def run(what, folder, **given):
    return sweep.main(sweep.Args((what,), output_dir=folder, **given))


def test_every_arm_runs_with_every_seed_and_is_compared_with_the_first(tmp_path):
    found = run(write_sweep(tmp_path), tmp_path / "out", jobs=2)
    score = found["arms"]["A"]["scores"]["greedy gIoU"]
    assert score["each"] == pytest.approx([10, 11, 12])
    low, high = stats.t.interval(0.95, 2, loc=11, scale=stats.sem(score["each"]))
    assert score["interval"] == pytest.approx([low, high], abs=1e-2)
    # Paired by seed: the seeds' own differences cancel.
    score = found["arms"]["B"]["scores"]["sampled gIoU"]
    assert score["difference"] == pytest.approx(20)
    assert score["difference_interval"] == pytest.approx([20, 20])
    assert found["seeds"] == [0, 1, 2]
    text = (tmp_path / "out" / "toy.md").read_text()
    assert "| B | sampled gIoU | 40.0 | 70.0, 71.0, 72.0 | +31.0 [+28.5, +33.5] | +20.0 [+" in text
    assert (tmp_path / "out" / "toy.png").stat().st_size > 5000
    assert json.loads((tmp_path / "out" / "toy.json").read_text()) == found


def test_scores_are_drawn_over_another_one_below_their_ceiling(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    more = 'measure = "score"\nagainst = "tokens"'
    run(write_sweep(tmp_path, more=more), tmp_path / "out", seeds=(0, 1))
    axis = figures[0].axes[-1]
    assert axis.get_xlabel() == "tokens per answer"
    lines = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    (front,) = [xy for xy in lines.values() if len(xy) == 2 and xy[0][0] == 30 and xy[1][0] == 50]
    assert front == [[30, pytest.approx(60.5)], [50, pytest.approx(80.5)]]
    assert lines["outlines as taught"] == [[25, 90], [25, 90]]
    assert [text.get_text() for text in axis.texts] == ["A", "B"]


def test_finished_runs_are_not_made_again(tmp_path):
    for _ in range(2):
        run(write_sweep(tmp_path), tmp_path / "out", seeds=(0, 1))
    assert (tmp_path / "out" / "A-0" / "count.txt").read_text() == "x"


def test_finished_runs_of_other_options_are_not_taken_for_those_asked_for(tmp_path):
    path = write_sweep(tmp_path)
    run(path, tmp_path / "out", options="--updates 3")
    with pytest.raises(ExplainedError, match=r"A-0 was made with other options.*--updates 3"):
        run(path, tmp_path / "out")
    run(path, tmp_path / "out", report_only=True)


def test_a_sweep_shares_another_ones_runs_and_what_they_begin_with(tmp_path):
    script, out = tmp_path / "job.py", tmp_path / "out"
    begins = f"folder = '{out}'\n[shared]\nstart = '{script} --gain 0 --seed 9'"
    other = write_sweep(tmp_path, more=begins)
    run(other, None)
    path = tmp_path / "second.toml"
    path.write_text(
        f"question = 'And C?'\nscript = '{script}'\nshares = '{other}'\n"
        "[runs]\nA = '--gain 0.1'\nC = '--gain {start}'\n"
        "[arms]\nfirst = { run = 'A' }\nC = { run = 'C' }\n"
    )
    made = [(folder, command[2]) for command, folder in sweep.missing(sweep.read_sweep(path))]
    assert made == [(out / f"C-{seed}", str(out / "start")) for seed in (0, 1, 2)]


def test_a_run_that_was_begun_is_resumed(tmp_path):
    script = tmp_path / "resumable.py"
    script.write_text("import sys; print(sys.argv[-1]); sys.exit('--resume' != sys.argv[-1])")
    folder = tmp_path / "begun"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    sweep.run_script([str(script)], folder, threads=1)
    assert (folder / "log.txt").read_text() == "--resume\n"


def test_a_run_finds_what_the_shell_finds_behind_what_is_here(tmp_path, monkeypatch):
    """A reward of one's own, ``my_pkg.rewards:Compactness``, is on the caller's PYTHONPATH."""
    mine = tmp_path / "mine"
    for name in ("my_pkg", "experiments"):
        (mine / name).mkdir(parents=True)
        (mine / name / "__init__.py").touch()
    script = tmp_path / "importing.py"
    script.write_text("import experiments, my_pkg; print(experiments.__file__, my_pkg.__file__)")
    monkeypatch.setenv("PYTHONPATH", str(mine))
    sweep.run_script([str(script)], tmp_path / "run", threads=1)
    packages = ROOT / "experiments", mine / "my_pkg"
    assert (tmp_path / "run" / "log.txt").read_text().split() == [
        str(package / "__init__.py") for package in packages
    ]


def test_a_run_that_fails_shows_its_own_words(tmp_path):
    with pytest.raises(ExplainedError, match="out of luck"):
        run(write_sweep(tmp_path), tmp_path, options="--fail 1")


def test_a_dry_run_prints_what_is_missing_and_makes_nothing(tmp_path, capsys):
    path = write_sweep(tmp_path)
    run(path, tmp_path / "out", seeds=(0, 1))
    capsys.readouterr()
    assert run(path, tmp_path / "out", seeds=(1, 2), dry_run=True) is None
    script, out = tmp_path / "job.py", tmp_path / "out"
    assert capsys.readouterr().out.splitlines() == [
        f"python {script} --gain 0.1 --seed 2 --output-dir {out}/A-2",
        f"python {script} --gain 0.3 --seed 2 --output-dir {out}/B-2",
    ]
    assert not (tmp_path / "out" / "A-2").exists()
    with pytest.raises(ExplainedError, match=r"A-2/scores\.json is missing"):
        run(path, tmp_path / "out", report_only=True)


def test_the_report_needs_no_curves(tmp_path):
    run(write_sweep(tmp_path), tmp_path / "out", seeds=(0, 1))
    for path in (tmp_path / "out").rglob("metrics.jsonl"):
        path.unlink()
    found = run(write_sweep(tmp_path), tmp_path / "out", seeds=(0, 1), report_only=True)
    assert found["arms"].keys() == {"A", "B"}


@pytest.mark.parametrize("count", range(2, 11))
def test_intervals_over_seeds_are_students(count):
    values = np.random.default_rng(count).normal(size=count)
    expected = stats.t.interval(0.95, count - 1, loc=values.mean(), scale=stats.sem(values))
    assert t_interval(values)[1:] == pytest.approx(expected, abs=2e-3)


# What cannot be compared.


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def runs(tmp_path):
    """Runs of three seeds that differ in nothing else."""
    run(write_sweep(tmp_path), tmp_path / "out")
    return [tmp_path / "out" / f"A-{seed}" for seed in (0, 1, 2)]


def summarize(runs, folder):
    return sweep.main(sweep.Args(tuple(map(str, runs)), output_dir=folder))


def test_finished_runs_are_summarized(runs, tmp_path):
    found = summarize(runs, tmp_path / "sum")["arms"][""]
    assert found["runs"] == list(map(str, runs))
    score = found["scores"]["sampled gIoU"]
    assert score["before"] == [0.4] * 3
    assert score["mean"] == pytest.approx(11)
    assert "difference" not in score
    text = (tmp_path / "sum" / "seeds.md").read_text()
    assert "|  | sampled gIoU | 40.0 | 50.0, 51.0, 52.0 | +11.0 [+8.5, +13.5] |" in text
    assert "against" not in text
    assert (tmp_path / "sum" / "seeds.png").stat().st_size > 5000


def test_runs_that_were_not_measured_are_not_compared(runs, tmp_path):
    (runs[0] / "scores.json").write_text(json.dumps({"minutes": 1.0, "updates": 5}))
    with pytest.raises(ExplainedError, match=r"A-0 was not measured"):
        summarize(runs, tmp_path / "sum")


def test_two_runs_of_one_seed_are_not_two_seeds(runs, tmp_path):
    edit(runs[2] / "config.json", seed=1)
    with pytest.raises(ExplainedError, match=r"A-1 and .*A-2 both have seed 1"):
        summarize(runs, tmp_path / "sum")
    with pytest.raises(ExplainedError, match="A-0 is one run"):
        summarize(runs[:1], tmp_path / "sum")


def test_runs_of_other_lengths_or_rewards_are_not_joined(runs, tmp_path):
    edit(runs[0] / "config.json", updates=20, rewards=["mask_iou=1.0"], ppo={"seed": 0, "lam": 1})
    edit(runs[1] / "config.json", updates=100, rewards=["format=1"], ppo={"seed": 1, "lam": 0.9})
    message = r"A-0 and .*A-1 differ in more than their seed: ppo\.lam \(1, 0\.9\), rewards "
    message += r"\(\['mask_iou=1\.0'\], \['format=1'\]\), updates \(20, 100\)$"
    with pytest.raises(ExplainedError, match=message):
        summarize(runs[:2], tmp_path / "sum")
    assert not (tmp_path / "sum").exists()


def test_runs_that_were_asked_other_questions_are_not_joined(runs, tmp_path):
    scores = json.loads((runs[0] / "scores.json").read_text())
    edit(runs[0] / "scores.json", dataset="scenes-easy", split="test")
    summarize(runs, tmp_path / "sum")  # a name that only some recorded is no difference
    asked = {"dataset": "scenes-hard", "split": "test", "after": scores["after"] | {"questions": 9}}
    edit(runs[1] / "scores.json", **asked)
    message = r"dataset\.name \(.*easy, .*hard\), measured\.questions \(8, 9\)$"
    with pytest.raises(ExplainedError, match=message):
        summarize(runs, tmp_path / "sum")


def test_how_the_work_was_shared_out_is_no_difference(runs, tmp_path):
    edit(runs[0] / "config.json", deepspeed="zero2", gspo={"prompts_per_forward": 1})
    edit(runs[1] / "config.json", deepspeed=None, gspo={"prompts_per_forward": 4})
    edit(runs[2] / "config.json", deepspeed=None, gspo={"prompts_per_forward": 4})
    summarize(runs, tmp_path / "sum")


def test_arms_may_differ_in_what_their_options_name_only(tmp_path):
    second = """--gain 0.3 --more "{\\"updates\\": 9}" """
    path = write_sweep(tmp_path, second=second)
    message = r"A-0 and .*B-0 \(B\) differ in what is not compared: updates \(None, 9\)"
    with pytest.raises(ExplainedError, match=message):
        run(path, tmp_path / "out")
    path = write_sweep(tmp_path, second=second, more='varies = ["upd*"]')
    run(path, tmp_path / "out")


def test_settings_that_another_algorithm_does_not_have_are_no_difference(tmp_path):
    first = """--gain 0.3 --more "{\\"gspo\\": {\\"clip\\": 9}}" """
    run(write_sweep(tmp_path, first, first.replace("gspo", "ppo")), tmp_path / "out")


def test_runs_that_are_not_of_their_seed_are_found_out(runs, tmp_path):
    edit(runs[2] / "config.json", seed=7)
    with pytest.raises(ExplainedError, match=r"B-0 is of seeds \[0, 1, 2\].*A-0 of \[0, 1, 7\]"):
        run(write_sweep(tmp_path), tmp_path / "out")


def test_settings_that_were_not_recorded_are_not_taken_for_equal(runs, tmp_path):
    (runs[1] / "config.json").unlink()
    with pytest.raises(ExplainedError, match=r"A-1/config\.json is missing"):
        summarize(runs, tmp_path / "sum")


# What a file says.


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("optoins = '--updates 3'", "optoins is not among question, script, options"),
        ("seeds = [1]", "needs 2 or more different"),
        ("seeds = [1, 1]", "needs 2 or more different"),
        ("seeds = [", "is no TOML file"),
        ("[arms.C]\nrun = 'plain'\noptions = ''", "options is not among run, stage, paper"),
        ("[arms.C]\nrun = 'plain'", "has no 'runs'"),
        ("[arms]\n'A B' = '1'\n'A?B' = '2'", "two arms have runs of the name 'A_B'"),
    ],
)
def test_a_file_that_is_wrong_says_so(tmp_path, more, message):
    path = tmp_path / "toy.toml"
    path.write_text(f'question = "Which?"\nscript = "job.py"\n{more}\n')
    with pytest.raises(ExplainedError, match=message):
        run(str(path), tmp_path / "out")


def test_an_unknown_sweep_lists_those_that_there_are():
    with pytest.raises(ExplainedError, match=r"(?s)no sweep 'optimiser'.*optimizer: Muon"):
        sweep.main(sweep.Args(("optimiser",)))
    assert tuple(re.findall(r"(?m)^ +([\w-]+): ", sweep.list_sweeps())) == NAMES


def test_no_word_at_all_lists_the_sweeps_that_there_are():
    with pytest.raises(ExplainedError, match=r"(?s)^name a sweep.*optimizer: Muon.*weights: "):
        sweep.main(sweep.Args(()))


@pytest.mark.parametrize("written", ["$MY_GAIN", "${MY_GAIN}"])
def test_a_variable_of_the_shell_stands_for_what_it_holds(tmp_path, monkeypatch, written):
    path = write_sweep(tmp_path, second=f"--gain {written}")
    monkeypatch.setenv("MY_GAIN", "0.7")
    assert sweep.read_sweep(Path(path)).arms["B"].command[1:] == ("--gain", "0.7")
    monkeypatch.delenv("MY_GAIN")
    with pytest.raises(ExplainedError, match=r"toy\.toml needs the variable MY_GAIN: set it"):
        sweep.read_sweep(Path(path))


def test_a_variable_that_is_not_set_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("SIMPLESEG_PHOTOS", raising=False)
    with pytest.raises(ExplainedError, match="needs the variable SIMPLESEG_PHOTOS: set it"):
        run("rl-photos", tmp_path, dry_run=True)


SCRIPTS = {
    "run_bc.py": run_bc,
    "run_gspo.py": run_gspo,
    "run_ppo.py": run_ppo,
    "annotate.py": annotate,
}


@pytest.mark.parametrize("name", NAMES)
def test_every_sweep_runs(name, tmp_path, monkeypatch, capsys):
    """All commands are understood by their scripts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIMPLESEG_PHOTOS", "photos")
    sweep.main(sweep.Args((name,), dry_run=True))
    commands = capsys.readouterr().out.splitlines()
    found = sweep.read_sweep(sweep.find_file(name))
    assert len({(*arm.command, arm.stage) for arm in found.arms.values()}) == len(found.arms)
    made = {arm.run for arm in found.arms.values()}
    assert len(commands) == len(found.shared) + 3 * len(made)
    for command in commands:
        _, script, *words = shlex.split(command)
        assert (ROOT / script).is_file()
        if script == "experiments/run_pipeline.py":
            steps = run_pipeline.plan_steps(tyro.cli(run_pipeline.Args, args=words))
            assert [run_pipeline.parse(step).output_dir for step in steps]
        else:
            tyro.cli(SCRIPTS[Path(script).name].Args, args=words)


def test_the_help_fits_a_screen_and_needs_no_deep_learning_library():
    code = (
        "import sys, experiments.sweep; print([m for m in ('torch', 'scipy') if m in sys.modules])"
    )
    answers = [
        subprocess.run(
            [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for words in (["-c", code], ["experiments/sweep.py", "--help"])
    ]
    assert answers[0].stdout == "[]\n"
    assert len(answers[1].stdout.splitlines()) <= 60
    assert "optimizer: Muon" in answers[1].stdout


# Stages of the recipe.

GAINS = {"plain/sft": 0.30, "plain/rl": 0.36, "pretrained/pretrain": 0.2}
GAINS |= {"pretrained/sft": 0.40, "pretrained/rl": 0.50, "made/sft": 0.29}
STARTS = {"plain/rl": "sft", "pretrained/sft": "pretrain", "pretrained/rl": "sft"}


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
            side = {**greedy, "sampled": sampled}
            scores = {"before": side, "after": side, "updates": 5, "minutes": 1.0}
            folder = tmp_path / f"{run}-{seed}" / stage
            folder.mkdir(parents=True)
            start = name in STARTS and str(folder.parent / STARTS[name] / "policy")
            config = {
                "seed": seed,
                "policy": start or None,
                "updates": 80 if stage == "rl" else 700,
            }
            (folder / "config.json").write_text(json.dumps(config))
            (folder / "scores.json").write_text(json.dumps(scores))
    return tmp_path


def test_finished_stages_are_compared_and_not_made_again(finished):
    found = run("stages", finished)
    arms = found["arms"]
    score = arms["SFT"]["scores"]["greedy gIoU"]
    assert score["each"] == pytest.approx([30, 31, 32])
    low, high = stats.t.interval(0.95, 2, loc=31, scale=stats.sem(score["each"]))
    assert score["interval"] == pytest.approx([low, high], abs=1e-2)
    # Paired by seed: the seeds' own differences cancel.
    score = arms["pre-train + SFT + RL"]["scores"]["greedy gIoU"]
    assert score["difference"] == pytest.approx(20)
    assert score["difference_interval"] == pytest.approx([20, 20])
    assert [arm["paper"] for arm in arms.values()] == [65.5, 70.1, 75.2, 78.5]
    text = (finished / "stages.md").read_text()
    assert (
        "| pre-train + SFT | greedy gIoU | 40.0, 41.0, 42.0 | 41.0 [38.5, 43.5] | +10.0 [" in text
    )
    assert "| 70.1 |" in text
    assert "64 questions" in text
    assert (finished / "stages.png").stat().st_size > 5000
    assert json.loads((finished / "stages.json").read_text()) == found


def test_made_data_are_compared_with_the_sft_runs_of_the_stages(finished):
    arms = run("stages-data", finished)["arms"]
    made = arms["made by the pipeline"]["scores"]["greedy gIoU"]
    assert made["difference"] == pytest.approx(-1)
    assert arms["clean scenes"]["runs"][0] == str(finished / "plain-0" / "sft")
    wrong = arms["made with wrong labels"]["scores"]["greedy gIoU"]
    assert wrong["difference"] == pytest.approx(-10)
    assert "paper" not in (finished / "stages-data.md").read_text()


def record(name, folder, options=""):
    """Let the runs in a folder say that they were made by a sweep."""
    found = sweep.read_sweep(sweep.find_file(name), options, folder)
    for arm in found.arms.values():
        for seed in found.seeds:
            path = folder / f"{arm.run}-{seed}" / "command.json"
            path.write_text(json.dumps([*arm.command, "--seed", str(seed)]))


def test_finished_stages_of_other_options_are_not_taken_for_those_asked_for(finished):
    record("stages", finished, "--questions 9")
    with pytest.raises(ExplainedError, match=r"plain-0 was made with other options.*--questions 9"):
        run("stages", finished)
    assert run("stages", finished, options="--questions 9")
    assert run("stages", finished, report_only=True)


def test_a_run_serves_an_arm_that_needs_fewer_of_its_stages(finished):
    record("stages-data", finished)
    record("stages", finished)
    assert run("stages-data", finished)


def test_a_run_that_was_made_for_fewer_stages_goes_on(finished):
    record("stages-data", finished)
    for seed in (0, 1, 2):
        (finished / f"plain-{seed}" / "rl" / "scores.json").unlink()
        (finished / f"pretrained-{seed}" / "sft" / "scores.json").unlink()
        (finished / f"pretrained-{seed}" / "rl" / "scores.json").unlink()
    found = sweep.read_sweep(sweep.find_file("stages"), output=finished)
    made = {folder.name for _, folder in sweep.missing(found)} - {*found.shared}
    assert made == {f"{name}-{seed}" for name in ("plain", "pretrained") for seed in (0, 1, 2)}


@pytest.mark.parametrize("form", ["--{}='--updates 9'", "--{} '--updates 9'"])
def test_options_of_a_stage_matter_to_what_came_of_it_and_of_those_after_it(finished, form):
    record("stages-data", finished)
    record("stages", finished, form.format("rl"))
    assert run("stages-data", finished), "no arm has RL"
    with pytest.raises(ExplainedError, match="plain-0 was made with other options"):
        run("stages", finished)
    record("stages", finished, form.format("sft"))
    with pytest.raises(ExplainedError, match="plain-0 was made with other options"):
        run("stages-data", finished)
    record("stages", finished)
    edited = finished / "pretrained-0" / "command.json"
    edited.write_text(edited.read_text().replace("--no-vision-check", "--updates 9", 1))
    for name in ("stages", "stages-data"):
        with pytest.raises(ExplainedError, match="pretrained-0 was made with other options"):
            run(name, finished)


def test_a_stage_that_another_one_came_before_is_not_the_one_without(finished):
    record("stages", finished)
    path = finished / "plain-0" / "command.json"
    path.write_text(path.read_text().replace('"sft"', '"pretrain", "sft"'))
    with pytest.raises(ExplainedError, match="plain-0 was made with other options"):
        run("stages", finished)


def test_intervals_do_not_depend_on_the_order_of_seeds(finished):
    found = run("stages", finished, seeds=(2, 0, 1))["arms"]["SFT"]["scores"]["greedy gIoU"]
    assert np.sort(found["each"]) == pytest.approx([30, 31, 32])
    assert found["mean"] == pytest.approx(31)


def test_a_stage_that_came_of_another_one_is_told_from_it(finished):
    """The settings of the stages before count as well."""
    edit(finished / "pretrained-1" / "pretrain" / "config.json", updates=9)
    message = r"pretrained-0/sft and .*pretrained-1/sft differ .*: pretrain\.updates \(700, 9\)"
    with pytest.raises(ExplainedError, match=message):
        run("stages", finished)


def test_stages_of_the_same_name_must_be_alike_in_all_arms(finished):
    for seed in (0, 1, 2):
        edit(finished / f"plain-{seed}" / "sft" / "config.json", updates=9)
    with pytest.raises(ExplainedError, match=r"\(pre-train \+ SFT\).*: sft\.updates \(9, 700\)"):
        run("stages", finished)
    with pytest.raises(ExplainedError, match=r"\(made by the pipeline\).*: updates \(9, 700\)"):
        run("stages-data", finished)


def plans(name, seed, output, options=""):
    """The settings of every stage of every run of a sweep, by the run's name."""
    found = {}
    for arm in sweep.read_sweep(sweep.find_file(name), options, output).arms.values():
        words = [*arm.command[1:], "--seed", str(seed)]
        folder = output / f"{arm.run}-{seed}"
        settings = tyro.cli(run_pipeline.Args, args=[*words, "--output-dir", str(folder)])
        steps = run_pipeline.plan_steps(settings)
        found[arm.run] = {step.stage: run_pipeline.parse(step) for step in steps}
        annotated = {step.stage: step.words for step in steps}.get("annotate")
        assert annotated is None, "that is shared"
    return found


def test_stages_are_trained_and_asked_alike(tmp_path):
    found = plans("stages", 1, tmp_path, "--sft='--updates 7' --questions 9")
    plain, pretrained = found["plain"], found["pretrained"]
    assert (list(plain), list(pretrained)) == (["sft", "rl"], ["pretrain", "sft", "rl"])
    assert pretrained["pretrain"].dataset == str(tmp_path / "images-web")
    assert plain["sft"].policy == str(tmp_path / "points" / "policy")
    assert pretrained["sft"].policy == str(tmp_path / "pretrained-1" / "pretrain" / "policy")
    for stage in ("sft", "rl"):
        ours, theirs = vars(plain[stage]), vars(pretrained[stage])
        differ = {name for name in ours if ours[name] != theirs[name]}
        assert differ == {"policy", "output_dir"}
    assert plain["sft"].updates == pretrained["sft"].updates == 7
    assert plain["sft"].seed == 1
    assert plain["rl"].evaluation.split == pretrained["pretrain"].evaluation.split == "test"
    assert plain["rl"].evaluation.questions == plain["sft"].evaluation.questions == 9


def test_clean_and_made_data_differ_in_nothing_else(tmp_path):
    found = plans("stages-data", 0, tmp_path, "--sft='--updates 7' --pretrain='--updates 7'")
    clean, made = vars(found["plain"]["sft"]), vars(found["made"]["sft"])
    assert {name for name in clean if clean[name] != made[name]} == {"dataset", "output_dir"}
    assert made["dataset"] == str(tmp_path / "images-made")
    wrong = vars(found["pretrained"]["pretrain"])
    differ = {name for name in clean if clean[name] != wrong[name]}
    assert differ == {"dataset", "output_dir", "scenes"}, "all records are used"
    # What is in the other sweep as well is trained for both.
    table = plans("stages", 0, tmp_path, "--sft='--updates 7' --pretrain='--updates 7'")
    assert vars(table["plain"]["sft"]) == clean
    assert vars(table["pretrained"]["pretrain"]) == wrong


def test_annotated_images_are_those_of_the_pipeline(tmp_path):
    data, stages = (
        sweep.read_sweep(sweep.find_file(name), output=tmp_path).shared
        for name in ("stages-data", "stages")
    )
    assert data["images-web"] == stages["images-web"]
    ours, theirs = (
        tyro.cli(annotate.Args, args=words)
        for words in (stages["images-web"][1:], run_pipeline.DEFAULTS["annotate"].split())
    )
    assert vars(ours) == vars(theirs) | {"difficulty": "easy"}
    made = tyro.cli(annotate.Args, args=data["images-made"][1:])
    assert made.scenes == run_pipeline.SCENES, "as many as SFT takes"
    assert made.mask_fray == 0, "the detector knows the truth"
