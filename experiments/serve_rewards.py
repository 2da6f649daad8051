"""Score answers for any trainer, over HTTP: batches of texts in, rewards out.

    python experiments/serve_rewards.py --rewards mask_iou=1 format=0.1
    curl http://127.0.0.1:8010/score -H 'Content-Type: application/json' -d '{"questions": [
      {"rings": [[[0.2, 0.2], [0.6, 0.2], [0.6, 0.7]]], "size": [480, 640],
       "answers": ["[[[0.2,0.2],[0.6,0.2],[0.6,0.6]]]", "[]"]}]}'

A question has the columns of exported data (``python -m seg_env.data export``) and the answers to
it. The reply has lists with one entry for each answer: ``reward``, ``iou``, ``valid``, ``issues``,
and under ``terms`` every reward by its name. ``GET /`` returns rewards and frame.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

from rich.console import Console

from experiments.common.command import opening, run_command
from experiments.common.serving import MOST_BYTES, is_own_name, listening, say_other_name
from rewards.composite import DEFAULT_REWARDS
from rewards.mask_iou import outline_iou
from rewards.trainers import RowRewards, read_row
from seg_env.data.records import Record, RecordError, located
from seg_env.geometry.limits import VARIABLE, set_limits
from seg_env.grammar.answers import read_answer
from seg_env.types import Prediction, Target

SCORED_AT = "/score"
"""Where answers are posted."""
MOST_ANSWERS = 1 << 14
"""Answers of one request."""
LONGEST_SIDE = 4096
"""Pixels along a side of an image, unless ``--limits side=NUMBER`` says otherwise: one question can
take memory in proportion, some hundred MiB at most."""
AT_ONCE, PIXELS_OF_ONE = 256, 1 << 16
"""Answers that are scored at once, and pixels that count as one answer: of large images few are, so
that a request takes little more memory than its largest question."""

Question = tuple[list[Prediction], Target]
CLIENTS_FAULTS = (KeyError, IndexError, TypeError, ValueError, RecursionError)
"""Errors from reading a request; any other is a bug, and keeps its traceback."""
FIRST = {"Answers": ("rewards", "frame"), "The server": ("host", "port")}


@dataclass
class Args:
    """Score answers for any trainer, over HTTP."""

    rewards: tuple[str, ...] = tuple(DEFAULT_REWARDS.split())
    """Rewards, as ``name=weight`` or ``package.module:Class=weight``."""
    frame: str = "unit"
    """What the numbers in answers mean: unit, permille, another of seg_env.frames.FAMILIES, a
    model type, or pixel:WxH."""
    host: str = "127.0.0.1"
    """Address to listen on; by default only this machine reaches it. There is no password."""
    port: int = 8010
    """Port to listen on, 0 for any free one."""


class Scorer:
    """Scores the answers of requests, one at a time."""

    def __init__(self, args: Args) -> None:
        """Find the rewards; no request names any, since names lead to code."""
        self.rows = RowRewards(" ".join(args.rewards), args.frame)
        self._lock = Lock()  # rewards may keep things; and memory is for one request
        self.facts = {"rewards": list(args.rewards), "frame": self.rows.frame.description}

    def score(self, asked: object) -> dict[str, Any]:
        """Score what was posted.

        Raises:
            RecordError: Something in it is malformed; the message says which question.
            RuntimeError: A reward failed, which is no client's fault.
        """
        asked_about: list[tuple[Record, list[str]]] = []
        count = 0
        for number, question in enumerate(Record.parse(asked, "the request").items("questions")):
            with located(f"question {number}"):
                record = Record.parse(question, "it")
                asked_about.append((record, record.texts("answers")))
                if (count := count + len(asked_about[-1][1])) > MOST_ANSWERS:
                    raise RecordError(f"with it there are {count} answers, not {MOST_ANSWERS}")
        with self._lock:
            return {"questions": list(self._score_in_blocks(asked_about))}

    def _score_in_blocks(
        self, asked_about: Sequence[tuple[Record, Sequence[str]]]
    ) -> Iterator[dict[str, Any]]:
        block: list[Question] = []
        cost = 0
        for number, (record, answers) in enumerate(asked_about):
            with located(f"question {number}"):
                target, form = read_row(Record(record.values, "its target"))
            read = [read_answer(text, target.size, self.rows.frame, form) for text in answers]
            block.append((read, target))
            height, width = target.size
            cost += max(len(read), height * width // PIXELS_OF_ONE)
            if cost >= AT_ONCE:
                yield from self._score_block(block)
                block, cost = [], 0
        yield from self._score_block(block)

    def _score_block(self, block: Sequence[Question]) -> Iterator[dict[str, Any]]:
        """Score questions in one call of each reward."""
        predictions = [prediction for read, _ in block for prediction in read]
        targets = [target for read, target in block for _ in read]
        try:
            scores = self.rows.rewards.score(predictions, targets)
        except Exception as error:
            raise RuntimeError("a reward failed") from error
        columns = {
            "reward": scores.total.tolist(),
            "iou": outline_iou(predictions, targets).tolist(),
            "valid": [prediction.valid for prediction in predictions],
            "issues": [",".join(prediction.issue_kinds) for prediction in predictions],
        }
        terms = {name: values.tolist() for name, values in scores.terms.items()}
        start = 0
        for read, _ in block:
            rows = slice(start, start := start + len(read))
            yield {
                **{name: values[rows] for name, values in columns.items()},
                "terms": {name: values[rows] for name, values in terms.items()},
            }


class Handler(BaseHTTPRequestHandler):
    """``POST /score`` with JSON, and ``GET /``, for those who ask by the server's address."""

    scorer: Scorer
    host: str
    """Name that the server listens on, as in the header ``Host``."""
    protocol_version = "HTTP/1.1"  # clients may reuse a connection
    disable_nagle_algorithm = True
    timeout = 60  # a client that sends nothing for so many seconds is dropped

    def do_GET(self) -> None:
        """Tell what answers are scored by."""
        if self.is_asked_by_address():
            self.reply(lambda: self.scorer.facts)

    def do_POST(self) -> None:
        """Score answers."""
        if self.is_asked_by_address() and (body := self.read_body()) is not None:
            self.reply(lambda: self.scorer.score(json.loads(body)))

    def is_asked_by_address(self) -> bool:
        """Whether the Host is this server's; says so where it is not."""
        name = self.headers.get("Host", "")
        is_own = is_own_name(name, self.host)
        if not is_own:
            self.refuse(421, say_other_name(name))
        return is_own

    def read_body(self) -> bytes | None:
        """What was posted; None if it is refused, which the client is told.

        The content type must be JSON's, since pages of other sites cannot send that here.
        """
        length = self.headers.get("Content-Length", "")
        if self.path != SCORED_AT or self.headers.get_content_type() != "application/json":
            self.refuse(404, f"post application/json to {SCORED_AT}")
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
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing about single requests."""


class RewardServer(ThreadingHTTPServer):
    """A thread for each connection; many may connect at once."""

    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print where an error arose, unless it is that a client has gone."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def make_reward_server(args: Args) -> RewardServer:
    """A server of the rewards asked for, to be started by its ``serve_forever``.

    Raises:
        WrongOptionError: Something else listens there.
    """
    handler = type("RewardHandler", (Handler,), {"scorer": Scorer(args), "host": args.host})
    with listening(args.host, args.port):
        return RewardServer((args.host, args.port), handler)


def main(args: Args) -> None:
    """Serve until interrupted."""
    console = Console()
    set_limits(f"side={LONGEST_SIDE} {os.environ.get(VARIABLE, '')}")  # the last one counts
    with opening():
        server = make_reward_server(args)
    host, port = server.server_address[:2]
    try:  # whoever reads the next line may interrupt at once
        console.print(f"post to http://{host!s}:{port}/score; Ctrl-C ends it")
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
        console.print("interrupted")


command_line = partial(run_command, Args, main, __doc__, FIRST)

if __name__ == "__main__":
    command_line()
