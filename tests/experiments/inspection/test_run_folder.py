"""What the page shows of a run's folder, and that no folder can do harm."""

import json
import shutil
import sys
import warnings
from dataclasses import asdict

import numpy as np
import pytest

from experiments import run_bc
from experiments.common.logs import read_metrics, write_json
from experiments.common.rollouts import read_rollout
from experiments.evaluation.loop import Evaluation
from experiments.inspection.__main__ import command_line
from experiments.inspection.run_folder import (
    FILTERS,
    HELD_OUT,
    ORDERS,
    RunFolder,
    draw_curves,
    panels_of,
)
from seg_env.errors import ExplainedError


@pytest.fixture(scope="module")
def run(finished_run):
    return RunFolder(finished_run)


@pytest.fixture
def copy(finished_run, tmp_path):
    """The folder of a run that a test may change, without its weights."""
    ignored = shutil.ignore_patterns("policy", "checkpoints", "tensorboard", "*.png")
    return shutil.copytree(finished_run, tmp_path / "run", ignore=ignored)


def change(folder, name, **values):
    """Change some of the values in a JSON file."""
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_updates_come_the_newest_first_and_then_the_held_out_questions(run):
    assert run.views() == ["update 3", "update 2", "update 1", *HELD_OUT]


def test_a_group_is_shown_with_its_rewards_and_advantages(run, finished_run):
    kept = read_rollout(finished_run / "rollouts" / "update_000002.jsonl").groups
    view = run.view("update 2")
    assert view.note == ""
    assert view.headings[:4] == ("answer", "reward", "advantage", "IoU")
    assert view.headings[6:] == ("mask_iou", "centroid_distance", "format")
    assert len(view.items) == len(kept) == 4
    for item, group in zip(view.items, kept, strict=True):
        rewards = [answer.reward for answer in group.answers]
        assert item.value == pytest.approx(np.mean(rewards))
        assert rewards[item.first] == max(rewards)
        for line, answer in zip(item.lines, group.answers, strict=True):
            row = dict(zip(view.headings, line.cells, strict=True))
            assert float(row["reward"]) == pytest.approx(answer.reward, abs=6e-4)
            assert float(row["advantage"]) == pytest.approx(answer.advantage, abs=6e-3)
            assert row["faults"] in (", ".join(answer.faults), "no outline")
            assert line.drawn == answer.text
        question = run.question(view, item)
        assert (question.sample.id, question.prompt) == (group.sample, group.prompt)


@pytest.mark.parametrize("name", HELD_OUT)
def test_answers_to_held_out_questions_come_before_and_after(run, finished_run, name):
    sides = [
        Evaluation.from_json(
            json.loads((finished_run / f"{side}.json").read_text())[HELD_OUT[name]]
        )
        for side in ("before", "after")
    ]
    view, count = run.view(name), sides[0].iou.shape[1]
    assert [item.index for item in view.items] == sides[0].indices.tolist()
    for row, item in enumerate(view.items):
        texts = [text for side in sides for text in side.texts[row]]
        assert [line.text for line in item.lines] == texts
        assert item.first == count
        means = [side.iou[row].mean() for side in sides]
        assert item.gain == pytest.approx(means[1] - means[0])
        assert item.value == pytest.approx(means[1])
        question = run.question(view, item)
        scores = view.rules.score(texts, [question] * len(texts))
        shown = [float(line.cells[1]) for line in item.lines]
        assert shown == pytest.approx(scores.iou.tolist(), abs=6e-4)
        assert item.is_faulty == any(line.cells[-1] for line in item.lines)


@pytest.mark.parametrize(("name", "kind"), [("update 1", False), ("held-out, sampled", True)])
def test_filters_part_the_questions_and_orders_sort_them(run, name, kind):
    items = run.view(name).items
    kept = {title: [item for item in items if keep(item)] for title, keep in FILTERS[kind].items()}
    assert kept["all"] == list(items)
    if kind:
        still = [item for item in items if item.gain == 0]
        assert len(kept["with a gain"]) + len(kept["with a loss"]) + len(still) == len(items)
        assert 0 < len(kept["with a gain"]) < len(items)
    else:
        assert len(kept["rewards differ"]) + len(kept["rewards all equal"]) == len(items)
    for title, number in (("lowest reward", "value"), ("largest gain", "gain")):
        if title in ORDERS[kind]:
            ordered = sorted(items, key=ORDERS[kind][title])
            values = [getattr(item, number) for item in ordered]
            assert values == sorted(values, reverse=title == "largest gain")


def test_rewards_that_are_all_equal_are_found(copy):
    path = copy / "rollouts" / "update_000001.jsonl"
    head, first, *rest = path.read_text().splitlines()
    row = json.loads(first)
    for answer in row["answers"]:
        answer["reward"] = 0.1
    row["answers"] = row["answers"][:3]  # of 0.1 three times the mean is another number
    path.write_text("".join(f"{line}\n" for line in (head, json.dumps(row), *rest)))
    items = RunFolder(copy).view("update 1").items
    assert items[0] in list(filter(FILTERS[False]["rewards all equal"], items))


