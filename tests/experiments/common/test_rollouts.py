"""Rollouts that a run keeps: which, what of them, and how files of others are read."""

import json
import os

import numpy as np
import pytest
import tyro
from short_runs import run_on_two_ranks, timeless

from agents.gspo import GSPO
from experiments import run_gspo, run_ppo
from experiments.common import rollouts
from experiments.common.rollouts import RolloutKeeper, read_rollout, rollout_files
from seg_env.envs.referring import open_rules
from seg_env.errors import ExplainedError, WrongOptionError

RUNS = {"gspo": run_gspo, "ppo": run_ppo}


def words_of(name, policy, folder, *more, updates=3):
    return [
        *("--policy", str(policy), "--precision", "float32", "--output-dir", str(folder)),
        *("--seed", "3", "--updates", str(updates), "--checkpoint-every", "1"),
        *(f"--{name}.prompts-per-update", "2", f"--{name}.group-size", "3"),
        *(f"--{name}.max-new-tokens", "40", f"--{name}.learning-rate", "1e-3"),
        *("--evaluation.questions", "2", "--evaluation.answers", "1", "--evaluation.every", "0"),
        *("--difficulty", "easy", "--negatives", "0", "--rollouts-every", "1", *more),
    ]


def run(name, *given, **more):
    RUNS[name].main(tyro.cli(RUNS[name].Args, args=words_of(name, *given, **more)))
    return given[1]


@pytest.fixture(scope="module")
def finished(policy_folder, tmp_path_factory):
    return run("gspo", policy_folder, tmp_path_factory.mktemp("runs") / "finished")


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / "rollouts").iterdir()}


def groups_in(folder):
    files = rollout_files(folder / "rollouts")
    return {update: read_rollout(path).groups for update, path in files.items()}


@pytest.mark.parametrize(("every", "most"), [(1, 2), (1, 7), (10, 2), (10, 5), (10, 32), (3, 4)])
def test_first_and_newest_are_always_kept_and_the_others_lie_evenly(every, most):
    keeper = RolloutKeeper(None, 1005, every, most)
    there = set()
    for update in range(1, 1006):
        if update in (1, 1005) or update % every == 0:
            kept = keeper.kept_after(update)
            assert kept <= there | {update}, "nothing comes back that was thinned out"
            there = kept
            assert {1, update} <= kept
            assert len(kept) <= most
            between = sorted(kept - {1, update})
            assert len(set(np.diff(between))) <= 1
    assert len(kept) > most / 2 - 1


@pytest.mark.parametrize(("every", "most", "named"), [(-1, 4, "every -1"), (1, 1, "kept 1")])
def test_bounds_that_cannot_be_are_a_sentence(every, most, named):
    with pytest.raises(WrongOptionError, match=f"--rollouts-{named}: "):
        RolloutKeeper(None, 10, every, most)


@pytest.mark.parametrize("name", RUNS)
def test_what_is_kept_is_what_was_answered_and_credited(name, finished, policy_folder, tmp_path):
    folder = finished if name == "gspo" else run(name, policy_folder, tmp_path / name)
    found, rules = groups_in(folder), open_rules("SimpleSeg-Scenes-v0")
    assert list(found) == [1, 2, 3]
    (first, *_), metrics = found.values(), timeless(folder)
    answers = [answer for group in first for answer in group.answers]
    for key, name_of in (("reward", "reward"), ("iou", "iou"), ("tokens", "tokens")):
        mean = np.mean([getattr(answer, name_of) for answer in answers])
        assert mean == pytest.approx(metrics[0][f"rollout/{key}"], abs=1e-5)
    cut_off = np.mean(["limit reached" in answer.faults for answer in answers])
    assert cut_off == pytest.approx(metrics[0]["rollout/truncated"])
    for groups in found.values():
        assert len(groups) == 2
        for group in groups:
            question = rules.ask(group.index)
            assert (group.sample, group.prompt) == (question.sample.id, question.prompt)
            texts = [answer.text for answer in group.answers]
            scores = rules.score(texts, [question] * 3)
            for row, answer in enumerate(group.answers):
                scored = scores.answer(row)
                assert answer.iou == pytest.approx(scored.iou, abs=1e-6)
                assert answer.rewards == pytest.approx(scored.terms, abs=1e-6)
                kinds = scored.prediction.issue_kinds
                assert tuple(each for each in answer.faults if each != "limit reached") == kinds
    if name == "gspo":
        sums = [sum(answer.advantage for answer in group.answers) for group in first]
        assert sums == pytest.approx([0, 0], abs=1e-5)
    assert len({answer.advantage for answer in answers}) > 2


def test_a_run_that_was_interrupted_ends_with_the_same_bytes(
    finished, policy_folder, tmp_path, monkeypatch
):
    class Tired(GSPO):
        """Is interrupted when its second update is kept, before that is in a checkpoint."""

        def improve(self, updates):
            metrics = super().improve(updates)
            if self.update == 1:
                raise KeyboardInterrupt
            return metrics

    folder = tmp_path / "half"
    monkeypatch.setattr("agents.gspo.GSPO", Tired)
    with pytest.raises(SystemExit):
        run("gspo", policy_folder, folder)
    assert list(rollout_files(folder / "rollouts")) == [1, 2]
    monkeypatch.undo()
    # What another process wrote of later updates, and half a file, are gone in the end.
    (folder / "rollouts" / "update_000009.jsonl").write_text("{}\n")
    (folder / "rollouts" / "update_000003.jsonl.partial").write_text('{"upd')
    run("gspo", policy_folder, folder, "--resume")
    assert contents(folder) == contents(finished)


def test_what_is_learned_does_not_depend_on_what_is_kept(finished, policy_folder, tmp_path):
    folder = run("gspo", policy_folder, tmp_path / "none", "--rollouts-every", "0")
    assert not (folder / "rollouts").exists()
    assert timeless(folder) == timeless(finished)


