"""Runs of several seeds compared: what must not differ, intervals over seeds, table and plot."""

from __future__ import annotations

import fnmatch
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from rich.console import Console
from rich.table import Table

from experiments.common.logs import MAY_CHANGE, read_metrics, write_atomically, write_json
from seg_env.errors import ExplainedError

GAINS = (
    ("sampled gIoU", "sampled", "giou", "before"),
    ("greedy gIoU", "greedy", "giou", "before"),
    ("sampled gIoU, later turns", "sampled", "giou", "sampled_first"),
    ("greedy gIoU, later turns", "greedy", "giou", "first"),
)
"""Title, kind of answers, score, and what is subtracted: the score before training, or that of the
first turn."""
SCORES = (
    ("greedy gIoU", "greedy", "giou", None),
    ("greedy cIoU", "greedy", "ciou", None),
    ("sampled gIoU", "sampled", "giou", None),
)


def read_scores(folder: Path) -> dict[str, Any]:
    """What ``scores.json`` of a finished run holds, in one form for all scripts.

    These are ``greedy`` and ``sampled`` scores after training, ``before`` with both of them before
    it where they were measured, ``updates``, ``minutes``, and whatever else there is.
    """
    path = folder / "scores.json"
    if not path.exists():
        raise ExplainedError(f"{path} is missing: has the run of {folder} finished?")
    scores: dict[str, Any] = json.loads(path.read_text())
    for side in ("before", "after"):
        if side in scores:
            greedy = dict(scores[side])
            scores[side] = {"sampled": greedy.pop("sampled"), "greedy": greedy}
    return scores | scores.pop("after", {})


class Result:
    """Scores of a finished run, and the settings they came of."""

    def __init__(self, run: Path, stage: str = "") -> None:
        """Read a run's folder, or the folder of one of its stages."""
        self.folder = run / stage
        self.scores = read_scores(self.folder)
        self.stages = {stage: _read_settings(self.folder, run)}
        """Settings of the stages that the scores came of, the last stage first."""
        self.seed: int = self.stages[stage]["seed"]
        settings = self.stages[stage]
        while (policy := Path(str(settings.get("policy")))).parts[:1] == ("RUN",):
            stage = "/".join(policy.parts[1:-1])  # it starts from another stage of the same run
            if stage in self.stages:
                break
            settings = self.stages[stage] = _read_settings(run / stage, run)

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


def _read_settings(folder: Path, run: Path) -> dict[str, Any]:
    """``config.json`` of a folder; paths into the run's folder begin with ``RUN``."""
    path = folder / "config.json"
    if not path.exists():
        raise ExplainedError(f"{path} is missing: the settings of {folder} are not known")

    def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            elif isinstance(value, str) and run.name in (parts := Path(value).parts):
                yield prefix + key, "/".join(("RUN", *parts[parts.index(run.name) + 1 :]))
            else:
                yield prefix + key, value

    return dict(flat(json.loads(path.read_text("utf-8"))))


