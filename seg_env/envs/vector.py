"""The environment of many questions at a time, scored in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from seg_env.data.base import Dataset
from seg_env.envs.core import Question, check_options, check_query_seed
from seg_env.envs.credit import VertexCredit, vertex_credit
from seg_env.envs.episodes import Episode, EpisodeRules, Outcome, copy_observation
from seg_env.envs.render import RENDER_MODES, check_render_mode
from seg_env.envs.rules import find_rules
from seg_env.envs.scoring import ScoredAnswer
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
      by ``reset(options={"indices": ...})``, use this one. Episodes of several steps
      (``step_mode="vertex"``) end one by one; the others go on, with None in place of an action
      where an episode has ended. There the observation stays, the reward is 0, ``terminated`` stays
      True, and infos say nothing.

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
    _find_rules: Callable[..., EpisodeRules[Any]] = staticmethod(find_rules)

    def __init__(
        self,
        dataset: str | Dataset = "scenes",
        *,
        num_envs: int = 1,
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        **arguments: Any,
    ) -> None:
        """Open the data set; see `ReferringSegmentationEnv` for ``arguments``.

        ``autoreset_mode`` is ``"SameStep"``, ``"Disabled"``, or a member of ``AutoresetMode``.
        ``max_episode_steps`` is accepted as ``make_vec`` may pass it; episodes end by themselves.
        """
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs}; use at least 1")
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"max_episode_steps={max_episode_steps}; an episode has one step")
        self._mode = _find_mode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self._mode}
        self.render_mode = check_render_mode(render_mode)
        self.num_envs = num_envs
        self._rules = self._find_rules(dataset, **arguments)
        self.core = self._rules.core
        self.dataset = self.core.dataset
        self.single_observation_space = self._rules.observation_space
        self.single_action_space = self._rules.action_space
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
                ``N`` (None: drawn). ``"query_seed"``: what tasks and places are drawn by, 0 where
                indices are given; equal indices, tasks and seeds are one question.

        Raises:
            ResetNeeded: The first reset leaves an environment out.
        """
        given = check_options(options, ("indices", "reset_mask", "tasks", "query_seed"))
        rows = _check_mask(given.get("reset_mask"), self.num_envs)
        indices = self._check_indices(given.get("indices"))
        tasks = _check_tasks(given.get("tasks"), self.num_envs)
        query_seed = check_query_seed(given.get("query_seed"))
        seeds = _check_seeds(seed, self.num_envs)
        for row in rows:
            if seeds[row] is not None:
                self._generators[row] = seeding.np_random(seeds[row])[0]
        self._ask(
            rows,
            None if indices is None else [indices[row] for row in rows],
            [tasks[row] for row in rows],
            query_seed,
        )
        episodes = self._current()
        self._shown = self._shown or [(episode.question, None) for episode in episodes]
        for row in rows:
            self._shown[row] = episodes[row].question, None
        return self._observe(), self._reset_infos(rows)

    def step(self, actions: Sequence[str | None]) -> Step:
        """Take an action in each of the ``N`` episodes, scored in one call.

        With autoreset disabled, the action is None where an episode has ended.

        Raises:
            ResetNeeded: There is an action for an environment without an open question, or no
                environment has one.
        """
        rows, texts = _check_actions(actions, self._open)
        episodes = self._current()
        outcomes = self._rules.step([episodes[row] for row in rows], texts)
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.logical_not(self._open), np.zeros(self.num_envs, dtype=np.bool_)
        for row, outcome in zip(rows, outcomes, strict=True):
            self._episodes[row] = outcome.episode
            self._shown[row] = outcome.episode.question, outcome.answer
            rewards[row] = outcome.reward
            terminated[row], truncated[row] = outcome.terminated, outcome.truncated
            self._open[row] = not (outcome.terminated or outcome.truncated)
        infos = _pack_infos(self.num_envs, rows, [outcome.info for outcome in outcomes])
        if self._mode is AutoresetMode.SAME_STEP:
            self._start_next(outcomes, infos)
        return self._observe(), rewards, terminated, truncated, infos

    def fork(self, sources: Sequence[int]) -> BatchedObservation:
        """Copy episodes: environment ``i`` goes on from where environment ``sources[i]`` stands.

        So a group of answers can be asked for from one state, whatever led there.
        """
        if len(sources) != self.num_envs:
            raise ValueError(f"{len(sources)} sources for {self.num_envs} environments")
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
        """
        questions = [episode.question for episode in self._current()]
        return vertex_credit(self.core, questions, texts)

    def render(self) -> tuple[Any, ...] | None:
        """Draw what was answered last, or the open questions if nothing was."""
        if self.render_mode is None:
            return None
        self._current()
        return tuple(
            self.core.render(self.render_mode, question, answer) for question, answer in self._shown
        )

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

    def _ask(
        self,
        rows: Sequence[int],
        indices: Sequence[int] | None,
        tasks: Sequence[Task | None],
        query_seed: int | None = None,
    ) -> None:
        """Open a question in each of the rows; equal questions are one, loaded once."""
        seeds = [0] * len(rows)
        if indices is None:
            generators = [self._generators[row] for row in rows]
            drawn = [(self.core.draw(each), self.core.draw_seed(each)) for each in generators]
            indices, seeds = [index for index, _ in drawn], [seed for _, seed in drawn]
        if query_seed is not None:
            seeds = [query_seed] * len(rows)
        asked = list(zip(indices, tasks, seeds, strict=True))
        loaded = {
            key: self.core.ask(key[0], task=key[1], query_seed=key[2])
            for key in dict.fromkeys(asked)
        }
        for row, key in zip(rows, asked, strict=True):
            self._episodes[row], self._open[row] = self._rules.begin(loaded[key]), True

    def _start_next(self, outcomes: Sequence[Outcome[Any]], infos: Infos) -> None:
        """Move what ended to ``final_obs`` and ``final_info``, and ask the next questions there."""
        # All environments were open, so there is an outcome of each, in order.
        rows = [row for row, waits in enumerate(self._open) if not waits]
        if not rows:
            return
        final_obs = np.empty(self.num_envs, dtype=object)
        for row in rows:
            final_obs[row] = copy_observation(self._rules.observe(outcomes[row].episode))
        infos["final_obs"], infos["_final_obs"] = final_obs, _mask_of(self.num_envs, rows)
        infos["final_info"] = _pack_infos(self.num_envs, rows, [outcomes[row].info for row in rows])
        infos["_final_info"] = _mask_of(self.num_envs, rows)
        self._ask(rows, None, [None] * len(rows))
        _merge_infos(infos, self._reset_infos(rows))

    def _current(self) -> list[Episode]:
        """The episode of each environment, those that have ended included."""
        episodes = [episode for episode in self._episodes if episode is not None]
        if len(episodes) < self.num_envs:
            raise ResetNeeded("Some environments have never been reset: call reset() first")
        return episodes

    def _observe(self) -> BatchedObservation:
        """Observations of all episodes in new memory."""
        single = [self._rules.observe(episode) for episode in self._current()]
        batched: BatchedObservation = {key: tuple(one[key] for one in single) for key in single[0]}
        images = batched["image"]
        batched["image"] = np.stack(images) if self._same_size else tuple(map(np.copy, images))
        return batched

    def _reset_infos(self, rows: list[int]) -> Infos:
        episodes = self._current()
        infos = [self._rules.reset_info(episodes[row]) for row in rows]
        return _pack_infos(self.num_envs, rows, infos)


def _pack_infos(num_envs: int, rows: list[int], infos: Sequence[Mapping[str, Any]]) -> Infos:
    """Infos of some environments as Gymnasium packs them, but a column at a time.

    Strings become arrays of objects; where nothing is known, arrays are zero.
    """
    packed: Infos = {}
    for key in infos[0]:
        kind = type(infos[0][key])
        column = np.full(num_envs, None) if kind is str else np.zeros(num_envs, dtype=kind)
        column[rows] = [info[key] for info in infos]
        packed[key], packed[f"_{key}"] = column, _mask_of(num_envs, rows)
    return packed


def _merge_infos(infos: Infos, newer: Infos) -> None:
    """Write packed infos over others, only where the newer ones hold."""
    for key, column in newer.items():
        if key.startswith("_"):
            continue
        holds = newer[f"_{key}"]
        if key in infos:
            infos[key][holds] = column[holds]
            infos[f"_{key}"] |= holds
        else:
            infos[key], infos[f"_{key}"] = column, holds


def _mask_of(num_envs: int, rows: list[int]) -> NDArray[np.bool_]:
    mask = np.zeros(num_envs, dtype=np.bool_)
    mask[rows] = True
    return mask


def _find_mode(mode: str | AutoresetMode) -> AutoresetMode:
    allowed = (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)
    for known in allowed:
        if mode in (known, known.value):
            return known
    raise ValueError(
        f"autoreset_mode={mode!r}; use one of {[known.value for known in allowed]}: next-step "
        f"autoreset would waste every second step of episodes that have one step"
    )


def _check_mask(mask: object, num_envs: int) -> list[int]:
    """The environments to reset, all without a mask."""
    if mask is None:
        return list(range(num_envs))
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise TypeError(f'options["reset_mask"] is {mask!r}; use a numpy array of bool')
    if mask.shape != (num_envs,) or not mask.any():
        raise ValueError(
            f'options["reset_mask"] has shape {mask.shape} and {mask.sum()} True values; use '
            f"shape ({num_envs},) with at least one True"
        )
    return [int(row) for row in np.flatnonzero(mask)]


def _check_tasks(tasks: object, num_envs: int) -> list[Task | None]:
    """``N`` tasks to ask; None where the environment should draw one."""
    if tasks is None:
        return [None] * num_envs
    if isinstance(tasks, str):
        return [check_task(tasks)] * num_envs
    if not isinstance(tasks, Sequence | np.ndarray) or len(tasks) != num_envs:
        raise ValueError(
            f'options["tasks"] is {tasks!r:.200}; use one task, or one for each of the {num_envs} '
            f"environments"
        )
    return [None if task is None else check_task(task) for task in tasks]


def _check_seeds(seed: int | Sequence[int | None] | None, num_envs: int) -> Sequence[int | None]:
    """One seed for each environment, counted up from a single one."""
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, int | np.integer):
        return [int(seed) + row for row in range(num_envs)]
    if len(seed) != num_envs:
        raise ValueError(f"{len(seed)} seeds for {num_envs} environments; give one each")
    return seed


def _check_actions(
    actions: Sequence[str | None], is_open: Sequence[bool]
) -> tuple[list[int], list[str]]:
    """The environments that wait for an action, and an action for each of them."""
    if isinstance(actions, str):
        raise TypeError(f"the actions are a single str; give {len(is_open)} answers")
    texts = list(actions)
    if len(texts) != len(is_open):
        raise ValueError(f"{len(texts)} answers for {len(is_open)} environments; give one each")
    closed = [row for row, waits in enumerate(is_open) if not waits]
    if len(closed) == len(texts) or any(texts[row] is not None for row in closed):
        raise ResetNeeded(f"Environments {closed} have no open question: call reset() first")
    rows = [row for row, waits in enumerate(is_open) if waits]
    chosen: list[str] = []
    for row in rows:
        text = texts[row]
        if not isinstance(text, str):
            raise TypeError(f"answer {row} is a {type(text).__name__}; use a str")
        chosen.append(text)
    return rows, chosen