def test_a_resumed_run_may_keep_others(policy_folder, tmp_path):
    folder = run("gspo", policy_folder, tmp_path / "run")
    run("gspo", policy_folder, folder, "--resume", "--rollouts-every", "7")


def test_of_a_large_rollout_the_first_groups_are_kept(
    finished, policy_folder, tmp_path, monkeypatch
):
    whole = (finished / "rollouts" / "update_000001.jsonl").stat().st_size
    monkeypatch.setattr(rollouts, "MOST_BYTES", whole - 1)
    folder = run("gspo", policy_folder, tmp_path / "small", updates=1)
    path = folder / "rollouts" / "update_000001.jsonl"
    assert path.stat().st_size < whole
    monkeypatch.undo()
    kept = read_rollout(path)
    assert (len(kept.groups), kept.made, kept.malformed) == (1, 2, 0)
    assert kept.groups == groups_in(finished)[1][:1]


def test_turns_are_kept_with_the_outlines_that_they_led_to(policy_folder, tmp_path):
    refine = ("--env", "SimpleSegRefine-Scenes-v0", "--turns", "2")
    (groups,) = groups_in(run("gspo", policy_folder, tmp_path / "run", *refine, updates=1)).values()
    assert len(groups) == 4
    assert all(answer.outline is not None for group in groups for answer in group.answers)


def test_one_rank_writes_the_groups_of_both(policy_folder, tmp_path):
    alone = run("gspo", policy_folder, tmp_path / "one", "--gspo.minibatches", "1", updates=1)
    words = words_of("gspo", policy_folder, tmp_path / "two", "--gspo.minibatches", "1", updates=1)
    run_on_two_ranks("run_gspo.py", *words)
    one, two = (
        [(group.sample, [answer.text for answer in group.answers]) for group in groups_in(each)[1]]
        for each in (alone, tmp_path / "two")
    )
    assert one == two


ANSWER = {
    **{"text": "[]", "outline": None, "reward": 0.5, "advantage": 0.1, "iou": 0.0},
    **{"rewards": {"mask_iou": 0.0}, "vertices": 0, "tokens": 3, "faults": []},
}
GROUP = {"index": 3, "sample": "s", "task": "text->mask", "prompt": "p", "answers": [ANSWER] * 2}


def changed(value, *path):
    """The line of a group in which something is another value."""
    row = json.loads(json.dumps(GROUP))
    *outer, last = path
    place = row
    for key in outer:
        place = place[key]
    place[last] = value
    return json.dumps(row).encode()


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"{", b"[1]", b"null", b"\xff\xfe", b"\x00", b"[" * 100_000, b"1" * 5000),
        *(changed(value, "index") for value in (-1, 1.0, "3", None, True, 10**30)),
        *(changed(value, "prompt") for value in (None, 3, ["p"])),
        *(changed(value, "answers") for value in ([], {}, 3, "ab", [None], [ANSWER] * 1025)),
        *(changed(value, "answers", 0, "reward") for value in ("1", None, True, 10**400)),
        *(changed(value, "answers", 0, "rewards") for value in ([1], {"a": "1"}, 3)),
        *(changed(value, "answers", 0, "faults") for value in (3, [3])),
        changed(3, "answers", 0, "outline"),
        changed(1e308, "answers", 0, "tokens"),
    ],
)
def test_a_line_that_is_no_group_is_counted_and_costs_no_other(line, tmp_path):
    path, whole = tmp_path / "update_000001.jsonl", json.dumps(GROUP).encode()
    path.write_bytes(b"\n".join([b'{"update": 1, "groups": 3}', whole, line, whole, b""]))
    found = read_rollout(path)
    assert (len(found.groups), found.made, found.malformed) == (2, 3, 1)
    assert found.groups[0].answers[0].rewards == {"mask_iou": 0.0}


@pytest.mark.parametrize(
    "first", ["", "{}", "3", '{"groups": "x"}', '{"groups": 1e999}', "[" * 9999]
)
def test_a_first_line_that_says_nothing_is_counted(first, tmp_path):
    path = tmp_path / "update_000001.jsonl"
    path.write_text(f"{first}\n{json.dumps(GROUP)}\n")
    found = read_rollout(path)
    assert (len(found.groups), found.made, found.malformed) == (1, 1, 1)


def test_half_a_line_is_not_read(tmp_path):
    path, whole = tmp_path / "update_000001.jsonl", json.dumps(GROUP)
    path.write_text(f'{{"update": 1, "groups": 2}}\n{whole}\n{whole[:-9]}')
    found = read_rollout(path)
    assert (len(found.groups), found.made, found.malformed) == (1, 2, 0)


def test_a_file_is_refused_by_its_size_before_it_is_read(tmp_path):
    path = tmp_path / "update_000001.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ExplainedError, match="1099511627776 bytes, and at most 2097152 are read"):
        read_rollout(path)


def test_only_files_of_updates_are_listed(tmp_path):
    names = [
        "update_000002.jsonl",
        "update_000010.jsonl",
        "update_1.jsonl",
        "update_000003.jsonl.x",
    ]
    for name in (*names, "update_00000٣.jsonl", "update_99999999999999.jsonl"):
        (tmp_path / name).write_text("")
    (tmp_path / "update_000004.jsonl").mkdir()
    os.mkfifo(tmp_path / "update_000005.jsonl")
    (tmp_path / "update_000006.jsonl").symlink_to("/dev/zero")
    assert list(rollout_files(tmp_path)) == [2, 10]
    with pytest.raises(ExplainedError, match=r"update_000005\.jsonl is no file"):
        read_rollout(tmp_path / "update_000005.jsonl")
