"""Runs of several seeds compared: what must not differ, intervals over seeds, table and plot."""

from __future__ import annotations

import fnmatch
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from rich.console import Console

from experiments.common.logs import (
    MAY_CHANGE,
    flatten,
    read_metrics,
    write_atomically,
    write_json,
)
from experiments.common.tables import markdown_table, terminal_table
from seg_env.errors import ExplainedError
from seg_env.types import counted

GAINS = (
    ("sampled gIoU", "sampled", "giou", 100),
    ("greedy gIoU", "greedy", "giou", 100),
    ("best of the sampled, gIoU", "sampled", "best_giou", 100),
    ("greedy boundary F", "greedy", "boundary_f", 100),
    ("tokens per answer", "greedy", "tokens", 1),
    ("greedy gIoU where the object is there", "greedy", "giou_present", 100),
    ("absent objects called absent", "greedy", "n_acc", 100),
    ("present objects not called absent", "greedy", "t_acc", 100),
)
"""Title, kind of answers, score, factor (100 for per cent)."""
SCORES = (
    ("greedy gIoU", "greedy", "giou", 100),
    ("greedy cIoU", "greedy", "ciou", 100),
    ("sampled gIoU", "sampled", "giou", 100),
)


def read_scores(folder: Path) -> dict[str, Any]:
    """Read ``scores.json`` of a finished run, by the kind of answers.

    It has ``greedy`` and ``sampled`` scores after training, ``before`` with both of them before
    training, ``updates``, ``minutes``, and whatever else there is.
    """
    path = folder / "scores.json"
    if not path.exists():
        raise ExplainedError(f"{path} is missing: has the run of {folder} finished?")
    scores: dict[str, Any] = json.loads(path.read_text())
    if "before" not in scores:
        raise ExplainedError(f"{folder} was not measured before and after training")
    for side in ("before", "after"):
        sampled = scores[side].pop("sampled")
        scores[side] = {"greedy": scores[side], "sampled": sampled}
    return scores | scores.pop("after")


class Result:
    """Scores of a finished run, and the settings they came from."""

    def __init__(self, run: Path, stage: str = "") -> None:
        """Read a run's folder, or the folder of one of its stages."""
        self.folder = run / stage
        self.scores = read_scores(self.folder)
        self.stages: dict[str, dict[str, Any]] = {}
        """Settings of the stages that the scores came from, the last stage first."""
        while stage not in self.stages:
            settings = self.stages[stage] = _read_settings(run, stage)
            place = Path(str(settings.get("policy"))).parts
            if place[:1] == ("RUN",):  # it starts from another stage of the same run
                stage = "/".join(place[1:-1])
        self.seed: int = next(iter(self.stages.values()))["seed"]

    def settings(self, by_stage: bool) -> dict[str, Any]:
        """What runs of several seeds share, as ``gspo.lam``, or by stage as ``sft.gspo.lam``."""
        found = {
            f"{stage}.{name}" if by_stage else name: value
            for stage, settings in self.stages.items()
            for name, value in settings.items()
            if name.rpartition(".")[2] not in ("seed", "output_dir", *MAY_CHANGE)
        }
        found["measured.questions"] = self.scores["greedy"]["questions"]
        found["measured.answers"] = self.scores["sampled"].get("answers_per_question")
        if "dataset" in self.scores:
            found["dataset.name"] = self.scores["dataset"]
            found["dataset.split"] = self.scores["split"]
        return found


def _read_settings(run: Path, stage: str) -> dict[str, Any]:
    """``config.json`` of a stage; paths into the run's folder begin with ``RUN``."""
    path = run / stage / "config.json"
    if not path.exists():
        raise ExplainedError(f"{path} is missing: the settings of {path.parent} are not known")
    found = flatten(json.loads(path.read_text("utf-8")))
    for name, value in found.items():
        parts = Path(value).parts if isinstance(value, str) else ()
        if run.name in parts:
            found[name] = "/".join(("RUN", *parts[parts.index(run.name) + 1 :]))
    return found


