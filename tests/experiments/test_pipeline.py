"""The recipe as one command: what stages start from, what is left, and going on when killed."""

import json
import signal
import time

import numpy as np
import pytest
import tyro
from short_runs import start, timeless

from agents.policy.model import VLMPolicy
from agents.training.checkpoints import latest_checkpoint
from experiments import run_pipeline
from experiments.common.comparison import read_scores
from experiments.evaluation.loop import evaluate
from seg_env.envs.referring import open_questions

SHAPE = "--model.image-size 32 --model.vision-width 32 --model.vision-layers 1 --model.width 32 "
SHAPE += "--model.layers 2 --model.heads 2"
CLONING = "--updates 6 --evaluation.every 3 --evaluation.curve-questions 4 --cloning.batch-size 8 "
CLONING += "--checkpoint-every 1 --precision float32"
RL = "--updates 2 --evaluation.every 1 --evaluation.curve-questions 4 --evaluation.answers 2 "
RL += "--gspo.prompts-per-update 2 --gspo.group-size 3 --gspo.max-new-tokens 30 "
RL += "--checkpoint-every 1 --precision float32"


def words(folder, *more):
    """A command line of the pipeline that takes seconds."""
    return [
        *("--annotate=--scenes 24 --per-shard 12 --workers 1", "--questions", "6", "--seed", "2"),
        *(f"--pretrain={SHAPE} {CLONING}", f"--sft={CLONING} --scenes 16", f"--rl={RL}"),
        *("--output-dir", str(folder), *more),
    ]


