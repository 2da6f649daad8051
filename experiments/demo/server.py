"""Serves a page: to whom, how much is read, and how it ends."""

from __future__ import annotations

import socket
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from experiments.common.serving import MOST_BYTES, is_own_name, listening, say_other_name
from experiments.demo.page import STYLE, TITLE, build
from experiments.demo.questions import Demo

MOST_VISITORS = 100
"""Visitors whose image and answers are kept; the least recent ones start again."""
MOST_WAITING = 32
"""Questions that wait for the policy; more are refused."""
ONLY_HERE = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; "
    "form-action 'self'; base-uri 'self'"
)
"""Content policy of the page: it loads nothing from elsewhere. Gradio compiles its templates."""
CLOSED = tuple(
    f"/gradio_api/{name}"
    for name in (
        *("upload", "file", "proxy", "stream", "deep_link"),
        *("component_server", "process_recording", "run-history"),
    )
)
"""Routes of Gradio that this page does not use: files go in and out as data URLs."""


class Guard:
    """Lets requests through that come from this page, by this server's address, and are small."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        """Guard an application that listens on a host."""
        self.app, self.host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        refused = self._refusal(scope, headers)
        if scope["type"] != "http" or refused:
            status, told = refused or (400, "this server speaks HTTP only")
            await PlainTextResponse(told, status)(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", ONLY_HERE.encode())
                message["headers"] = [*message["headers"], policy]
            await send(message)

        await self.app(scope, receive, answer)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        """Why a request is refused, with its status."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if not is_own_name(host, self.host):
            return 421, say_other_name(host)
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return 403, f"the Origin {origin!r} is another site's"
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers:
            return 411, "say how long a request is: Content-Length"
        if not length.isdecimal() or int(length) > MOST_BYTES:
            return 413, f"at most {MOST_BYTES} bytes are read"
        if scope["path"].startswith(CLOSED):
            return 404, "this page has no files"
        return None


class PageServer:
    """A page at an address, served from its creation on."""

    def __init__(self, page: gr.Blocks, style: str, host: str, port: int) -> None:
        """Listen; ``port`` is 0 for any free one.

        Raises:
            WrongOptionError: Something else listens there.
        """
        with listening(host, port):
            self._socket = socket.create_server((host, port), family=_family(host))
        self.port: int = self._socket.getsockname()[1]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        page.queue(max_size=MOST_WAITING, api_open=False)
        page.state_session_capacity = MOST_VISITORS
        app = gr.mount_gradio_app(
            FastAPI(title=TITLE, docs_url=None, redoc_url=None, openapi_url=None),
            page,
            path="/",
            server_name=host,
            server_port=self.port,
            footer_links=[],
            run_history=False,
            max_file_size=1,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            theme=make_theme(),
            css=style,
        )
        config: Any = uvicorn.Config(
            Guard(app, host),
            log_level="critical",  # of those who leave; what goes wrong in a listener Gradio prints
            ws="none",
            limit_concurrency=256,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(config)

    def serve(self) -> None:
        """Serve until interrupted or stopped."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """End `serve`, from another thread."""
        self._server.should_exit = True


class Server(PageServer):
    """The page on which policies answer."""

    def __init__(self, demo: Demo, host: str, port: int) -> None:
        """See `PageServer`."""
        self.demo = demo
        super().__init__(build(demo), STYLE, host, port)

    def serve(self) -> None:
        """See `PageServer.serve`."""
        try:
            super().serve()
        finally:
            # Stop answers and start none: torch aborts a process that ends while it computes.
            self.demo.closing.set()
            self.demo.lock.acquire()

    def stop(self) -> None:
        """See `PageServer.stop`."""
        self.demo.closing.set()
        super().stop()


def make_theme() -> gr.Theme:
    """How the page looks, in the fonts of the system: others would be loaded from elsewhere."""
    return gr.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