@dataclass(frozen=True)
class Arm:
    """One of the things that are compared."""

    run: str = ""
    """Name of its runs' folders; arms may share runs."""
    command: tuple[str, ...] = ()
    """Script and options of these runs, but for seed and folder."""
    stage: str = ""
    """The folder within the run's that has the scores; by default the run's own."""
    paper: float | None = None
    """gIoU in per cent that a paper reports."""


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
    """Whether scores after training are compared, in the place of gains over those before."""
    varies: Sequence[str] = ()
    """Settings that arms may differ in, as patterns of names like ``gspo.learning_rate``."""
    shared: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Commands that are made once for all runs, by the name of their folder."""


Results = Mapping[str, Sequence[Result]]
"""Results of every arm, one for each seed."""


def report(sweep: Sweep, results: Results, console: Console) -> dict[str, Any]:
    """Print the table, write it with a plot, and return what the JSON file holds."""
    check_comparable(results, sweep.varies)
    found = compare(sweep, results)
    scores = next(iter(results.values()))[0].scores
    runs = f"Seeds {', '.join(map(str, found['seeds']))}; "
    runs += f"{scores['greedy']['questions']} questions"
    if "dataset" in scores:
        runs += f" of {scores['dataset']} ({scores['split']})"
    unit = "Per cent" if sweep.scores else "gIoU points"
    caption = f"{unit}; intervals: Student's t over seeds; differences are paired by seed"
    cells = table_cells(sweep, found)
    console.print(terminal_table(cells, f"{sweep.question}\n{runs}", caption))
    parts = [f"# {sweep.question}", f"{runs}. {caption}.", markdown_table(cells, labels=2)]
    parts.append(f"![{sweep.question}]({sweep.name}.png)")
    write_json(sweep.folder / f"{sweep.name}.json", found)
    write_atomically(sweep.folder / f"{sweep.name}.md", "\n\n".join(parts) + "\n")
    plot(sweep, results, found)
    console.print(f"{sweep.folder / sweep.name}.md, .json and .png")
    return found


def compare(sweep: Sweep, results: Results) -> dict[str, Any]:
    """Scores of every arm over seeds, and differences from the first arm by seed."""
    arms: dict[str, Any] = {}
    for label, arm in sweep.arms.items():
        first = results[label][0].scores
        arms[label] = {
            "runs": [str(result.folder) for result in results[label]],
            "command": shlex.join(arm.command) or None,
            "updates": first["updates"],
            "minutes": [result.scores["minutes"] for result in results[label]],
            "paper": arm.paper,
            "scores": {
                title: over_seeds(results[label], *measure)
                for title, *measure in (SCORES if sweep.scores else GAINS)
                if measure[2] in (None, "before") or measure[2] in first["greedy"]
            },
        }
    baseline = next(iter(arms.values()))["scores"]
    for found in list(arms.values())[1:]:
        for title, score in found["scores"].items():
            mean, *interval = t_interval(np.subtract(score["each"], baseline[title]["each"]))
            score |= {"difference": mean, "difference_interval": interval}
    seeds = [result.seed for result in next(iter(results.values()))]
    return {"question": sweep.question, "seeds": seeds, "arms": arms}


def table_cells(sweep: Sweep, found: dict[str, Any]) -> list[list[str]]:
    """A row of titles, then one for each score of each arm."""
    paper = any(arm["paper"] is not None for arm in found["arms"].values())
    header = ["", "", "each seed", "mean [95 %]"]
    if not sweep.scores:
        header[2:] = ["before", "after, each seed", "gain [95 %]"]
    header += ["against the first [95 %]"] if len(sweep.arms) > 1 else []
    rows = [[*header, *(["paper's gIoU"] if paper else [])]]
    sign = "" if sweep.scores else "+"
    for label, arm in found["arms"].items():
        for number, (title, score) in enumerate(arm["scores"].items()):
            row = ["" if number else label, title]
            row += [f"{100 * np.mean(score['before']):.1f}"] if "before" in score else []
            row.append(", ".join(f"{100 * value:.1f}" for value in score["after"]))
            row.append(_with_interval(score["mean"], score["interval"], sign))
            if "difference" in score:
                row.append(_with_interval(score["difference"], score["difference_interval"], "+"))
            row += [""] * (len(header) - len(row))
            if paper:
                row.append(f"{arm['paper']:.1f}" if arm["paper"] and not number else "")
            rows.append(row)
    return rows


def plot(sweep: Sweep, results: Results, found: dict[str, Any]) -> None:
    """Means with intervals and single seeds; beside them the paper's figures, or curves."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    arms = found["arms"]
    paper = [arm["paper"] for arm in arms.values()]
    curves = [] if sweep.scores else ["eval/greedy_giou", "eval/sampled_giou"]
    count = 1 + len(curves) + any(paper)
    figure, axes = plt.subplots(
        1, count, figsize=(1 + 4.8 * count, 4.2), layout="constrained", squeeze=False
    )
    left, *others = axes[0]
    for number, arm in enumerate(arms.values()):
        for row, (kind, marker) in enumerate((("greedy", "o"), ("sampled", "D"))):
            score, place = arm["scores"][f"{kind} gIoU"], -number + 0.12 * (1 - 2 * row)
            style = {"color": f"C{number}"}
            left.plot(score["interval"], [place, place], alpha=1 - 0.5 * row, **style)
            left.scatter(score["each"], [place] * len(score["each"]), s=10, alpha=0.6, **style)
            left.plot(score["mean"], place, marker, **style)
    what = "gIoU in per cent" if sweep.scores else "gain in gIoU points"
    left.set(title=f"{what}: greedy ●, sampled ◆", xlabel="Student's t over seeds, 95 %")
    places = [-number for number in range(len(arms))]
    left.set_yticks(places, list(arms))
    left.set_ylim(places[-1] - 0.5, 0.5)
    for axis, name in zip(others, curves, strict=False):
        for number, (label, each) in enumerate(results.items()):
            _plot_curves(axis, each, name, f"C{number}", label)
        axis.set(title=f"held-out {name[5:].replace('_giou', ' gIoU')}", xlabel="update")
        if axis.lines and any(arms):
            axis.legend(frameon=False)
    if any(paper):
        others[-1].plot(paper, places, "o")
        others[-1].set_yticks(places, [""] * len(arms))
        others[-1].set(title="the paper's (one run)", ylim=left.get_ylim())
    for axis in axes[0]:
        axis.grid(alpha=0.3)
    figure.savefig(sweep.folder / f"{sweep.name}.png", dpi=110)
    plt.close(figure)


