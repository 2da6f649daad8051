"""From answers to scores: what is measured of each, the file it is kept in, and intervals."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from experiments.common.logs import progress_bar, warn
from experiments.evaluation.answers import Answered, Boxes
from experiments.evaluation.reader import advise_frame
from seg_env import metrics
from seg_env.envs.core import ReferringCore
from seg_env.errors import WrongOptionError
from seg_env.grammar.answers import read_answer
from seg_env.metrics import PRECISION_THRESHOLDS, Columns
from seg_env.metrics.reports import score_ratios
from seg_env.types import Form

MAX_TEXT = 1000
"""Characters of an id or an expression that ``per_sample.parquet`` keeps."""
EVERY = "mask bbox point"
SCORES = (
    ("gIoU", "giou", 100.0, "mask bbox"),
    ("gIoU of the truth itself, written with ε 0.005", "representation_ceiling", 100.0, "mask"),
    ("cIoU", "ciou", 100.0, "mask"),
    *((f"precision@{at}", f"precision@{at}", 100.0, "mask") for at in PRECISION_THRESHOLDS),
    ("box IoU", "box_giou", 100.0, "bbox"),
    ("REC accuracy@0.5, from the outline", "rec_accuracy", 100.0, "mask"),
    ("REC accuracy@0.5", "rec_accuracy", 100.0, "bbox"),
    ("pointing accuracy", "pointing_accuracy", 100.0, "point"),
    ("boundary IoU", "boundary_iou", 100.0, "mask"),
    ("boundary F", "boundary_f", 100.0, "mask"),
    ("well-formed answers", "well_formed", 100.0, EVERY),
    ("no-target accuracy", "n_acc", 100.0, EVERY),
    ("target accuracy", "t_acc", 100.0, EVERY),
    ("distance from the best point, % of the image's side", "point_distance", 100.0, "point"),
    ("HD95, pixels", "hd95", 1.0, "mask"),
    ("PoLiS, pixels", "polis", 1.0, "mask"),
    ("vertices per answer", "vertices", 1.0, "mask"),
    ("vertices, relative to the target's", "vertex_ratio", 1.0, "mask"),
    ("characters per answer", "characters", 1.0, EVERY),
    ("tokens per answer", "tokens", 1.0, EVERY),
)
"""Scores of a table: label, key, what they are multiplied by to be shown, and the forms of answers
that they say something about."""


def measure_answers(
    core: ReferringCore,
    answered: Answered,
    *,
    details: bool,
    empty_union: float,
    console: Console,
    boxes: Boxes = "annotated",
) -> Columns:
    """Measure all answers, chunk by chunk; says when they seem to be in another frame.

    Returns:
        Columns ``(n * k,)`` of `seg_env.metrics.measure` for ``n`` questions with ``k`` answers
        each, and ``id``, ``expression``, ``answer`` (number among those to the question),
        ``characters`` and ``tokens`` (-1 if not known). With ``details`` also boundary scores,
        PoLiS and the ``ceiling`` of each sample.
    """
    chunk_size = 64  # questions worked on at a time; what is kept of each is a row of numbers
    parts: list[Columns] = []
    questions, dataset, (form,) = list(answered), core.dataset, core.tasks.forms
    with progress_bar(console) as progress:
        task = progress.add_task("scoring", total=len(questions), status="")
        for start in range(0, len(questions), chunk_size):
            indices = questions[start : start + chunk_size]
            samples = [dataset[index] for index in indices]
            if boxes == "mask":
                samples = [replace(each, target=replace(each.target, box=None)) for each in samples]
            # One row an answer; the place is that of its question in the chunk.
            places = [place for place, index in enumerate(indices) for _ in answered[index]]
            answers = [answer for index in indices for answer in answered[index]]
            texts = [answer.text for answer in answers]
            asked = [samples[place] for place in places]
            read = [
                read_answer(text, sample.target.size, core.answer_frame, form)
                for text, sample in zip(texts, asked, strict=True)
            ]
            if not start and (advice := advise_frame(core.answer_frame, texts, asked, read)):
                warn(console, advice)
            others = None
            if hasattr(dataset, "others"):
                around = [[each.rle for each in dataset.others(index)] for index in indices]
                others = [around[place] for place in places]
            part = metrics.measure(
                read,
                [sample.target for sample in asked],
                others=others,
                boundaries=details,
                outlines=details,
                empty_union=empty_union,
            )
            if details:
                part["ceiling"] = metrics.ceiling(samples)[places]
            # Every row of a column of text takes the room of the longest.
            part["id"] = np.array([sample.id[:MAX_TEXT] for sample in asked])
            part["expression"] = np.array([sample.expression[:MAX_TEXT] for sample in asked])
            part["answer"] = np.concatenate([np.arange(len(answered[index])) for index in indices])
            part["characters"] = np.array([len(text) for text in texts])
            part["tokens"] = np.array([-1 if one.tokens is None else one.tokens for one in answers])
            parts.append(part)
            score = np.concatenate([each["iou"] for each in parts]).mean()
            progress.update(task, advance=len(indices), status=f"gIoU {score:.3f}")
    return metrics.join_columns(parts)


def save_samples(folder: Path, columns: Columns) -> None:
    """Write ``per_sample.parquet``, one row an answer."""
    import pyarrow as pa
    from pyarrow import parquet

    first = ("id", "answer", "expression")
    names = [*first, *sorted(columns.keys() - set(first))]
    table = pa.table({name: columns[name].tolist() for name in names})
    parquet.write_table(table, folder / "per_sample.parquet")


def load_samples(path: Path) -> Columns:
    """Read what `save_samples` wrote, from the file or its folder.

    Raises:
        FileNotFoundError: There is none.
    """
    from pyarrow import parquet

    path = path / "per_sample.parquet" if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; give a folder that evaluate.py wrote")
    table = parquet.read_table(path)
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def score(columns: Columns, answers: int, empty_union: float, seed: int) -> dict[str, Any]:
    """All scores of some answers, see `seg_env.metrics.summarize`; JSON-able.

    ``columns`` are those of `measure_answers`, with so many answers per question. With several,
    intervals are over questions, as the answers to one question resemble each other, and are given
    for scores that are means and for cIoU.
    """
    resamples = 2000 if answers == 1 else 0
    found = metrics.summarize(columns, empty_union=empty_union, seed=seed, resamples=resamples)
    if answers > 1:
        found["intervals"] = _intervals_over_questions(columns, answers, found, seed)
    found["characters"] = float(columns["characters"].mean())
    known = columns["tokens"] >= 0
    found["tokens"] = float(columns["tokens"][known].mean()) if known.any() else None
    annotated = columns["annotated_box"][columns["target_area"] > 0]
    found["true_boxes"] = {
        "annotated": int(annotated.sum()) // answers,
        "mask": int((~annotated).sum()) // answers,
    }
    groups = {"size": columns["size"]}
    if "ceiling" in columns:
        groups["ceiling"] = metrics.ceiling_class(columns["ceiling"])
        found["representation_ceiling"] = float(columns["ceiling"].mean())
    means = columns["iou"].reshape(-1, answers).mean(axis=1)
    found["breakdown"] = {
        name: {
            label: {
                "questions": group.samples,
                "giou": group.score.estimate,
                "interval": [group.score.low, group.score.high],
            }
            for label, group in metrics.breakdown(means, labels[::answers], seed=seed).items()
        }
        for name, labels in groups.items()
    }
    return found


def _intervals_over_questions(
    columns: Columns, answers: int, found: dict[str, Any], seed: int
) -> dict[str, list[float]]:
    """Intervals of scores that are quotients of sums, resampling whole questions."""
    wanted = ["giou", "ciou", *(f"precision@{at}" for at in PRECISION_THRESHOLDS)]
    wanted += ["box_giou", "rec_accuracy", "pointing_accuracy", "well_formed"]
    wanted += ["boundary_iou", "boundary_f"]
    ratios = score_ratios(columns)
    quotients = {key: ratios[key] for key in wanted if key in ratios}
    above, below = (
        np.stack(side, axis=1).reshape(-1, answers, len(quotients)).sum(axis=1)
        for side in zip(*quotients.values(), strict=True)
    )
    draws = metrics.resampled_ratios(above, below, seed=seed)
    return {
        key: list(metrics.percentile_interval(found[key], draws[:, place])[1:])
        for place, key in enumerate(quotients)
    }


def gains(
    before: Columns, after: Columns, answers: int, empty_union: float, seed: int
) -> dict[str, dict[str, Any]]:
    """Paired gains over other answers to the same questions, in any order; JSON-able.

    With several answers per question only the gain in gIoU is given.

    Raises:
        WrongOptionError: The two are not about the same questions.
    """
    before, after = _by_question(before), _by_question(after)
    same = all(np.array_equal(before[key], after[key]) for key in ("id", "answer", "target_area"))
    if not same:
        only = {*before["id"].tolist()} ^ {*after["id"].tolist()}
        raise WrongOptionError(
            f"the answers compared with are {len(before['id'])} to other questions than these "
            f"{len(after['id'])}; {len(only)} ids are only in one of them, such as "
            f"{sorted(only)[:2]}. Evaluate both with the same --env, --split and --questions"
        )
    boxes = [each.get("annotated_box", np.zeros(len(each["id"]), bool)) for each in (before, after)]
    if not np.array_equal(boxes[0], boxes[1]):
        raise WrongOptionError(
            "the answers compared with were measured with other true boxes; evaluate both with the "
            "same --boxes"
        )
    if answers == 1:
        intervals = metrics.compare(before, after, empty_union=empty_union, seed=seed)
    else:
        means = [columns["iou"].reshape(-1, answers).mean(axis=1) for columns in (before, after)]
        gain = metrics.bootstrap_interval(metrics.giou_gain, *means, seed=seed)
        intervals = {"giou": gain}
    return {
        name: {"gain": gain.estimate, "interval": [gain.low, gain.high]}
        for name, gain in intervals.items()
        if not math.isnan(gain.estimate)
    }


def _by_question(columns: Columns) -> Columns:
    order = np.lexsort((columns["answer"], columns["id"]))
    return {name: column[order] for name, column in columns.items()}


def score_rows(
    scores: dict[str, Any], intervals: dict[str, Any], form: Form, sign: str = ""
) -> list[tuple[str, str, str]]:
    """``(label, value, interval)`` of the scores that are known and mean something for a form.

    With ``sign="+"`` they are written as gains are.
    """
    rows = []
    for label, key, factor, forms in SCORES:
        # Where every object is there, the share that is said to be there tells nothing.
        idle = key == "t_acc" and scores.get("n_acc") is None
        if scores.get(key) is not None and not idle and form in forms.split():
            interval = interval_text(intervals.get(key), factor, sign)
            rows.append((label, f"{factor * scores[key]:{sign}.1f}", interval))
    return rows


def interval_text(ends: list[float | None] | None, factor: float, sign: str = "") -> str:
    """The ends of an interval times ``factor``, empty where they are not known."""
    if not ends or None in ends:
        return ""
    low, high = (factor * end for end in ends if end is not None)
    return f"[{low:{sign}.1f}, {high:{sign}.1f}]"
