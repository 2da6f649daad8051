"""Samples that cannot be asked about: left out and counted, or made an error."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from seg_env.data.base import Dataset
from seg_env.envs.core import Question, ReferringCore
from seg_env.errors import ExplainedError
from seg_env.types import counted, without_surrogates

OnError = Literal["skip", "error"]
"""What to do with a sample that cannot be asked about."""
TRIES = 16
"""Samples that are tried, one after another, to replace one that cannot be used."""

Loaded = TypeVar("Loaded")

_PARTICULAR = re.compile(r"'[^']*'|\"[^\"]*\"|\S*/\S*|[0-9]+(?:\.[0-9]+)?")
"""Paths, names and numbers in a message, which differ from sample to sample."""


class UnusableSampleError(ExplainedError, ValueError):
    """A sample's image cannot be loaded, or the policy's processor refuses it."""


@dataclass
class LeftOut:
    """What has been left out, and why."""

    on_error: OnError = "skip"
    reasons: dict[str, str] = field(default_factory=dict)
    """By the name of the sample."""
    shared: Path | None = None
    """A file in which loader processes note what they leave out, see `collect`."""

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, name: str, error: Exception) -> None:
        """Leave a sample out; raise UnusableSampleError with ``on_error="error"``."""
        reason = str(error) if isinstance(error, UnusableSampleError) else describe(error)
        name, reason = without_surrogates(name), without_surrogates(reason)
        if self.on_error == "error":
            raise UnusableSampleError(
                f"sample {name} cannot be asked about ({reason}); --on-error skip leaves such "
                f"samples out and counts them"
            ) from error
        if self.shared is not None and name not in self.reasons:
            with self.shared.open("a", encoding="utf-8") as file:
                file.write(json.dumps({name: reason}) + "\n")
        self.reasons[name] = reason

    def collect(self) -> None:
        """Add what copies of this object in other processes have left out."""
        if self.shared is not None and self.shared.exists():
            for line in self.shared.read_text(encoding="utf-8").splitlines():
                self.update(json.loads(line))

    def update(self, reasons: Mapping[str, str]) -> None:
        """Add what another process, or an earlier run, has left out."""
        self.reasons |= reasons

    def summary(self) -> str:
        """One line with the number of samples by kind of reason, empty if there are none."""
        if not self.reasons:
            return ""
        kinds: dict[str, list[str]] = {}
        for name, reason in self.reasons.items():
            kinds.setdefault(_PARTICULAR.sub("…", reason), []).append(name)
        ordered = sorted(kinds.values(), key=len, reverse=True)
        parts = [f"{len(names)} as {names[0]} ({self.reasons[names[0]]})" for names in ordered[:5]]
        rest = sum(map(len, ordered[5:]))
        more = f"; {rest} for other reasons" if rest else ""
        return f"{counted(len(self.reasons), 'sample')} left out: {'; '.join(parts)}{more}"


def describe(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}".rstrip(": ")


@contextmanager
def loading(*others: type[Exception]) -> Iterator[None]:
    """Turn what goes wrong while files are read into `UnusableSampleError`.

    Too little memory, wrong options and ``others`` are not a sample's fault and are passed on.
    """
    spared: tuple[type[Exception], ...] = (MemoryError, ExplainedError, *others)
    try:
        yield
    except spared:
        raise
    except Exception as error:
        raise UnusableSampleError(describe(error)) from error


def first_usable(
    choices: Iterable[int],
    load: Callable[[int], Loaded],
    dataset: Dataset,
    left_out: LeftOut,
) -> Loaded:
    """What ``load`` returns for the first of some samples that can be used.

    A sample for which it raises `UnusableSampleError` is left out.
    """
    tried = 0
    for index in choices:
        tried += 1
        try:
            return load(index)
        except UnusableSampleError as error:
            left_out.add(name_of(dataset, index), error)
    raise UnusableSampleError(f"none of {tried} samples can be used; {left_out.summary()}")


def ask_each(core: ReferringCore, indices: Sequence[int], left_out: LeftOut) -> list[Question]:
    """Load the questions about some samples; those that cannot be loaded are left out."""
    found = []
    for index in indices:
        try:
            with loading():
                found.append(core.ask(index))
        except UnusableSampleError as error:
            left_out.add(name_of(core.dataset, index), error)
    return found


def name_of(dataset: Dataset, index: int) -> str:
    """The id of a sample, or its place in the data set where the sample itself cannot be read."""
    try:
        return dataset[index].id
    except Exception:  # its record may be what is broken
        return f"{dataset.name} ({dataset.split}) #{index}"
