"""What the page asks and what answers are worth: everything that needs no browser."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from PIL import Image

from agents.advantages import group_advantages
from agents.settings import GSPOConfig
from experiments.evaluation.loop import sample_answers
from rewards.composite import RewardSum
from seg_env.data.base import Dataset
from seg_env.data.export import run_lengths
from seg_env.data.geojson import pixel_polygons
from seg_env.data.images import data_url, image_size, read_image
from seg_env.data.scenes import Scenes
from seg_env.envs.core import Question, ReferringCore, ScoredAnswer
from seg_env.geometry.drawing import as_png
from seg_env.geometry.polygon import roles
from seg_env.geometry.raster import rasterize
from seg_env.geometry.rle import Rle
from seg_env.grammar import encode
from seg_env.grammar.answers import encode_numbers
from seg_env.metrics.scores import iou_of_boxes
from seg_env.tasks import Task, box_of, check_task, form_of, prompt_for, query_of
from seg_env.tasks.queries import check_places
from seg_env.tasks.tasks import REFERENCES
from seg_env.types import Prediction, Ring, Sample, Target

if TYPE_CHECKING:
    from agents.policy.constraint import OutlineConstraint
    from agents.policy.model import VLMPolicy
    from experiments.common.cloning_data import RecordedImages

MOST_PIXELS = 2**24
"""Largest image that is read; the page sends at most 1024 by 1024, others may send more."""
LONGEST_EXPRESSION = 300
"""Characters of an expression; one that is longer is refused."""
MOST_ANSWERS = 16
"""Answers of a group."""
LONGEST_SIDE = 1024
"""Pixels along the longer side of an image as it is shown, and of one that was sent."""
LEAST_OVERLAP = 0.5
"""IoU with an object's box from which on a drawn box counts as that object's."""


@dataclass(frozen=True, eq=False)
class Shown:
    """An image on the page."""

    name: str
    image: NDArray[np.uint8]
    samples: Sequence[Sample] = ()
    """One for each object whose outline is known."""
    left: threading.Event = field(default_factory=threading.Event)
    """Set once another image is shown in its place."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A question, and whether the page knows the answer."""

    question: Question
    policy: str
    """Its name on the page."""
    is_known: bool
    """Whether the target is an object's; else it has no pixel and nothing is scored."""


@dataclass(frozen=True, eq=False)
class Answer:
    """An answer as it stands."""

    prediction: Prediction
    scored: ScoredAnswer | None
    """None where the truth is not known."""

    @property
    def issues(self) -> list[str]:
        """What is wrong with the text, in words."""
        found = self.prediction.issues
        return [f"{issue.kind}: {issue.detail}".rstrip(": ") for issue in found]


class StoppedError(Exception):
    """Nobody waits for the answer any more."""


