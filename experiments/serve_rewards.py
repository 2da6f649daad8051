"""Score answers for any trainer, over HTTP: batches of texts in, rewards out.

    python experiments/serve_rewards.py --rewards mask_iou=1 format=0.1
    curl http://127.0.0.1:8010/score -H 'Content-Type: application/json' -d '{"questions": [
      {"rings": [[[0.2, 0.2], [0.6, 0.2], [0.6, 0.7]]], "size": [480, 640],
       "answers": ["[[[0.2,0.2],[0.6,0.2],[0.6,0.6]]]", "[]"]}]}'

A question has the columns of exported data (``python -m seg_env.data export``) and the answers to
it. What it gets are lists with a number for each answer: ``reward``, ``iou``, ``valid``,
``issues``, and under ``terms`` every reward by its name. ``GET /`` tells rewards and frame.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from rich.console import Console

from experiments.common.command import opening, run_command
from experiments.common.serving import JsonHandler, JsonServer, make_server
from rewards.composite import DEFAULT_REWARDS
from rewards.mask_iou import outline_iou
from rewards.trainers import RowRewards
from seg_env.data.records import Record, RecordError, located
from seg_env.geometry.limits import VARIABLE, set_limits

MOST_ANSWERS = 1 << 14
"""Answers of one request."""
LONGEST_SIDE = 4096
"""Pixels along a side of an image, unless ``--limits side=NUMBER`` says otherwise: one answer can
take memory in proportion, some hundred MiB at most."""
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
    """Scores the answers of one request in one call of each reward."""

    def __init__(self, args: Args) -> None:
        """Find the rewards; no request names any, since names lead to code."""
        self.rows = RowRewards(" ".join(args.rewards), args.frame)
        self.facts = {"rewards": list(args.rewards), "frame": self.rows.frame.description}

    def score(self, asked: object) -> dict[str, Any]:
        """Score what was posted.

        Raises:
            RecordError: Something in it is malformed; the message says which question.
            RuntimeError: A reward failed, which is no client's fault.
        """
        request = Record.parse(asked, "the request")
        rows: list[Any] = []
        answers: list[str] = []
        ends = [0]
        for number, question in enumerate(request.items("questions")):
            with located(f"question {number}"):
                record = Record.parse(question, "it")
                answers += record.texts("answers")
                if len(answers) > MOST_ANSWERS:
                    raise RecordError(
                        f"with it there are {len(answers)} answers, not {MOST_ANSWERS}"
                    )
                rows += [record.values] * (len(answers) - ends[-1])
                ends.append(len(answers))
        predictions, targets = self.rows.read(answers, rows)
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
        return {
            "questions": [
                {
                    **{name: values[start:end] for name, values in columns.items()},
                    "terms": {name: values[start:end] for name, values in terms.items()},
                }
                for start, end in pairwise(ends)
            ]
        }


class Handler(JsonHandler):
    """``POST /score`` with JSON, and ``GET /``."""

    scorer: Scorer

    posted_to = "/score"

    def show(self) -> None:
        """What answers are scored by."""
        self.reply(lambda: self.scorer.facts)

    def answer(self, asked: Any) -> dict[str, Any]:
        """Rewards of answers."""
        return self.scorer.score(asked)


def make_reward_server(args: Args) -> JsonServer:
    """A server of the rewards that are asked for; see `make_server`."""
    handler = type("RewardHandler", (Handler,), {"scorer": Scorer(args)})
    return make_server(handler, args.host, args.port)


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
