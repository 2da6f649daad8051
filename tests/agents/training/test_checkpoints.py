"""Checkpoints are whole or absent, and hold no code."""

import hashlib
import json
import os
import pickle

import pytest
import torch
from agents_fixtures import (
    OUTLINES_ONLY,
    parameters_of,
    same_parameters,
    scene_demonstrations,
    small_policy,
)

from agents.behavior_cloning import BehaviorCloning, BehaviorCloningConfig
from agents.training.checkpoints import (
    DamagedCheckpointError,
    latest_checkpoint,
    read_checkpoint,
    require_whole,
    write_checkpoint,
    write_policy,
)

TENSORS = {"optimizer": [{"state": {0: {"step": torch.tensor(3.0)}}, "lr": 0.1}]}
FACTS = {"update": 3, "indices": {"state": 2**100}}


@pytest.fixture(scope="module")
def policy():
    return small_policy()


def write(folder, policy, update):
    path = folder / f"update_{update:06d}"
    write_checkpoint(path, policy, TENSORS, FACTS | {"update": update})
    return path


def test_what_was_written_is_read(policy, tmp_path):
    path = write(tmp_path, policy, 3)
    other = small_policy(seed=1)
    assert not same_parameters(other, policy)
    tensors, facts = read_checkpoint(path, other)
    assert same_parameters(other, policy)
    assert facts == FACTS
    assert tensors["optimizer"][0]["lr"] == 0.1
    assert torch.equal(tensors["optimizer"][0]["state"][0]["step"], torch.tensor(3.0))


def test_a_checkpoint_is_replaced_by_a_newer_one_of_the_same_name(policy, tmp_path):
    write_checkpoint(tmp_path / "last", policy, TENSORS, {"update": 1})
    write_checkpoint(tmp_path / "last", policy, TENSORS, {"update": 2})
    assert read_checkpoint(tmp_path / "last", small_policy())[1] == {"update": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")
def test_whoever_may_enter_the_folder_may_read_the_policy(policy, tmp_path):
    write_policy(tmp_path / "policy", policy)
    modes = {
        file.name: oct(file.stat().st_mode & 0o666) for file in (tmp_path / "policy").iterdir()
    }
    assert set(modes.values()) == {oct((tmp_path / "policy").stat().st_mode & 0o666)}


def fail_half_way(tensors, path):
    """What a full disk does to torch.save: some bytes arrive, then none."""
    path.write_bytes(b"half of a file")
    raise OSError(28, "No space left on device", str(path))


def test_a_full_disk_leaves_the_previous_checkpoint_whole(policy, tmp_path, monkeypatch):
    first = write(tmp_path, policy, 1)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail_half_way)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path, small_policy(seed=1), 2)
    assert latest_checkpoint(tmp_path) == first
    restored = small_policy(seed=2)
    assert read_checkpoint(first, restored)[1]["update"] == 1
    assert same_parameters(restored, policy)
    # Once there is room again, the next attempt works in spite of what was left behind.
    second = write(tmp_path, policy, 2)
    assert latest_checkpoint(tmp_path) == second
    assert {path.name for path in tmp_path.iterdir()} == {first.name, second.name}


def test_a_failure_while_replacing_leaves_the_old_one(policy, tmp_path, monkeypatch):
    path = write(tmp_path, policy, 1)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail_half_way)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path, small_policy(seed=1), 1)
    restored = small_policy(seed=2)
    read_checkpoint(path, restored)
    assert same_parameters(restored, policy)


def test_the_latest_is_the_highest_update_that_is_whole(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "missing") is None
    for name in ("update_000009", "update_000010", "update_1000000.partial", "update_x", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    (tmp_path / "update_000011").mkdir()  # interrupted by other means: it has no state.json
    assert latest_checkpoint(tmp_path) == tmp_path / "update_000010"


def test_a_folder_that_is_no_checkpoint_is_named(policy, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} is not a checkpoint"):
        read_checkpoint(tmp_path, policy)


def test_the_state_is_read_without_running_code(policy, tmp_path):
    path = write(tmp_path, policy, 1)
    assert torch.load(path / "state.pt", weights_only=True).keys() == TENSORS.keys()
    assert json.loads((path / "state.json").read_text())["update"] == 1
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return marker.touch, ()

    torch.save({"optimizer": Payload()}, path / "state.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        read_checkpoint(path, small_policy())
    assert not marker.exists()


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "policy/model.safetensors": flip_a_byte,
    "state.pt": lambda path: path.write_bytes(bytes(4096) + path.read_bytes()[4096:]),
    "state.json": lambda path: path.write_text(path.read_text()[:-9]),
    "manifest.json": lambda path: path.write_text("[1"),
    "policy/config.json": lambda path: path.unlink(),
    "policy/tokenizer.json": lambda path: path.write_bytes(path.read_bytes() + b" "),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_checkpoint_that_is_not_what_was_written_is_named_and_changes_nothing(name, tmp_path):
    policy = small_policy()
    demonstrations = scene_demonstrations(policy.processor, 4)
    config = BehaviorCloningConfig(batch_size=2, **OUTLINES_ONLY)
    agent = BehaviorCloning(policy, demonstrations, config)
    agent.learn(1)
    agent.save(tmp_path / "last")
    require_whole(tmp_path / "last")
    DAMAGES[name](tmp_path / "last" / name)
    other = BehaviorCloning(small_policy(seed=1), demonstrations, agent.config)
    before = parameters_of(other.policy)
    with pytest.raises(DamagedCheckpointError, match=f"{tmp_path}/last is damaged: .*{name}"):
        other.load(tmp_path / "last")
    assert other.update == 0
    assert all(torch.equal(one, before[key]) for key, one in parameters_of(other.policy).items())


def test_the_manifest_has_every_other_file_and_is_written_last(policy, tmp_path):
    path = write(tmp_path, policy, 1)
    recorded = json.loads((path / "manifest.json").read_text())
    there = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    assert there - {*recorded} == {"manifest.json"}
    state = (path / "state.json").read_bytes()
    assert recorded["state.json"] == {
        "bytes": len(state),
        "sha256": hashlib.sha256(state).hexdigest(),
    }
    times = {name: (path / name).stat().st_mtime_ns for name in there}
    assert max(times.values()) == times["manifest.json"]


def test_a_checkpoint_of_an_earlier_version_has_no_manifest_and_is_read(policy, tmp_path):
    path = write(tmp_path, policy, 1)
    (path / "manifest.json").unlink()
    require_whole(path)


def test_names_that_are_no_numbers_are_no_checkpoints(tmp_path):
    for name in ("update_²", "update_٣", "update_-1", "update_1.damaged", "update_7"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    (tmp_path / "update_8").write_text("a file")
    assert latest_checkpoint(tmp_path) == tmp_path / "update_7"
