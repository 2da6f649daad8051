"""The demo page: served whole, it answers about scenes and pictures and refuses bad requests."""

import base64
import http.client
import io
import json
import signal
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from agents_fixtures import small_policy
from PIL import Image
from short_runs import start

from experiments.common.serving import MOST_BYTES
from experiments.demo import (
    Args,
    Demo,
    command_line,
    make_demo_server,
    read_data_uri,
)
from seg_env.data import export_jsonlines
from seg_env.data.images import data_url
from seg_env.data.scenes import Scenes
from seg_env.errors import WrongOptionError


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "kept"


@pytest.fixture(scope="module")
def address(kept):
    args = Args(rewards=("mask_iou=1", "format=0.1"), max_new_tokens=8, output_dir=kept)
    demo = Demo(small_policy(), args)
    server = make_demo_server(demo, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def ask(address, **asked):
    question = {"difficulty": "easy", "index": 3, "temperature": 0, "expression": "it", **asked}
    return post(address, json.dumps(question).encode())


def post(address, body, kind="application/json"):
    headers = {"Content-Type": kind}
    request = urllib.request.Request(f"{address}/answer", body, headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


def test_the_page_asks_nobody_else(address):
    with urllib.request.urlopen(f"{address}/", timeout=60) as reply:
        page, policy = reply.read().decode(), reply.headers["Content-Security-Policy"]
    assert "<title>SimpleSeg-RL</title>" in page
    assert "http" not in page  # no address of anything elsewhere
    assert policy == "default-src 'unsafe-inline'; img-src data:; connect-src 'self'"


def test_a_scene_is_shown_with_the_expressions_of_its_objects(address):
    with urllib.request.urlopen(f"{address}/scene?difficulty=easy&index=3", timeout=60) as reply:
        scene = json.load(reply)
    assert scene["expressions"] == [each.expression for each in Scenes("val").samples_of(3)]
    assert read_data_uri(scene["picture"]).shape == (384, 384, 3)


def test_an_answer_about_a_scenes_object_is_judged(address, kept):
    found = ask(address, expression=Scenes("val")[3].expression)
    assert 0 <= found["iou"] <= 1
    assert found["rewards"].keys() == {"mask_iou", "format"}
    assert found["issues"]  # a policy that has learned nothing
    assert read_data_uri(found["overlay"]).shape == (384, 384, 3)
    last = (kept / "answers.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["text"] == found["text"]


def test_an_answer_about_a_picture_of_ones_own_is_not_judged(address):
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    found = ask(address, picture=data_url(picture), temperature=1)
    assert found["iou"] is None
    assert found["rewards"] == {}
    assert read_data_uri(found["overlay"]).shape == (384, 576, 3)
    assert ask(address, expression="something else")["iou"] is None


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"temperature": 3}, "temperature 3"),
        ({"temperature": "nan"}, "temperature nan"),
        ({"expression": "a" * 301}, "301 characters"),
        ({"difficulty": "simple"}, "difficulty"),
        ({"index": 10**6}, "scene 1000000"),
        ({"picture": "data:image/png;base64,AAAA"}, "cannot be read as an image"),
        ({"picture": "no picture"}, "cannot be read as an image"),
    ],
)
def test_what_is_not_allowed_is_said_to_the_page(address, asked, complaint):
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(address, **asked)
    assert caught.value.code == 400
    assert complaint in json.load(caught.value)["error"]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "application/json", 400),
        (b"[", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"{}", "text/plain", 404),  # what a page of another site can send
        (b" " * (MOST_BYTES + 1), "application/json", 413),
    ],
)
def test_other_requests_are_refused(address, body, kind, status):
    with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)) as caught:
        post(address, body, kind)
    assert getattr(caught.value, "code", status) == status


@pytest.mark.parametrize("words", [["--rewards", "no_such=1"], ["--policy", "/nowhere"]])
def test_wrong_options_end_the_command_with_a_sentence(words, capsys):
    with pytest.raises(SystemExit) as ended:
        command_line(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_images_of_a_data_set_are_shown_and_scored(tmp_path):
    path = export_jsonlines(Scenes("val", length=3, size=64), tmp_path)
    demo = Demo(small_policy(), Args(dataset=str(path), policy="FOLDER", max_new_tokens=8))
    sample = Scenes("val", length=3, size=64)[1]
    asked = {"index": 1, "difficulty": "easy", "temperature": 0}
    shown = demo.scene(asked)
    assert sample.expression in shown["expressions"]
    found = demo.answer({**asked, "expression": sample.expression})
    assert found["iou"] is not None  # the truth is known


def test_a_shipped_policy_says_once_that_it_has_not_seen_such_images():
    demo = Demo(small_policy(), Args(max_new_tokens=8))
    picture = data_url(np.zeros((20, 30, 3), np.uint8))
    asked = {"picture": picture, "expression": "it", "temperature": 0}
    told = [any("was made for" in one for one in demo.answer(asked)["issues"]) for _ in range(2)]
    assert told == [True, False]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:8000", 200),
        ("[::1]:8000", 200),
        ("192.168.1.7", 200),
        ("attacker.example", 421),
        ("127.0.0.1.attacker.example:8000", 421),
        ("", 421),
        ("[broken", 421),
    ],
)
def test_a_name_of_another_site_leads_nowhere(address, host, status):
    for method, path in (("GET", "/"), ("GET", "/scene?difficulty=easy&index=1")):
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host)
        connection.endheaders()
        assert connection.getresponse().status == status
        connection.close()


def test_a_huge_image_is_refused_before_it_is_unpacked():
    buffer = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(buffer, "PNG")
    address = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    with pytest.raises(ValueError, match="13000 x 13000 pixels; at most 16777216 are read"):
        read_data_uri(address)


def test_a_busy_port_is_named(address):
    port = int(address.rpartition(":")[2])
    with pytest.raises(WrongOptionError, match=f"--port {port} on 127.0.0.1 is in use .* 0 for"):
        make_demo_server(None, "127.0.0.1", port)


def test_ctrl_c_while_an_answer_is_written_ends_without_a_crash():
    process = start("demo.py", "--port", "0")
    while "open http" not in (line := process.stdout.readline()):
        assert line, "it did not start"
    address = line.split()[1]
    done = []

    def keep_asking():
        try:
            while True:
                ask(address)
                done.append(1)
        except (OSError, http.client.HTTPException):
            pass

    threads = [threading.Thread(target=keep_asking) for _ in range(3)]
    for thread in threads:
        thread.start()
    while not done:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=100)
    for thread in threads:
        thread.join()
    assert process.returncode == 0, output
    assert "interrupted" in output
