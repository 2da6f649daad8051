"""Answers in files: one JSON object a line, ``{"id": sample id, "text": answer}``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.common.logs import RunExistsError, write_atomically
from seg_env.envs.left_out import LeftOut
from seg_env.errors import WrongOptionError
from seg_env.types import without_surrogates

Missing = Literal["error", "empty", "skip"]
Boxes = Literal["annotated", "mask"]
"""Which boxes are true: the annotated ones as far as there are any, or those around the masks."""
MAX_TOKENS = 1 << 31
"""Token counts from here on are invalid."""


@dataclass(frozen=True)
class AnswerRecord:
    """One answer to one question, as it is kept."""

    text: str
    tokens: int | None = None
    """How many tokens it took, where that is known."""


Answers = dict[str, list[AnswerRecord]]
"""Answers by sample id, in the order they were written."""
Answered = dict[int, list[AnswerRecord]]
"""Answers by the position of the sample in the data set, equally many to each question."""


def read_answers(path: Path, *, cut_off: bool = False, left_out: LeftOut | None = None) -> Answers:
    """Read a file of answers.

    Each line is a JSON object with ``id`` (string or whole number), ``text`` (string) and perhaps
    ``tokens`` (whole number); anything else in it is ignored. With ``cut_off`` a last line that is
    not complete, as an interruption leaves it, is left out. ``left_out`` is told of lines of
    another form, where it skips.

    Raises:
        ValueError: A line is not of that form; names file and line.
    """
    answers: Answers = {}
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if cut_off and not line.endswith("\n"):
                break
            if line.strip():
                where = f"{path}, line {number}"
                try:
                    identifier, answer = _parse(line, where)
                except ValueError as error:
                    if left_out is None or left_out.on_error == "error":
                        raise
                    left_out.add(where, error)
                    continue
                answers.setdefault(identifier, []).append(answer)
    return answers


def _parse(line: str, where: str) -> tuple[str, AnswerRecord]:
    form = '{"id": sample id, "text": answer}'
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not a JSON object ({error}); each line is {form}") from error
    if not isinstance(row, dict) or not {"id", "text"} <= row.keys():
        keys = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{where} has {keys[:80]}; each line is {form}")
    identifier, text, tokens = row["id"], row["text"], row.get("tokens")
    if isinstance(identifier, bool) or not isinstance(identifier, str | int):
        raise ValueError(f"{where}: id is {str(identifier)[:80]}; use a string or a whole number")
    if not isinstance(text, str):
        raise ValueError(f"{where}: text is a {type(text).__name__}; use a string, as in {form}")
    counted = type(tokens) is int and 0 <= tokens < MAX_TOKENS
    answer = AnswerRecord(without_surrogates(text), tokens if counted else None)
    return without_surrogates(str(identifier)), answer


def append_answers(path: Path, rows: Iterable[tuple[str, Sequence[AnswerRecord]]]) -> None:
    """Add the answers to some questions to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_lines(rows))


def keep_whole_answers(path: Path, count: int) -> Answers:
    """Remove questions without ``count`` answers, as an interruption leaves them; return the rest.

    The file is made if there is none.
    """
    found = read_answers(path, cut_off=True) if path.exists() else {}
    whole = {identifier: given for identifier, given in found.items() if len(given) == count}
    write_atomically(path, _lines(whole.items()))
    return whole


def check_resume(path: Path, wanted: dict[str, Any], *, resume: bool) -> None:
    """Make sure that the answers in a file may be added to.

    Raises:
        RunExistsError: There are some, and ``resume`` is not given.
        WrongOptionError: By ``asked.json`` beside them, they were asked for with other settings.
    """
    if not path.exists():
        return
    if not resume:
        raise RunExistsError(
            f"{path} holds answers already: pass --resume to keep them, or another --output-dir"
        )
    record = path.with_name("asked.json")
    found = json.loads(record.read_text()) if record.exists() else wanted
    changed = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
    if changed:
        raise WrongOptionError(
            f"the answers in {path} were asked for with other values of {', '.join(changed)}: "
            f"resume with the same ones, or use another --output-dir"
        )


def _lines(rows: Iterable[tuple[str, Sequence[AnswerRecord]]]) -> str:
    return "".join(
        json.dumps({"id": identifier, "text": answer.text, "tokens": answer.tokens}) + "\n"
        for identifier, answers in rows
        for answer in answers
    )


def match_answers(
    answers: Answers,
    asked: Mapping[int, str],
    *,
    count: int = 1,
    missing: Missing = "error",
    ignore_unknown: bool = False,
) -> Answered:
    """Find the answers to questions, ``count`` to each; ``asked`` has the ids by position.

    Questions without answers are an error, get empty ones, or are left out, as ``missing`` says;
    answers to other questions are an error unless ``ignore_unknown``.

    Raises:
        ValueError: Questions and answers do not fit together; says how many and which.
    """
    ids = list(asked.values())
    if twice := [identifier for identifier, n in Counter(ids).items() if n > 1]:
        raise ValueError(
            f"{len(twice)} ids belong to several questions, such as {_some(twice)}; an answer "
            "could be to any of them. Give every record of the data an id of its own, or none"
        )
    unknown = answers.keys() - set(ids)
    if unknown and not ignore_unknown:
        raise ValueError(
            f"{len(unknown)} of {len(answers)} ids in the answers are not among the {len(ids)} "
            f"questions, such as {_some(unknown)}; the questions have ids such as {_some(ids)}. "
            f"Check --env, --split, --split-by and --questions, or pass --ignore-unknown"
        )
    absent = [identifier for identifier in ids if identifier not in answers]
    if absent and missing == "error":
        raise ValueError(
            f"{len(absent)} of {len(ids)} questions have no answer, such as {_some(absent)}. "
            f"--missing empty counts them as empty answers, --missing skip leaves them out"
        )
    if missing == "skip" and len(absent) == len(ids):
        raise ValueError("no question has an answer; there is nothing to score")
    empty = [AnswerRecord("")] * count
    found = {
        index: answers.get(identifier, empty)
        for index, identifier in asked.items()
        if identifier in answers or missing == "empty"
    }
    for index, given in found.items():
        if len(given) != count:
            raise ValueError(
                f"{asked[index]} has {len(given)} answers and --answers is {count}; every question "
                f"needs the same number of lines"
            )
    return found


def _some(ids: Iterable[str]) -> str:
    """The first few ids in quotes."""
    return ", ".join(repr(identifier[:80]) for identifier in sorted(ids)[:3])
