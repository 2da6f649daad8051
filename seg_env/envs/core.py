"""What the single and the vector environment share: everything but the bookkeeping of episodes."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image

from rewards.composite import DEFAULT_REWARDS, RewardSpec
from seg_env.data.base import Dataset
from seg_env.data.sources import open_dataset
from seg_env.envs.render import ScoredAnswer, draw_panel, write_report
from seg_env.envs.scoring import Scorer, Scores
from seg_env.envs.spaces import FreeText, ImageSpace, PolygonText
from seg_env.frames import AnswerFrame, Frame, letterbox_geometry
from seg_env.tasks import (
    DEFAULT_TASK,
    PROMPTS,
    Task,
    TaskMixture,
    TaskSpec,
    askable,
    form_of,
    prompt_for,
    query_of,
)
from seg_env.tasks.queries import QueryStyle, check_places, draw_task, refer_to
from seg_env.types import Form, Prediction, Sample

Observation = dict[str, Any]
"""``{"image": (H, W, 3) uint8, "prompt": str}``."""

PADDING_GRAY = 127
"""Brightness of the padding: the middle of the range, neither dark nor light."""

_TYPICAL_SIZE = (480, 640)  # of images that are of no common size, for samples of the spaces
_LONGEST_PROMPT = 1 << 17  # characters of a question that gives an outline of most vertices


@dataclass(frozen=True, eq=False)
class Question:
    """One sample, ready to be asked about."""

    index: int
    """Position of the sample in the data set."""
    sample: Sample
    """What is asked about."""
    image: NDArray[np.uint8]
    """Image as the agent sees it, ``(H, W, 3)``; handed out as copies only."""
    prompt: str
    """The question as text."""
    frame: Frame
    """Maps the numbers of an answer to the unit frame of the sample's own image."""
    task: Task = DEFAULT_TASK
    """What is given and what is asked for."""

    @property
    def form(self) -> Form:
        """What is asked for: an outline, a box or a point."""
        return form_of(self.task)