@dataclass(frozen=True)
class Arm:
    """One of the things that are compared."""

    run: str = ""
    """Name of its runs' folders; arms may share runs."""
    command: tuple[str, ...] = ()
    """Script and options of these runs, without seed and folder."""
    stage: str = ""
    """The folder within the run's that has the scores; by default the run's own."""
    paper: float | None = None
    """gIoU in per cent that a paper reports."""
    series: str = ""
    """The series that it is a point of, where scores are drawn against another score."""


@dataclass(frozen=True)
class Sweep:
    """Arms side by side, and the runs that they are made of."""

    name: str
    question: str
    folder: Path
    arms: dict[str, Arm]
    """The baseline first."""
    seeds: tuple[int, ...] = ()
    scores: bool = False
    """Whether scores after training are compared, instead of gains over those before."""
    against: str = ""
    """A score, such as ``"tokens"``, that greedy gIoU is drawn against."""
    varies: Sequence[str] = ()
    """Settings that arms may differ in, as patterns of names like ``gspo.learning_rate``."""
    shared: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Commands that are run once for all runs, by the name of their folder."""


Results = Mapping[str, Sequence[Result]]
"""Results of every arm, one for each seed."""


def report(sweep: Sweep, results: Results, console: Console) -> dict[str, Any]:
    """Print the table, write it with a plot, and return what the JSON file holds."""
    check_comparable(results, sweep.varies)
    found = compare(sweep, results)
    scores = next(iter(results.values()))[0].scores
    runs = f"Seeds {', '.join(map(str, found['seeds']))}; "
    runs += counted(scores["greedy"]["questions"], "question")
    if "dataset" in scores:
        runs += f" of {scores['dataset']} ({scores['split']})"
    unit = "Per cent" if sweep.scores else "gIoU points"
    caption = f"{unit}; intervals: Student's t over seeds; differences are paired by seed"
    headings, rows = table_of(sweep, found)
    title = f"{sweep.question}\n{runs}"
    console.print(terminal_table(headings, rows, "ll", title=title, caption=caption))
    parts = [f"# {sweep.question}", f"{runs}. {caption}.", markdown_table(headings, rows, "ll")]
    parts.append(f"![{sweep.question}]({sweep.name}.png)")
    write_json(sweep.folder / f"{sweep.name}.json", found)
    write_atomically(sweep.folder / f"{sweep.name}.md", "\n\n".join(parts) + "\n")
    plot(sweep, results, found)
    console.print(f"{sweep.folder / sweep.name}.md, .json and .png")
    return found


def compare(sweep: Sweep, results: Results) -> dict[str, Any]:
    """Scores of every arm over seeds, and differences from the first arm by seed."""
    arms: dict[str, Any] = {}
    runs = [result.scores for arm in results.values() for result in arm]
    known = {  # runs of earlier versions have fewer
        kind: set.intersection(*({*run[kind]} for run in runs)) for kind in ("greedy", "sampled")
    }
    for label, arm in sweep.arms.items():
        first = results[label][0].scores
        arms[label] = {
            "runs": [str(result.folder) for result in results[label]],
            "command": shlex.join(arm.command) or None,
            "updates": first["updates"],
            "minutes": [result.scores["minutes"] for result in results[label]],
            "paper": arm.paper,
            "scores": {
                title: over_seeds(results[label], kind, name, factor, gain=not sweep.scores)
                for title, kind, name, factor in (SCORES if sweep.scores else GAINS)
                if name in known[kind]
            },
        }
    baseline = next(iter(arms.values()))["scores"]
    for found in list(arms.values())[1:]:
        for title, score in found["scores"].items():
            mean, *interval = t_interval(np.subtract(score["each"], baseline[title]["each"]))
            score |= {"difference": mean, "difference_interval": interval}
    seeds = [result.seed for result in next(iter(results.values()))]
    return {"question": sweep.question, "seeds": seeds, "arms": arms}


def table_of(sweep: Sweep, found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for each score of each arm."""
    headings = ["", "", "each seed", "mean [95 %]"]
    if not sweep.scores:
        headings[2:] = ["before", "after, each seed", "gain [95 %]"]
    headings += ["against the first [95 %]"] if len(sweep.arms) > 1 else []
    paper = any(arm["paper"] for arm in found["arms"].values())
    sign = "" if sweep.scores else "+"
    rows = []
    for label, arm in found["arms"].items():
        for number, (title, score) in enumerate(arm["scores"].items()):
            row = ["" if number else label, title]
            factor = score["factor"]
            row += [f"{factor * np.mean(score['before']):.1f}"] if "before" in score else []
            row.append(", ".join(f"{factor * value:.1f}" for value in score["after"]))
            row.append(with_interval(score["mean"], score["interval"], sign))
            if "difference" in score:
                row.append(with_interval(score["difference"], score["difference_interval"], "+"))
            row += [""] * (len(headings) - len(row))
            if paper:
                row.append(f"{arm['paper']:.1f}" if arm["paper"] and not number else "")
            rows.append(row)
    return [*headings, *(["paper's gIoU"] if paper else [])], rows


