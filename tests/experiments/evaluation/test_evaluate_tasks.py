"""Scoring a policy, or a file of answers, on any task."""

import json

import pytest
from agents_fixtures import small_policy

from experiments.evaluate import Args, main
from experiments.evaluation.loop import Evaluation, evaluate
from seg_env.data.scenes import Scenes
from seg_env.envs.referring import open_questions
from seg_env.tasks import TASKS, answer, form_of

QUICK = {"questions": 6, "split": "val"}


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    small_policy().save(folder)
    return folder


def write_answers(path, task, count=6, **scenes):
    data = Scenes("val", **scenes)
    rows = [{"id": data[i].id, "text": answer(data[i], task)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("task", ["point->bbox", "text->point"])
def test_perfect_answers_in_a_file_score_fully(task, tmp_path):
    path = write_answers(tmp_path / "answers.jsonl", task, negatives=0.5)
    args = Args(
        task=task,
        predictions=path,
        negatives=0.5,
        pictures=form_of(task) == "point",
        output_dir=tmp_path / "out",
        **QUICK,
    )
    scores = main(args)
    key = {"bbox": "rec_accuracy", "point": "pointing_accuracy"}[form_of(task)]
    assert scores["task"] == task
    assert scores[key] == scores["n_acc"] == scores["well_formed"] == 1
    assert scores["intervals"][key] == [1, 1]
    report = (tmp_path / "out" / "report.md").read_text()
    assert {"bbox": "| REC accuracy@0.5 |", "point": "| pointing accuracy |"}[
        form_of(task)
    ] in report
    assert "boundary" not in report
    assert (tmp_path / "out" / "worst.png").exists() == args.pictures


def test_outlines_where_boxes_were_asked_for_score_nothing(tmp_path):
    path = write_answers(tmp_path / "answers.jsonl", "text->mask")
    found = main(
        Args(
            task="text->bbox",
            predictions=path,
            pictures=False,
            output_dir=tmp_path / "out",
            **QUICK,
        )
    )
    assert (found["rec_accuracy"], found["well_formed"]) == (0, 0)
    assert found["issues"] == {"bad_nesting": 6}


def test_one_command_scores_every_task(policy_folder, tmp_path):
    args = Args(
        task="all",
        policy=str(policy_folder),
        max_new_tokens=6,
        pictures=False,
        output_dir=tmp_path,
        **QUICK,
    )
    scores = main(args)
    assert tuple(scores["tasks"]) == TASKS
    assert json.loads((tmp_path / "scores.json").read_text()) == scores
    table = (tmp_path / "tasks.md").read_text()
    assert all(f"| {task} |" in table for task in TASKS)
    assert (tmp_path / "tasks.png").stat().st_size > 5000
    assert (tmp_path / "point-to-mask" / "per_sample.parquet").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "all", "ceiling": True}, "are about one task"),
        ({"task": "text->mask=1 point->mask=1"}, "name one task, or all"),
        ({"task": "text->bbox", "ceiling": True}, "--ceiling is about outlines"),
        ({"task": "text->outline"}, "task='text->outline' is unknown"),
    ],
)
def test_wrong_arguments_are_explained(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        main(Args(output_dir=tmp_path, **QUICK, **arguments))


def test_training_measures_each_task_by_what_fits_it():
    core = open_questions(
        "SimpleSeg-Scenes-v0", split="val", size=48, task="text->mask=1 point->bbox=1"
    )
    found = evaluate(small_policy(), core, range(8), max_new_tokens=4)
    summary = found.summary()
    assert summary["tasks"].keys() == {"text->mask", "point->bbox"}
    assert sum(each["questions"] for each in summary["tasks"].values()) == 8
    assert found.fit_score()["questions"] == 8
    stored = json.loads(json.dumps(found.to_json()))
    assert Evaluation.from_json(stored).summary() == summary
