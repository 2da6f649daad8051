"""What every reward pays for answers that cheat, and for honest ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from shapely import MultiPoint

from experiments.common.logs import write_json
from experiments.common.tables import markdown_table, terminal_table
from rewards import DEFAULT_REWARDS, RewardSum, known_rewards
from seg_env.data.scenes import Scenes
from seg_env.grammar import decode, encode
from seg_env.types import Ring, Sample

SUM = "default sum"
ABSENT = "an outline, and the object is absent"
Cheat = Callable[[Sample, np.random.Generator], str]


def whole_image(sample: Sample, rng: np.random.Generator) -> str:
    """A rectangle around everything."""
    return _write([_box(np.array([[0.0, 0.0], [1.0, 1.0]]))])


def box(sample: Sample, rng: np.random.Generator) -> str:
    """The box around the object."""
    return _write([_box(np.concatenate(sample.target.rings))])


def convex_hull(sample: Sample, rng: np.random.Generator) -> str:
    """The convex hull of the object."""
    hull = MultiPoint(np.concatenate(sample.target.rings)).convex_hull
    return _write([np.array(hull.exterior.coords)[:-1]])


def dot(sample: Sample, rng: np.random.Generator) -> str:
    """A triangle of some pixels at the middle of the object's box."""
    corners = np.concatenate(sample.target.rings)
    return _write([_triangle((corners.min(axis=0) + corners.max(axis=0)) / 2, 0.02)])


def tiny_rings(sample: Sample, rng: np.random.Generator) -> str:
    """Sixty triangles of some pixels each, all over the object's box."""
    corners = np.concatenate(sample.target.rings)
    places = rng.uniform(corners.min(axis=0), corners.max(axis=0), (60, 2))
    return _write([_triangle(place, 0.02) for place in places])


def wound_twice(sample: Sample, rng: np.random.Generator) -> str:
    """The true outline, each ring of it passed through twice."""
    return _write([np.concatenate([ring, ring]) for ring in sample.target.outline(0.005)])


def written_twice(sample: Sample, rng: np.random.Generator) -> str:
    """The true outline, each ring of it written twice."""
    return _write([ring for ring in sample.target.outline(0.005) for _ in range(2)])


def every_pixel(sample: Sample, rng: np.random.Generator) -> str:
    """The box around the object with a hundred vertices on every side."""
    (x, y), (right, bottom) = _box(np.concatenate(sample.target.rings))[[0, 2]]
    way = np.linspace(0, 1, 100, endpoint=False)
    sides = [
        (x + way * (right - x), np.full(100, y)),
        (np.full(100, right), y + way * (bottom - y)),
        (right - way * (right - x), np.full(100, bottom)),
        (np.full(100, x), bottom - way * (bottom - y)),
    ]
    return _write([np.concatenate([np.stack(side, axis=1) for side in sides])])


def nothing(sample: Sample, rng: np.random.Generator) -> str:
    """``[]``, as if the object were absent."""
    return "[]"


CHEATS: dict[str, Cheat] = {
    "whole image": whole_image,
    "box": box,
    "convex hull": convex_hull,
    "dot in the middle": dot,
    "sixty tiny rings": tiny_rings,
    "outline wound twice": wound_twice,
    "rings written twice": written_twice,
    "box of 400 vertices": every_pixel,
    "nothing, and the object is there": nothing,
}
HONEST = (0.3, 0.5, 0.7)
"""Mask IoU of the honest answers: the true outline, shifted."""


def honest(sample: Sample, wanted: float, rng: np.random.Generator) -> str:
    """The true outline, moved so far in a random direction that its IoU is as wanted."""
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(angle), np.sin(angle)])
    score = RewardSum("mask_iou=1")
    low, high, text = 0.0, 1.0, ""
    for _ in range(20):
        step = (low + high) / 2
        rings = [np.clip(ring + step * direction, 0, 1) for ring in sample.target.outline(0.005)]
        text = _write(rings)
        found = score.score([decode(text)], [sample.target]).total[0]
        low, high = (step, high) if found > wanted else (low, step)
    return text


def _box(points: NDArray[np.float64]) -> Ring:
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def _triangle(middle: NDArray[np.float64], size: float) -> Ring:
    return np.clip(middle + size * np.array([[0.0, -0.5], [0.5, 0.5], [-0.5, 0.5]]), 0, 1)


def _write(rings: Sequence[Ring]) -> str:
    return encode(rings, decimals=3)


def answers(samples: Sequence[Sample], seed: int = 0) -> dict[str, list[str]]:
    """Every cheat and honest answer to each of the samples."""
    found = {}
    for iou in HONEST:
        rng = np.random.default_rng(seed)
        found[f"honest, IoU {iou}"] = [honest(sample, iou, rng) for sample in samples]
    for name, cheat in CHEATS.items():
        rng = np.random.default_rng(seed)
        found[name] = [cheat(sample, rng) for sample in samples]
    return found


def payments(
    samples: Sequence[Sample], texts: dict[str, list[str]]
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """What each reward and the default sum pay for each answer, ``(N,)`` by answer and reward."""
    everything = RewardSum(" ".join(f"{name}=0" for name in known_rewards()))
    default = RewardSum(DEFAULT_REWARDS)
    targets = [sample.target for sample in samples]
    found = {}
    for name, written in texts.items():
        read = [decode(text) for text in written]
        found[name] = dict(everything.score(read, targets).terms)
        found[name][SUM] = default.score(read, targets).total
    return found


def benchmark_cheats(
    json: Path | None = None,
    output_dir: Path | None = None,
    seed: int = 0,
    questions: int = 256,
    difficulty: Literal["easy", "medium", "hard"] = "medium",
) -> None:
    """Show what every built-in reward and the default sum pay for cheats and honest answers.

    Figures are means over scenes of the validation split. Cheats know the object: a policy could
    drift to them if doing less than outlining it is paid for.

    Args:
        json: File to write the figures to.
        output_dir: Folder to write them to, as cheats.json and, as a table, cheats.md.
        seed: Seed of what is random in the answers.
        questions: Scenes.
        difficulty: Of the scenes.
    """
    scenes = Scenes("val", difficulty, length=questions)
    absent = Scenes("val", difficulty, length=questions, negatives=1.0)
    samples = list(scenes)
    texts = answers(samples, seed)
    paid = payments(samples, texts)
    paid |= payments(list(absent), {ABSENT: texts["honest, IoU 0.7"]})
    empty = {"nothing, and the object is absent": ["[]"] * questions}
    paid |= payments(list(absent), empty)
    means: dict[str, Any] = {
        answer: {reward: float(values.mean()) for reward, values in by_reward.items()}
        for answer, by_reward in paid.items()
    }
    rewards = list(next(iter(means.values())))
    headings = ["answer", *rewards]
    rows = [[name, *(f"{means[name][each]:.2f}" for each in rewards)] for name in means]
    caption = f"means over {questions} {difficulty} scenes; {SUM}: {DEFAULT_REWARDS}"
    Console().print(terminal_table(headings, rows, title="What is paid", caption=caption))
    result = {"questions": questions, "difficulty": difficulty, "seed": seed, "paid": means}
    if json is not None:
        write_json(json, result)
    if output_dir is not None:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json(output_dir / "cheats.json", result)
        (output_dir / "cheats.md").write_text(markdown_table(headings, rows) + "\n")
