"""A page in the browser on which a policy answers: choose a scene or a picture, type an expression.

It needs no package besides the project's own, and the page loads nothing from elsewhere.

    python experiments/demo.py --policy runs/gspo/policy
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import tyro
from rich.console import Console

from experiments.common.command import brief_errors
from experiments.common.policies import (
    EMBEDDED,
    AnswerLength,
    PrecisionChoice,
    answer_length,
    open_policy,
)
from experiments.demo_answers import Demo
from rewards.composite import DEFAULT_REWARDS
from seg_env.frames import AUTO

PAGE = Path(__file__).with_name("demo.html")
MOST_BYTES = 16 * 2**20
"""Longest request that is read; the page itself sends pictures of at most 1024 pixels a side."""
LONGEST_OF_PHOTOS = 1024
"""Tokens of the longest answer about pictures of which no outlines are known."""
ONLY_INLINE = "default-src 'unsafe-inline'; img-src data:; connect-src 'self'"


@dataclass
class Args:
    """Serve a page on which a policy answers."""

    policy: str = EMBEDDED
    """``embedded``, ``embedded-tasks``, a transformers folder, or a hub id."""
    host: str = "127.0.0.1"
    """Address to listen on; by default only this machine reaches it. There is no password."""
    port: int = 8000
    """Port to listen on, 0 for any free one."""
    rewards: tuple[str, ...] = tuple(DEFAULT_REWARDS.split())
    """Rewards that are shown, as ``name=weight`` or ``package.module:Class=weight``."""
    frame: str = AUTO
    """What the numbers in answers mean: auto (what the policy's folder records, else what its
    family writes), unit, permille, pixels, qwen2.5-vl, florence, paligemma, pixel:WxH, or a model
    type."""
    max_new_tokens: AnswerLength = "auto"
    """Longest answer in tokens; auto: 128 for the shipped policies, 1024 for others."""
    precision: PrecisionChoice = "float32"
    """float32, bfloat16 under autocast, or auto."""
    trust_remote_code: bool = False
    """Run code that comes with a hub model; only for models you have read."""
    seed: int = 0
    """Seed of sampled answers."""
    output_dir: Path | None = None
    """Folder that keeps questions and answers as answers.jsonl; by default none does."""


class Handler(BaseHTTPRequestHandler):
    """Serves the page, ``GET /scene?difficulty=&index=``, and ``POST /answer`` with JSON."""

    demo: Demo
    timeout = 60  # a client that says nothing for so many seconds is let go

    def do_GET(self) -> None:
        """The page, or a scene."""
        address = urlsplit(self.path)
        if address.path == "/scene":
            self._reply(lambda: self.demo.scene(dict(parse_qsl(address.query))))
        else:
            self._send(200, "text/html; charset=utf-8", PAGE.read_bytes())

    def do_POST(self) -> None:
        """An answer. JSON is asked for by name since pages of other sites cannot send it here."""
        length = self.headers.get("Content-Length", "")
        if self.path != "/answer" or self.headers.get_content_type() != "application/json":
            self._send(404, "text/plain", b"post application/json to /answer")
        elif not length.isdecimal() or int(length) > MOST_BYTES:
            self._send(413, "text/plain", f"at most {MOST_BYTES} bytes are read".encode())
        else:
            body = self.rfile.read(int(length))
            self._reply(lambda: self.demo.answer(json.loads(body)))

    def _reply(self, make: Callable[[], dict[str, Any]]) -> None:
        """Send what a function returns; what a client got wrong is said to it."""
        try:
            status, found = 200, make()
        except (KeyError, IndexError, TypeError, ValueError) as error:
            status, found = 400, {"error": f"{type(error).__name__}: {error}"}
        self._send(status, "application/json", json.dumps(found).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", ONLY_INLINE)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing about single requests."""


def make_server(demo: Demo, host: str, port: int) -> ThreadingHTTPServer:
    """A server, to be started by its `serve_forever`."""
    return ThreadingHTTPServer((host, port), type("DemoHandler", (Handler,), {"demo": demo}))


def main(args: Args) -> None:
    """Serve until interrupted."""
    console = Console()
    policy = open_policy(
        args.policy,
        args.precision,
        frame=args.frame,
        console=console,
        trust_remote_code=args.trust_remote_code,
    )
    length = answer_length(args.max_new_tokens, args.policy)
    longest = LONGEST_OF_PHOTOS if length == "auto" else length
    demo = Demo(policy, args.rewards, longest, args.seed, args.output_dir)
    server = make_server(demo, args.host, args.port)
    host, port = server.server_address[:2]
    console.print(f"open http://{host!s}:{port} in a browser; Ctrl-C ends it")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    with brief_errors():
        main(tyro.cli(Args, description=__doc__))
