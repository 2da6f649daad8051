"""The main job from its command line: what it writes, and that a killed run goes on unharmed."""

import json
import signal
import time

import gymnasium as gym
import numpy as np
import pytest
import torch
import tyro
from agents_fixtures import SMALL, cloned_policy, same_parameters
from PIL import Image
from short_runs import start, timeless

from agents.policy.model import VLMPolicy
from agents.training.checkpoints import latest_checkpoint
from experiments import run_bc, run_gspo
from experiments.common.arguments import EvaluationPlan
from experiments.common.logs import read_metrics
from experiments.common.policies import open_policy
from experiments.common.report import scores_of, table_rows
from experiments.evaluation.loop import Evaluation, _measure, evaluate
from rewards import DEFAULT_REWARDS
from seg_env.envs.referring import open_questions

UPDATES = 6
QUESTIONS = 8


def arguments(policy, output):
    """A command line of the main job that takes seconds."""
    return [
        *("--policy", str(policy), "--precision", "float32", "--output-dir", str(output)),
        *("--seed", "3", "--updates", str(UPDATES), "--checkpoint-every", "1"),
        *("--difficulty", "easy", "--negatives", "0"),
        *("--gspo.prompts-per-update", "2", "--gspo.group-size", "3"),
        *("--gspo.max-new-tokens", "40", "--gspo.learning-rate", "1e-3"),
        *("--evaluation.questions", str(QUESTIONS), "--evaluation.answers", "2"),
        *("--evaluation.every", "3", "--evaluation.curve-questions", "4"),
    ]


