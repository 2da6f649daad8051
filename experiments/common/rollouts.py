"""Rollouts that a run keeps for inspection: how they are written, thinned out, and read.

``rollouts/update_000010.jsonl`` begins with a line about the update, ``{"update": 10, "groups":
32}``; each of the others is one group of answers to a prompt. Images are not kept: the environment
loads them again by the index of the question.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from agents.rollout import Rollout
from agents.training.distributed import World
from experiments.common.logs import write_atomically
from seg_env.errors import ExplainedError, WrongOptionError
from seg_env.types import without_surrogates

MOST_BYTES = 1 << 21
"""Limit of a file: of larger rollouts the first groups are kept. The main job's have 0.1 MB."""
MOST_ANSWERS = 1024
"""Most answers of a group that is read."""
MOST_FILES = 10_000
"""Files of a folder that are looked at."""
DIGITS = 6
"""Digits after the point of numbers that are kept."""
LARGEST = 1e9
"""Largest number that is read; rewards beyond a million end a run."""
_FILE = re.compile(r"update_([0-9]{6,12})\.jsonl")


@dataclass(frozen=True)
class GroupAnswer:
    """One answer of a group."""

    text: str
    """As the policy wrote it."""
    outline: str | None
    """The outline that it led to, where an answer is one of several turns."""
    reward: float
    advantage: float
    """Where tokens have advantages of their own, the mean over those that the policy chose."""
    iou: float
    rewards: dict[str, float]
    """Each reward by its name, unweighted."""
    vertices: int
    tokens: int
    faults: tuple[str, ...]
    """Kinds of issues, and ``limit reached`` where the answer was cut off."""


@dataclass(frozen=True)
class Group:
    """One prompt with its answers."""

    index: int
    """Position of the question in the data set."""
    sample: str
    """Its id."""
    task: str
    prompt: str
    answers: tuple[GroupAnswer, ...]


