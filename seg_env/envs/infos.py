"""Infos of a vector environment, in the layout that Gymnasium gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Infos = dict[str, Any]
"""An ``(N,)`` array for each key, and under ``_key`` a mask of where it holds."""


def pack_infos(num_envs: int, rows: Sequence[int], infos: Sequence[Mapping[str, Any]]) -> Infos:
    """Infos of single environments as Gymnasium packs them, but a column at a time.

    Args:
        num_envs: Number of environments ``N``.
        rows: Environments that the infos belong to.
        infos: One flat dictionary for each row, all with the same keys; values are str, bool, int
            or float.

    Returns:
        For each key an ``(N,)`` array (of objects for strings), zero where nothing is known, and
        under ``_key`` an ``(N,) bool`` mask of where it is.
    """
    packed: Infos = {}
    where = list(rows)
    for key in infos[0]:
        kind = type(infos[0][key])
        column = np.full(num_envs, None) if kind is str else np.zeros(num_envs, dtype=kind)
        column[where] = [info[key] for info in infos]
        packed[key], packed[f"_{key}"] = column, mask_of(num_envs, rows)
    return packed


def merge_infos(infos: Infos, newer: Infos) -> None:
    """Write packed infos into others of as many environments, only where the newer ones hold.

    Args:
        infos: What `pack_infos` returned; changed in place.
        newer: The same, for other environments or other keys.
    """
    for key, column in newer.items():
        if key.startswith("_"):
            continue
        holds = newer[f"_{key}"]
        if key in infos:
            infos[key][holds] = column[holds]
            infos[f"_{key}"] |= holds
        else:
            infos[key], infos[f"_{key}"] = column, holds


def mask_of(num_envs: int, rows: Sequence[int]) -> NDArray[np.bool_]:
    """``(N,) bool``, True in the rows."""
    mask = np.zeros(num_envs, dtype=np.bool_)
    mask[list(rows)] = True
    return mask
