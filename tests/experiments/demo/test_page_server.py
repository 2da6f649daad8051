"""The page is served to this machine, refuses what is not its own, and ends cleanly."""

import http.client
import json
import signal
import socket
import urllib.request

import pytest
from browser import served
from short_runs import start
from test_page_questions import make_demo

from experiments.common.serving import MOST_BYTES
from experiments.demo.server import Server
from seg_env.errors import WrongOptionError


@pytest.fixture(scope="module")
def server():
    with served(Server(make_demo(), "127.0.0.1", 0)) as server:
        yield server


def reply(server, method, path, body=None, **headers):
    """The status and the content of what the server replies."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Host": f"127.0.0.1:{server.port}", **headers}.items():
        connection.putheader(name.replace("_", "-"), value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    response = connection.getresponse()
    found = response.status, response.read()
    connection.close()
    return found


def test_the_page_loads_nothing_from_elsewhere(server):
    with urllib.request.urlopen(server.address, timeout=60) as answer:
        policy, page = answer.headers["Content-Security-Policy"], answer.read().decode()
    assert policy.startswith("default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:;")
    assert "SimpleSeg-RL" in page


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
def test_a_name_of_another_site_leads_nowhere(server, host, status):
    for path in ("/", "/config", "/gradio_api/queue/status"):
        assert reply(server, "GET", path, Host=host)[0] == status


@pytest.mark.parametrize(
    ("origin", "is_own"),
    [
        ("http://127.0.0.1:{port}", True),
        ("http://localhost:{port}", False),  # a page at another address, whatever it is
        ("http://127.0.0.1:1", False),
        ("https://attacker.example", False),
        ("null", False),
        ("http://[broken", False),
    ],
)
def test_pages_of_other_sites_cannot_ask(server, origin, is_own):
    origin = origin.format(port=server.port)
    headers = {"Content_Type": "application/json", "Origin": origin}
    status, told = reply(server, "POST", "/gradio_api/queue/join", b"{}", **headers)
    assert status == (422 if is_own else 403)
    assert is_own or b"is another site's" in told


@pytest.mark.slow  # Gradio's own launcher waits for the network where there is none
def test_the_page_is_put_on_a_space_as_it_stands(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("GRADIO_SERVER_PORT", str(free.getsockname()[1]))
    process = start("demo/app.py")
    while "http://127.0.0.1" not in (line := process.stdout.readline()):
        assert line, "it did not start"
    with urllib.request.urlopen(line.split()[-1], timeout=60) as answer:
        assert "SimpleSeg-RL" in answer.read().decode()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=100)


def test_what_is_too_long_is_refused_before_it_is_read(server):
    headers = {"Content_Type": "application/json", "Content_Length": str(MOST_BYTES + 1)}
    assert reply(server, "POST", "/gradio_api/queue/join", **headers)[0] == 413


def test_a_body_that_does_not_say_how_long_it_is_is_refused(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/gradio_api/queue/join", iter([b"{}"]), encode_chunked=True)
    assert connection.getresponse().status == 411
    connection.close()


@pytest.mark.parametrize(
    "path",
    [
        *("upload", "file=/etc/passwd", "proxy=http://x.test", "deep_link?session_hash=x"),
        *("process_recording", "component_server", "stream/x", "run-history/buckets"),
    ],
)
def test_no_file_goes_in_or_out(server, path):
    for method, body in (("GET", None), ("POST", b"")):
        assert reply(server, method, f"/gradio_api/{path}", body) == (
            404,
            b"this page has no files",
        )


def listeners(server, **given):
    """Numbers of the page's listeners, and what they are given if each input is a file."""
    config = json.loads(reply(server, "GET", "/config")[1])
    file = {"meta": {"_type": "gradio.FileData"}, **given}
    for listener in config["dependencies"]:
        if listener["backend_fn"] and listener["inputs"]:
            yield listener["id"], listener["queue"], [[file]] * len(listener["inputs"])


def test_no_file_that_an_input_names_is_fetched(server, monkeypatch):
    asked = []

    async def record(address, *_, **__):
        asked.append(address)
        return "/nowhere"

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", record)
    numbers = list(listeners(server, path="http://elsewhere.test/10GB.bin"))
    assert {is_queued is False for _, is_queued, _ in numbers} == {True, False}
    headers = {"Content_Type": "application/json"}
    for number, is_queued, data in numbers:
        session = f"session{number}"
        body = json.dumps({"fn_index": number, "data": data, "session_hash": session}).encode()
        if is_queued is False:
            status, told = reply(server, "POST", "/gradio_api/run/predict", body, **headers)
            assert status == 500
        status, _ = reply(server, "POST", "/gradio_api/queue/join", body, **headers)
        assert status == 200
        _, told = reply(server, "GET", f"/gradio_api/queue/data?session_hash={session}")
        assert b"this page has no files" in told
    assert not asked


def test_no_interface_for_programs_is_offered(server):
    status, told = reply(server, "GET", "/gradio_api/info")
    assert (status, json.loads(told)["named_endpoints"]) == (200, {})
    for path in ("/docs", "/gradio_api/docs", "/gradio_api/mcp/", "/monitoring"):
        assert reply(server, "GET", path)[0] >= 400


def test_a_busy_port_is_named(server):
    with pytest.raises(WrongOptionError, match=f"--port {server.port} on 127.0.0.1 is in use"):
        Server(make_demo(), "127.0.0.1", server.port)


def test_ctrl_c_ends_without_a_crash():
    process = start("demo", "--port", "0")
    while "open http" not in (line := process.stdout.readline()):
        assert line, "it did not start"
    with urllib.request.urlopen(line.split()[1], timeout=60) as page:
        assert page.status == 200
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert "interrupted" in output
    assert "Traceback" not in output
