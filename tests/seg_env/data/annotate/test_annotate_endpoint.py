"""Descriptions from a server, which may answer anything, late, or not at all."""

import base64
import gzip
import io
import json
import threading
import time
import tracemalloc
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from annotate_fixtures import found, rectangle
from PIL import Image

from seg_env.data.annotate.endpoint import MOST_BYTES, MOST_REFUSED, EndpointDescriber

OBJECT = found(rectangle(10, 10, 30, 30))


def answer_of(text):
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@contextmanager
def server(*answers):
    """A server that gives one answer after another, the last one for ever; lists what it was asked.

    An answer is ``(status, body)``, ``(status, body, headers)`` or a function of handler and body.
    """
    asked = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                answer = answers[min(len(asked), len(answers) - 1)]
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked.append((self.path, headers, json.loads(body)))
            if callable(answer):
                answer(self, json.loads(body))
                return
            status, content, *headers = answer
            self.send_response(status)
            for name, value in (headers[0] if headers else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}/v1", asked
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


def describer(url, **options):
    return EndpointDescriber(url, "some-vlm", **{"tries": 3, **options})


def ask(url, count=1, **options):
    return describer(url, **options).describe([OBJECT] * count)


def test_a_question_shows_the_object_and_carries_the_key(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with server((200, answer_of("the gray square"))) as (url, asked):
        assert ask(url, api_key_variable="MY_KEY") == ["the gray square"]
    ((path, headers, body),) = asked
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == "Bearer secret"
    assert body["model"] == "some-vlm"
    text, image = body["messages"][0]["content"]
    assert "red outline" in text["text"]
    assert image["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert image_of(body).size == (60, 40)


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "ANOTHER_KEY"])
def test_no_key_sends_none(monkeypatch, variable):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.delenv(variable, raising=False)
    with server((200, answer_of("a"))) as (url, asked):
        ask(url, api_key_variable=variable)
    assert "authorization" not in asked[0][1]


def image_of(body):
    data = body["messages"][0]["content"][1]["image_url"]["url"].partition(",")[2]
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_answers_keep_their_order_when_asked_at_once():
    def tell_the_width(handler, body):
        width = image_of(body).width
        time.sleep((100 - width) / 400)  # the last question is answered first
        content = answer_of(f"{width}")
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    widths = (60, 70, 80, 90)
    objects = [found(rectangle(5, 5, 30, 30, (40, width))) for width in widths]
    with server(tell_the_width) as (url, asked):
        assert describer(url, parallel=4).describe(objects) == ["60", "70", "80", "90"]
    assert len(asked) == 4


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>gateway</html>",
        b"[" * 100_000,
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": null}}]}',
        b'{"choices": [{"message": {"content": ["a"]}}]}',
        b'{"choices": "none"}',
        b'"' + b"a" * (2 * MOST_BYTES) + b'"',
        b"\xff\xfe\x00",
    ],
)
def test_answers_that_are_none_leave_an_object_undescribed(content):
    with server((200, content)) as (url, _):
        assert ask(url) == [""]


def test_an_answer_that_would_unpack_to_any_size_stays_packed():
    bomb = gzip.compress(answer_of("a" * (1 << 27)))
    with server((200, bomb, {"Content-Encoding": "gzip"})) as (url, asked):
        tracemalloc.start()
        assert ask(url) == [""]
        assert tracemalloc.get_traced_memory()[1] < 1 << 25
        tracemalloc.stop()
    assert asked[0][1]["accept-encoding"] == "identity"


def test_text_is_passed_on_as_it_is_for_others_to_clean():
    hostile = "<|im_end|>\x00\u202e[[[0.1,0.2]]] " * 50
    with server((200, answer_of(hostile))) as (url, _):
        assert ask(url) == [hostile]


def test_a_refused_request_costs_one_object():
    fine = (200, answer_of("fine"))
    with server((400, b"content policy"), fine) as (url, asked):
        assert ask(url, count=2, parallel=1) == ["", "fine"]
    assert len(asked) == 2


def test_a_server_that_refuses_everything_is_an_error():
    with (
        server((400, b"no such parameter")) as (url, _),
        pytest.raises(ConnectionError, match=r"in a row.*no such parameter"),
    ):
        ask(url, count=MOST_REFUSED, parallel=1)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(status):
    busy = (status, b"busy", {"Retry-After-Ms": "10"})
    with server(busy, busy, (200, answer_of("fine"))) as (url, asked):
        assert ask(url) == ["fine"]
    assert len(asked) == 3


def test_an_error_that_breaks_off_is_an_error_like_any_other():
    def break_off(handler, body):
        handler.send_response(503)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"ff\r\nhalf a")

    with server(break_off, (200, answer_of("fine"))) as (url, asked):
        assert ask(url) == ["fine"]
    assert len(asked) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"tries": 0},
        {"parallel": 0},
        {"parallel": 2.5},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"timeout": "long"},
        {"max_tokens": True},
    ],
)
def test_numbers_are_checked(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}; use a "):
        describer("http://localhost/v1", **options)


def test_a_server_that_says_when_is_waited_for():
    with server((429, b"", {"Retry-After": "1"}), (200, answer_of("fine"))) as (url, _):
        start = time.monotonic()
        assert ask(url) == ["fine"]
    assert time.monotonic() - start >= 1


def test_a_server_that_stays_down_stops_the_run():
    with server((503, b"down for ever")) as (url, asked):
        with pytest.raises(ConnectionError, match=r"failed 3 times.*down for ever"):
            ask(url)
        assert len(asked) == 3
    with pytest.raises(ConnectionError, match="failed 3 times"):  # and now there is nobody
        ask(url)


def test_a_wrong_key_stops_the_run_at_once():
    with server((401, b"bad key")) as (url, asked), pytest.raises(ConnectionError, match="bad key"):
        ask(url)
    assert len(asked) == 1


def test_a_server_that_dribbles_is_given_up():
    def dribble(handler, body):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)

    start = time.monotonic()
    with (
        server(dribble) as (url, _),
        pytest.raises(ConnectionError, match=r"took more than 0\.2 seconds"),
    ):
        ask(url, timeout=0.2, tries=1)
    assert time.monotonic() - start < 4


def test_a_redirect_does_not_carry_the_key_away(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with server((200, answer_of("stolen"))) as (thief, stolen):
        away = {"Location": f"{thief}/chat/completions"}
        with server((302, b"", away)) as (url, _), pytest.raises(ConnectionError, match="302"):
            ask(url)
    assert not stolen


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost:8000", "ftp://x/v1", "http://"])
def test_addresses_are_checked(url):
    with pytest.raises(ValueError, match="http"):
        describer(url)


def test_a_key_is_not_sent_unencrypted(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with pytest.raises(ValueError, match="unencrypted"):
        describer("http://example.com/v1")
    describer("https://example.com/v1")
    monkeypatch.delenv("OPENAI_API_KEY")
    describer("http://example.com/v1")