@dataclass(eq=False)
class Demo:
    """Asks the policies of a page, one question at a time, about its images."""

    policies: Mapping[str, VLMPolicy]
    rewards: RewardSum
    dataset: Dataset
    images: RecordedImages | None = None
    """The images of ``dataset``; None for scenes, of which visitors choose the difficulty."""
    constraints: dict[str, OutlineConstraint | None] = field(default_factory=dict)
    """What a policy may write if only outlines are allowed, by its name on the page."""
    note: str = ""
    """Note shown with answers about images that visitors bring."""
    max_new_tokens: int = 1024
    seed: int = 0
    output_dir: Path | None = None

    def __post_init__(self) -> None:
        """Set up the rules of the environment for each policy, in the frame that it writes."""
        self._cores = {
            name: ReferringCore(self.dataset, rewards=self.rewards, frame=policy.answer_frame)
            for name, policy in self.policies.items()
        }
        for policy in self.policies.values():
            policy.model.eval()
        self._generator = torch.Generator().manual_seed(self.seed)
        self.lock = threading.Lock()
        self.closing = threading.Event()
        """Once it is set, answers end at their next token."""

    def show(self, difficulty: str, index: int) -> Shown:
        """A scene, or an image of the data set."""
        images: Scenes | RecordedImages = self.images or Scenes("val", difficulty)  # type: ignore[arg-type]
        if not 0 <= index < len(images):
            raise IndexError(f"image {index}: there are {len(images)}, use 0 to {len(images) - 1}")
        samples = images.samples_of(index)
        if not samples:
            raise ValueError(f"image {index}: none of its objects is present, choose another")
        return Shown(images.name_of(index), samples[0].image, samples)

    def ask_by_text(self, shown: Shown, policy: str, task: Task, expression: str) -> Asked:
        """Ask for what an expression means.

        Raises:
            ValueError: It is empty or too long.
        """
        expression = expression.strip()
        if not 0 < len(expression) <= LONGEST_EXPRESSION:
            raise ValueError(
                f"the expression has {len(expression)} characters: write 1 to {LONGEST_EXPRESSION}"
            )
        truth = next((one for one in shown.samples if one.expression == expression), None)
        return self._ask(shown, policy, task, expression, truth)

    def ask_by_place(
        self, shown: Shown, policy: str, task: Task, place: NDArray[np.float64]
    ) -> Asked:
        """Ask for the object at a point ``(1, 2)`` or in a box ``(2, 2)``, in the unit frame.

        Raises:
            ValueError: The place is not in the image.
        """
        wanted = 2 if query_of(task) == "bbox" else 1
        if place.shape != (wanted, 2) or not ((place >= 0) & (place <= 1)).all():
            raise ValueError(f"{place.tolist()} is no place in the image for the task {task}")
        core = self._cores[policy]
        check_places([task], core.answer_frame)
        place = np.stack((place.min(axis=0), place.max(axis=0)))[:wanted]
        truth: Sample | None = None
        if wanted == 1:
            there = [one for one in shown.samples if one.target.contains(place[0])]
            truth = min(there, key=lambda one: one.target.area, default=None)
        else:
            boxes = np.array([box_of(one.target) for one in shown.samples]).reshape(-1, 4)
            overlaps = iou_of_boxes(np.broadcast_to(place.ravel(), boxes.shape), boxes, 0.0)
            best = max(range(len(boxes)), key=overlaps.__getitem__, default=None)
            if best is not None and overlaps[best] >= LEAST_OVERLAP:
                truth = shown.samples[best]
        written = encode_numbers(
            place,
            core.queries.decimals,
            frame=core.answer_frame.for_image(shown.image.shape[:2]),
            pad=core.queries.pad,
        )
        return self._ask(
            shown, policy, task, REFERENCES[query_of(task)].format(query=written), truth
        )

    def _ask(
        self, shown: Shown, policy: str, task: Task, reference: str, truth: Sample | None
    ) -> Asked:
        height, width = shown.image.shape[:2]
        nothing = Target(Rle.from_counts((height, width), [height * width]))
        sample = truth or Sample(shown.name, reference, nothing, lambda: shown.image)
        question = Question(
            0,
            sample,
            shown.image,
            prompt_for(form_of(check_task(task))).replace("{expression}", reference),
            self._cores[policy].answer_frame.for_image((height, width)),
            task,
            form_of(task),
        )
        return Asked(question, policy, truth is not None)

    def read(self, asked: Asked, texts: Sequence[str]) -> list[Answer]:
        """Answers to a question as the environment reads and scores them."""
        core, questions = self._cores[asked.policy], [asked.question] * len(texts)
        predictions = core.read(texts, questions)
        if not asked.is_known:
            return [Answer(each, None) for each in predictions]
        scores = core.judge(predictions, questions)
        return [Answer(each, scores.answer(row)) for row, each in enumerate(predictions)]

    def write(self, asked: Asked, rings: Sequence[Ring]) -> str:
        """The text that a policy would write for an outline, or for the box around it."""
        core, question = self._cores[asked.policy], asked.question
        text = encode(rings, core.queries.decimals, frame=question.frame)
        if question.form == "bbox" and len(rings):
            corners = np.stack((rings[0].min(axis=0), rings[0].max(axis=0)))
            text = encode_numbers(corners, core.queries.decimals, frame=question.frame)
        return core.answer_frame.write(text)

    def advantages(self, answers: Sequence[Answer]) -> list[float]:
        """GSPO's advantages for a group whose answers are scored."""
        totals = [each.scored.total for each in answers if each.scored]
        floor = GSPOConfig().spread_floor
        return group_advantages(torch.tensor(totals), len(totals), floor).tolist()

    def answers(
        self, asked: Asked, *, temperature: float, count: int, constrained: bool = False
    ) -> Iterator[list[str]]:
        """Let the policy answer.

        Yields:
            The texts so far, ``count`` of them, or one at temperature 0; the last ones are whole.

        Raises:
            ValueError: A setting is out of its range.
        """
        if not 0 <= temperature <= 2 or not 1 <= count <= MOST_ANSWERS:
            raise ValueError(
                f"temperature {temperature} and {count} answers: use a temperature from 0 (the "
                f"likeliest answer) to 2, and 1 to {MOST_ANSWERS} answers"
            )
        count = count if temperature else 1
        written: SimpleQueue[list[str] | Exception | None] = SimpleQueue()
        left = threading.Event()

        def report(texts: list[str]) -> None:
            if left.is_set() or self.closing.is_set():
                raise StoppedError
            written.put(texts)

        def answer() -> None:
            try:
                with self.lock:
                    report([""] * count)
                    policy = self.policies[asked.policy]
                    allowed = constrained and asked.question.form == "mask"
                    policy.constraint = self.constraints.get(asked.policy) if allowed else None
                    sample_answers(
                        policy,
                        policy.prepare([asked.question.image], [asked.question.prompt]),
                        temperature=temperature,
                        answers=count,
                        max_new_tokens=self.max_new_tokens,
                        noise=torch.rand(count, self.max_new_tokens, generator=self._generator),
                        on_token=report,
                    )
                written.put(None)
            except Exception as error:
                written.put(error)

        threading.Thread(target=answer, daemon=True).start()
        texts = [""] * count
        try:
            while (found := written.get()) is not None:
                if isinstance(found, StoppedError):
                    return
                if isinstance(found, Exception):
                    raise found
                texts = found
                if written.empty():  # a slow reader gets the newest
                    yield texts
        finally:
            left.set()
        yield texts
        self._keep(asked, texts)

    def _keep(self, asked: Asked, texts: Sequence[str]) -> None:
        """Add answers to ``answers.jsonl``, if there is a folder for them."""
        if self.output_dir is None:
            return
        rows = [
            {
                "policy": asked.policy,
                "task": asked.question.task,
                "prompt": asked.question.prompt,
                "text": answer.prediction.text,
                "issues": answer.issues,
                "iou": answer.scored and answer.scored.iou,
                "rewards": answer.scored.terms if answer.scored else {},
            }
            for answer in self.read(asked, texts)
        ]
        with self.lock:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            with (self.output_dir / "answers.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)


def read_upload(address: object) -> Shown:
    """The image in a data URL, reduced to `LONGEST_SIDE`.

    Raises:
        ValueError: It holds no image that can be read, or one that is too large.
    """
    name = "the image that was sent"
    data = base64.b64decode(str(address).partition(",")[2])
    height, width = size = image_size(data, name, upright=True)
    if height * width > MOST_PIXELS:
        raise ValueError(f"{name} has {height} x {width} pixels; at most {MOST_PIXELS} are read")
    return Shown(name, _reduced(read_image(data, size, name, upright=True), LONGEST_SIDE))


def read_rings(value: object) -> list[Ring]:
    """Outlines that the page sent, in the unit frame.

    Raises:
        ValueError: They are no outlines.
    """
    rings = [np.array(ring, dtype=np.float64) for ring in value] if isinstance(value, list) else []
    total = sum(map(len, rings))
    if not rings or total > 10_000 or any(ring.shape[1:] != (2,) for ring in rings):
        raise ValueError("the outline that was sent is no list of rings of vertices")
    if not all(np.isfinite(ring).all() for ring in rings):
        raise ValueError("the outline that was sent has vertices that are not finite")
    return rings


def image_address(image: NDArray[np.uint8], longest_side: int = LONGEST_SIDE) -> str:
    """An image as a data URL, reduced to a longest side."""
    return data_url(_reduced(image, longest_side))


def _reduced(image: NDArray[np.uint8], longest_side: int) -> NDArray[np.uint8]:
    if max(image.shape[:2]) <= longest_side:
        return image
    drawing = Image.fromarray(image)
    drawing.thumbnail((longest_side, longest_side))
    return np.array(drawing)


def mask_png(asked: Asked, answer: Answer) -> bytes:
    """The answer's mask, white on black."""
    mask = rasterize(answer.prediction.rings, asked.question.image.shape[:2])
    return as_png(mask.astype(np.uint8) * 255)


def coco_json(asked: Asked, answer: Answer) -> dict[str, Any]:
    """The answer as an annotation in COCO's form: polygons or, if there are holes, run lengths."""
    height, width = asked.question.image.shape[:2]
    rings = answer.prediction.rings
    rle = Rle.from_mask(rasterize(rings, (height, width)))
    x0, y0, x1, y1 = rle.bbox
    polygons = [(ring * (width, height)).ravel().tolist() for ring in rings]
    annotation = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "segmentation": polygons if roles(rings).all() else run_lengths(rle),
        "area": rle.area,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "iscrowd": 0,
    }
    image = {"id": 1, "file_name": "image.png", "width": width, "height": height}
    category = {"id": 1, "name": asked.question.sample.expression}
    return {"images": [image], "annotations": [annotation], "categories": [category]}


def geojson(asked: Asked, answer: Answer) -> dict[str, Any]:
    """The answer as a feature in pixels of the image, y downwards; it says so itself."""
    mask = rasterize(answer.prediction.rings, asked.question.image.shape[:2])
    outline = shapely.orient_polygons(pixel_polygons(Target.from_mask(mask)), exterior_cw=False)
    feature = {
        "type": "Feature",
        "geometry": shapely.geometry.mapping(outline) if mask.any() else None,
        "properties": {
            "expression": asked.question.sample.expression,
            "coordinates": "pixels of the image, y downwards",
        },
    }
    return {"type": "FeatureCollection", "features": [feature]}
