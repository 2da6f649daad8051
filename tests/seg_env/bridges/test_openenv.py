"""OpenEnv's own client finishes episodes against our server, and earns what env.step gives."""

import asyncio
import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import uvicorn
import yaml
from openenv.cli._validation import validate_running_environment
from openenv.core import GenericEnvClient
from PIL import Image
from websockets.sync.client import connect

import seg_env.bridges.openenv
from seg_env.bridges.openenv.client import OutlineAction, OutlineClient
from seg_env.bridges.openenv.server import VARIABLE, make_app

FOLDER = Path(seg_env.bridges.openenv.__file__).parent
ANSWERS = ["[[[0.1,0.1],[0.6,0.1],[0.6,0.7]]]", "[]", "no outline", "[[[0.2,0.2],[0.9,0.2]"]
SETTINGS = {"size": 64, "rewards": "mask_iou=1.0 format=0.1"}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def served(**arguments):
    config = uvicorn.Config(make_app(**arguments), port=free_port(), log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{config.port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def address():
    with served(splits=["val", "train"], sessions=40, **SETTINGS) as found:
        yield found


def picture(url):
    kind, _, data = url.partition(",")
    assert kind == "data:image/png;base64"
    return np.array(Image.open(io.BytesIO(base64.b64decode(data))))


def post(url, body):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


@pytest.mark.parametrize("split", ["val", "train"])
def test_episodes_are_those_of_the_environment(address, split):
    env = gym.make("SimpleSeg-Scenes-v0", split=split, **SETTINGS)
    with OutlineClient(base_url=address).sync() as client:
        for index, answer in enumerate(ANSWERS):
            observation, info = env.reset(options={"index": index})
            asked = client.reset(split=split, index=index, episode_id=f"number {index}")
            assert asked.observation.prompt == observation["prompt"]
            assert (picture(asked.observation.image) == observation["image"]).all()
            assert asked.observation.metadata == info
            assert not asked.done
            assert asked.reward is None
            _, reward, terminated, truncated, info = env.step(answer)
            result = client.step(OutlineAction(text=answer))
            assert (result.reward, result.done) == (reward, terminated)
            assert result.observation.reward == reward
            assert result.observation.metadata == {**info, "truncated": truncated}
            assert result.observation.image == ""
            state = client.state()
            assert (state.episode_id, state.step_count) == (f"number {index}", 1)


def test_seeds_draw_what_they_draw_in_the_environment(address):
    env = gym.make("SimpleSeg-Scenes-v0", split="val", **SETTINGS)
    with OutlineClient(base_url=address).sync() as client:
        for seed in (3, None, None):  # without a seed the generator goes on
            info = env.reset(seed=seed)[1]
            given = {} if seed is None else {"seed": seed}
            assert client.reset(**given).observation.metadata == info


def test_episodes_of_several_turns_show_the_outline():
    with (
        served(env_id="SimpleSegRefine-Scenes-v0", splits=["val"], **SETTINGS) as address,
        OutlineClient(base_url=address).sync() as client,
    ):
        env = gym.make("SimpleSegRefine-Scenes-v0", split="val", **SETTINGS)
        env.reset(options={"index": 2})
        client.reset(index=2)
        for action in (ANSWERS[0], "move 0 0.2 0.2", "done"):
            observation, reward, terminated, _, _ = env.step(action)
            result = client.step(OutlineAction(text=action))
            assert (result.reward, result.done) == (reward, terminated)
            assert result.observation.prompt == observation["prompt"]
            if not terminated:
                assert (picture(result.observation.image) == observation["image"]).all()


def test_episodes_by_vertices_have_the_outline_so_far():
    with (
        served(splits=["val"], step_mode="vertex", **SETTINGS) as address,
        OutlineClient(base_url=address).sync() as client,
    ):
        env = gym.make("SimpleSeg-Scenes-v0", split="val", step_mode="vertex", **SETTINGS)
        outline = env.reset(options={"index": 0})[0]["outline"]
        assert client.reset(index=0).observation.outline == outline
        result = client.step(OutlineAction(text="[0.1,0.1]"))
        assert "[0.1,0.1]" in result.observation.outline
        assert not result.done


def test_32_sessions_at_once_keep_apart(address):
    env = gym.make("SimpleSeg-Scenes-v0", split="val", **SETTINGS)
    expected = []
    for number in range(32):
        env.reset(options={"index": number})
        expected.append(env.step(ANSWERS[number % 4])[1])
    everybody_has_asked = asyncio.Barrier(32)

    async def episode(number):
        async with OutlineClient(base_url=address) as client:
            asked = await client.reset(index=number)
            await everybody_has_asked.wait()
            result = await client.step(OutlineAction(text=ANSWERS[number % 4]))
            return asked.observation.metadata["index"], result.reward

    async def all_of_them():
        return await asyncio.gather(*map(episode, range(32)))

    assert asyncio.run(all_of_them()) == list(enumerate(expected))


def test_the_generic_client_needs_nothing_of_ours(address):
    with GenericEnvClient(base_url=address).sync() as client:
        asked = client.reset(index=1)
        assert asked.observation["prompt"]
        assert client.step({"text": "[]"}).done


def test_tasks_are_listed_by_split(address):
    dataset = gym.make("SimpleSeg-Scenes-v0", split="val", **SETTINGS).unwrapped.dataset
    base = f"{address}/SimpleSeg-Scenes-v0"
    with urllib.request.urlopen(f"{base}/splits", timeout=60) as reply:
        assert [each["name"] for each in json.load(reply)] == ["val", "train"]
    assert post(f"{base}/num_tasks", {"split": "val"})["num_tasks"] == len(dataset)
    task = post(f"{base}/task", {"split": "val", "index": 5})["task"]
    assert task["id"] == dataset[5].id
    assert task["expression"] == dataset[5].expression
    found = post(f"{base}/task_range", {"split": "val", "start": -3, "stop": None})["tasks"]
    assert [each["index"] for each in found] == [len(dataset) - 3 + k for k in range(3)]
    assert len(post(f"{base}/tasks", {"split": "train"})["tasks"]) == 1000
    for index in (-1, len(dataset)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(f"{base}/task", {"split": "val", "index": index})
        assert caught.value.code == 400


def raw(connection, kind, **data):
    connection.send(json.dumps({"type": kind, "data": data}))
    return json.loads(connection.recv())


def test_what_is_wrong_is_said_and_the_session_goes_on(address):
    with connect(address.replace("http", "ws") + "/ws") as connection:
        for kind, data, complaint in (
            ("step", {"text": "[]"}, "reset first"),
            ("reset", {"split": "holdout"}, "no split 'holdout'; use one of val, train"),
            ("reset", {"index": 10**9}, "use 0 to"),
            ("reset", {"index": "0"}, "use a whole number"),
            ("reset", {"data_root": "/etc"}, "unknown arguments of reset: ['data_root']"),
            ("reset", {"seed": "x"}, "python integer"),
            ("step", {"text": 5}, "Invalid message"),
            ("step", {"text": "[]", "reward": 1}, "Invalid message"),
            ("jump", {}, "Unknown message type"),
        ):
            said = raw(connection, kind, **data)
            assert said["type"] == "error"
            assert complaint in json.dumps(said["data"])
        connection.send("{")
        assert json.loads(connection.recv())["type"] == "error"
        assert raw(connection, "reset", index=0)["type"] == "observation"
        hostile = "[" * 1_000_000 + "\ud800"
        assert raw(connection, "step", text=hostile)["data"]["reward"] == 0
        assert raw(connection, "step", text="[]")["type"] == "error"  # the episode has ended


def test_more_sessions_than_allowed_are_turned_away():
    with served(splits=["val"], sessions=1, **SETTINGS) as address:
        socket_address = address.replace("http", "ws") + "/ws"
        with connect(socket_address) as first:
            assert raw(first, "reset", index=0)["type"] == "observation"
            with connect(socket_address) as second:
                assert "CAPACITY" in json.loads(second.recv())["data"]["code"]


def test_openenvs_own_validation_passes(address):
    report = validate_running_environment(address)
    assert report["passed"], report


def test_the_server_starts_as_the_files_of_a_deployment_say():
    config = yaml.safe_load((FOLDER / "openenv.yaml").read_text())
    module, _, name = config["app"].partition(":")
    assert (module, name) == ("seg_env.bridges.openenv.server", "app")
    assert f'"{module}"' in (FOLDER / "Dockerfile").read_text()
    port = free_port()
    settings = {"splits": ["test"], "size": 64, "rewards": "mask_iou=1"}
    with subprocess.Popen(
        [sys.executable, "-m", module, "--port", str(port)],
        env=os.environ | {VARIABLE: json.dumps(settings)},
    ) as process:
        try:
            for _ in range(600):
                try:
                    with socket.create_connection(("127.0.0.1", port)):
                        break
                except ConnectionRefusedError:
                    assert process.poll() is None
                    time.sleep(0.1)
            with OutlineClient(base_url=f"http://127.0.0.1:{port}").sync() as client:
                assert client.reset(index=0).observation.metadata["dataset"] == "scenes-easy"
                result = client.step(OutlineAction(text=ANSWERS[0]))
                assert result.reward == result.observation.metadata["iou"]
        finally:
            process.terminate()


def test_the_server_needs_no_torch(tmp_path):
    """As its container has none."""
    (tmp_path / "torch.py").write_text("raise AssertionError('imported')")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])])
    words = [sys.executable, "-c", "import seg_env.bridges.openenv.server"]
    subprocess.run(words, check=True, env=os.environ | {"PYTHONPATH": path})


def test_the_client_in_the_documentation_runs(address, capsys):
    page = Path(__file__).parents[3].joinpath("docs/trainers.md").read_text("utf-8")
    (block,) = re.findall(r"^```python\n(from seg_env.bridges.openenv.*?)^```", page, re.M | re.S)
    exec(compile(block.replace("http://127.0.0.1:8000", address), "trainers.md", "exec"), {})
    assert "data:image/png;base64," in capsys.readouterr().out