class ReferringCore:
    """Asks about samples of a data set and scores the answers; holds no state of an episode.

    Attributes:
        dataset: Where samples come from.
        tasks: What is asked, and how often.
        queries: How places that questions give are drawn and written.
        scorer: Scores answers.
        answer_frame: What the numbers in answers mean; gives the frame of every question.
        canvas_size: ``(H, W)`` that images are letterboxed to, None for native sizes.
        observation_space: Space of one observation.
        action_space: Space of one answer.
    """

    def __init__(
        self,
        dataset: str | Dataset = "scenes",
        *,
        rewards: RewardSpec = DEFAULT_REWARDS,
        task: TaskSpec = DEFAULT_TASK,
        queries: Mapping[str, object] | QueryStyle | None = None,
        image_size: int | Sequence[int] | None = None,
        frame: str | Frame | AnswerFrame = "unit",
        prompt_template: str = PROMPTS["text->mask"],
        **source: Any,
    ) -> None:
        """Open the data set and set up scoring.

        Args:
            dataset: Name of a data set, or a data set object.
            rewards: Any form that `RewardSum.from_spec` reads.
            task: What is given and asked for, ``"text->mask"``, or several tasks with weights; see
                `TaskMixture.from_spec`.
            queries: Fields of `QueryStyle`, for tasks that give a place.
            image_size: Side, or ``(H, W)``, that images are letterboxed to; None keeps them.
            frame: What the numbers in answers mean: a name of `seg_env.frames.FAMILIES`, a model
                type, ``"pixel:WxH"``, a `Frame`, or an `AnswerFrame`.
            prompt_template: Question for outlines that contains ``{expression}``; boxes and points
                are asked for in the words of `seg_env.tasks.PROMPTS`.
            **source: ``split``, ``data_root`` and the others of `open_dataset`.

        Raises:
            ValueError: An argument is not one of what is listed here.
        """
        self._outlines_for = ""
        self.tasks = TaskMixture.from_spec(task)
        self.queries = QueryStyle.from_spec(queries)
        if "{expression}" not in prompt_template:
            raise ValueError(
                f"prompt_template={prompt_template!r} never mentions what is asked for; put "
                f"{{expression}} where the referring expression belongs"
            )
        self.dataset = open_dataset(dataset, **source)
        if not len(self.dataset):
            raise ValueError(f"data set {self.dataset.name!r} has no sample to ask about")
        self.canvas_size = _parse_size(image_size)
        self.answer_frame = AnswerFrame.from_spec(frame).on_canvas(self.canvas_size)
        check_places(self.tasks.tasks, self.answer_frame)
        self.scorer = Scorer(rewards, self.answer_frame)
        self.prompt_template = prompt_template
        self.action_space = PolygonText(frame=self.typical_frame, forms=self.tasks.forms)
        # An outline may be given in the question.
        gives_outline = any(query_of(each) == "mask" for each in self.tasks.tasks)
        prompt = FreeText(_LONGEST_PROMPT) if gives_outline else FreeText()
        self.observation_space = spaces.Dict({"image": self._image_space(), "prompt": prompt})

    @property
    def typical_frame(self) -> Frame:
        """Frame in which the action space writes its samples: that of the images' common size."""
        side = getattr(self.dataset, "size", None)
        size = (side, side) if isinstance(side, int) else _TYPICAL_SIZE
        return self.answer_frame.for_view(size)

    def draw(self, generator: np.random.Generator) -> int:
        """Index of a sample, each with the same probability."""
        return int(generator.integers(len(self.dataset)))

    def draw_seed(self, generator: np.random.Generator) -> int:
        """What decides about the rest of a question; 0, and nothing drawn, if nothing is left."""
        return int(generator.integers(2**31)) if self.tasks.is_random else 0

    def check_index(self, value: object, what: str) -> int:
        """A sample index as a Python number; TypeError or IndexError if it is none."""
        if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
            raise TypeError(f"{what} is {value!r} of {type(value).__name__}; use a whole number")
        index = operator.index(value)
        if not 0 <= index < len(self.dataset):
            raise IndexError(
                f"{what} is {index}, but {self.dataset.name!r} ({self.dataset.split}) has "
                f"{len(self.dataset)} samples; use 0 to {len(self.dataset) - 1}"
            )
        return index

    def ask(
        self,
        index: int,
        *,
        task: Task | None = None,
        query_seed: int = 0,
    ) -> Question:
        """Load a sample and the image that the agent sees; all follows from the arguments.

        Args:
            index: Position in the data set.
            task: What is asked; by default drawn from the environment's tasks. Where no object is
                there to point at, it is asked about by text.
            query_seed: Number that the task and the place given depend on, besides the sample.

        Raises:
            ValueError: The sample contradicts itself, its image is one that the policy's processor
                refuses, or episodes are about outlines and the task is not.
        """
        sample = self.dataset[index]
        native = sample.image
        if native.shape != (*sample.target.size, 3) or native.dtype != np.uint8:
            raise ValueError(
                f"sample {sample.id!r} has an image of shape {native.shape} {native.dtype} and a "
                f"target of size {sample.target.size}; expected {(*sample.target.size, 3)} uint8"
            )
        frame = self.answer_frame.for_image(sample.target.size)
        task = askable(sample, task or draw_task(self.tasks, sample, query_seed))
        if self._outlines_for and form_of(task) != "mask":
            raise ValueError(f"{self._outlines_for} is about outlines; task={task!r} is not")
        return Question(
            index,
            sample,
            native if self.canvas_size is None else letterbox(native, self.canvas_size),
            self._prompt(sample, task, query_seed, frame),
            frame,
            task,
        )

    def _prompt(self, sample: Sample, task: Task, query_seed: int, frame: Frame) -> str:
        form = form_of(task)
        template = self.prompt_template if form == "mask" else prompt_for(form)
        reference = refer_to(sample, task, query_seed, style=self.queries, frame=frame)
        return template.replace("{expression}", reference)

    def require_outlines(self, what: str, *, bracketed: bool = False) -> None:
        """Ask for nothing but outlines from now on.

        Args:
            what: Who needs it, for the message.
            bracketed: Whether vertices must be written in brackets, too.
        """
        if bracketed and self.answer_frame.writes_tokens:
            raise ValueError(
                f"{what} reads vertices in brackets; frame {self.answer_frame.family!r} writes "
                f"location tokens"
            )
        if self.tasks.forms != ("mask",):
            raise ValueError(f"{what} is about outlines; task={str(self.tasks)!r} asks for others")
        self._outlines_for = what

    def score(self, texts: Sequence[str], questions: Sequence[Question]) -> Scores:
        """Score ``N`` answers to ``N`` questions."""
        return self.judge(self.read(texts, questions), questions)

    def read(self, texts: Sequence[str], questions: Sequence[Question]) -> tuple[Prediction, ...]:
        """Decode ``N`` answers to ``N`` questions without scoring them."""
        return self.scorer.read(
            texts,
            [question.sample for question in questions],
            [question.frame for question in questions],
            [question.form for question in questions],
        )

    def judge(self, predictions: Sequence[Prediction], questions: Sequence[Question]) -> Scores:
        """Score ``N`` decoded answers to ``N`` questions."""
        return self.scorer.judge(predictions, [question.sample for question in questions])

    def reset_info(self, question: Question) -> dict[str, Any]:
        """What ``info`` says of a question."""
        return {
            "sample_id": question.sample.id,
            "dataset": self.dataset.name,
            "index": question.index,
            "task": question.task,
        }

    def answer_info(self, question: Question, scores: Scores, row: int) -> dict[str, Any]:
        """What ``info`` says of answer ``row``: the question again, and how it was answered."""
        prediction = scores.predictions[row]
        kinds = dict.fromkeys(issue.kind.value for issue in prediction.issues)
        return {
            **self.reset_info(question),
            "iou": float(scores.iou[row]),
            "valid": prediction.valid,
            "issues": ",".join(kinds),
            "num_vertices": sum(len(ring) for ring in prediction.rings),
            **{f"reward/{name}": float(values[row]) for name, values in scores.terms.items()},
        }

    def render(
        self, mode: str | None, question: Question, answer: ScoredAnswer | None
    ) -> NDArray[np.uint8] | str | None:
        """Draw a question, and the answer if there is one; None without a mode."""
        weights = self.scorer.rewards.terms
        if mode == "rgb_array":
            return draw_panel(question.sample, weights, answer)
        return write_report(question.sample, weights, answer) if mode == "ansi" else None

    def _image_space(self) -> spaces.Space[NDArray[np.uint8]]:
        """A `Box` when all images have one size that is known beforehand."""
        # A data set whose images are all squares of one size says so by this attribute.
        side = getattr(self.dataset, "size", None)
        size = self.canvas_size or ((side, side) if isinstance(side, int) else None)
        if size is None:
            return ImageSpace()
        return spaces.Box(0, 255, (*size, 3), dtype=np.uint8)


