"""The reward server: scores what the environment scores, and survives whatever is sent."""

import http.client
import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from short_runs import start

import seg_env  # noqa: F401  (registers the environments)
from experiments.common.serving import MOST_BYTES
from experiments.serve_rewards import (
    MOST_ANSWERS,
    Args,
    Scorer,
    command_line,
    make_reward_server,
)
from rewards import Reward
from rewards.trainers import _remembered_row
from seg_env.data.export import run_lengths
from seg_env.geometry import limits
from seg_env.grammar import encode

SPEC = ("mask_iou=1", "format=0.1")
SQUARE = {"rings": [[[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]]], "size": [8, 8]}
HIT = "[[[0.25,0.25],[0.75,0.25],[0.75,0.75],[0.25,0.75]]]"


class Failing(Reward):
    """Fails when an answer says so."""

    def __call__(self, predictions, targets):
        if any("fail" in prediction.text for prediction in predictions):
            raise ValueError("a bug")
        return np.zeros(len(predictions))


class Counting(Reward):
    """Counts the questions of every call."""

    calls: ClassVar[list[int]] = []

    def __call__(self, predictions, targets):
        self.calls.append(len({id(target) for target in targets}))
        return np.zeros(len(predictions))


@pytest.fixture(scope="module")
def address():
    failing = f"{__name__}:Failing=0"
    server = make_reward_server(Args(rewards=(*SPEC, failing), port=0))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield "127.0.0.1", server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def post(address, body, path="/score", kind="application/json"):
    request = urllib.request.Request(
        "http://{}:{}{}".format(*address, path), body, {"Content-Type": kind}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


def ask(address, *questions):
    return post(address, json.dumps({"questions": questions}).encode())["questions"]


def test_answers_earn_what_they_earn_in_the_environment(address):
    env = gym.make_vec(
        "SimpleSeg-Scenes-v0", 6, split="val", rewards=" ".join(SPEC), autoreset_mode="Disabled"
    )
    env.reset(options={"indices": np.array([3, 3, 3, 5, 5, 5])})
    first, second = env.unwrapped.dataset[3].target, env.unwrapped.dataset[5].target
    texts = [encode(first.outline(0.01)), HIT, "no", encode(second.outline(0.02)), "[]", HIT[:20]]
    _, earned, _, _, infos = env.step(texts)
    found = ask(
        address,
        {"rle": run_lengths(first.rle), "answers": texts[:3]},
        {"rle": run_lengths(second.rle), "task": "text->mask", "box": None, "answers": texts[3:]},
        {**SQUARE, "answers": []},
    )
    for key, name in (("reward", None), ("iou", "iou"), ("valid", "valid"), ("issues", "issues")):
        expected = earned if name is None else infos[name]
        assert found[0][key] + found[1][key] == list(expected)
    for name in ("mask_iou", "format"):
        terms = found[0]["terms"][name] + found[1]["terms"][name]
        assert terms == infos[f"reward/{name}"].tolist()
    assert found[2]["reward"] == []


def test_large_images_are_scored_a_few_at_a_time_and_forgotten():
    """What a request takes in memory is that of a block, not of all its questions."""
    scorer = Scorer(Args(rewards=("mask_iou=1", f"{__name__}:Counting=0")))
    large = SQUARE | {"size": [2048, 2048], "answers": [HIT]}
    Counting.calls.clear()
    remembered = _remembered_row.cache_info().currsize
    found = scorer.score({"questions": [large] * 6 + [SQUARE | {"answers": [HIT, "[]"]}] * 3})
    assert [each["reward"] for each in found["questions"]] == [[1.0]] * 6 + [[1.0, 0.0]] * 3
    assert Counting.calls == [4, 5]
    assert _remembered_row.cache_info().currsize == remembered


def test_rewards_and_frame_are_told(address):
    with urllib.request.urlopen("http://{}:{}/".format(*address), timeout=60) as reply:
        told = json.load(reply)
    assert told["rewards"][:2] == list(SPEC)
    assert told["frame"].startswith("unit")


def test_many_clients_at_once_get_their_own_scores(address):
    connections = [http.client.HTTPConnection(*address, timeout=60) for _ in range(32)]
    body = {"questions": [{**SQUARE, "answers": [HIT] * 8}]}
    for number, connection in enumerate(connections):
        body["questions"][0]["answers"][number % 8] = "[]"
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/score", json.dumps(body), headers)
        body["questions"][0]["answers"][number % 8] = HIT
    for number, connection in enumerate(connections):
        (found,) = json.loads(connection.getresponse().read())["questions"]
        assert found["iou"] == [float(row != number % 8) for row in range(8)]
        connection.close()


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "not valid JSON|JSONDecodeError"),
        (b"\xff\xfe\x00", "Unicode|JSON"),
        (b"[" * 100_000, "RecursionError|JSON"),
        (b"9" * 10_000, "ValueError"),
        (b"[]", "expected an object"),
        (b"{}", "'questions' must be a list"),
        (b'{"questions": {"a": 1}}', "'questions' must be a list"),
        (b'{"questions": [5]}', "question 0: it: expected an object"),
        (b'{"questions": [{"answers": "[]"}]}', "'answers' must be a list"),
        (b'{"questions": [{"answers": [1]}]}', "must be a list of strings"),
        (b'{"questions": [{"answers": ["[]"]}]}', "question 0: its target"),
        (
            json.dumps({"questions": [SQUARE | {"answers": [HIT] * 8}] * 2 + [{"answers": []}]}),
            "question 2: its target",
        ),
        (b'{"questions": [{"answers": ["[]"], "rings": [], "size": [0, 5]}]}', "at least 1"),
        (b'{"questions": [{"answers": ["[]"], "rings": [], "size": [NaN, 5]}]}', "integer"),
        (b'{"questions": [{"answers": ["[]"], "mask": "/etc/passwd", "size": [5, 5]}]}', "rings"),
        (
            b'{"questions": [{"answers": ["[]"], "rings": [], "size": [1000000, 1000000]}]}',
            "the limit is",
        ),
        (
            b'{"questions": [{"answers": [""], "rle": {"size": [9, 9], "counts": [1e999]}}]}',
            "counts",
        ),
        (
            json.dumps({"questions": [{**SQUARE, "answers": [""] * (MOST_ANSWERS + 1)}]}),
            f"not {MOST_ANSWERS}",
        ),
    ],
)
def test_what_is_wrong_is_said(address, body, complaint):
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(address, body.encode() if isinstance(body, str) else body)
    assert caught.value.code == 400
    told = json.load(caught.value)["error"]
    assert any(each in told for each in complaint.split("|")), told
    assert ask(address, {**SQUARE, "answers": [HIT]})[0]["iou"] == [1.0]


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        ("POST /score HTTP/1.1\r\nHost: {host}\r\nContent-Type: text/plain\r\n", 404),
        ("POST /etc HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n", 404),
        ("POST /score HTTP/1.1\r\nHost: evil.example\r\nContent-Type: application/json\r\n", 421),
        ("GET / HTTP/1.1\r\nHost: evil.example\r\n", 421),
        ("GET / HTTP/1.1\r\n", 421),
        ("DELETE / HTTP/1.1\r\nHost: {host}\r\n", 501),
        *(
            (
                "POST /score HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
                + header,
                413,
            )
            for header in (
                "",
                "Transfer-Encoding: chunked\r\n",
                "Content-Length: -1\r\n",
                "Content-Length: 1e3\r\n",
                f"Content-Length: {MOST_BYTES + 1}\r\n",
                f"Content-Length: {'9' * 5000}\r\n",
            )
        ),
        ("nonsense\r\n", 400),
        ("GET /" + "a" * 70_000 + " HTTP/1.1\r\n", 414),
    ],
)
def test_other_requests_are_refused_and_their_connection_ends(address, request_text, status):
    with socket.create_connection(address, timeout=60) as client:
        client.sendall((request_text.format(host="127.0.0.1") + "\r\n").encode())
        reply = b""
        try:
            while part := client.recv(65536):
                reply += part
        except ConnectionResetError:  # it did not read all of what was sent
            pass
    assert str(status).encode() in reply[:200]
    assert ask(address, {**SQUARE, "answers": [HIT]})[0]["iou"] == [1.0]


