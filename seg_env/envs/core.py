"""Questions about samples, answers and their scores: what all the environments share.

`ReferringCore` has the rules of an episode, but not its state, which is passed in and returned. So
a batch of episodes is stepped in one call of each reward. The single and the vector environment do
the bookkeeping.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image

from rewards.composite import DEFAULT_REWARDS, RewardScores, RewardSpec, RewardSum
from rewards.mask_iou import MaskIoU, outline_iou
from seg_env.data.base import Dataset, not_asked
from seg_env.data.sources import open_dataset
from seg_env.envs.spaces import FreeText, ImageSpace, PolygonText
from seg_env.frames import AnswerFrame, Frame, letterbox_geometry
from seg_env.grammar.answers import decode_answer
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
"""Brightness of the padding of letterboxed images."""


@dataclass(frozen=True, eq=False)
class ScoredAnswer:
    """What one answer is worth."""

    prediction: Prediction
    iou: float
    total: float
    terms: dict[str, float]


@dataclass(frozen=True, eq=False)
class Scores(RewardScores):
    """What ``N`` answers are worth."""

    iou: NDArray[np.float64]
    """``(N,)`` mask IoU in [0, 1] at the target's native size, whatever the rewards are and
    whatever was asked for: of a box, what it fills; a point fills nothing."""
    predictions: tuple[Prediction, ...]
    """The ``N`` decoded answers, rings in the unit frame of the sample's image."""

    def answer(self, row: int) -> ScoredAnswer:
        """What one answer is worth."""
        return ScoredAnswer(
            self.predictions[row],
            float(self.iou[row]),
            float(self.total[row]),
            {name: float(values[row]) for name, values in self.terms.items()},
        )


@dataclass(frozen=True, eq=False)
class Question:
    """One sample, ready to be asked about."""

    index: int
    """Position of the sample in the data set."""
    sample: Sample
    image: NDArray[np.uint8]
    """Image as the agent sees it, ``(H, W, 3)``; handed out as copies only."""
    prompt: str
    frame: Frame
    """Maps the numbers of an answer to the unit frame of the sample's own image."""
    task: Task
    form: Form
    """What is asked for: an outline, a box or a point."""


@dataclass(frozen=True, eq=False)
class Episode:
    """Where an episode stands; episodes of several steps add fields."""

    question: Question
    value: float = 0.0
    """Reward of the answer so far, 0 before the first action; not kept at the end."""


@dataclass(eq=False, slots=True)
class Move:
    """What an action does, before it is scored."""

    episode: Any
    """Where the `Episode` stands afterwards, but for its value."""
    answer: Prediction
    """The answer as it stands."""
    counts: bool = True
    """Whether the answer's reward becomes the value of the episode, which otherwise stays."""
    terminated: bool = True
    truncated: bool = False
    said: dict[str, Any] = field(default_factory=dict)
    """Further entries of ``info``."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one action led to."""

    episode: Any
    """Where the `Episode` stands now."""
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]
    """Strings, bools, ints and floats; the same keys for every action of an environment."""
    answer: ScoredAnswer
    """The outline as it stands, scored; for drawing."""


