"""Questions about images as a taskset of verifiers (``verifiers.v1``).

verifiers finds a taskset by the name of a module, which is a file of yours with two lines:

    # outlines.py
    from seg_env.bridges.verifiers import OutlineTaskset
    __all__ = ["OutlineTaskset"]

    vf-eval outlines -n 100 --env.taskset.split val --env.taskset.task.spec "mask_iou=1 format=0.1"

Every question is answered once. Prompts hold the image as a PNG data URL; scores are those of
``env.step``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import verifiers.v1 as vf
from pydantic import Field

from rewards.composite import DEFAULT_REWARDS
from rewards.mask_iou import outline_iou
from rewards.trainers import RowRewards
from seg_env.data.export import besides_the_mask, run_lengths
from seg_env.data.images import data_url
from seg_env.envs.core import Question, ReferringCore
from seg_env.envs.referring import open_questions

__all__ = ["OutlineTaskset"]


class OutlineTaskConfig(vf.TaskConfig):
    """How answers are scored."""

    spec: str = DEFAULT_REWARDS
    """Rewards, as ``name=weight`` separated by spaces."""
    frame: str = "unit"
    """What the numbers in answers mean, see `seg_env.frames.FAMILIES`."""
    image_size: int | None = None
    """Side to letterbox images to; None keeps native sizes."""


class OutlineTasksetConfig(vf.TasksetConfig):
    """Which questions are asked."""

    env_id: str = "SimpleSeg-Scenes-v0"
    """A registered environment."""
    split: str = "train"
    """Split of its data."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Other arguments of the environment, such as ``data_root`` or ``task``."""
    task: OutlineTaskConfig = OutlineTaskConfig()
    """How answers are scored."""


class OutlineData(vf.TaskData):
    """A question; the model is sent the prompt only."""

    truth: dict[str, Any]
    """What the answer is about, in the columns of exported data."""


class OutlineTask(vf.Task[OutlineData, vf.State, OutlineTaskConfig]):
    """Scores the last reply as an answer."""

    @vf.reward
    async def outline(self, trace: vf.Trace) -> float:
        """The weighted sum of the rewards."""
        return self._score(trace)["total"]

    @vf.metric
    async def scores(self, trace: vf.Trace) -> dict[str, float]:
        """Every reward by itself, the mask IoU, and whether the answer is well-formed."""
        found = self._score(trace)
        return {name: value for name, value in found.items() if name != "total"}

    def _score(self, trace: vf.Trace) -> dict[str, float]:
        config = self.config
        scorer = _scorer(config.spec, config.frame, config.image_size)
        predictions, targets = scorer.read([trace.last_reply], [self.data.truth])
        scores = scorer.rewards.score(predictions, targets)
        return {
            "total": float(scores.total[0]),
            "iou": float(outline_iou(predictions, targets)[0]),
            "valid": float(predictions[0].valid),
            **{f"reward/{name}": float(values[0]) for name, values in scores.terms.items()},
        }


class OutlineTaskset(vf.Taskset[OutlineTask, OutlineTasksetConfig]):
    """The questions of an environment, one after the other."""

    def load(self) -> Iterator[OutlineTask]:
        """Every question, made when it is reached."""
        config, scored = self.config, self.config.task
        core = open_questions(
            config.env_id,
            split=config.split,
            rewards=scored.spec,
            frame=scored.frame,
            image_size=scored.image_size,
            **config.arguments,
        )
        for index in range(len(core.dataset)):
            yield OutlineTask(_data(core.ask(index), core), scored)


def _data(question: Question, core: ReferringCore) -> OutlineData:
    target = question.sample.target
    image = vf.ImageUrlContentPart(image_url=vf.ImageUrlSource(url=data_url(question.image)))
    return OutlineData(
        id=question.sample.id,
        description=core.dataset.name,
        prompt=[vf.UserMessage(content=[image, vf.TextContentPart(text=question.prompt)])],
        truth={
            "rle": run_lengths(target.rle),
            "task": question.task,
            **besides_the_mask(target),
        },
    )


@lru_cache(maxsize=8)
def _scorer(spec: str, frame: str, image_size: int | None) -> RowRewards:
    """Rewards for answers about images that are letterboxed to a size."""
    scorer = RowRewards(spec, frame)
    if image_size is not None:
        scorer.frame = scorer.frame.on_canvas((image_size, image_size))
    return scorer