def test_a_client_that_falls_silent_keeps_nobody_waiting(address):
    clients = [socket.create_connection(address, timeout=60) for _ in range(40)]
    for client in clients:
        client.sendall(
            b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000\r\n\r\n{"
        )
    assert ask(address, {**SQUARE, "answers": [HIT]})[0]["iou"] == [1.0]
    for client in clients:
        client.close()
    assert ask(address, {**SQUARE, "answers": [HIT]})[0]["iou"] == [1.0]


def test_hostile_answers_are_scored(address):
    texts = ["[" * 1_000_000, "\ud800", "[[[1e308,-1e308],[NaN,0],[0,0]]]", "٣" * 1000, "\0"]
    zigzag = ",".join(f"[{place % 2},{place / 5000:.4f}]" for place in range(5000))
    (found,) = ask(address, {**SQUARE, "size": [4096, 4096], "answers": [*texts, f"[[{zigzag}]]"]})
    assert found["iou"][:5] == [0.0] * 5
    assert 0 < found["iou"][5] < 1
    assert not any(found["valid"])


def test_a_reward_that_fails_is_the_servers_fault_and_no_zero(address, capsys):
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(address, {**SQUARE, "answers": ["fail"]})
    assert caught.value.code == 500
    assert ask(address, {**SQUARE, "answers": [HIT]})[0]["iou"] == [1.0]
    said, until = "", time.monotonic() + 30  # the traceback is written beside the reply
    while "ValueError: a bug" not in said and time.monotonic() < until:
        said += capsys.readouterr().err
    assert "ValueError: a bug" in said


@pytest.mark.parametrize("words", [["--rewards", "no_such=1"], ["--frame", "furlong"]])
def test_wrong_options_end_the_command_with_a_sentence(words, capsys, monkeypatch):
    monkeypatch.setitem(os.environ, limits.VARIABLE, "")
    with pytest.raises(SystemExit) as ended:
        command_line(words=words)
    limits.limits.cache_clear()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_command_serves_with_limits_until_ctrl_c():
    process = start("serve_rewards.py", "--port", "0", "--rewards", "mask_iou=1")
    line = process.stdout.readline()
    assert "post to http" in line
    host, port = line.split()[2].removeprefix("http://").partition("/")[0].split(":")
    address = host, int(port)
    assert ask(address, {**SQUARE, "answers": [HIT]})[0]["reward"] == [1.0]
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(address, {"rings": [], "size": [5000, 10], "answers": [HIT]})
    assert "the limit is 4096 side" in json.load(caught.value)["error"]
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output.strip() == "interrupted"


def test_the_client_in_the_docs_gets_scores(address, capsys):
    page = (Path(__file__).parents[2] / "docs/trainers.md").read_text()
    code = page.partition("<!-- reward-client -->\n```python\n")[2].partition("```")[0]
    exec(code.replace("127.0.0.1:8010", "{}:{}".format(*address)), {})
    assert capsys.readouterr().out.startswith("[0.")
