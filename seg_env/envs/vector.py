"""The environment of many questions at a time, scored in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from seg_env.data.base import Dataset
from seg_env.envs.core import Question, ReferringCore, check_options, copy_observation
from seg_env.envs.infos import Infos, mask_of, pack_infos
from seg_env.envs.render import RENDER_MODES, check_render_mode
from seg_env.envs.scoring import Scores

BatchedObservation = dict[str, Any]
"""``image``: ``(N, H, W, 3) uint8``, or a tuple of ``N`` pictures; ``prompt``: ``N`` strings."""
Step = tuple[BatchedObservation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Infos]


class ReferringSegmentationVectorEnv(VectorEnv[BatchedObservation, Sequence[str], NDArray[Any]]):
    """``N`` environments of `ReferringSegmentationEnv` whose answers are scored together.

    Given the same seeds it returns what Gymnasium's ``SyncVectorEnv`` over single environments
    returns, in either of two modes (``metadata["autoreset_mode"]``):

    - ``SAME_STEP`` (default): `step` asks the next questions at once and returns their
      observations. What belongs to the episodes that ended is in ``infos["final_obs"]`` and
      ``infos["final_info"]``; ``sample_id``, ``dataset`` and ``index`` are those of the new
      questions. The results of the answers (``iou``, ``valid``, ``issues``, ``num_vertices``,
      ``reward/<name>``) are repeated at the top level, where they are easy to read.
    - ``DISABLED``: `step` only scores, and `reset` follows. Trainers, which choose their questions
      by ``reset(options={"indices": ...})``, use this one: nothing is loaded in vain.

    An environment asks about one sample at a time, but several may ask about the same: it is then
    loaded once, and what rewards prepare for its target is prepared once.

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
        max_episode_steps: int | None = None,
        **arguments: Any,
    ) -> None:
        """Open the data set; see `ReferringSegmentationEnv` for the arguments.

        Args:
            dataset: Name of a data set, or a data set object.
            num_envs: Number of environments ``N``.
            autoreset_mode: ``"SameStep"`` or ``"Disabled"``, or a member of ``AutoresetMode``.
            render_mode: ``"rgb_array"``, ``"ansi"`` or None.
            max_episode_steps: Accepted as ``make_vec`` may pass it; every episode has one step.
            **arguments: Those of `ReferringCore`.

        Raises:
            ValueError: An argument is not one of what is allowed.
        """
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs}; use at least 1")
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"max_episode_steps={max_episode_steps}; an episode has one step")
        self._mode = _find_mode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self._mode}
        self.render_mode = check_render_mode(render_mode)
        self.num_envs = num_envs
        self._core = ReferringCore(dataset, **arguments)
        self.single_observation_space = self._core.observation_space
        self._one_size = isinstance(self._core.observation_space["image"], spaces.Box)
        self.single_action_space = self._core.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators = [seeding.np_random()[0] for _ in range(num_envs)]
        self._questions: list[Question | None] = [None] * num_envs
        self._open = [False] * num_envs  # which environments wait for an answer
        self._answered: tuple[list[Question], Scores] | None = None

    @property
    def dataset(self) -> Dataset:
        """The data set asked about."""
        return self._core.dataset

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[BatchedObservation, Infos]:
        """Ask ``N`` questions.

        Args:
            seed: Seed of environment 0, the others follow by one each; or ``N`` seeds.
            options: ``"indices"``: ``N`` whole numbers, the samples to ask about.
                ``"reset_mask"``: ``(N,) bool``, the environments to reset; the others keep their
                question. Every option may be left out.

        Returns:
            Batched observations and infos.

        Raises:
            ValueError: A length is not ``N``, or another option is given.
            TypeError: An index is not a whole number, or the mask not an array of bool.
            IndexError: There is no such sample.
            ResetNeeded: The first reset leaves an environment out.
        """
        given = check_options(options, ("indices", "reset_mask"))
        chosen = self._check_mask(given.get("reset_mask"))
        indices = self._check_indices(given.get("indices"))
        self._seed(seed, chosen)
        rows = np.flatnonzero(chosen).tolist()
        self._ask(rows, None if indices is None else [indices[row] for row in rows])
        self._answered = None
        return self._observe(), self._reset_infos(rows)

    def step(self, actions: Sequence[str]) -> Step:
        """Score ``N`` answers and end the ``N`` episodes.

        Args:
            actions: ``N`` answers as the model wrote them.

        Returns:
            Observations (of the next questions, or of the same if autoreset is disabled), rewards
            ``(N,) float64``, terminated (all True), truncated (all False), infos.

        Raises:
            ResetNeeded: An environment has no open question.
            TypeError: An answer is not a string.
            ValueError: There are not ``N`` answers.
        """
        closed = [row for row, is_open in enumerate(self._open) if not is_open]
        if closed:
            raise ResetNeeded(f"Environments {closed} have no open question: call reset() first")
        texts = self._check_actions(actions)
        questions = self._open_questions()
        scores = self._core.score(texts, questions)
        self._answered = questions, scores
        self._open = [False] * self.num_envs
        rows = range(self.num_envs)
        results = [self._core.answer_info(questions[row], scores, row) for row in rows]
        infos = pack_infos(self.num_envs, rows, results)
        if self._mode is AutoresetMode.SAME_STEP:
            final_obs = np.empty(self.num_envs, dtype=object)
            final_obs[:] = [copy_observation(question) for question in questions]
            infos["final_obs"], infos["_final_obs"] = final_obs, mask_of(self.num_envs, rows)
            infos["final_info"] = pack_infos(self.num_envs, rows, results)
            infos["_final_info"] = mask_of(self.num_envs, rows)
            self._ask(rows, None)
            infos |= self._reset_infos(rows)
        terminated = mask_of(self.num_envs, rows)
        return self._observe(), scores.total.copy(), terminated, ~terminated, infos

    def render(self) -> tuple[Any, ...] | None:
        """Draw what was answered last, or the open questions if nothing was.

        Returns:
            ``N`` pictures or texts as `ReferringSegmentationEnv.render` gives them; None without
            render mode.

        Raises:
            ResetNeeded: There is no question yet.
        """
        if self.render_mode is None:
            return None
        questions, scores = self._answered or (self._open_questions(), None)
        return tuple(
            self._core.render(self.render_mode, question, scores, row)
            for row, question in enumerate(questions)
        )

    def _ask(self, rows: Sequence[int], indices: Sequence[int] | None) -> None:
        """Open a question in each of the rows; equal indices are loaded once."""
        if indices is None:
            indices = [self._core.draw(self._generators[row]) for row in rows]
        loaded = {index: self._core.ask(index) for index in dict.fromkeys(indices)}
        for row, index in zip(rows, indices, strict=True):
            self._questions[row], self._open[row] = loaded[index], True

    def _open_questions(self) -> list[Question]:
        """The question of each environment, those answered last included."""
        questions = [question for question in self._questions if question is not None]
        if len(questions) < self.num_envs:
            raise ResetNeeded("Some environments have never been reset: call reset() first")
        return questions

    def _observe(self) -> BatchedObservation:
        """Observations of all questions in new memory."""
        questions = self._open_questions()
        images = [question.image for question in questions]
        return {
            "image": np.stack(images) if self._one_size else tuple(map(np.copy, images)),
            "prompt": tuple(question.prompt for question in questions),
        }

    def _reset_infos(self, rows: Sequence[int]) -> Infos:
        questions = self._open_questions()
        infos = [self._core.reset_info(questions[row]) for row in rows]
        return pack_infos(self.num_envs, rows, infos)

    def _seed(self, seed: int | Sequence[int | None] | None, chosen: NDArray[np.bool_]) -> None:
        """Give the chosen environments new generators, environment ``i`` that of its own seed."""
        if seed is None:
            return
        if isinstance(seed, int | np.integer):
            seed = [int(seed) + row for row in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"{len(seed)} seeds for {self.num_envs} environments; give one each")
        for row, own in enumerate(seed):
            if chosen[row] and own is not None:
                self._generators[row] = seeding.np_random(own)[0]

    def _check_mask(self, mask: object) -> NDArray[np.bool_]:
        if mask is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(f'options["reset_mask"] is {mask!r}; use a numpy array of bool')
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(
                f'options["reset_mask"] has shape {mask.shape} and {mask.sum()} True values; use '
                f"shape ({self.num_envs},) with at least one True"
            )
        return mask

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
            self._core.check_index(value, f'options["indices"][{row}]')
            for row, value in enumerate(values)
        ]

    def _check_actions(self, actions: Sequence[str]) -> list[str]:
        if isinstance(actions, str):
            raise TypeError(f"the actions are a single str; give {self.num_envs} answers")
        texts = list(actions)
        if len(texts) != self.num_envs:
            raise ValueError(
                f"{len(texts)} answers for {self.num_envs} environments; give one each"
            )
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"answer {row} is a {type(text).__name__}; use a str")
        return texts


def _find_mode(mode: str | AutoresetMode) -> AutoresetMode:
    allowed = (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)
    for known in allowed:
        if mode in (known, known.value):
            return known
    raise ValueError(
        f"autoreset_mode={mode!r}; use one of {[known.value for known in allowed]}: next-step "
        f"autoreset would waste every second step of episodes that have one step"
    )
