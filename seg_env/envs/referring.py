"""The environment of one question at a time, and what arguments and ids lead to."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from seg_env.data.base import Dataset
from seg_env.envs.core import (
    Episode,
    Observation,
    ReferringCore,
    ScoredAnswer,
    check_options,
    check_query_seed,
    copy_observation,
)
from seg_env.envs.refine import RefineRules
from seg_env.envs.render import RENDER_MODES, check_render_mode, render_question
from seg_env.envs.vertex import VertexRules
from seg_env.geometry.drawing import as_png
from seg_env.tasks import check_task

_OPTIONS = {
    "max_vertices": "vertex",
    "render_outline": "vertex",
    "turns": "refine",
    "max_characters": "refine",
    "refine_template": "refine",
}
"""Arguments that only one step mode has."""


def find_rules(
    dataset: str | Dataset = "scenes", *, step_mode: str = "answer", **arguments: Any
) -> ReferringCore:
    """The core of a step mode; ``arguments`` are its own, None for a default."""
    modes = {"answer": ReferringCore, "vertex": VertexRules, "refine": RefineRules}
    if step_mode not in modes:
        raise ValueError(f"step_mode={step_mode!r} is unknown; use one of {tuple(modes)}")
    for name, mode in _OPTIONS.items():
        if arguments.get(name) is None:
            arguments.pop(name, None)
        elif step_mode != mode:
            raise ValueError(f"{name}={arguments[name]!r} needs step_mode={mode!r}; leave it out")
    return modes[step_mode](dataset, **arguments)


def open_rules(env_id: str, **arguments: Any) -> ReferringCore:
    """The core of a registered environment."""
    return find_rules(**{**gym.spec(env_id).kwargs, **arguments})


def open_questions(env_id: str, **arguments: Any) -> ReferringCore:
    """The questions of a registered environment, each answered once."""
    return open_rules(env_id, **arguments, step_mode="answer")


class ReferringSegmentationEnv(gym.Env[Observation, str]):
    """Answer a referring expression with the outline of the object it means.

    ## Description
    The agent sees an image and a question such as "Output the polygon coordinates of the red star
    in the image.", and answers with text: a list of rings, each a list of ``[x, y]`` vertices. This
    is the task of SimpleSeg (arXiv 2601.19228): no mask decoder, the outline is the answer.

    ## Action Space
    `PolygonText`: any string. A good one looks like ``[[[0.512,0.331],[0.51,0.34],[0.498,0.35]]]``.
    Coordinates are ``x / W`` and ``y / H`` of the image seen, y downwards; with
    ``frame="permille"`` they run from 0 to 1000. A ring inside another one and of opposite
    orientation is a hole. Faults in the text are never raised: ``info["issues"]`` reports them, and
    what can be read is scored.

    ## Observation Space
    A dictionary with

    - ``image``: ``(H, W, 3) uint8``. A `Box` if all images have one size (``image_size`` is
      given, or the data set draws squares of one size), otherwise an `ImageSpace`. With
      ``image_size`` the image keeps its proportions and is padded with gray; answers are about
      the padded image.
    - ``prompt``: the question, a string.

    ## Rewards
    The weighted sum of the rewards named by ``rewards``, computed at the image's native size. By
    default ``mask_iou=1.0 centroid_distance=0.5 format=0.1``: the three rewards of the paper,
    which publishes no weights. ``info`` has every reward by itself as ``reward/<name>``, and
    ``iou``, the mask IoU, whatever the rewards are.

    ## Starting State
    A sample drawn uniformly with the environment's random generator, or the one chosen with
    ``reset(options={"index": i})``. ``info`` has ``sample_id``, ``dataset``, ``index`` and
    ``task``.

    ## Episode End
    After one answer: ``terminated`` is True, ``truncated`` is not, and the observation is the
    question once more. ``info`` adds ``iou``, ``valid`` (read without any fault), ``issues`` (kinds
    of faults, separated by commas), ``num_vertices`` and the single rewards.

    ## Arguments
    All but objects can be written as JSON.

    - ``split``: ``"train"`` (default), ``"val"``, ``"test"``, or another that the data set has.
    - ``split_by``, ``data_root``: for the RefCOCO family, whose split (``"unc"``, ``"google"``,
      ``"umd"``, ``"berkeley"``) and in which folder. Without ``data_root`` the variable
      ``SIMPLESEG_DATA`` names the folder; without both, a small embedded sample is used, which
      ``info["dataset"]`` and a warning say.
    - ``difficulty``, ``data_seed``, ``size``: for Scenes, ``"easy"`` to ``"hard"``, the seed of the
      scenes and the side of the images.
    - ``dataset``: a data set object in place of the one that the id names.
    - ``rewards``: ``"name=weight package.module:Class=weight"``, a mapping, or a `RewardSum`.
    - ``task``: ``"text->mask"``, or another of `seg_env.tasks.TASKS`, or several with weights,
      ``"text->mask=0.7 point->mask=0.3"``. Boxes are answered ``[x0,y0,x1,y1]``, points ``[x,y]``;
      the rewards of the paper measure each in the way that fits it.
    - ``queries``: how places that questions give are drawn and written, see
      `seg_env.tasks.queries.QueryStyle`, as a dictionary.
    - ``negatives``: of Scenes, the share of questions about an object that is not there.
    - ``image_size``: side or ``(H, W)`` to letterbox images to; None keeps native sizes.
    - ``frame``: what the numbers in answers mean: ``"unit"`` (default), ``"permille"``, another of
      `seg_env.frames.FAMILIES`, ``"pixel:WxH"``, or an object of `seg_env.frames`.
    - ``prompt_template``: the question, with ``{expression}`` in it.
    - ``render_mode``: ``"rgb_array"`` or ``"ansi"``.
    - ``step_mode``: ``"answer"`` (default), ``"vertex"``, or ``"refine"``, as in the environments
      ``SimpleSegRefine-*``; see below, also for the arguments that only these have.

    ## Vertex by Vertex
    With ``step_mode="vertex"`` an action is the next vertex, ``[x,y]`` in plain decimal numbers; or
    ``],[``, after which the next vertex begins another ring; or ``]``, which closes the outline and
    ends the episode (given first, it answers ``[]``). Any other string changes nothing and costs
    the step only; ``info["fault"]`` names what was wrong (see `VertexFault`).

    - Observations have a third key, ``outline``: the answer so far as text, brackets open. With
      ``render_outline`` it is drawn on the image, too.
    - The reward of an action is what it adds to the reward of the outline so far with its brackets
      closed, starting from 0. The return of an episode is the reward of the same text given as one
      answer.
    - After ``max_vertices`` actions (128 by default) an outline that is still open is scored as it
      stands and ``truncated`` is True: the limit is not part of the task.
    - ``info`` adds ``fault``, and at reset, too, ``vertices_left`` (actions left; every action but
      ``]`` takes one), and which actions keep the answer well-formed: ``can_close`` and
      ``can_start_ring``. Everything else in it is about the outline so far, closed.

    ## Several Turns
    The ids ``SimpleSegRefine-*`` (``step_mode="refine"``) ask for an outline, show it drawn on the
    image and written in the prompt, and take a better one, up to ``turns`` times (1 to 64, 3 by
    default). An action is read as

    - an outline if there is a bracket in it; it takes the place of the one before;
    - edits, separated by ``;`` or line breaks: ``move i x y``, ``insert i x y`` (a new vertex
      before vertex ``i``), ``delete i``. Vertices are numbered from 0 through all rings in order,
      numbers are written as in the outline, and edits apply one after the other: all of them, or
      none if one cannot be;
    - ``done``, which ends the episode, as does the last turn.

    Anything else, an outline with any fault and what is longer than ``max_characters`` (16384 by
    default, also for the outline that is kept) cost the turn and leave the outline as it is.

    - ``refine_template`` is the prompt once there is an outline, with ``{question}``,
      ``{outline}``, and ``{turn}`` and ``{turns}`` where wanted.
    - The reward of a turn is by how much it improved the reward of the outline, starting from 0.
      The return of an episode is the reward of the outline it ends with, 0 if there is none.
    - ``terminated`` is True at the end; ``truncated`` never is.
    - ``info`` adds ``outline`` (so far, as text), ``turn`` (turns taken) and ``turns_left``, at
      reset, too. Everything else is about the outline as it stands, but ``valid``, ``issues`` and
      ``fault`` (see `TurnFault`) are about what was answered in this turn.

    ```python
    >>> import gymnasium as gym
    >>> env = gym.make("seg_env:SimpleSeg-Scenes-v0", split="val", rewards="mask_iou=1.0")
    >>> observation, info = env.reset(seed=0)
    >>> answer = "[[[0.1,0.1],[0.9,0.1],[0.5,0.8]]]"
    >>> observation, reward, terminated, truncated, info = env.step(answer)
    >>> terminated, truncated, reward == info["iou"]
    (True, False, True)
    >>> env = gym.make("seg_env:SimpleSegRefine-Scenes-v0", split="val")
    >>> observation, info = env.reset(seed=0)
    >>> first, second = env.step(answer), env.step("move 2 0.5 0.9; insert 3 0.3 0.7")
    >>> second[4]["outline"], second[4]["turns_left"]
    ('[[[0.1,0.1],[0.9,0.1],[0.5,0.9],[0.3,0.7]]]', 1)
    >>> env.step("done")[2:4]
    (True, False)

    ```

    ## Version History
    * v0: first version
    """

    # Gymnasium declares it as a variable of instances.
    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 1}  # noqa: RUF012

    def __init__(
        self,
        dataset: str | Dataset = "scenes",
        *,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        """Open the data set; the class lists the arguments."""
        self.render_mode = check_render_mode(render_mode)
        self._core = find_rules(dataset, **arguments)
        self.dataset = self._core.dataset
        self.observation_space = self._core.observation_space
        self.action_space = self._core.action_space
        self._episode: Episode | None = None
        self._answer: ScoredAnswer | None = None
        self._has_ended = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Ask a question.

        With the option ``"index"`` nothing is drawn. The option ``"task"`` fixes what is asked, and
        ``"query_seed"`` (0 where the index is given) is the seed for task and place.
        """
        super().reset(seed=seed)
        given = check_options(options, ("index", "task", "query_seed"))
        task = None if given.get("task") is None else check_task(given["task"])
        query_seed, index = check_query_seed(given.get("query_seed")), given.get("index")
        if index is not None:
            index = self._core.check_index(index, 'options["index"]')
        question = self._core.ask(*self._core.choose(self.np_random, index, task, query_seed))
        self._episode = self._core.begin(question)
        self._answer, self._has_ended = None, False
        observation = copy_observation(self._core.observe(self._episode))
        return observation, self._core.reset_info(self._episode)

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Score an answer and end the episode; or, step by step, take the next action.

        Raises:
            ResetNeeded: No question is open: the episode has ended, or none has begun.
        """
        if self._episode is None:
            raise ResetNeeded("Cannot call env.step() before calling env.reset()")
        if self._has_ended:
            raise ResetNeeded(
                f"The episode ended with its {self._core.last_action}: call env.reset() first"
            )
        if not isinstance(action, str):
            raise TypeError(f"the action is the answer as a str, got {type(action).__name__}")
        outcome = self._core.step([self._episode], [action])[0]
        self._episode, self._answer = outcome.episode, outcome.answer
        self._has_ended = outcome.terminated or outcome.truncated
        observation = copy_observation(self._core.observe(self._episode))
        return observation, outcome.reward, outcome.terminated, outcome.truncated, outcome.info

    def render(self) -> NDArray[np.uint8] | str | None:
        """Draw the question and, once given, the answer beside the truth."""
        if self._episode is None:
            raise ResetNeeded("Cannot call env.render() before calling env.reset()")
        rewards = self._core.rewards
        return render_question(self.render_mode, self._episode.question, rewards, self._answer)

    def _repr_png_(self) -> bytes | None:
        """The question, and the answer once given: how a notebook shows the environment."""
        if self._episode is None:
            return None
        question, rewards = self._episode.question, self._core.rewards
        panel = render_question("rgb_array", question, rewards, self._answer)
        return as_png(panel) if isinstance(panel, np.ndarray) else None
