"""verifiers' own runner finishes episodes of our taskset, and earns what env.step gives."""

import base64
import io
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

from seg_env.bridges.verifiers import OutlineTaskConfig, OutlineTaskset, OutlineTasksetConfig
from seg_env.grammar import encode

SPEC = "mask_iou=1.0 format=0.1"
ANSWERS = ["[[[0.1,0.1],[0.6,0.1],[0.6,0.7]]]", "It is at [[[0,0],[1,0],[1,1]]].", "no", ""]


def environment(**arguments):
    return gym.make("SimpleSeg-Scenes-v0", split="val", size=64, rewards=SPEC, **arguments)


def taskset(task="text->mask", **scored):
    config = OutlineTasksetConfig(
        split="val",
        arguments={"size": 64, "task": task},
        task=OutlineTaskConfig(spec=SPEC, **scored),
    )
    return OutlineTaskset(config)


def seen(parts):
    """The image and the text of a message with one of each."""
    (url,) = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    (text,) = [part["text"] for part in parts if part["type"] == "text"]
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    return np.array(Image.open(io.BytesIO(data))), text


class ScriptedModel(BaseHTTPRequestHandler):
    """A server of chat completions that knows the outline of everything that it is asked."""

    protocol_version = "HTTP/1.1"
    outlines = {}  # noqa: RUF012
    asked = []  # noqa: RUF012

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        image, text = seen(body["messages"][-1]["content"])
        self.asked.append((image, text))
        message = {"role": "assistant", "content": self.outlines[text, image.tobytes()]}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        if body.get("stream"):
            delta = {"index": 0, "finish_reason": "stop", "delta": message}
            chunk = {"object": "chat.completion.chunk", "choices": [delta]}
            reply, kind = f"data: {self.filled(chunk)}\n\ndata: [DONE]\n\n", "text/event-stream"
        else:
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            answer = {"object": "chat.completion", "choices": [choice], "usage": usage}
            reply, kind = self.filled(answer), "application/json"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply.encode())

    def filled(self, found):
        return json.dumps({"id": "0", "created": 0, "model": "scripted", **found})

    def log_message(self, format, *args):
        pass


@pytest.fixture
def model():
    server = ThreadingHTTPServer(("127.0.0.1", 0), ScriptedModel)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_prompts_are_the_questions_of_the_environment():
    env = environment()
    for index, task in zip(range(3), taskset(), strict=False):
        observation, info = env.reset(options={"index": index})
        (message,) = task.data.prompt
        image, text = seen([part.model_dump() for part in message.content])
        assert (image == observation["image"]).all()
        assert text == observation["prompt"]
        assert (task.data.id, task.data.idx) == (info["sample_id"], index)
        again = type(task)(type(task.data).model_validate_json(task.data.model_dump_json()))
        assert again.hash == task.hash


@pytest.mark.parametrize(
    ("task", "scored"),
    [
        ("text->mask", {}),
        ("text->mask", {"frame": "qwen2.5-vl", "image_size": 96}),
        ("text->bbox", {"frame": "permille"}),
        ("text->point=0.5 text->mask=0.5", {}),
    ],
)
def test_scores_are_those_of_the_environment(task, scored):
    env = environment(task=task, **scored)
    for index, one in zip(range(4), taskset(task, **scored), strict=False):
        env.reset(options={"index": index})
        _, reward, _, _, info = env.step(ANSWERS[index])
        trace = type("Trace", (), {"last_reply": ANSWERS[index]})
        found = one._score(trace)
        assert found.pop("total") == reward
        assert found == {name: float(info[name]) for name in found}
        assert {"iou", "valid", "reward/mask_iou", "reward/format"} == found.keys()


def test_verifiers_own_runner_finishes_episodes(model, tmp_path):
    (tmp_path / "outlines.py").write_text(
        "from seg_env.bridges.verifiers import OutlineTaskset\n\n__all__ = ['OutlineTaskset']\n"
    )
    env, expected = environment(), {}
    for index in range(4):
        observation, info = env.reset(options={"index": index})
        target = env.unwrapped.dataset[index].target
        text = encode(target.outline(0.01)) if index else "I do not know"
        ScriptedModel.outlines[observation["prompt"], observation["image"].tobytes()] = text
        _, reward, _, _, info = env.step(text)
        expected[info["sample_id"]] = reward, info["iou"]
    root = Path(__file__).parents[3]
    ran = subprocess.run(
        [
            *(Path(sys.executable).with_name("vf-eval"), "outlines", "-n", "4", "-r", "2"),
            *("--env.agent.harness.id", "null", "--env.agent.runtime.type", "subprocess"),
            *("--env.taskset.split", "val", "--env.taskset.arguments", '{"size": 64}'),
            *("--env.taskset.task.spec", SPEC, "--client.base-url", model, "-m", "scripted"),
            *("--no-rich", "--no-push", "--output-dir", tmp_path / "out"),
        ],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{root}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    (path,) = (tmp_path / "out").rglob("traces.jsonl")
    traces = [json.loads(line)["traces"][0] for line in path.read_text().splitlines()]
    found = [
        (
            trace["task"]["data"]["id"],
            (trace["rewards"]["outline"]["score"], trace["metrics"]["iou"]),
        )
        for trace in traces
    ]
    assert sorted(found) == sorted(list(expected.items()) * 2)
    assert not any(trace["errors"] for trace in traces)
    assert len(ScriptedModel.asked) == 8


def test_the_taskset_in_the_documentation_is_ours():
    page = Path(__file__).parents[3].joinpath("docs/trainers.md").read_text("utf-8")
    (block,) = re.findall(r"^```python\n(from seg_env.bridges.verifiers.*?)^```", page, re.M | re.S)
    names = {}
    exec(compile(block, "trainers.md", "exec"), names)
    assert names["OutlineTaskset"] is OutlineTaskset