def plot(sweep: Sweep, results: Results, found: dict[str, Any]) -> None:
    """Means with intervals and single seeds; beside them curves, where gains are compared."""
    from matplotlib.figure import Figure

    logged = {
        name
        for arm in ([] if sweep.scores else results.values())
        for result in arm
        for row in read_metrics(result.folder)
        for name in row
    }
    # Runs with --evaluation.every 0 have none.
    curves = [kind for kind in ("greedy", "sampled") if f"eval/{kind}_giou" in logged]
    panels = 1 + len(curves) + bool(sweep.against)
    figure = Figure(figsize=(1.0 + 4.8 * panels, 4.2), layout="constrained")
    left, *others = figure.subplots(1, panels, squeeze=False)[0]
    if sweep.against:
        _plot_against(others.pop(), sweep, results)
    for number, arm in enumerate(found["arms"].values()):
        for kind, marker, shift in (("greedy", "o", 0.12), ("sampled", "D", -0.12)):
            score, place, color = arm["scores"][f"{kind} gIoU"], shift - number, f"C{number}"
            left.plot(score["interval"], [place] * 2, color=color)
            left.plot(score["each"], [place] * len(score["each"]), ".", color=color, alpha=0.6)
            left.plot(score["mean"], place, marker, color=color)
    what = "gIoU in per cent" if sweep.scores else "gain in gIoU points"
    left.set(title=f"{what}: greedy ●, sampled ◆", xlabel="Student's t over seeds, 95 %")
    left.set_yticks([-number for number in range(len(results))], list(results))
    left.set_ylim(0.5 - len(results), 0.5)
    for axis, kind in zip(others, curves, strict=True):
        axis.set(title=f"held-out {kind} gIoU", xlabel="update")
        for number, (label, arm) in enumerate(results.items()):
            _plot_curves(axis, arm, f"eval/{kind}_giou", label=label, color=f"C{number}")
        if axis.lines and any(results):
            axis.legend(frameon=False)
    for axis in (left, *others):
        axis.grid(alpha=0.3)
    figure.savefig(sweep.folder / f"{sweep.name}.png", dpi=110)


def _plot_against(axis: Any, sweep: Sweep, results: Results) -> None:
    """Greedy gIoU of every arm over another of its scores, joined by series, below its ceiling."""
    for number, series in enumerate(dict.fromkeys(arm.series for arm in sweep.arms.values())):
        points = []
        for label, arm in sweep.arms.items():
            if arm.series == series:
                runs = [result.scores["greedy"] for result in results[label]]
                score, low, high = t_interval([100 * run["giou"] for run in runs])
                points.append((float(np.mean([run[sweep.against] for run in runs])), score))
                axis.plot([points[-1][0]] * 2, [low, high], color=f"C{number}")
                axis.annotate(label, points[-1], (4, 4), textcoords="offset points", fontsize=8)
        axis.plot(*zip(*sorted(points), strict=True), "o-", color=f"C{number}", label=series)
    ceilings = sorted(
        (found[sweep.against], 100 * found["giou"])
        for arm in results.values()
        if (found := arm[0].scores.get("ceiling"))
    )
    if ceilings:
        axis.plot(*zip(*ceilings, strict=True), "--", color="gray", label="outlines as taught")
    axis.set(title="greedy gIoU in per cent", xlabel=f"{sweep.against} per answer")
    axis.grid(alpha=0.3)
    if ceilings or any(arm.series for arm in sweep.arms.values()):
        axis.legend(frameon=False)


