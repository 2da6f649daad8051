"""What the demo page asks for: scenes, and a policy's answers about them or about any picture."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from agents.policy.model import VLMPolicy
from agents.policy.sampling import sample
from seg_env.data.images import image_size, read_image_bytes
from seg_env.data.scenes import Scenes
from seg_env.envs.render import draw_overlay
from seg_env.envs.scoring import Scorer
from seg_env.grammar.answers import read_answer
from seg_env.tasks import PROMPTS
from seg_env.types import Prediction, Sample

LONGEST_EXPRESSION = 300
"""Characters of an expression; one that is longer is refused."""


class Demo:
    """Answers one question at a time, since there is one policy."""

    def __init__(
        self,
        policy: VLMPolicy,
        rewards: Sequence[str],
        max_new_tokens: int,
        seed: int = 0,
        output_dir: Path | None = None,
    ) -> None:
        """Set up.

        Args:
            policy: Who answers.
            rewards: What answers are judged by where the truth is known.
            max_new_tokens: Longest answer.
            seed: Seed of sampled answers.
            output_dir: Folder that keeps questions and answers as answers.jsonl, or None.
        """
        self.policy = policy
        self.policy.model.eval()
        self.scorer = Scorer(" ".join(rewards), policy.answer_frame)
        self.max_new_tokens = max_new_tokens
        self.output_dir = output_dir
        self._generator = torch.Generator().manual_seed(seed)
        self._lock = threading.Lock()

    def scene(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The picture of the scene with ``difficulty`` and ``index``, and its expressions."""
        samples = _samples(asked)
        return {
            "expressions": [each.expression for each in samples],
            "picture": data_uri(draw_overlay(samples[0].image)),
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
        expression, temperature = str(asked["expression"]), float(asked["temperature"])
        if not 0 <= temperature <= 2 or len(expression) > LONGEST_EXPRESSION:
            raise ValueError(
                f"temperature {temperature} and {len(expression)} characters: use a temperature "
                f"from 0 (the likeliest answer) to 2, and up to {LONGEST_EXPRESSION} characters"
            )
        samples = [] if asked.get("picture") else _samples(asked)
        image = samples[0].image if samples else read_data_uri(str(asked["picture"]))
        truth = next((each for each in samples if each.expression == expression), None)
        with self._lock:
            text = self._write(
                image, PROMPTS["text->mask"].format(expression=expression), temperature
            )
            size = image.shape[0], image.shape[1]
            prediction = read_answer(text, size, self.policy.answer_frame)
            found = self._judge(prediction, text, truth)
            if self.output_dir is not None:
                self.output_dir.mkdir(parents=True, exist_ok=True)
                with (self.output_dir / "answers.jsonl").open("a") as file:
                    file.write(json.dumps({"expression": expression, **found}) + "\n")
        overlay = draw_overlay(image, None if truth is None else truth.target, prediction)
        return {**found, "overlay": data_uri(overlay)}

    def _write(self, image: NDArray[np.uint8], prompt: str, temperature: float) -> str:
        """The policy's answer."""
        noise = torch.rand(1, self.max_new_tokens, generator=self._generator)
        completion = sample(
            self.policy,
            self.policy.prepare([image], [prompt]),
            max_new_tokens=self.max_new_tokens,
            temperature=temperature,
            noise=noise.to(self.policy.device),
        )
        return self.policy.texts(completion.tokens, completion.mask)[0]

    def _judge(self, read: Prediction, text: str, truth: Sample | None) -> dict[str, Any]:
        """What is wrong with an answer, and its worth where the truth is known."""
        issues = [f"{issue.kind}: {issue.detail}".rstrip(": ") for issue in read.issues]
        if truth is None:
            return {"text": text, "issues": issues, "iou": None, "rewards": {}}
        scores = self.scorer([text], [truth])
        rewards = {name: float(values[0]) for name, values in scores.terms.items()}
        return {"text": text, "issues": issues, "iou": float(scores.iou[0]), "rewards": rewards}


def _samples(asked: Mapping[str, Any]) -> list[Sample]:
    """One sample for each object of the scene asked for."""
    return Scenes("val", asked["difficulty"]).samples_of(int(asked["index"]))


def data_uri(image: NDArray[np.uint8]) -> str:
    """A picture as the address of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def read_data_uri(address: str) -> NDArray[np.uint8]:
    """The picture in a data address, ``(H, W, 3) uint8``.

    Raises:
        ValueError: It holds no picture that can be read.
    """
    data = base64.b64decode(address.partition(",")[2], validate=True)
    name = "the picture that was sent"
    return read_image_bytes(data, image_size(data, name), name)