def _with_interval(value: float, interval: Sequence[float], sign: str) -> str:
    return f"{value:{sign}.1f} [{interval[0]:{sign}.1f}, {interval[1]:{sign}.1f}]"


def _plot_curves(axis: Any, results: Sequence[Result], name: str, color: str, label: str) -> None:
    """A held-out score over updates: each seed thin, their mean thick."""
    rows = [read_metrics(result.folder) for result in results]
    curves = [{row["update"]: row[name] for row in each if name in row} for each in rows]
    updates = sorted(set.intersection(*(set(curve) for curve in curves)))
    if updates:
        values = np.array([[curve[update] for update in updates] for curve in curves])
        style = {"color": color, "marker": "o" if len(updates) == 1 else ""}  # one is no line
        axis.plot(updates, values.T, alpha=0.3, linewidth=1, **style)
        axis.plot(updates, values.mean(axis=0), linewidth=2.5, label=label or None, **style)


def over_seeds(
    results: Sequence[Result], kind: str, name: str, since: str | None
) -> dict[str, Any]:
    """A score of every seed, or its gain since an earlier one (see `GAINS`), and their mean."""
    after = [result.scores[kind][name] for result in results]
    found, each = {"after": after}, 100 * np.array(after)
    if since is not None:
        before = [_earlier(result, kind, since)[name] for result in results]
        found, each = {"before": before, **found}, 100 * np.subtract(after, before)
    mean, *interval = t_interval(each)
    return {**found, "each": each.tolist(), "mean": mean, "interval": interval}


def _earlier(result: Result, kind: str, since: str) -> dict[str, float]:
    if since != "before":
        return result.scores["greedy"][since]
    if "before" not in result.scores:
        raise ExplainedError(
            f"{result.folder} was not measured before training, so there is no gain; a sweep with "
            '`measure = "score"` compares scores after it'
        )
    return result.scores["before"][kind]


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
    by_stage = any(len(result.stages) > 1 for arm in results.values() for result in arm)
    baseline = next(iter(results.values()))
    for label, arm in results.items():
        first, seeds = arm[0], [result.seed for result in arm]
        for number, result in enumerate(arm):
            if (place := seeds.index(result.seed)) < number:
                raise ExplainedError(
                    f"{arm[place].folder} and {result.folder} both have seed "
                    f"{result.seed}: they count as one seed, not as two"
                )
            if unequal := differences(first, result, by_stage):
                raise ExplainedError(
                    f"{first.folder} and {result.folder} differ in more than their seed: "
                    f"{_named(unequal)}"
                )
        if seeds != (expected := [result.seed for result in baseline]):
            raise ExplainedError(
                f"{first.folder} is of seeds {seeds} and {baseline[0].folder} of {expected}: "
                "arms are compared seed by seed"
            )
        unequal = {
            name: values
            for name, values in differences(baseline[0], first, by_stage).items()
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in varies)
        }
        if unequal:
            raise ExplainedError(
                f"{baseline[0].folder} and {first.folder} ({label}) differ in what is not "
                f"compared: {_named(unequal)}; name it under `varies` if it should differ"
            )


def _named(unequal: dict[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name} ({a}, {b})" for name, (a, b) in sorted(unequal.items()))


def differences(one: Result, other: Result, by_stage: bool) -> dict[str, tuple[Any, Any]]:
    """Settings that two results do not share, with both values.

    Settings of a group that one of them does not have at all, that of another algorithm or of a
    stage that was left out, are no difference.
    """
    ours, theirs = one.settings(by_stage), other.settings(by_stage)
    groups = [{name.rpartition(".")[0] for name in settings} for settings in (ours, theirs)]
    shared = set.intersection(*groups)
    return {
        name: (ours.get(name), theirs.get(name))
        for name in {**ours, **theirs}
        if name.rpartition(".")[0] in shared and ours.get(name) != theirs.get(name)
    }


# Tables for a terminal and for a report, from the same cells.

Cells = Sequence[Sequence[str]]
"""A row of titles, and rows of texts."""


def terminal_table(cells: Cells, title: str, caption: str | None = None) -> Table:
    """A table to be printed by rich."""
    table = Table(*cells[0], title=title, caption=caption)
    for row in cells[1:]:
        table.add_row(*row)
    return table


def markdown_table(cells: Cells, labels: int = 1) -> str:
    """A table of Markdown whose first columns are labels, the others figures."""
    ruler = ["---"] * labels + ["---:"] * (len(cells[0]) - labels)
    return "\n".join(f"| {' | '.join(row)} |" for row in (cells[0], ruler, *cells[1:]))
