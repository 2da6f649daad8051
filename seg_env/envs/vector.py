"""The environment of many questions at a time, scored in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from seg_env.data.base import Dataset
from seg_env.envs.core import (
    Episode,
    Question,
    ScoredAnswer,
    check_options,
    check_query_seed,
    copy_observation,
)
from seg_env.envs.referring import find_rules
from seg_env.envs.refine import RefineRules
from seg_env.envs.render import RENDER_MODES, check_render_mode, render_question
from seg_env.envs.vertex import VertexCredit, vertex_credit
from seg_env.tasks import Task, check_task

BatchedObservation = dict[str, Any]
"""``image``: ``(N, H, W, 3) uint8``, or a tuple of ``N`` images; ``prompt``: ``N`` strings."""
Infos = dict[str, Any]
"""An ``(N,)`` array for each key, and under ``_key`` a mask of where it holds."""
Step = tuple[BatchedObservation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Infos]


class ReferringSegmentationVectorEnv(
    VectorEnv[BatchedObservation, Sequence[str | None], NDArray[Any]]
):
    """``N`` environments of `ReferringSegmentationEnv` whose answers are scored together.

    Given the same seeds it returns what Gymnasium's ``SyncVectorEnv`` over single environments
    returns, in either of two modes (``metadata["autoreset_mode"]``):

    - ``SAME_STEP`` (default): `step` asks the next questions at once and returns their
      observations. What belongs to the episodes that ended is in ``infos["final_obs"]`` and
      ``infos["final_info"]``; ``sample_id``, ``dataset``, ``index`` and ``task`` are those of the
      new questions. The results of the answers (``iou``, ``valid``, ``issues``, ``num_vertices``,
      ``reward/<name>``) are repeated at the top level.
    - ``DISABLED``: `step` only scores, and `reset` follows. Trainers, which choose their questions
      by ``reset(options={"indices": ...})``, use this one. Episodes of several steps end one by
      one; the others go on, with None in place of an action where an episode has ended. There the
      observation stays, the reward is 0, ``terminated`` stays True, and infos say nothing.

    A sample that several environments ask about is loaded once, and its target prepared once.

    ```python
    >>> import gymnasium as gym
    >>> envs = gym.make_vec("seg_env:SimpleSeg-Scenes-v0", num_envs=4, autoreset_mode="Disabled")
    >>> observations, infos = envs.reset(options={"indices": [7, 7, 8, 8]})
    >>> observations, rewards, terminated, truncated, infos = envs.step(["[]"] * 4)
    >>> infos["iou"].tolist()
    [0.0, 0.0, 0.0, 0.0]

    ```
    """

    # Gymnasium declares it as a variable of instances.
    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": list(RENDER_MODES),
        "render_fps": 1,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        dataset: str | Dataset = "scenes",
        *,
        num_envs: int = 1,
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        """Open the data set; see `ReferringSegmentationEnv` for ``arguments``.

        ``autoreset_mode`` is ``"SameStep"``, ``"Disabled"``, or a member of ``AutoresetMode``.
        """
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs}; use at least 1")
        modes = {mode.value: mode for mode in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)}
        mode = getattr(autoreset_mode, "value", autoreset_mode)
        if mode not in modes:
            raise ValueError(
                f"autoreset_mode={autoreset_mode!r}; use one of {list(modes)}: next-step autoreset "
                f"would waste every second step of episodes that have one step"
            )
        self.autoreset_mode = modes[mode]
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = check_render_mode(render_mode)
        self.num_envs = num_envs
        self.core = find_rules(dataset, **arguments)
        self.dataset = self.core.dataset
        self.single_observation_space = self.core.observation_space
        self.single_action_space = self.core.action_space
        self._same_size = isinstance(self.core.observation_space["image"], spaces.Box)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators = [seeding.np_random()[0] for _ in range(num_envs)]
        self._episodes: list[Episode | None] = [None] * num_envs
        self._open = [False] * num_envs  # which environments wait for an action
        self._shown: list[tuple[Question, ScoredAnswer | None]] = []  # what `render` draws

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[BatchedObservation, Infos]:
        """Ask ``N`` questions.

        Args:
            seed: Seed of environment 0, the others follow by one each; or ``N`` seeds.
            options: ``"indices"``: ``N`` samples to ask about. ``"reset_mask"``: ``(N,) bool``, the
                environments to reset; the others keep their question. ``"tasks"``: one task, or
                ``N`` (None: drawn). ``"query_seed"``: the seed for tasks and places, 0 where
                indices are given; equal indices, tasks and seeds are one question.

        Raises:
            ResetNeeded: The first reset leaves an environment out.
        """
        given = check_options(options, ("indices", "reset_mask", "tasks", "query_seed"))
        rows = self._check_mask(given.get("reset_mask"))
        indices = self._check_indices(given.get("indices"))
        tasks = self._check_tasks(given.get("tasks"))
        query_seed = check_query_seed(given.get("query_seed"))
        seeds = self._check_seeds(seed)
        for row in rows:
            if seeds[row] is not None:
                self._generators[row] = seeding.np_random(seeds[row])[0]
        self._ask(rows, indices, tasks, query_seed)
        episodes = self._current()
        self._shown = self._shown or [(episode.question, None) for episode in episodes]
        for row in rows:
            self._shown[row] = episodes[row].question, None
        infos = [self.core.reset_info(episodes[row]) for row in rows]
        return self._observe(), self._pack(rows, infos)

    def step(self, actions: Sequence[str | None]) -> Step:
        """Take an action in each of the ``N`` episodes, scored in one call.

        With autoreset disabled, the action is None where an episode has ended.

        Raises:
            ResetNeeded: There is an action for an environment without an open question, or no
                environment has one.
        """
        rows, texts = self._check_actions(actions)
        episodes = self._current()
        outcomes = self.core.step([episodes[row] for row in rows], texts)
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.logical_not(self._open), np.zeros(self.num_envs, dtype=np.bool_)
        for row, outcome in zip(rows, outcomes, strict=True):
            self._episodes[row] = outcome.episode
            self._shown[row] = outcome.episode.question, outcome.answer
            rewards[row] = outcome.reward
            terminated[row], truncated[row] = outcome.terminated, outcome.truncated
            self._open[row] = not (outcome.terminated or outcome.truncated)
        infos = [outcome.info for outcome in outcomes]
        final = self._start_next(infos) if self.autoreset_mode is AutoresetMode.SAME_STEP else {}
        packed = self._pack(rows, infos) | final
        return self._observe(), rewards, terminated, truncated, packed

    def fork(self, sources: Sequence[int]) -> BatchedObservation:
        """Copy episodes: environment ``i`` goes on from where environment ``sources[i]`` stands.

        So a group of answers can be asked for from one state, whatever led there.
        """
        self._require_one_each(sources, "sources")
        wrong = [source for source in sources if not 0 <= source < self.num_envs]
        if wrong:
            raise IndexError(f"sources {wrong}, but environments are 0 to {self.num_envs - 1}")
        episodes = self._current()
        self._episodes = [episodes[source] for source in sources]
        self._open = [self._open[source] for source in sources]
        self._shown = [self._shown[source] for source in sources]
        return self._observe()

    def vertex_credit(self, texts: Sequence[str]) -> list[VertexCredit]:
        """The rewards of ``N`` whole answers by vertex.

        They answer the questions that are open or, if autoreset is disabled, were answered last.

        Raises:
            TypeError: Episodes have turns, which earn improvements and may be edits.
        """
        if isinstance(self.core, RefineRules):
            raise TypeError(
                "vertices of a turn have no rewards of their own, as a turn earns what it "
                "improved: credit whole answers here"
            )
        questions = [episode.question for episode in self._current()]
        return vertex_credit(self.core, questions, texts)

    def render(self) -> tuple[Any, ...] | None:
        """Draw what was answered last, or the open questions if nothing was."""
        if self.render_mode is None:
            return None
        self._current()
        rewards = self.core.rewards
        return tuple(
            render_question(self.render_mode, question, rewards, answer)
            for question, answer in self._shown
        )

    def _ask(
        self,
        rows: Sequence[int],
        indices: Sequence[int | None] | None = None,
        tasks: Sequence[Task | None] | None = None,
        query_seed: int | None = None,
    ) -> None:
        """Open a question in each of the rows, by default drawn; equal ones are loaded once."""
        drawn = [None] * self.num_envs
        indices, tasks = indices or drawn, tasks or drawn
        asked = [
            self.core.choose(self._generators[row], indices[row], tasks[row], query_seed)
            for row in rows
        ]
        loaded = {each: self.core.ask(*each) for each in dict.fromkeys(asked)}
        for row, key in zip(rows, asked, strict=True):
            self._episodes[row], self._open[row] = self.core.begin(loaded[key]), True

    def _start_next(self, infos: list[dict[str, Any]]) -> Infos:
        """Ask the next questions where episodes have ended, and tell of them in the ``N`` infos.

        Returns:
            ``final_obs`` and ``final_info`` of the episodes that have ended.
        """
        holds = np.logical_not(self._open)
        rows = np.flatnonzero(holds).tolist()
        if not rows:
            return {}
        ended, final_obs = self._current(), np.empty(self.num_envs, dtype=object)
        for row in rows:
            final_obs[row] = copy_observation(self.core.observe(ended[row]))
        final_info = self._pack(rows, [infos[row] for row in rows])
        self._ask(rows)
        for row, episode in enumerate(self._current()):
            if holds[row]:
                infos[row] = infos[row] | self.core.reset_info(episode)
        final = {"final_obs": final_obs, "final_info": final_info}
        return final | {f"_{name}": holds.copy() for name in final}

    def _pack(self, rows: Sequence[int], infos: Sequence[Mapping[str, Any]]) -> Infos:
        """Infos of some environments as Gymnasium packs them, but a column at a time.

        Strings become arrays of objects; where nothing is known, arrays are zero.
        """
        packed: Infos = {}
        holds = np.zeros(self.num_envs, dtype=np.bool_)
        holds[rows] = True
        for key, value in infos[0].items():
            is_text = isinstance(value, str)
            column = (
                np.full(self.num_envs, None) if is_text else np.zeros(self.num_envs, type(value))
            )
            column[rows] = [info[key] for info in infos]
            packed[key], packed[f"_{key}"] = column, holds.copy()
        return packed

    def _current(self) -> list[Episode]:
        """The episode of each environment, those that have ended included."""
        episodes = [episode for episode in self._episodes if episode is not None]
        if len(episodes) < self.num_envs:
            raise ResetNeeded("Some environments have never been reset: call reset() first")
        return episodes

    def _observe(self) -> BatchedObservation:
        """Observations of all episodes in new memory."""
        single = [self.core.observe(episode) for episode in self._current()]
        batched: BatchedObservation = {key: tuple(one[key] for one in single) for key in single[0]}
        images = batched["image"]
        batched["image"] = np.stack(images) if self._same_size else tuple(map(np.copy, images))
        return batched

    def _require_one_each(self, values: Sequence[object], what: str) -> None:
        if len(values) != self.num_envs:
            raise ValueError(
                f"{len(values)} {what} for {self.num_envs} environments; give one each"
            )

    def _check_mask(self, mask: object) -> list[int]:
        """The environments to reset, all without a mask."""
        if mask is None:
            return list(range(self.num_envs))
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(f'options["reset_mask"] is {mask!r}; use a numpy array of bool')
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(
                f'options["reset_mask"] has shape {mask.shape} and {mask.sum()} True values; use '
                f"shape ({self.num_envs},) with at least one True"
            )
        return list(map(int, np.flatnonzero(mask)))

    def _check_indices(self, indices: object) -> list[int] | None:
        if indices is None:
            return None
        values = np.asarray(indices)
        if values.dtype.kind not in "iu":
            raise TypeError(f'options["indices"] is {indices!r:.200}; use whole numbers')
        if values.shape != (self.num_envs,):
            raise ValueError(
                f'options["indices"] has shape {values.shape}; use one index for each of the '
                f"{self.num_envs} environments"
            )
        return [
            self.core.check_index(value, f'options["indices"][{row}]')
            for row, value in enumerate(values)
        ]

    def _check_tasks(self, tasks: object) -> list[Task | None]:
        """``N`` tasks to ask; None where the environment should draw one."""
        if tasks is None or isinstance(tasks, str):
            tasks = [tasks] * self.num_envs
        if not isinstance(tasks, Sequence | np.ndarray) or len(tasks) != self.num_envs:
            raise ValueError(
                f'options["tasks"] is {tasks!r:.200}; use one task, or one for each of the '
                f"{self.num_envs} environments"
            )
        return [None if task is None else check_task(task) for task in tasks]

    def _check_seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        """One seed for each environment, counted up from a single one."""
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + row for row in range(self.num_envs)]
        self._require_one_each(seed, "seeds")
        return seed

    def _check_actions(self, actions: Sequence[str | None]) -> tuple[list[int], list[str]]:
        """The environments that wait for an action, and an action for each of them."""
        if isinstance(actions, str):
            raise TypeError(f"the actions are a single str; give {self.num_envs} answers")
        self._require_one_each(actions, "answers")
        rows = [row for row, waits in enumerate(self._open) if waits]
        closed = [row for row, waits in enumerate(self._open) if not waits]
        if not rows or any(actions[row] is not None for row in closed):
            raise ResetNeeded(f"Environments {closed} have no open question: call reset() first")
        for row in rows:
            if not isinstance(actions[row], str):
                raise TypeError(f"answer {row} is a {type(actions[row]).__name__}; use a str")
        return rows, [cast("str", actions[row]) for row in rows]