def test_curves_are_those_of_the_metrics(run, finished_run):
    rows, said = run.curves()
    assert said == ""
    assert [row["rollout/reward"] for row in rows[1:]] == [
        row["rollout/reward"] for row in read_metrics(finished_run)[1:]
    ]
    titles = panels_of(rows)
    assert {"Sampled answers", "Held-out gIoU", "Reward terms"} <= set(titles)
    assert "What the critic expects, per token" not in titles
    for title in titles:
        assert draw_curves(rows, title).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "options",
    [
        ("--env", "SimpleSegRefine-Scenes-v0", "--turns", "2"),
        ("--task", "text->point=0.4 mask->bbox=0.3 point->mask=0.3"),
        ("--difficulty", "medium", "--image-size", "96", "--negatives", "0.5"),
    ],
    ids=["turns", "tasks", "letterboxed"],
)
def test_questions_and_answers_of_every_kind_are_shown(make_run, options):
    run = RunFolder(make_run("--updates", "1", "--evaluation.questions", "4", *options))
    turns = 2 if "--turns" in options else 1
    for name, count in (("update 1", 4 * turns), *((name, 4) for name in HELD_OUT)):
        view = run.view(name)
        assert len(view.items) == count
        for item in view.items:
            question = run.question(view, item)
            assert question.task == item.task
            texts = [line.drawn for line in item.lines]
            scores = view.rules.score(texts, [question] * len(texts))
            shown = [float(line.cells[view.headings.index("IoU")]) for line in item.lines]
            assert shown == pytest.approx(scores.iou.tolist(), abs=6e-4)


def test_a_run_that_goes_on_shows_what_is_there(copy):
    for name in ("after.json", "scores.json", "before.json"):
        (copy / name).unlink()
        run = RunFolder(copy)
        if name == "after.json":
            view = run.view("held-out, greedy")
            assert view.note == "there is no after.json yet"
            assert all(item.gain == 0 for item in view.items)
    assert run.views() == ["update 3", "update 2", "update 1"]
    (copy / "rollouts" / "update_000003.jsonl").unlink()
    with pytest.raises(ExplainedError, match="the rollout of update 3 is not kept any more"):
        run.view("update 3")


@pytest.mark.parametrize(("asked", "family"), [("auto", "unit"), ("qwen3_vl", "permille")])
def test_a_run_from_before_frames_were_recorded_is_shown(copy, asked, family):
    (copy / "frame.json").unlink()
    change(copy, "config.json", frame=asked)
    assert RunFolder(copy).view("update 1").rules.answer_frame.family == family


def test_behaviour_cloning_has_no_groups(copy):
    write_json(copy / "config.json", json.loads(json.dumps(asdict(run_bc.Args()), default=str)))
    shutil.rmtree(copy / "rollouts")
    run = RunFolder(copy)
    assert run.views() == list(HELD_OUT)
    view = run.view("held-out, greedy")
    assert run.question(view, view.items[0]).sample.expression


def test_other_data_than_those_learned_from_are_noticed(copy):
    change(copy, "config.json", difficulty="hard")
    run = RunFolder(copy)
    view = run.view("update 1")
    with pytest.raises(ExplainedError, match="the data are others than those the run learned from"):
        run.question(view, view.items[0])


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("config.json", {"env": 3}, r"config\.json: env: Input should be a valid string"),
        ("config.json", {"env": "os:Evil-v0"}, "env is 'os:Evil-v0', not one of SimpleSeg-Scenes"),
        ("config.json", {"evaluation": {"split": []}}, r"evaluation\.split: Input should be"),
        ("config.json", {"evaluation": {"split": "x"}}, "split"),
        ("config.json", {"difficulty": "x" * 10**5}, "difficulty"),
        ("config.json", {"task": "x"}, "task"),
        ("config.json", {"bands": [1]}, "bands"),
        ("config.json", {"image_size": -1}, "image_size"),
        ("config.json", {"dataset": "/nowhere"}, "/nowhere"),
        ("config.json", {"queries": {"decimals": 10**9}}, "decimals"),
        ("frame.json", {"family": "x"}, "there is no frame 'x'"),
        ("frame.json", {"resize": 3}, "holds no frame"),
        ("frame.json", {"family": "qwen2.5-vl", "resize": {"factor": 0}}, "zero"),
    ],
)
def test_settings_that_cannot_be_are_a_sentence(copy, name, values, said, capsys):
    change(copy, name, **values)
    with pytest.raises(SystemExit) as ended:
        command_line([str(copy), "--port", "0"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    with pytest.raises(ExplainedError, match=said):
        RunFolder(copy)


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, "\x00", "1" * 5000])
def test_a_file_that_holds_no_settings_is_a_sentence(copy, text):
    (copy / "config.json").write_text(text)
    with pytest.raises(ExplainedError, match=r"config\.json (is no JSON|holds a)"):
        RunFolder(copy)