def parse(folder, *more):
    return tyro.cli(run_pipeline.Args, args=words(folder, *more))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and scores of a pipeline that nothing interrupted."""
    folder = tmp_path_factory.mktemp("pipeline") / "whole"
    return folder, run_pipeline.main(parse(folder))


def test_every_stage_starts_from_the_one_before(tmp_path):
    steps = {step.stage: step for step in run_pipeline.plan_steps(parse(tmp_path))}
    assert list(steps) == ["annotate", "pretrain", "sft", "rl"]
    settings = {stage: run_pipeline.parse(step) for stage, step in steps.items()}
    assert settings["pretrain"].dataset == str(tmp_path / "annotate")
    assert settings["pretrain"].policy is None
    assert settings["pretrain"].cloning.points_until > 0
    assert settings["sft"].dataset is None
    assert settings["sft"].policy == str(tmp_path / "pretrain" / "policy")
    assert settings["sft"].cloning.boxes_until == 0, "what finds objects needs no curriculum"
    assert settings["rl"].policy == str(tmp_path / "sft" / "policy")
    for stage in ("pretrain", "sft", "rl"):
        assert settings[stage].seed == 2
        assert settings[stage].resume
        assert settings[stage].output_dir == tmp_path / stage
    splits = [settings["sft"].evaluation.split, settings["rl"].evaluation.split]
    questions = [settings["sft"].evaluation.questions, settings["rl"].evaluation.questions]
    assert (splits, questions) == (["test", "test"], [6, 6])


def test_options_that_are_given_again_are_added(tmp_path):
    given = parse(tmp_path, "--sft=--data web.jsonl", "--sft=--updates 9")
    settings = {step.stage: run_pipeline.parse(step) for step in run_pipeline.plan_steps(given)}
    sft = settings["sft"]
    assert (sft.dataset, sft.updates, sft.scenes) == ("web.jsonl", 9, 16)
    assert settings["pretrain"].updates == 6


@pytest.mark.parametrize(
    ("given", "stages", "starts"),
    [
        (["--skip", "annotate", "pretrain"], ["sft", "rl"], [None, "sft/policy"]),
        (["--skip", "sft"], ["annotate", "pretrain", "rl"], [None, "pretrain/policy"]),
        (["--stages", "rl"], ["rl"], ["embedded"]),
        (["--stages", "rl", "sft"], ["sft", "rl"], [None, "sft/policy"]),
        (["--data", "web.jsonl", "--skip", "rl"], ["pretrain", "sft"], [None, "pretrain/policy"]),
        (["--stages", "sft", "--policy", "embedded"], ["sft"], ["embedded"]),
    ],
)
def test_stages_can_be_left_out(given, stages, starts, tmp_path):
    steps = run_pipeline.plan_steps(parse(tmp_path, *given))
    assert [step.stage for step in steps] == stages
    settings = [run_pipeline.parse(step) for step in steps if step.trains]
    wanted = [start and start.replace("sft/", f"{tmp_path}/sft/") for start in starts]
    wanted = [start and start.replace("pretrain/", f"{tmp_path}/pretrain/") for start in wanted]
    assert [each.policy for each in settings] == wanted
    if "--data" in given:
        assert settings[0].dataset == "web.jsonl"


def test_what_cannot_be_done_is_said_before_anything_is(tmp_path, capsys):
    with pytest.raises(ValueError, match="without annotating needs images"):
        run_pipeline.main(parse(tmp_path / "a", "--skip", "annotate"))
    with pytest.raises(ValueError, match="no stage is left"):
        run_pipeline.main(parse(tmp_path / "a", "--stages", "sft", "--skip", "sft"))
    with pytest.raises(ValueError, match="--data web is what pre-training learns from"):
        run_pipeline.main(parse(tmp_path / "a", "--data", "web", "--stages", "sft", "rl"))
    with pytest.raises(SystemExit):
        run_pipeline.main(parse(tmp_path / "a", "--rl=--updats 3"))
    assert "--updats" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_the_report_has_the_scores_of_the_policy_after_every_stage(finished):
    folder, scores = finished
    assert json.loads((folder / "scores.json").read_text()) == scores
    assert list(scores["stages"]) == ["pretrain", "sft", "rl"]
    core = open_questions("SimpleSeg-Scenes-v0", split="test")
    report = (folder / "report.md").read_text()
    for stage, found in scores["stages"].items():
        policy = VLMPolicy.from_pretrained(folder / stage / "policy")
        again = evaluate(policy, core, np.arange(6), max_new_tokens=30 if stage == "rl" else 128)
        assert found["greedy"]["giou"] == pytest.approx(again.iou.mean())
        for name in ("giou", "ciou"):
            low, high = found["greedy"][f"{name}_interval"]
            assert low <= found["greedy"][name] <= high
        assert f"({stage}/report.md)" in report
        assert (folder / stage / "report.md").exists()
        assert f"--output-dir {folder / stage}" in report
    assert scores["before"]["giou"] == scores["stages"]["pretrain"]["greedy"]["giou"]
    assert scores["after"]["sampled"] == scores["stages"]["rl"]["sampled"]
    assert "(annotate/report.md)" in report
    annotated = (folder / "annotate" / "report.md").read_text()
    assert "of expressions right" in annotated, "labels of scenes are compared with the truth"


def test_pre_training_saw_the_annotated_images_and_sft_the_scenes(finished):
    folder, _ = finished
    configs = {
        stage: json.loads((folder / stage / "config.json").read_text())
        for stage in ("pretrain", "sft", "rl")
    }
    assert configs["pretrain"]["dataset"] == str(folder / "annotate")
    assert configs["sft"]["dataset"] is None
    assert configs["rl"]["policy"] == str(folder / "sft" / "policy")
    before = json.loads((folder / "rl" / "scores.json").read_text())["before"]
    assert before["giou"] == read_scores(folder / "sft")["greedy"]["giou"]


def test_finished_stages_are_not_repeated(finished):
    folder, scores = finished
    files = [path for path in folder.rglob("*") if path.parent != folder and path.is_file()]
    times = {path: path.stat().st_mtime_ns for path in files}
    assert run_pipeline.main(parse(folder)) == scores
    assert {path: path.stat().st_mtime_ns for path in files} == times


def test_a_stage_that_was_started_otherwise_is_refused(finished):
    folder, _ = finished
    with pytest.raises(ValueError, match=r"sft was made with other options.*remove it"):
        run_pipeline.main(parse(folder, f"--sft={CLONING} --scenes 17"))


def test_options_that_nothing_came_of_can_be_corrected(tmp_path):
    wrong = f"--sft={SHAPE} {CLONING} --scenes 1"
    with pytest.raises(ValueError, match="fewer than a batch"):
        run_pipeline.main(parse(tmp_path, "--stages", "sft", wrong))
    corrected = parse(tmp_path, "--stages", "sft", f"{wrong}6")
    assert run_pipeline.main(corrected)["stages"].keys() == {"sft"}
    words = json.loads((tmp_path / "sft" / "command.json").read_text())
    assert words == [*run_pipeline.plan_steps(corrected)[0].words]


@pytest.mark.parametrize(
    ("left_out", "start"),
    [(["--stages", "rl"], "sft"), (["--skip", "annotate", "pretrain"], "pretrain")],
)
def test_stages_that_are_left_out_hand_on_what_they_made_before(finished, left_out, start):
    folder, _ = finished
    first = run_pipeline.parse(run_pipeline.plan_steps(parse(folder, *left_out))[0])
    assert first.policy == str(folder / start / "policy")
    given = run_pipeline.plan_steps(parse(folder, *left_out, "--policy", "embedded"))[0]
    assert run_pipeline.parse(given).policy == "embedded"


def test_a_killed_pipeline_goes_on_to_the_same_numbers(finished, tmp_path):
    whole, scores = finished
    folder = tmp_path / "killed"
    process = start("run_pipeline.py", *words(folder))
    deadline = time.monotonic() + 200
    while latest_checkpoint(folder / "sft" / "checkpoints") is None:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "fine-tuning has not begun"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    assert not (folder / "sft" / "scores.json").exists()
    pretrained = (folder / "pretrain" / "scores.json").stat().st_mtime_ns

    found = run_pipeline.main(parse(folder))
    assert (folder / "pretrain" / "scores.json").stat().st_mtime_ns == pretrained
    stages = [
        {stage: {**one, "minutes": 0} for stage, one in each["stages"].items()}
        for each in (found, scores)
    ]
    assert stages[0] == stages[1]
    for stage in ("pretrain", "sft", "rl"):
        weights = [place / stage / "policy" / "model.safetensors" for place in (folder, whole)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
        assert timeless(folder / stage) == timeless(whole / stage)
