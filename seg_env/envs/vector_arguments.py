"""Checks of what a vector environment is given, each with an error that says what to give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from seg_env.envs.core import ReferringCore, find_task
from seg_env.tasks import Task


def find_mode(mode: str | AutoresetMode) -> AutoresetMode:
    """The autoreset mode of a name.

    Raises:
        ValueError: It is none that these environments have.
    """
    allowed = (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)
    for known in allowed:
        if mode in (known, known.value):
            return known
    raise ValueError(
        f"autoreset_mode={mode!r}; use one of {[known.value for known in allowed]}: next-step "
        f"autoreset would waste every second step of episodes that have one step"
    )


def check_mask(mask: object, num_envs: int) -> NDArray[np.bool_]:
    """``(N,) bool``, the environments to reset; None stands for all of them.

    Raises:
        TypeError: It is not an array of bool.
        ValueError: It has another shape, or names no environment.
    """
    if mask is None:
        return np.ones(num_envs, dtype=np.bool_)
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise TypeError(f'options["reset_mask"] is {mask!r}; use a numpy array of bool')
    if mask.shape != (num_envs,) or not mask.any():
        raise ValueError(
            f'options["reset_mask"] has shape {mask.shape} and {mask.sum()} True values; use '
            f"shape ({num_envs},) with at least one True"
        )
    return mask


def check_indices(indices: object, num_envs: int, core: ReferringCore) -> list[int] | None:
    """``N`` samples to ask about; None if the environment should draw them.

    Raises:
        TypeError: They are not whole numbers.
        ValueError: There are not ``N`` of them.
        IndexError: There is no such sample.
    """
    if indices is None:
        return None
    values = np.asarray(indices)
    if values.dtype.kind not in "iu":
        raise TypeError(f'options["indices"] is {indices!r:.200}; use whole numbers')
    if values.shape != (num_envs,):
        raise ValueError(
            f'options["indices"] has shape {values.shape}; use one index for each of the '
            f"{num_envs} environments"
        )
    return [
        core.check_index(value, f'options["indices"][{row}]') for row, value in enumerate(values)
    ]


def check_tasks(tasks: object, num_envs: int) -> list[Task | None]:
    """``N`` tasks to ask; None where the environment should draw one.

    Raises:
        ValueError: There are not ``N`` of them, or one is unknown.
    """
    if tasks is None:
        return [None] * num_envs
    if isinstance(tasks, str):
        return [find_task(tasks)] * num_envs
    if not isinstance(tasks, Sequence | np.ndarray) or len(tasks) != num_envs:
        raise ValueError(
            f'options["tasks"] is {tasks!r:.200}; use one task, or one for each of the {num_envs} '
            f"environments"
        )
    return [find_task(task) for task in tasks]


def check_seeds(
    seed: int | Sequence[int | None] | None, num_envs: int
) -> Sequence[int | None] | None:
    """One seed for each environment, counted up from a single one.

    Raises:
        ValueError: There are not ``N`` of them.
    """
    if seed is None:
        return None
    if isinstance(seed, int | np.integer):
        return [int(seed) + row for row in range(num_envs)]
    if len(seed) != num_envs:
        raise ValueError(f"{len(seed)} seeds for {num_envs} environments; give one each")
    return seed


def check_actions(
    actions: Sequence[str | None], is_open: Sequence[bool]
) -> tuple[list[int], list[str]]:
    """The environments that are stepped, and their actions.

    Args:
        actions: ``N`` actions, None for environments whose episode has ended.
        is_open: ``N`` times whether an environment waits for an action.

    Returns:
        Indices of the open environments, and an action for each of them.

    Raises:
        ResetNeeded: An action is for an environment whose episode has ended, or all have ended.
        TypeError: An action is not a string.
        ValueError: There are not ``N`` actions.
    """
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