@pytest.fixture(scope="module")
def finished(policy_folder, tmp_path_factory):
    """Folder and scores of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    args = tyro.cli(run_gspo.Args, args=arguments(policy_folder, folder))
    return folder, run_gspo.main(args)


def test_the_main_job_asks_for_objects_that_may_be_absent():
    asked = run_gspo.Args().environment()
    scenes = {"split": "train", "difficulty": "medium", "negatives": 0.3}
    assert asked == scenes | {"rewards": DEFAULT_REWARDS}
    assert run_gspo.Args().held_out() == asked | {"split": "val"}
    easy = run_gspo.Args(difficulty="easy", negatives=0.0, dataset="scenes")
    assert easy.environment() == asked | {"difficulty": "easy", "negatives": 0.0} | {
        "dataset": "scenes"
    }
    measured = EvaluationPlan(dataset="my_pkg.data:make")
    assert not {"difficulty", "negatives"} & run_gspo.Args(evaluation=measured).held_out().keys()
    others = run_gspo.Args(env="SimpleSeg-RefCOCO-v0"), run_gspo.Args(dataset="my_pkg.data:make")
    assert all(not {"difficulty", "negatives"} & args.environment().keys() for args in others)


def test_cloning_is_measured_on_what_it_learns():
    assert "negatives" not in run_bc.Args().held_out()
    args = run_bc.Args(difficulty="medium", negatives=0.3)
    measured = args.held_out() | {"rewards": DEFAULT_REWARDS}
    assert measured == run_gspo.Args().held_out()


def test_a_run_leaves_everything_there_is_to_know_about_it(finished):
    folder, _ = finished
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("config.json", "metrics.jsonl", "scores.json", "before.json", "report.md"),
        *("learning_curve.png", "before_after.png", "policy", "checkpoints", "tensorboard"),
        *("after.json", "answers.png", "frame.json", "rollouts"),
        "vision.json",  # the policy is none of the project's own
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["seed"] == config["gspo"]["seed"] == 3
    assert config["gspo"]["group_size"] == 3


def test_scores_before_and_after_are_those_of_the_policies(finished, policy_folder):
    folder, returned = finished
    scores = json.loads((folder / "scores.json").read_text())
    assert scores == returned
    core = open_questions("SimpleSeg-Scenes-v0", split="val")
    for when, path in (("before", policy_folder), ("after", folder / "policy")):
        found = evaluate(
            VLMPolicy.from_pretrained(path), core, np.arange(QUESTIONS), max_new_tokens=40
        )
        assert scores[when]["giou"] == pytest.approx(found.iou.mean())
        assert scores[when]["ciou"] == pytest.approx(found.intersections.sum() / found.unions.sum())
        low, high = scores[when]["giou_interval"]
        assert low <= scores[when]["giou"] <= high
        assert scores[when]["questions"] == QUESTIONS
        assert scores[when]["sampled"]["answers_per_question"] == 2
    gain = scores["gain"]["greedy"]["giou"]
    assert gain == pytest.approx(scores["after"]["giou"] - scores["before"]["giou"])
    assert (scores["dataset"], scores["split"]) == ("scenes-easy", "val")


def test_metrics_have_a_line_for_each_update_and_a_learning_curve(finished):
    rows = read_metrics(finished[0])
    assert [row["update"] for row in rows] == [0, 1, 2, 3, 4, 5, 6]
    assert [row["update"] for row in rows if "eval/greedy_giou" in row] == [0, 3, 6]
    assert all({"rollout/reward", "train/policy_loss"} <= row.keys() for row in rows[1:])


def test_pictures_and_report_can_be_looked_at(finished):
    folder, scores = finished
    for name in ("learning_curve.png", "before_after.png"):
        pixels = np.asarray(Image.open(folder / name).convert("RGB"))
        assert min(pixels.shape[:2]) > 300
        assert pixels.std() > 10
        assert f"({name})" in (folder / "report.md").read_text()
    report = (folder / "report.md").read_text()
    assert f"| greedy gIoU | {100 * scores['before']['giou']:.1f} |" in report
    assert "8 held-out questions of `scenes-easy` (val)" in report
    for told in ("Command: `python ", "Policy: `", "Learned from: scenes-easy (train)", "torch 2."):
        assert told in report
    assert "Rewards: `mask_iou=1.0 centroid_distance=0.5 format=0.1`" in report


def test_the_policy_was_trained(finished, policy_folder):
    trained = VLMPolicy.from_pretrained(finished[0] / "policy")
    assert not same_parameters(trained, VLMPolicy.from_pretrained(policy_folder))


def test_a_killed_run_goes_on_to_the_numbers_of_one_that_was_never_interrupted(
    finished, policy_folder, tmp_path
):
    folder = tmp_path / "killed"
    process = start("run_gspo.py", *arguments(policy_folder, folder))
    deadline = time.monotonic() + 120
    while latest_checkpoint(folder / "checkpoints") is None:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "no checkpoint after two minutes"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    assert not (folder / "scores.json").exists()
    assert read_metrics(folder)[-1]["update"] < UPDATES

    resumed = start("run_gspo.py", *arguments(policy_folder, folder), "--resume")
    output, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, output
    assert "resumed after update" in output

    assert timeless(folder) == timeless(finished[0])
    weights = [path / "policy" / "model.safetensors" for path in (folder, finished[0])]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    ours, theirs = (
        json.loads((path / "scores.json").read_text()) for path in (folder, finished[0])
    )
    assert {**ours, "minutes": 0} == {**theirs, "minutes": 0}


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(policy_folder, tmp_path):
    command = [*arguments(policy_folder, tmp_path / "run"), "--evaluation.questions", "1"]
    args = tyro.cli(run_gspo.Args, args=[*command, "--updates", "1"])
    run_gspo.main(args)
    assert latest_checkpoint(args.output_dir / "checkpoints") is None
    before = timeless(args.output_dir)
    args.resume = True
    run_gspo.main(args)
    assert timeless(args.output_dir) == before


def test_help_explains_every_option():
    scripts = {"run_gspo.py": run_gspo, "run_bc.py": run_bc}
    running = {name: start(name, "--help-all", columns="100") for name in scripts}
    for name, process in running.items():
        text, _ = process.communicate(timeout=120)
        assert process.returncode == 0, text
        words = " ".join(text.replace("│", " ").split())
        assert scripts[name].__doc__.split(".")[0] in words
        for option in ("--seed", "--output-dir", "--updates", "--resume", "--checkpoint-every"):
            assert option in words
        assert "Go on from the last checkpoint in the folder, to the same numbers." in words


def test_an_unknown_option_or_environment_is_refused(policy_folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        tyro.cli(run_gspo.Args, args=["--learning-rat", "1"])
    assert "--learning-rat" in capsys.readouterr().err
    args = run_gspo.Args(env="CartPole-v1", policy=str(policy_folder), output_dir=tmp_path / "run")
    with pytest.raises((ValueError, TypeError, gym.error.Error)):
        run_gspo.main(args)
    assert not (tmp_path / "run").exists()


def test_a_policy_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_policy(str(tmp_path / "nothing"), "float32")


@pytest.fixture(scope="module")
def evaluation():
    core = open_questions("SimpleSeg-Scenes-v0", split="val", size=64)
    return evaluate(
        cloned_policy(), core, [3, 1, 4], temperature=1.0, answers=5, max_new_tokens=40, seed=1
    )


def test_evaluation_gives_the_numbers_of_the_environment(evaluation):
    env = gym.make("SimpleSeg-Scenes-v0", split="val", size=64)
    assert evaluation.iou.shape == (3, 5)
    assert evaluation.iou.max() > 0
    for row, index in enumerate([3, 1, 4]):
        assert evaluation.indices[row] == index
        for column, text in enumerate(evaluation.texts[row]):
            env.reset(options={"index": index})
            info = env.step(text)[-1]
            assert evaluation.iou[row, column] == info["iou"]
            assert evaluation.valid[row, column] == info["valid"]
            assert evaluation.vertices[row, column] == info["num_vertices"]


def test_the_summary_by_hand(evaluation):
    summary = evaluation.summary()
    assert summary["giou"] == pytest.approx(evaluation.iou.mean())
    assert summary["ciou"] == pytest.approx(
        evaluation.intersections.sum() / evaluation.unions.sum()
    )
    assert summary["precision@0.5"] == pytest.approx((evaluation.iou > 0.5).mean())
    assert summary["well_formed"] == pytest.approx(evaluation.valid.mean())


def test_an_evaluation_survives_json(evaluation):
    again = Evaluation.from_json(json.loads(json.dumps(evaluation.to_json())))
    assert again.summary() == evaluation.summary()
    assert again.texts.tolist() == evaluation.texts.tolist()


def test_absent_objects_have_rows_of_their_own(evaluation):
    assert "n_acc" not in evaluation.summary()
    present = np.arange(len(evaluation.indices)) % 3 > 0
    silent = np.arange(len(present)) % 2 == 0
    found = Evaluation(
        **vars(evaluation)
        | {
            "present": present,
            "silent": np.broadcast_to(silent[:, None], evaluation.valid.shape),
        }
    )
    summary = found.summary()
    assert summary["n_acc"] == pytest.approx(silent[~present].mean())
    assert summary["t_acc"] == pytest.approx(1 - silent[present].mean())
    assert summary["giou_present"] == pytest.approx(found.iou[present].mean())
    sides = {"greedy": found, "sampled": found}
    rows = {row[0]: row[1:] for row in table_rows(scores_of(sides, sides))}
    accuracy = f"{100 * summary['n_acc']:.1f}"
    assert rows["absent objects called absent, greedy (N-acc)"] == (accuracy, accuracy, "+0.0")


@pytest.mark.parametrize(
    ("task", "place"),
    [
        ("text->mask", "[[[0.1,0.1],[0.6,0.1],[0.6,0.7]]]"),
        ("text->bbox", "[0.1,0.1,0.5,0.5]"),
        ("text->point", "[0.5,0.5]"),
    ],
)
def test_answers_of_every_form_can_say_that_nothing_is_there(task, place):
    core = open_questions("SimpleSeg-Scenes-v0", split="val", negatives=0.5, task=task)
    questions = [core.ask(index) for index in range(8)]

    def told(text):
        outcomes = core.step([core.begin(question) for question in questions], [text] * 8)
        summary = _measure(questions, outcomes, [text] * 8, [1] * 8).summary()
        return summary["n_acc"], summary["t_acc"]

    assert told("[]") == (1, 0)
    assert told(place) == (0, 1)
    assert told("nonsense") == (0, 1), "an answer that cannot be read says nothing"


def test_the_table_shows_the_change_with_its_interval(evaluation):
    better = Evaluation(**{**vars(evaluation), "iou": np.minimum(evaluation.iou + 0.1, 1)})
    scores = scores_of(
        {"greedy": evaluation, "sampled": evaluation}, {"greedy": better, "sampled": evaluation}
    )
    rows = {row[0]: row[1:] for row in table_rows(scores)}
    before, after, change = rows["greedy gIoU"]
    assert float(after) - float(before) == pytest.approx(10, abs=0.11)
    assert change.startswith("+10.0  [+10.0, +10.0]")
    assert rows["sampled gIoU (temperature 1)"][2] == "+0.0  [+0.0, +0.0]"


@pytest.mark.slow
def test_the_warm_start_writes_a_policy_that_loads_and_can_be_resumed(tmp_path):
    def args(name, **settings):
        return run_bc.Args(
            **{"updates": 4, "scenes": 60, "precision": "float32", "model": SMALL, **settings},
            evaluation=EvaluationPlan(questions=32, every=2, curve_questions=8),
            checkpoint_every=2,
            output_dir=tmp_path / name,
        )

    scores = run_bc.main(args("whole"))
    assert scores["after"]["questions"] == scores["before"]["questions"] == 32
    assert (scores["dataset"], scores["split"]) == ("scenes-easy", "val")
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {"config.json", "metrics.jsonl", "scores.json", "learning_curve.png", "policy"} <= names
    report = (tmp_path / "whole" / "report.md").read_text()
    assert "32 held-out questions of `scenes-easy` (val)" in report
    assert "Learned from: 60 easy scenes (train)" in report
    whole = VLMPolicy.from_pretrained(tmp_path / "whole" / "policy")

    kept = [path.name for path in (tmp_path / "whole" / "checkpoints").iterdir()]
    assert kept == ["update_000002"], "what an interruption after update 2 leaves"
    resumed = run_bc.main(args("whole", resume=True))
    assert resumed["after"] == scores["after"]
    again = VLMPolicy.from_pretrained(tmp_path / "whole" / "policy")
    assert same_parameters(again, whole)
    assert torch.equal(again.forbidden, whole.forbidden)