class ReferringCore:
    """Asks about samples of a data set and scores the answers, each of which ends its episode.

    Episodes of several steps are subclasses. Nothing here holds the state of an episode.
    """

    last_action = "one answer"
    """What ends an episode, in words."""
    turns = 1
    """Most prompts of an episode."""

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

        The arguments are those listed by `ReferringSegmentationEnv`; ``source`` are ``split``,
        ``data_root`` and the others of `open_dataset`. ``prompt_template`` asks for outlines; boxes
        and points are asked for in the words of `seg_env.tasks.PROMPTS`.
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
            reasons = [f"{count} {reason}" for reason, count in not_asked(self.dataset).items()]
            reasons += getattr(self.dataset, "faults", {}).values()
            why = "; ".join(reasons) or "it has no records"
            raise ValueError(f"data set {self.dataset.name!r} has no sample to ask about: {why}")
        # A data set whose images are all squares of one size says so by this attribute.
        side = getattr(self.dataset, "size", None)
        native_size = (side, side) if isinstance(side, int) else None
        self.canvas_size = _parse_size(image_size)
        self.answer_frame = AnswerFrame.from_spec(frame).on_canvas(self.canvas_size)
        check_places(self.tasks.tasks, self.answer_frame)
        self._reads_tokens = self.answer_frame.writes_tokens
        self.rewards = RewardSum.from_spec(rewards)
        self.prompt_template = prompt_template
        written = self.answer_frame.for_view(native_size or (480, 640))
        self.action_space = PolygonText(frame=written, forms=self.tasks.forms)
        size = self.canvas_size or native_size
        image = spaces.Box(0, 255, (*size, 3), dtype=np.uint8) if size else ImageSpace()
        # Room for an outline of as many vertices as are read, where the question gives one.
        gives_outline = any(query_of(each) == "mask" for each in self.tasks.tasks)
        prompt = FreeText(1 << 17) if gives_outline else FreeText()
        self.observation_space = spaces.Dict({"image": image, "prompt": prompt})

    def require_outlines(self, what: str, *, bracketed: bool = False) -> None:
        """Ask for nothing but outlines from now on, written in brackets if ``bracketed``.

        Error messages say ``what`` needs them.
        """
        if bracketed and self.answer_frame.writes_tokens:
            raise ValueError(
                f"{what} reads vertices in brackets; frame {self.answer_frame.family!r} writes "
                f"location tokens"
            )
        if self.tasks.forms != ("mask",):
            raise ValueError(f"{what} is about outlines; task={str(self.tasks)!r} asks for others")
        self._outlines_for = what

    def draw(self, generator: np.random.Generator) -> int:
        """Index of a sample, each with the same probability."""
        return int(generator.integers(len(self.dataset)))

    def draw_seed(self, generator: np.random.Generator) -> int:
        """A seed for the task and the place given; 0, and nothing drawn, if neither is random."""
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

    def choose(
        self,
        generator: np.random.Generator,
        index: int | None = None,
        task: Task | None = None,
        query_seed: int | None = None,
    ) -> tuple[int, Task | None, int]:
        """The arguments of `ask`: those given, and the others drawn (a task, by its seed)."""
        if index is None:
            index, seed = self.draw(generator), self.draw_seed(generator)
        else:
            seed = 0
        return index, task, seed if query_seed is None else query_seed

    def ask(self, index: int, task: Task | None = None, query_seed: int = 0) -> Question:
        """Load a sample and the image that the agent sees; equal arguments give equal questions.

        The task is by default drawn from the environment's tasks, with ``query_seed``, as is the
        place given. Where there is no object to point at, it is asked about by text.

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
        form = form_of(task)
        if self._outlines_for and form != "mask":
            raise ValueError(f"{self._outlines_for} is about outlines; task={task!r} is not")
        template = self.prompt_template if form == "mask" else prompt_for(form)
        reference = refer_to(sample, task, query_seed, style=self.queries, frame=frame)
        return Question(
            index,
            sample,
            native if self.canvas_size is None else letterbox(native, self.canvas_size),
            template.replace("{expression}", reference),
            frame,
            task,
            form,
        )

    def begin(self, question: Question) -> Any:
        """Open an `Episode`."""
        return Episode(question)

    def observe(self, episode: Any) -> Observation:
        """What the agent sees; arrays may be shared, whoever hands them out makes copies."""
        return {"image": episode.question.image, "prompt": episode.question.prompt}

    def move(self, episode: Any, action: str) -> Move:
        """Take an action, any string, in an open episode."""
        return Move(episode, self.decode(action, episode.question))

    def step(self, episodes: Sequence[Any], actions: Sequence[str]) -> list[Outcome]:
        """Take one action in each of ``N`` open episodes; all answers are scored together.

        An action earns what it adds to the reward of the answer so far.
        """
        moves = [self.move(*pair) for pair in zip(episodes, actions, strict=True)]
        questions = [episode.question for episode in episodes]
        scores = self.judge([move.answer for move in moves], questions)
        outcomes = []
        for row, (before, move) in enumerate(zip(episodes, moves, strict=True)):
            answer = scores.answer(row)
            value = answer.total if move.counts else before.value
            after, ends = move.episode, (move.terminated, move.truncated)
            if not move.terminated:
                after = replace(after, value=value)
            info = self.answer_info(after, answer) | move.said
            outcomes.append(Outcome(after, value - before.value, *ends, info, answer))
        return outcomes

    def score(self, texts: Sequence[str], questions: Sequence[Question]) -> Scores:
        """Score ``N`` answers to ``N`` questions."""
        return self.judge(self.read(texts, questions), questions)

    def read(self, texts: Sequence[str], questions: Sequence[Question]) -> tuple[Prediction, ...]:
        """Decode ``N`` answers, any strings, to ``N`` questions without scoring them."""
        if len(texts) != len(questions):
            raise ValueError(f"{len(texts)} answers to {len(questions)} questions; give one each")
        return tuple(map(self.decode, texts, questions))

    def decode(self, text: str, question: Question) -> Prediction:
        """Decode an answer, any string, without scoring it."""
        if self._reads_tokens:
            text = self.answer_frame.normalize(text, question.form)
        return decode_answer(text, question.form, question.frame)

    def judge(self, predictions: Sequence[Prediction], questions: Sequence[Question]) -> Scores:
        """Score ``N`` decoded answers to ``N`` questions in one call of each reward.

        Answers to one question should share one `Sample` object: what is prepared for its target is
        then prepared once. What a reward raises propagates; a bug must not become a zero.
        """
        targets = [question.sample.target for question in questions]
        scored = self.rewards.score(predictions, targets)
        # The IoU is almost always one of the rewards already.
        known = self.rewards.terms.get(MaskIoU.name)
        outlines = all(prediction.form == "mask" for prediction in predictions)
        if outlines and known is not None and type(known.reward) is MaskIoU:
            iou = scored.terms[MaskIoU.name]
        else:
            iou = outline_iou(predictions, targets)
        return Scores(scored.total, scored.terms, iou, tuple(predictions))

    def reset_info(self, episode: Any) -> dict[str, Any]:
        """What ``info`` says when an episode begins."""
        return {
            "sample_id": episode.question.sample.id,
            "dataset": self.dataset.name,
            "index": episode.question.index,
            "task": episode.question.task,
        }

    def answer_info(self, episode: Any, answer: ScoredAnswer) -> dict[str, Any]:
        """What ``info`` says of an answer: as at the beginning, and how it was answered."""
        return {
            **self.reset_info(episode),
            "iou": answer.iou,
            "valid": answer.prediction.valid,
            "issues": ",".join(answer.prediction.issue_kinds),
            "num_vertices": sum(map(len, answer.prediction.rings)),
            **{f"reward/{name}": value for name, value in answer.terms.items()},
        }


def letterbox(image: NDArray[np.uint8], canvas_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Scale an image into a canvas without changing its proportions, and pad with gray.

    The placement is `seg_env.frames.letterbox_geometry`. Shrinking averages over the area of each
    new pixel, so thin objects fade instead of vanishing. The result is newly allocated.
    """
    if image.shape[:2] == canvas_size:
        return image.copy()
    height, width = image.shape[:2]
    left, top, new_width, new_height = letterbox_geometry((height, width), canvas_size)
    # Pillow's bilinear filter widens with the scale; `reducing_gap` halves most of the cost of
    # images that are much larger than the canvas and changes values by less than a level.
    scaled = Image.fromarray(image).resize(
        (new_width, new_height), Image.Resampling.BILINEAR, reducing_gap=3.0
    )
    canvas = np.full((*canvas_size, 3), PADDING_GRAY, dtype=np.uint8)
    canvas[top : top + new_height, left : left + new_width] = np.asarray(scaled)
    return canvas


def copy_observation(observation: Observation) -> Observation:
    """An observation that shares no memory with any other."""
    return {
        key: value.copy() if isinstance(value, np.ndarray) else value
        for key, value in observation.items()
    }


def check_query_seed(value: object) -> int | None:
    """The reset option ``"query_seed"``, None if it is not given."""
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