def with_interval(value: float, interval: Sequence[float], sign: str = "") -> str:
    """A value and its interval, as in ``1.5 [1.2, 1.8]``; ``sign="+"`` shows the sign of all."""
    return f"{value:{sign}.1f} [{interval[0]:{sign}.1f}, {interval[1]:{sign}.1f}]"


def _plot_curves(axis: Any, results: Sequence[Result], name: str, **style: str) -> None:
    """A held-out score over updates: each seed thin, their mean thick."""
    rows = [read_metrics(result.folder) for result in results]
    curves = [{row["update"]: row[name] for row in each if name in row} for each in rows]
    updates = sorted(set.intersection(*(set(curve) for curve in curves)))
    if updates:
        values = np.array([[curve[update] for update in updates] for curve in curves])
        style["marker"] = "o" if len(updates) == 1 else ""  # one point makes no line
        axis.plot(updates, values.mean(axis=0), linewidth=2.5, **style)
        axis.plot(updates, values.T, alpha=0.3, linewidth=1, **style | {"label": ""})


def over_seeds(
    results: Sequence[Result], kind: str, name: str, factor: float, *, gain: bool
) -> dict[str, Any]:
    """A score of every seed times a factor, or its gain over that before, and their mean."""
    after = [result.scores[kind][name] for result in results]
    found: dict[str, Any] = {"after": after, "factor": factor}
    each = factor * np.array(after)
    if gain:
        before = [result.scores["before"][kind][name] for result in results]
        found, each = {"before": before, **found}, factor * np.subtract(after, before)
    mean, *interval = t_interval(each)
    return {**found, "each": each.tolist(), "mean": mean, "interval": interval}


def t_interval(values: ArrayLike) -> tuple[float, float, float]:
    """Mean of ``(n,)`` independent values with the ends of Student's 95 % interval, ``n >= 2``."""
    from scipy import stats  # half a second that `--help` does not need

    values = np.asarray(values, dtype=np.float64)
    # Three decimals, as tables have it.
    quantile = round(float(stats.t.ppf(0.975, len(values) - 1)), 3)
    mean = float(values.mean())
    half = float(quantile * values.std(ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def check_comparable(results: Results, varies: Sequence[str]) -> None:
    """Refuse results that differ in anything but their seed and what is varied."""
    baseline = next(iter(results.values()))
    expected = [result.seed for result in baseline]
    for label, arm in results.items():
        first, seeds = arm[0], [result.seed for result in arm]
        for number, result in enumerate(arm):
            if (place := seeds.index(result.seed)) < number:
                raise ExplainedError(
                    f"{arm[place].folder} and {result.folder} both have seed "
                    f"{result.seed}: they count as one seed, not as two"
                )
            if unequal := differences(first, result):
                raise ExplainedError(
                    f"{first.folder} and {result.folder} differ in more than their seed: {unequal}"
                )
        if seeds != expected:
            raise ExplainedError(
                f"{first.folder} is of seeds {seeds} and {baseline[0].folder} of {expected}: "
                "arms are compared seed by seed"
            )
        if unequal := differences(baseline[0], first, varies):
            raise ExplainedError(
                f"{baseline[0].folder} and {first.folder} ({label}) differ in what is not "
                f"compared: {unequal}; name it under `varies` if it should differ"
            )


def differences(one: Result, other: Result, varies: Sequence[str] = ()) -> str:
    """Settings that two results do not share, but for the patterns ``varies``, with both values.

    A group of settings that only one of them has, as of another algorithm or of a stage that was
    left out, is no difference.
    """
    by_stage = len(one.stages) > 1 or len(other.stages) > 1
    ours, theirs = one.settings(by_stage), other.settings(by_stage)
    groups = [{name.rpartition(".")[0] for name in settings} for settings in (ours, theirs)]
    shared = set.intersection(*groups)
    return ", ".join(
        f"{name} ({ours.get(name)}, {theirs.get(name)})"
        for name in sorted({*ours, *theirs})
        if name.rpartition(".")[0] in shared
        and ours.get(name) != theirs.get(name)
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in varies)
    )