@dataclass(frozen=True)
class RolloutKeeper:
    """Writes the rollouts of some updates into a folder, and thins them out.

    Which files exist after an update depends only on its number, so that a run that was interrupted
    ends with the same files.
    """

    folder: Path
    updates: int
    """Updates of the whole run."""
    every: int
    """Updates from one rollout to the next; 0 keeps none."""
    most: int
    """Most rollouts kept at a time."""

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            WrongOptionError: They contradict each other.
        """
        if self.every < 0:
            raise WrongOptionError(f"--rollouts-every {self.every}: use 1 or more, or 0 for none")
        if self.most < 2:
            raise WrongOptionError(
                f"--rollouts-kept {self.most}: the first and the last update are always kept, use "
                "2 or more, or --rollouts-every 0 for none"
            )

    def kept_after(self, update: int) -> set[int]:
        """Updates whose rollouts are kept: the first, the newest, and evenly spread ones."""
        newest = update if update == self.updates else update - update % self.every
        stride = self.every
        while True:
            found = {1, *range(stride, update + 1, stride)} | ({newest} - {0})
            if len(found) <= self.most:
                return found
            stride *= 2

    def add(self, update: int, rollout: Rollout, world: World) -> None:
        """Keep the rollout of an update if it is one of those; every rank has its share of it."""
        if not self.every or not (update in (1, self.updates) or update % self.every == 0):
            return
        kept = self.kept_after(update)
        groups = [group for share in world.gather(groups_of(rollout)) for group in share]
        if not world.is_main:
            return
        lines = [json.dumps({"update": update, "groups": len(groups)}) + "\n"]
        room = MOST_BYTES - len(lines[0])
        for group in groups:
            line = json.dumps(asdict(group)) + "\n"
            if (room := room - len(line)) < 0:
                break
            lines.append(line)
        write_atomically(self.folder / f"update_{update:06d}.jsonl", "".join(lines))
        for number, path in rollout_files(self.folder).items():
            if number not in kept:
                path.unlink()


def groups_of(rollout: Rollout) -> list[Group]:
    """The groups of a credited rollout, in the form in which they are kept."""
    infos, size = rollout.infos, rollout.group_size
    assert rollout.advantages is not None
    advantages = rollout.advantages
    if advantages.ndim > 1:
        chosen = rollout.choice_mask
        advantages = (advantages * chosen).sum(-1) / chosen.sum(-1).clamp(min=1)
    earned, credited = rollout.rewards.tolist(), advantages.tolist()
    lengths = rollout.mask.sum(-1).tolist()
    names = [name for name in infos if name.startswith("reward/")]

    def answer(row: int) -> GroupAnswer:
        faults = f"{infos['issues'][row]},{infos['fault'][row] if 'fault' in infos else ''}"
        return GroupAnswer(
            text=str(infos["text"][row]),
            outline=str(infos["outline"][row]) if "outline" in infos else None,
            reward=round(earned[row], DIGITS),
            advantage=round(credited[row], DIGITS),
            iou=round(float(infos["iou"][row]), DIGITS),
            rewards={
                name.removeprefix("reward/"): round(float(infos[name][row]), DIGITS)
                for name in names
            },
            vertices=int(infos["num_vertices"][row]),
            tokens=int(lengths[row]),
            faults=(
                *dict.fromkeys(filter(None, faults.split(","))),
                *(() if infos["ended"][row] else ("limit reached",)),
            ),
        )

    return [
        Group(
            index=int(infos["index"][first]),
            sample=str(infos["sample_id"][first]),
            task=str(infos["task"][first]),
            prompt=rollout.asked.texts[group],
            answers=tuple(answer(row) for row in range(first, first + size)),
        )
        for group, first in enumerate(range(0, rollout.prompts * size, size))
    ]


def rollout_files(folder: Path) -> dict[int, Path]:
    """Files of rollouts in a folder, by their updates in order; other files are ignored."""
    names = ((_FILE.fullmatch(path.name), path) for path in folder.glob("update_*.jsonl"))
    found = ((int(name[1]), path) for name, path in names if name and path.is_file())
    return dict(sorted(islice(found, MOST_FILES)))


@dataclass(frozen=True)
class KeptRollout:
    """What the file of an update holds."""

    groups: tuple[Group, ...]
    made: int
    """Groups that the update had."""
    malformed: int
    """Lines that are no groups, and were left out."""


def read_rollout(path: Path) -> KeptRollout:
    """Read the file of an update, whoever wrote it.

    Raises:
        ExplainedError: It is larger than any that is written, or cannot be read.
    """
    *lines, _ = read_bounded(path, MOST_BYTES).split(b"\n")  # the last one is empty, or cut off
    found = list(map(_parse, lines[1:]))
    groups = tuple(group for group in found if group is not None)
    made = len(groups)
    try:
        made = max(made, min(int(json.loads(lines[0])["groups"]), 1 << 31))
        malformed = 0
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError):
        malformed = 1
    return KeptRollout(groups, made, malformed + len(found) - len(groups))


def read_bounded(path: Path, most: int) -> bytes:
    """A file of at most so many bytes.

    Raises:
        ExplainedError: It is larger, no file, or cannot be read.
    """
    try:
        size = path.stat().st_size if path.is_file() else None
        if size is not None and size <= most:
            with path.open("rb") as file:
                return file.read(most)
    except OSError as error:
        raise ExplainedError(f"{path} cannot be read: {error.strerror}") from error
    if size is None:
        raise ExplainedError(f"{path} is no file")
    raise ExplainedError(f"{path} has {size} bytes, and at most {most} are read")


def _parse(line: bytes) -> Group | None:
    """The group in a line; None where it is none."""
    try:
        row = json.loads(line)
        answers = row["answers"]
        if not 0 < len(answers) <= MOST_ANSWERS:
            return None
        return Group(
            index=_whole(row["index"]),
            sample=_text(row["sample"]),
            task=_text(row["task"]),
            prompt=_text(row["prompt"]),
            answers=tuple(map(_parse_answer, answers)),
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def _parse_answer(row: dict[str, Any]) -> GroupAnswer:
    return GroupAnswer(
        text=_text(row["text"]),
        outline=None if row["outline"] is None else _text(row["outline"]),
        reward=_number(row["reward"]),
        advantage=_number(row["advantage"]),
        iou=_number(row["iou"]),
        rewards={_text(key): _number(value) for key, value in row["rewards"].items()},
        vertices=_whole(row["vertices"]),
        tokens=_whole(row["tokens"]),
        faults=tuple(map(_text, row["faults"])),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return without_surrogates(value)


def _number(value: object) -> float:
    if type(value) not in (int, float) or not abs(value) <= LARGEST:  # type: ignore[arg-type]
        raise TypeError
    return float(value)  # type: ignore[arg-type]


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise TypeError
    return value
