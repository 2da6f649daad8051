"""A page in the browser on which a policy answers: choose a scene or an image, type an expression.

It needs no package besides the project's own, and the page loads nothing from elsewhere.

    python experiments/demo.py --policy runs/gspo/policy
    python experiments/demo.py --policy runs/gspo/policy --dataset my_images --split val
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console

from experiments.common.arguments import QuestionArguments
from experiments.common.command import opening, run_command
from experiments.common.policies import (
    EMBEDDED,
    OTHER_WORLD,
    SHIPPED,
    AnswerLength,
    PrecisionChoice,
    say_what_is_asked,
)
from experiments.common.serving import JsonHandler, JsonServer, make_server
from rewards.composite import DEFAULT_REWARDS, RewardSum
from rewards.mask_iou import outline_iou
from seg_env.data.images import data_url, image_size, read_image
from seg_env.data.scenes import Scenes
from seg_env.envs.referring import open_questions
from seg_env.errors import WrongOptionError
from seg_env.geometry.drawing import draw_overlay
from seg_env.grammar.answers import read_answer
from seg_env.tasks import PROMPTS
from seg_env.types import Sample

if TYPE_CHECKING:
    from agents.policy.model import VLMPolicy

MOST_PIXELS = 2**24
"""Largest image that is read; the page sends at most 1024 by 1024."""
LONGEST_EXPRESSION = 300
"""Characters of an expression; one that is longer is refused."""
FIRST = {
    "What is asked": ("dataset", "data-root", "split"),
    "Who answers": ("policy", "frame", "max-new-tokens"),
    "The page": ("host", "port", "rewards", "output-dir"),
}


@dataclass
class Args(QuestionArguments):
    """Serve a page on which a policy answers."""

    split: str = "val"
    """Split whose images the page shows."""
    difficulty: tyro.conf.Suppress[str | None] = None
    host: str = "127.0.0.1"
    """Address to listen on; by default only this machine reaches it. There is no password."""
    port: int = 8000
    """Port to listen on, 0 for any free one."""
    rewards: tuple[str, ...] = tuple(DEFAULT_REWARDS.split())
    """Rewards that are shown, as ``name=weight`` or ``package.module:Class=weight``."""
    max_new_tokens: AnswerLength = "auto"
    """Longest answer in tokens; auto: 128 for the shipped policies, 1024 for others."""
    precision: PrecisionChoice = "float32"
    """float32, bfloat16 under autocast, or auto."""
    output_dir: Path | None = None
    """Folder that keeps questions and answers as answers.jsonl; by default none does."""


class Demo:
    """Answers one question at a time, since there is one policy."""

    def __init__(self, policy: VLMPolicy, args: Args) -> None:
        """Set up; the rewards judge answers where the truth is known."""
        import torch

        self.policy, self.output_dir = policy, args.output_dir
        policy.model.eval()
        self.rewards = RewardSum.from_spec(" ".join(args.rewards))
        length = args.answer_length()
        # Of the images that will come no outlines are known whose length could be measured.
        self.max_new_tokens = 1024 if length == "auto" else length
        # Of scenes the page chooses the difficulty.
        self._scenes, self._note = args.env == Args.env and args.dataset is None, ""
        if not self._scenes:
            from experiments.common.cloning_data import RecordedImages

            opened = open_questions(args.env, **args.environment()).dataset
            say_what_is_asked(args.policy or EMBEDDED, opened, Console())
            self._images = RecordedImages(opened)
        elif (args.policy or EMBEDDED) in SHIPPED:
            self._note = OTHER_WORLD.format(policy=args.policy or EMBEDDED, images="this one")
        self._generator = torch.Generator().manual_seed(args.seed)
        self.lock = threading.Lock()

    def scene(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The image of the scene with ``difficulty`` and ``index``, and its expressions."""
        samples = self._samples(asked)
        return {
            "expressions": [each.expression for each in samples],
            "picture": data_url(draw_overlay(samples[0].image)),
        }

    def answer(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for ``expression`` in ``picture`` (a data address), or else in a scene.

        Returns:
            The ``text``, its ``issues``, the ``overlay``, and ``iou`` and ``rewards`` where the
            expression is one of the scene's own.

        Raises:
            KeyError: Something is missing from what was asked.
            ValueError: Something in it is not allowed.
        """
        import torch

        from experiments.evaluation.loop import sample_answers

        expression, temperature = str(asked["expression"]), float(asked["temperature"])
        if not 0 <= temperature <= 2 or len(expression) > LONGEST_EXPRESSION:
            raise ValueError(
                f"temperature {temperature} and {len(expression)} characters: use a temperature "
                f"from 0 (the likeliest answer) to 2, and up to {LONGEST_EXPRESSION} characters"
            )
        samples = [] if asked.get("picture") else self._samples(asked)
        image = samples[0].image if samples else read_data_uri(str(asked["picture"]))
        truth = next((each for each in samples if each.expression == expression), None)
        with self.lock:
            (text,), _ = sample_answers(
                self.policy,
                self.policy.prepare([image], [PROMPTS["text->mask"].format(expression=expression)]),
                temperature=temperature,
                answers=1,
                max_new_tokens=self.max_new_tokens,
                noise=torch.rand(1, self.max_new_tokens, generator=self._generator),
            )
            read = read_answer(text, image.shape[:2], self.policy.answer_frame)
            issues = [f"{issue.kind}: {issue.detail}".rstrip(": ") for issue in read.issues]
            found: dict[str, Any] = {"text": text, "issues": issues, "iou": None, "rewards": {}}
            if truth is not None:
                terms = self.rewards.score([read], [truth.target]).terms
                found["iou"] = float(outline_iou([read], [truth.target])[0])
                found["rewards"] = {name: float(term[0]) for name, term in terms.items()}
            if self.output_dir is not None:
                self.output_dir.mkdir(parents=True, exist_ok=True)
                with (self.output_dir / "answers.jsonl").open("a") as file:
                    file.write(json.dumps({"expression": expression, **found}) + "\n")
        if asked.get("picture") and self._note:
            found["issues"], self._note = [*issues, self._note], ""
        overlay = draw_overlay(image, None if truth is None else truth.target, read)
        return {**found, "overlay": data_url(overlay)}

    def _samples(self, asked: Mapping[str, Any]) -> list[Sample]:
        """One sample for each object of the image asked for, of the scenes or the data set."""
        if self._scenes:
            return Scenes("val", asked["difficulty"]).samples_of(int(asked["index"]))
        return self._images.samples_of(int(asked["index"]))


def read_data_uri(address: str) -> NDArray[np.uint8]:
    """The image in a data address, ``(H, W, 3) uint8``.

    Raises:
        ValueError: It holds no image that can be read.
    """
    data = base64.b64decode(address.partition(",")[2], validate=True)
    name = "the picture that was sent"
    height, width = size = image_size(data, name, upright=True)
    if height * width > MOST_PIXELS:
        raise ValueError(f"{name} has {height} x {width} pixels; at most {MOST_PIXELS} are read")
    return read_image(data, size, name, upright=True)


class Handler(JsonHandler):
    """Serves the page, ``GET /scene?difficulty=&index=``, and ``POST /answer`` with JSON."""

    demo: Demo
    only_inline = "default-src 'unsafe-inline'; img-src data:; connect-src 'self'"
    headers_sent = (("Content-Security-Policy", only_inline),)

    posted_to = "/answer"

    def show(self) -> None:
        """The page, or a scene."""
        address = urlsplit(self.path)
        if address.path == "/scene":
            self.reply(lambda: self.demo.scene(dict(parse_qsl(address.query))))
        else:
            page = Path(__file__).with_name("demo.html").read_bytes()
            self.send(200, "text/html; charset=utf-8", page)

    def answer(self, asked: Any) -> dict[str, Any]:
        """An answer of the policy."""
        return self.demo.answer(asked)


def make_demo_server(demo: Demo, host: str, port: int) -> JsonServer:
    """A server of one demo; see `make_server`."""
    return make_server(type("DemoHandler", (Handler,), {"demo": demo}), host, port)


def main(args: Args) -> None:
    """Serve until interrupted."""
    console = Console()
    with opening():
        policy = args.open_policy(console)
        demo = Demo(policy, args)
        server = make_demo_server(demo, args.host, args.port)
    host, port = server.server_address[:2]
    console.print(f"open http://{host!s}:{port} in a browser; Ctrl-C ends it")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
        # Answers end and none begins: torch aborts a process that ends while it computes.
        demo.lock.acquire()
        console.print("interrupted")


def command_line(words: Sequence[str] | None = None) -> None:
    """Run what the command line, or ``words``, ask for."""
    run_command(Args, main, __doc__, FIRST, words)


if __name__ == "__main__":
    command_line()
