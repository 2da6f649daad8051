"""The folder of a run: its configuration, its metrics, and what an interruption leaves."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.common.logs import (
    RunInUseError,
    RunLog,
    keep_latest,
    locked,
    read_metrics,
    start_run,
    write_atomically,
    write_json,
)
from experiments.common.trackers import TensorBoard


@dataclass
class Inner:
    rate: float = 0.1


@dataclass
class Config:
    inner: Inner = field(default_factory=Inner)
    deepspeed: str | None = None
    rewards: tuple[str, ...] = ("mask_iou=1.0",)
    output_dir: Path = Path("somewhere")
    resume: bool = False


def test_a_new_run_records_its_configuration(tmp_path):
    start_run(tmp_path / "run", Config(), resume=False)
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {
        "inner": {"rate": 0.1},
        "deepspeed": None,
        "rewards": ["mask_iou=1.0"],
        "output_dir": "somewhere",
    }


def test_a_run_is_never_overwritten_by_accident(tmp_path):
    start_run(tmp_path, Config(), resume=False)
    with pytest.raises(FileExistsError, match=r"holds a run already.*--resume.*--output-dir"):
        start_run(tmp_path, Config(), resume=False)


def test_a_run_is_resumed_with_the_same_configuration_only(tmp_path):
    start_run(tmp_path, Config(), resume=False)
    start_run(tmp_path, Config(resume=True), resume=True)
    changed = Config(Inner(0.2), rewards=("format=1",))
    with pytest.raises(ValueError, match=r"other values of inner.rate \(0.1, now 0.2\), rewards"):
        start_run(tmp_path, changed, resume=True)


def test_a_resumed_run_may_share_out_the_work_in_another_way(tmp_path):
    start_run(tmp_path, Config(), resume=False)
    start_run(tmp_path, Config(deepspeed="zero2", resume=True), resume=True)


def test_resuming_what_was_never_started_starts_it(tmp_path):
    start_run(tmp_path / "run", Config(), resume=True)
    assert (tmp_path / "run" / "config.json").exists()


def log_updates(folder, updates, start=0):
    log = RunLog(folder, [TensorBoard(folder, {}, start)], start=start)
    for update in updates:
        log.write(update, {"train/loss": update / 10})
    log.close()


def updates_of(folder):
    return [row["update"] for row in read_metrics(folder)]


def test_metrics_are_one_line_of_json_for_each_update(tmp_path):
    log_updates(tmp_path, [1, 2])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"update": 1, "train/loss": 0.1},
        {"update": 2, "train/loss": 0.2},
    ]


def test_metrics_are_on_disk_before_the_run_ends(tmp_path):
    log = RunLog(tmp_path, [])
    log.write(1, {"train/loss": 0.5})
    assert updates_of(tmp_path) == [1]
    log.close()


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path):
    log_updates(tmp_path, [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 3, "train/lo')
    assert updates_of(tmp_path) == [1, 2]
    log_updates(tmp_path, [3], start=2)
    assert updates_of(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize(
    "garbage",
    [
        *(b"\x00\x00\x00", b"{broken", b"[1]", b'{"loss": 1}', b"\xff\xfe", b""),
        *(b'{"update": null}', b'{"update": "3"}', b'{"update": Infinity}'),
    ],
)
def test_a_line_of_garbage_is_named_and_costs_no_later_row(garbage, tmp_path):
    log_updates(tmp_path, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    first, *rest = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([first, garbage, *rest]))
    with pytest.warns(UserWarning, match=r"metrics.jsonl: 1 lines are no rows .* line 2"):
        assert updates_of(tmp_path) == [1, 2, 3]
    with pytest.warns(UserWarning, match="line 2"):
        log_updates(tmp_path, [4], start=3)
    assert updates_of(tmp_path) == [1, 2, 3, 4]


@pytest.mark.parametrize("text", ['{"inner": {"ra', "", "[1]", "[" * 100_000, "\x00"])
def test_a_damaged_configuration_is_named_and_written_anew(text, tmp_path):
    start_run(tmp_path, Config(), resume=False)
    whole = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FileExistsError, match="holds a run already"):
        start_run(tmp_path, Config(), resume=False)
    with pytest.warns(UserWarning, match=r"config.json is damaged and is not used"):
        start_run(tmp_path, Config(resume=True), resume=True)
    assert (tmp_path / "config.json").read_text() == whole


HOLD = """
import sys, time
from pathlib import Path
from experiments.common.logs import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(100)
"""


def test_a_folder_is_one_process_at_a_time_and_free_when_that_is_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"locked\n"
        told = rf"{tmp_path} is in use by process {holder.pid} on \S+: wait .* --output-dir"
        for _ in range(2):  # being refused does not take the name away
            with pytest.raises(RunInUseError, match=told), locked(tmp_path):
                pass
    finally:
        holder.kill()
        holder.wait()
    with locked(tmp_path):
        assert f"process {os.getpid()} on " in (tmp_path / "run.lock").read_text()
    with locked(tmp_path):  # again in the same process, as the stages of a pipeline may
        pass


def test_lines_of_work_that_was_lost_are_dropped(tmp_path):
    log_updates(tmp_path, [1, 2, 3, 4])
    log_updates(tmp_path, [3, 4, 5], start=2)  # the last checkpoint was that of update 2
    assert updates_of(tmp_path) == [1, 2, 3, 4, 5]


def test_a_run_without_metrics_has_none(tmp_path):
    assert read_metrics(tmp_path) == []


def test_tensorboard_shows_the_same_numbers(tmp_path):
    log_updates(tmp_path, [1, 2, 3])
    time.sleep(1.1)  # TensorBoard reads files in the order of the second in their names
    log_updates(tmp_path, [3, 4], start=2)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert shown == [(step, pytest.approx(step / 10)) for step in (1, 2, 3, 4)]


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new" / "scores.json"
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    write_atomically(path, "text")
    assert path.read_text() == "text"
    assert [each.name for each in path.parent.iterdir()] == ["scores.json"]


def test_only_the_last_checkpoints_are_kept(tmp_path):
    kept = {"update_999995", "update_1000000", "update_1000005.partial"}
    for name in {"update_999990", *kept}:
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    keep_latest(tmp_path)  # the one that is being written does not count
    assert {path.name for path in tmp_path.iterdir()} == kept