def letterbox(image: NDArray[np.uint8], canvas_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Scale an image into a canvas without changing its proportions, and pad with gray.

    The placement is `seg_env.frames.letterbox_geometry`, which `letterbox_frame` inverts exactly.
    Shrinking averages over the area of each new pixel, so thin objects fade instead of vanishing.

    The result, ``(H', W', 3) uint8``, is always newly allocated.
    """
    if image.shape[:2] == canvas_size:
        return image.copy()
    height, width = image.shape[:2]
    left, top, new_width, new_height = letterbox_geometry((height, width), canvas_size)
    # Pillow's bilinear filter widens with the scale; `reducing_gap` halves most of the cost of
    # photos that are much larger than the canvas and changes values by less than a level.
    scaled = Image.fromarray(image).resize(
        (new_width, new_height), Image.Resampling.BILINEAR, reducing_gap=3.0
    )
    canvas = np.full((*canvas_size, 3), PADDING_GRAY, dtype=np.uint8)
    canvas[top : top + new_height, left : left + new_width] = np.asarray(scaled)
    return canvas


def scored_answer(scores: Scores, row: int) -> ScoredAnswer:
    """Answer ``row`` as far as an image shows it."""
    return ScoredAnswer(
        scores.predictions[row],
        float(scores.iou[row]),
        float(scores.total[row]),
        {name: float(values[row]) for name, values in scores.terms.items()},
    )


def check_query_seed(value: object) -> int | None:
    """The number that a reset option gives, None if it gives none."""
    if value is None:
        return None
    if isinstance(value, bool) or not hasattr(value, "__index__") or operator.index(value) < 0:
        raise ValueError(f'options["query_seed"] is {value!r}; use a whole number from 0')
    return operator.index(value)


def check_options(options: Mapping[str, Any] | None, allowed: Sequence[str]) -> Mapping[str, Any]:
    """Options of a reset, none of them misspelt."""
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise TypeError(f"reset options are {options!r}; use a dict, or None")
    unknown = [key for key in options if key not in allowed]
    if unknown:
        raise ValueError(f"unknown reset options {unknown}; allowed are {list(allowed)}")
    return options


def _parse_size(image_size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    sides = [image_size, image_size] if isinstance(image_size, int) else list(image_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"image_size={image_size!r}; use None, a side, or (H, W), in pixels")
    return sides[0], sides[1]
