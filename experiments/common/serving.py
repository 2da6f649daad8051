"""Small servers for JSON over HTTP on Python's own: who is answered, what is read, how it ends."""

from __future__ import annotations

import errno
import ipaddress
import json
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from seg_env.errors import WrongOptionError

MOST_BYTES = 16 * 2**20
"""Longest request that is read."""


CLIENTS_FAULTS = (KeyError, IndexError, TypeError, ValueError, RecursionError)
"""Errors of what reads a request; any other is a bug, and keeps its traceback."""


class JsonHandler(BaseHTTPRequestHandler):
    """Answers those who ask by the server's address, and JSON that is posted to one path.

    Subclasses define `show` and `answer`.
    """

    host: str
    """Name that the server listens on, as in the header ``Host``."""
    posted_to: str
    """The one path."""
    headers_sent: tuple[tuple[str, str], ...] = ()
    """Sent with everything."""
    protocol_version = "HTTP/1.1"  # clients ask again over one connection
    disable_nagle_algorithm = True
    timeout = 60  # a client that says nothing for so many seconds is let go

    def show(self) -> None:
        """Send what is asked for by GET."""
        raise NotImplementedError

    def answer(self, asked: Any) -> dict[str, Any]:
        """What is sent for JSON that was posted; may raise any of `CLIENTS_FAULTS`."""
        raise NotImplementedError

    def do_GET(self) -> None:
        """Show something."""
        if self.is_asked_by_address():
            self.show()

    def do_POST(self) -> None:
        """Answer JSON by JSON."""
        if self.is_asked_by_address() and (body := self.read_body()) is not None:
            self.reply(lambda: self.answer(json.loads(body)))

    def is_asked_by_address(self) -> bool:
        """Whether the Host is this server's; says so where it is not.

        Another site's name can be made to lead here (DNS rebinding), a number cannot.
        """
        name = self.headers.get("Host", "")
        try:
            name = urlsplit(f"//{name}").hostname or ""
            if name in ("localhost", self.host):
                return True
            ipaddress.ip_address(name)
        except ValueError:
            told = f"the Host {name!r} is not this server's: use its address, or --host"
            self.refuse(421, told)
            return False
        return True

    def read_body(self) -> bytes | None:
        """What was posted; None if it is refused, which the client is told.

        JSON is asked for by name since pages of other sites cannot send it here.
        """
        length = self.headers.get("Content-Length", "")
        if self.path != self.posted_to or self.headers.get_content_type() != "application/json":
            self.refuse(404, f"post application/json to {self.posted_to}")
        elif not length.isdecimal() or len(length) > 9 or int(length) > MOST_BYTES:
            self.refuse(413, f"at most {MOST_BYTES} bytes are read, with their Content-Length")
        else:
            body = self.rfile.read(int(length))
            if len(body) == int(length):
                return body
            self.close_connection = True  # the client is gone
        return None

    def reply(self, make: Callable[[], dict[str, Any]]) -> None:
        """Send what a function returns; one of `CLIENTS_FAULTS` is told to the client."""
        try:
            status, found = 200, make()
        except CLIENTS_FAULTS as error:
            status, found = 400, {"error": f"{type(error).__name__}: {error}"}
        except Exception:
            self.close_connection = True
            self.send(500, "text/plain", b"the server failed; its output says where")
            raise
        self.send(status, "application/json", json.dumps(found).encode())

    def refuse(self, status: int, told: str) -> None:
        """Say why nothing is answered, and end the connection with what may still come on it."""
        self.close_connection = True
        self.send(status, "text/plain", told.encode())

    def send(self, status: int, kind: str, body: bytes) -> None:
        """Send a whole answer."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for header in self.headers_sent:
            self.send_header(*header)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing about single requests."""


class JsonServer(ThreadingHTTPServer):
    """A thread for each connection; many may knock at once."""

    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print where an error arose, unless it is that a client has gone."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def make_server(handler: type[JsonHandler], host: str, port: int) -> JsonServer:
    """A server, to be started by its `serve_forever`.

    Raises:
        WrongOptionError: Something else listens there.
    """
    handler.host = host.lower()
    try:
        return JsonServer((host, port), handler)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise WrongOptionError(
            f"--port {port} on {host} is in use by another program: end it, or give another port, "
            "0 for any free one"
        ) from error