def test_a_file_that_is_too_large_is_not_read(copy):
    with (copy / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ExplainedError, match="bytes, and at most 1048576 are read"):
        RunFolder(copy)


def test_a_folder_that_is_none_of_a_run_is_said(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        command_line([str(tmp_path)])
    assert ended.value.code == 2
    assert "is no folder of a run: it has no config.json" in capsys.readouterr().err


def test_code_that_a_folder_names_is_called_only_if_that_is_asked_for(copy, tmp_path, monkeypatch):
    (tmp_path / "their_code.py").write_text(
        "from seg_env.data.scenes import Scenes\n"
        "def make(split, **given):\n"
        "    return Scenes(split)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    change(copy, "config.json", rewards=["their_code:Reward=1"])
    RunFolder(copy)
    change(copy, "config.json", dataset="their_code:make", evaluation={"split": "val"})
    with pytest.raises(
        ExplainedError, match="names a function as data, their_code:make: pass --tr"
    ):
        RunFolder(copy)
    assert "their_code" not in sys.modules
    for given in ({"trust_code": True}, {"moved": {"dataset": "their_code:make"}}):
        run = RunFolder(copy, **given)
        view = run.view("update 1")
        assert run.question(view, view.items[0]).prompt == view.items[0].prompt
    sys.modules.pop("their_code")


def stored(folder):
    return json.loads((folder / "before.json").read_text())


@pytest.mark.parametrize(
    "values",
    [
        *({"indices": value} for value in ([], [[1]], "x", [1.5] * 30, [10**400] * 30, None)),
        *({"iou": value} for value in (3, [[2.0]] * 30, [[float("nan")]] * 30, [[1], [1, 2]])),
        *({"texts": value} for value in ([[1]] * 30, [["x"]], [[["x"]]] * 30)),
        *({"valid": [["yes"]] * 30}, {"tokens": [[1e308]] * 30}, {"tasks": [1] * 30}),
        {"more": [1]},
    ],
)
def test_answers_that_do_not_fit_together_are_said_and_left_out(copy, values):
    found = stored(copy)
    change(copy, "before.json", greedy=found["greedy"] | values)
    view = RunFolder(copy).view("held-out, greedy")
    assert view.note == "before.json holds no greedy answers that can be read"
    assert len(view.items) == 30
    assert all(line.cells[0] == "after" for item in view.items for line in item.lines)


@pytest.mark.parametrize(
    ("index", "task", "said"),
    [
        (2**40, "text->mask", "1099511627776"),
        (0, "nonsense", "nonsense"),
        (-5, "text->mask", "-5"),
    ],
)
def test_questions_that_the_data_do_not_have_are_said(copy, index, task, said):
    found = stored(copy)["greedy"]
    indices, tasks = [index, *found["indices"][1:]], [task, *found["tasks"][1:]]
    change(copy, "before.json", greedy=found | {"indices": indices, "tasks": tasks})
    (copy / "after.json").unlink()
    run = RunFolder(copy)
    view = run.view("held-out, greedy")
    assert (view.items[0].index, view.items[0].task) == (index, task)
    with pytest.raises(ExplainedError, match=said):
        run.question(view, view.items[0])


@pytest.mark.parametrize(
    "line",
    [
        *('{"update": 2, "rollout/iou": "high"}', '{"update": 2, "rollout/iou": [1]}'),
        *('{"update": 2, "rollout/iou": 1e999}', '{"update": 2, "rollout/iou": NaN}'),
        '{"update": 2, "rollout/iou": 1' + "0" * 400 + "}",
        '{"update": 2, "rollout/reward/$\\\\frac{$": 1}',
        *("nonsense", "[1]", '{"update": 1' + "0" * 400 + "}", '{"update": null}'),
    ],
)
def test_metrics_that_cannot_be_drawn_are_left_out(copy, line):
    path = copy / "metrics.jsonl"
    path.write_text(f"{line}\n{path.read_text()}")
    run = RunFolder(copy)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        rows, said = run.curves()
        for title in panels_of(rows):
            draw_curves(rows, title)
    assert not warned
    assert ("1 lines are no rows of metrics" in said) == (
        line in ("nonsense", "[1]", '{"update": null}')
    )
    assert [row["update"] for row in rows if "rollout/iou" in row] == [1, 2, 3]


def test_metrics_that_are_too_many_are_said(copy):
    with (copy / "metrics.jsonl").open("wb") as file:
        file.truncate(1 << 40)
    rows, said = RunFolder(copy).curves()
    assert rows == []
    assert said.endswith("bytes, and at most 33554432 are read")


def test_lines_of_rollouts_that_are_malformed_are_counted(copy):
    path = copy / "rollouts" / "update_000001.jsonl"
    head, first, *rest = path.read_text().splitlines()
    rows = [head.replace("4", "9"), first, "nonsense", *rest]
    path.write_text("".join(f"{row}\n" for row in rows))
    view = RunFolder(copy).view("update 1")
    assert len(view.items) == 4
    assert view.note == (
        "4 of 9 groups were too much to be kept; 1 line of update_000001.jsonl could not be read"
    )
