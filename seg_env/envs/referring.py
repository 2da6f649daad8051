"""The environment of one question at a time."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from seg_env.data.base import Dataset
from seg_env.envs.core import (
    Observation,
    Question,
    ReferringCore,
    check_options,
    copy_observation,
)
from seg_env.envs.render import RENDER_MODES, check_render_mode
from seg_env.envs.scoring import Scores


class ReferringSegmentationEnv(gym.Env[Observation, str]):
    """Answer a referring expression with the outline of the object it means.

    ## Description
    The agent sees a picture and a question such as "Output the polygon coordinates of the red star
    in the image.", and answers with text: a list of rings, each a list of ``[x, y]`` vertices. This
    is the task of SimpleSeg (arXiv 2601.19228): no mask decoder, the outline is the answer.

    ## Action Space
    `PolygonText`: any string. A good one looks like ``[[[0.512,0.331],[0.51,0.34],[0.498,0.35]]]``.
    Coordinates are ``x / W`` and ``y / H`` of the picture seen, y downwards; with
    ``frame="permille"`` they run from 0 to 1000. A ring inside another one and of opposite
    orientation is a hole. Faults in the text are reported in ``info["issues"]``, never raised;
    what can still be read is scored.

    ## Observation Space
    A dictionary with

    - ``image``: ``(H, W, 3) uint8``. A `Box` if all pictures have one size (``image_size`` is
      given, or the data set draws squares of one size), otherwise an `ImageSpace`. With
      ``image_size`` the picture keeps its proportions and is padded with gray; answers are about
      the padded picture and are mapped back to the native one exactly.
    - ``prompt``: the question, a string.

    ## Rewards
    The weighted sum of the rewards named by ``rewards``, computed at the picture's native size. By
    default ``mask_iou=1.0 centroid_distance=0.2 format=0.1``: the three rewards of the paper,
    which publishes no weights. ``info`` has every reward by itself as ``reward/<name>``, and
    ``iou``, the mask IoU, whatever the rewards are.

    ## Starting State
    A sample drawn uniformly with the environment's random generator, or the one chosen with
    ``reset(options={"index": i})``. ``info`` has ``sample_id``, ``dataset`` and ``index``.

    ## Episode End
    After one answer: ``terminated`` is True, ``truncated`` never. The observation returned with it
    is the question once more. ``info`` adds ``iou``, ``valid`` (read without any fault), ``issues``
    (kinds of faults, separated by commas), ``num_vertices`` and the single rewards.

    ## Arguments
    All but objects can be written as JSON.

    - ``split``: ``"train"`` (default), ``"val"``, ``"test"``, or another that the data set has.
    - ``split_by``, ``data_root``: for the RefCOCO family, whose split (``"unc"``, ``"google"``,
      ``"umd"``, ``"berkeley"``) and in which folder. Without ``data_root`` the variable
      ``SIMPLESEG_DATA`` names the folder; without both, a small embedded sample is used, which
      ``info["dataset"]`` and a warning say.
    - ``difficulty``, ``data_seed``, ``size``: for Scenes, ``"easy"`` to ``"hard"``, the seed of the
      scenes and the side of the pictures.
    - ``dataset``: a data set object in place of the one that the id names.
    - ``rewards``: ``"name=weight package.module:Class=weight"``, a mapping, or a `RewardSum`.
    - ``task``: ``"text->mask"``.
    - ``image_size``: side or ``(H, W)`` to letterbox pictures to; None keeps native sizes.
    - ``frame``: ``"unit"`` (default), ``"permille"``, or a frame of `seg_env.frames`.
    - ``prompt_template``: the question, with ``{expression}`` in it.
    - ``render_mode``: ``"rgb_array"`` or ``"ansi"``.

    ```python
    >>> import gymnasium as gym
    >>> env = gym.make("seg_env:SimpleSeg-Scenes-v0", split="val", rewards="mask_iou=1.0")
    >>> observation, info = env.reset(seed=0)
    >>> answer = "[[[0.1,0.1],[0.9,0.1],[0.5,0.8]]]"
    >>> observation, reward, terminated, truncated, info = env.step(answer)
    >>> terminated, truncated, reward == info["iou"]
    (True, False, True)

    ```

    ## Version History
    * v0: first version
    """

    # Gymnasium declares it as a variable of instances.
    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": list(RENDER_MODES),
        "render_fps": 1,
    }
    observation_space: gym.Space[Observation]
    action_space: gym.Space[str]

    def __init__(
        self,
        dataset: str | Dataset = "scenes",
        *,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        """Open the data set; see the class for the arguments.

        Args:
            dataset: Name of a data set, or a data set object.
            render_mode: ``"rgb_array"``, ``"ansi"`` or None.
            **arguments: Those of `ReferringCore`, listed in the text of this class.

        Raises:
            ValueError: An argument is not one of what is allowed.
        """
        self.render_mode = check_render_mode(render_mode)
        self._core = ReferringCore(dataset, **arguments)
        self.observation_space = self._core.observation_space
        self.action_space = self._core.action_space
        self._question: Question | None = None
        self._scores: Scores | None = None

    @property
    def dataset(self) -> Dataset:
        """The data set asked about; ``env.unwrapped.dataset[i]`` is sample ``i``."""
        return self._core.dataset

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Ask a question.

        Args:
            seed: Seed of the generator that draws samples.
            options: ``{"index": i}`` asks about sample ``i`` and draws nothing.

        Returns:
            Observation and info.

        Raises:
            ValueError: Another option is given.
            TypeError: The index is not a whole number.
            IndexError: There is no such sample.
        """
        super().reset(seed=seed)
        chosen = check_options(options, ("index",)).get("index")
        if chosen is None:
            index = self._core.draw(self.np_random)
        else:
            index = self._core.check_index(chosen, 'options["index"]')
        self._question, self._scores = self._core.ask(index), None
        return copy_observation(self._question), self._core.reset_info(self._question)

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Score an answer and end the episode.

        Args:
            action: The answer as the model wrote it.

        Returns:
            Observation (the question again), reward, True, False, info.

        Raises:
            ResetNeeded: No question is open: the episode has ended, or none has begun.
            TypeError: The action is not a string.
        """
        if self._question is None:
            raise ResetNeeded("Cannot call env.step() before calling env.reset()")
        if self._scores is not None:
            raise ResetNeeded("The episode ended with its one answer: call env.reset() first")
        if not isinstance(action, str):
            raise TypeError(f"the action is the answer as a str, got {type(action).__name__}")
        self._scores = self._core.score([action], [self._question])
        info = self._core.answer_info(self._question, self._scores, 0)
        reward = float(self._scores.total[0])
        return copy_observation(self._question), reward, True, False, info

    def render(self) -> NDArray[np.uint8] | str | None:
        """Draw the question and, once given, the answer beside the truth.

        Returns:
            ``(H, W, 3) uint8`` for ``"rgb_array"``, text for ``"ansi"``, None without render mode.

        Raises:
            ResetNeeded: There is no question yet.
        """
        if self._question is None:
            raise ResetNeeded("Cannot call env.render() before calling env.reset()")
        return self._core.render(self.render_mode, self._question, self._scores)
