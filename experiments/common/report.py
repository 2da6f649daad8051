"""The report of a run: a table, curves, and outlines before and after."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.common.command import typed_command
from experiments.common.logs import read_metrics, write_atomically
from experiments.common.tables import markdown_table
from experiments.evaluation.exploitation import describe_habits, measure_habits
from experiments.evaluation.loop import Evaluation
from seg_env.envs.core import ReferringCore
from seg_env.envs.left_out import LeftOut
from seg_env.geometry.drawing import draw_overlay
from seg_env.metrics import bootstrap_interval, giou_gain
from seg_env.types import counted

ROWS = (
    ("sampled gIoU of first answers", "sampled_first", "giou", 100),
    ("greedy gIoU of the first answer", "first", "giou", 100),
    ("sampled gIoU (temperature 1)", "sampled", "giou", 100),
    ("best of the sampled answers, gIoU", "sampled", "best_giou", 100),
    ("greedy gIoU", "greedy", "giou", 100),
    ("greedy cIoU", "greedy", "ciou", 100),
    ("greedy precision@0.5", "greedy", "precision@0.5", 100),
    ("greedy precision@0.7", "greedy", "precision@0.7", 100),
    ("greedy precision@0.9", "greedy", "precision@0.9", 100),
    ("greedy boundary F", "greedy", "boundary_f", 100),
    ("greedy gIoU where the object is there", "greedy", "giou_present", 100),
    ("absent objects called absent, greedy (N-acc)", "greedy", "n_acc", 100),
    ("present objects not called absent, greedy (T-acc)", "greedy", "t_acc", 100),
    ("well-formed, sampled", "sampled", "well_formed", 100),
    ("well-formed, greedy", "greedy", "well_formed", 100),
    ("vertices per answer", "greedy", "vertices", 1),
    ("tokens per answer", "greedy", "tokens", 1),
)
"""Rows of the table: label, which evaluation, which score, factor (100 for per cent).

The first two are for episodes of several turns only, three for questions about absent objects."""
HEADINGS = ("", "before", "after", "change [95 %]")

PANELS = (
    ("Cross-entropy per answer token", ["train/loss"]),
    ("Sampled answers", ["rollout/iou", "rollout/reward"]),
    ("Held-out gIoU", ["eval/sampled_giou", "eval/greedy_giou", "eval/first_giou"]),
    ("Reward terms", ["reward/"]),
    ("Clip fraction, approximate KL", ["train/clip_fraction", "train/approx_kl"]),
    ("Entropy, group standard deviation", ["train/entropy", "rollout/group_std"]),
    (
        "Well-formed, degenerate groups",
        ["rollout/valid", "eval/well_formed", "rollout/degenerate_groups"],
    ),
    (
        "KL to the warm start, per answer, and its weight",
        ["train/reference_kl", "train/kl_coefficient"],
    ),
    ("What the critic expects, per token", ["train/value", "train/explained_variance"]),
    ("Loss and clip fraction of values", ["train/value_loss", "train/value_clip_fraction"]),
    ("Gradient norm", ["train/grad_norm"]),
)
"""Curves of a run, which has some of them: titles, and names of metrics; all that contain one
ending in a slash."""

LABELS = {
    "rollout/iou": "mask IoU",
    "rollout/reward": "reward",
    "eval/sampled_giou": "sampled, temperature 1",
    "eval/greedy_giou": "greedy",
    "eval/first_giou": "greedy, first answer",
    "reward/mask_iou": "mask IoU",
    "reward/boundary_iou": "boundary IoU",
    "reward/boundary_f": "boundary F",
    "train/approx_kl": "approximate KL",
    "train/reference_kl": "KL",
    "train/kl_coefficient": "its weight",
    "rollout/group_std": "standard deviation of the rewards",
    "rollout/valid": "well-formed, sampled",
    "eval/well_formed": "well-formed, greedy, held-out",
    "train/grad_norm": "gradient norm",
}
"""Legend labels of metrics whose names do not explain themselves."""

PACKAGES = ("simpleseg-rl", "torch", "transformers", "trl", "deepspeed", "gymnasium", "numpy")
"""Installed packages that affect the numbers; reports name their versions."""

Panels = Sequence[tuple[str, list[str]]]
Evaluations = dict[str, Evaluation]
"""``greedy`` and ``sampled`` evaluations of one policy; of several turns these are of the last one,
and ``first`` and ``sampled_first`` of the first."""


def scores_of(before: Evaluations, after: Evaluations) -> dict[str, Any]:
    """What ``scores.json`` holds: summaries and paired gains with 95 % intervals.

    ``before`` and ``after`` give the greedy scores at their top level and those of sampled answers
    under ``sampled``. Of several turns the last counts; ``first`` and ``sampled_first`` have the
    scores of the first, and ``improvement``, at both levels, what the other turns added.
    """
    gains = {kind: _gain(before[kind], after[kind]) for kind in before}
    return {"before": _summary(before), "after": _summary(after), "gain": gains}


def _gain(old: Evaluation, new: Evaluation) -> dict[str, Any]:
    """The gain in gIoU of answers to the same questions."""
    means = old.iou.mean(axis=1), new.iou.mean(axis=1)
    gain, low, high = bootstrap_interval(giou_gain, *means)
    return {"giou": gain, "giou_interval": [low, high]}


def _summary(side: Evaluations) -> dict[str, Any]:
    sampled = side["sampled"].summary()
    summary = {**side["greedy"].summary(), "sampled": sampled}
    if "first" in side:
        summary["first"] = side["first"].summary()
        summary["improvement"] = _gain(side["first"], side["greedy"])
        summary["sampled_first"] = side["sampled_first"].summary()
        sampled["improvement"] = _gain(side["sampled_first"], side["sampled"])
    return summary


def table_rows(scores: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Texts under `HEADINGS` for every row of `ROWS`; intervals are paired, over questions."""
    rows = []
    for label, kind, key, factor in ROWS:
        if kind != "greedy" and kind not in scores["after"]:
            continue
        sides = [scores["before"], scores["after"]]
        if kind != "greedy":
            sides = [side[kind] for side in sides]
        if not all(key in side for side in sides):
            continue
        old, new = (factor * side[key] for side in sides)
        change = f"{new - old:+.1f}"
        if key == "giou":
            low, high = (factor * value for value in scores["gain"][kind]["giou_interval"])
            change += f"  [{low:+.1f}, {high:+.1f}]"
        rows.append((label, f"{old:.1f}", f"{new:.1f}", change))
    return rows


def report_text(title: str, scores: dict[str, Any]) -> str:
    """What ``report.md`` says above its images, and what is printed."""
    sections = [f"# {title}: {counted(scores['updates'], 'update')}, seed {scores['seed']}"]
    for when, reasons in scores["left_out"].items():
        if summary := LeftOut(reasons=reasons).summary():
            sections.append(f"When {when}, {summary}.")
    if found := scores.get("not_asked"):
        listed = "; ".join(f"{count} {reason}" for reason, count in found.items())
        sections.append(f"Of the data measured on, {listed}.")
    if "after" in scores:
        before = scores["before"]
        sections += [
            f"{counted(before['questions'], 'held-out question')} of `{scores['dataset']}` "
            f"({scores['split']});\nsampled answers: {before['sampled']['answers_per_question']} "
            f"each, at temperature 1.\nAn empty union counts as IoU 1.",
            markdown_table(HEADINGS, table_rows(scores)),
        ]
    return "\n\n".join(sections)


def write_report(
    folder: Path,
    text: str,
    origin: dict[str, str],
    core: ReferringCore,
    before: Evaluations,
    after: Evaluations,
    *,
    most_tokens: int,
) -> None:
    """Draw the results of a run and write ``report.md`` around them.

    Args:
        folder: The run's folder, which has its metrics.
        text: See `report_text`.
        origin: How the run was made.
        core: The held-out questions.
        before: What was measured before training; empty if nothing was measured at all.
        after: What was measured after it.
        most_tokens: Token limit of the answers measured.
    """
    sections = [text]
    if before:
        old, new = (measure_habits(core, side["greedy"], most_tokens) for side in (before, after))
        if old and new:
            sides = [side["greedy"].summary() for side in (before, after)]
            gains = {key: sides[1][key] - sides[0][key] for key in ("giou", "boundary_f")}
            sections.append(describe_habits(old, new, gains))
    if before:
        plot_answers(
            folder / "before_after.png",
            ("before", core, before["greedy"]),
            ("after", core, after["greedy"]),
        )
        sections += [
            "The target, the answer before and the answer after, on the first held-out questions:",
            "![Before and after](before_after.png)",
        ]
    if before and core.turns > 1:
        sections.append(_draw_turns(folder, core, after))
    plot_curves(read_metrics(folder), PANELS, folder / "learning_curve.png")
    versions = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    origin = {"Command": f"`{typed_command()}`", **origin, "Versions": ", ".join(versions)}
    sections += [
        "![Learning curve](learning_curve.png)",
        "How this was made:",
        "\n".join(f"- {name}: {value}" for name, value in origin.items()),
    ]
    write_atomically(folder / "report.md", "\n\n".join(sections) + "\n")


def plot_curves(metrics: list[dict[str, Any]], panels: Panels, path: Path | BytesIO) -> None:
    """Draw metrics of a run over its updates, in at most two rows, without empty panels."""
    logged = sorted({name for row in metrics for name in row})
    found = []
    for title, names in panels:
        parts = [name for name in names if name.endswith("/")]
        names = [name for name in names if name in logged]
        names += [name for name in logged if any(part in name for part in parts)]
        if names:
            found.append((title, names))
    count = len(found or panels)
    rows = min(2, count)
    columns = -(-count // rows)
    size = 5 * columns, 3.75 * rows
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, (title, names) in zip(axes.flat, found, strict=False):
        for name in names:
            points = [(row["update"], row[name]) for row in metrics if name in row]
            _plot_curve(axis, points, curve_label(name))
        axis.set(title=title, xlabel="update")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    for axis in axes.flat[len(found) :]:
        axis.axis("off")
    figure.savefig(path, dpi=110)


def curve_label(name: str) -> str:
    """The legend label of a metric."""
    return LABELS.get(name, name.split("/", 1)[1].replace("_", " "))


def _plot_curve(axis: Any, points: list[tuple[int, float]], label: str) -> None:
    """A curve; a dense one is drawn thin with its moving average on top."""
    updates, values = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    if len(values) < 30:
        axis.plot(updates, values, marker="o", label=label)
        return
    (line,) = axis.plot(updates, values, alpha=0.25, linewidth=0.8)
    width = max(5, len(values) // 20)
    smooth = np.convolve(values, np.ones(width) / width, mode="valid")
    middle = updates[(width - 1) // 2 :][: len(smooth)]
    axis.plot(middle, smooth, color=line.get_color(), label=label)


def plot_answers(path: Path, *policies: tuple[str, ReferringCore, Evaluation]) -> None:
    """Draw the target and the first answer of every policy to the first twelve questions.

    ``policies`` are the name of each, the rules that read its answers, and its evaluation on the
    same questions as the others.
    """
    indices = policies[0][2].indices[:12].tolist()
    columns = 9 // (1 + len(policies))
    rows = -(-len(indices) // columns)
    size = 2.1 * (1 + len(policies)) * columns, 2.5 * rows
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for row, (axis, index) in enumerate(zip(axes.flat, indices, strict=False)):
        sample = policies[0][1].ask(index).sample
        images = [draw_overlay(sample.image, sample.target, short_side=256)]
        gap = np.full((images[0].shape[0], 6, 3), 255, dtype=np.uint8)
        titles = ["target" if sample.target.area else "not there"]
        for name, core, found in policies:
            (answer,) = core.read(found.texts[row][:1], [core.ask(index)])
            drawn = draw_overlay(sample.image, None, answer, short_side=256)
            images += [gap, drawn]
            titles.append(f"{name} {found.iou[row, 0]:.2f}")
        axis.imshow(np.concatenate(images, axis=1))
        title = f"{shorten(sample.expression, 60, placeholder='…')}: {' · '.join(titles)}"
        axis.set_title(title, fontsize=10, parse_math=False)
    for axis in axes.flat:
        axis.axis("off")
    figure.savefig(path, dpi=90)


def _draw_turns(folder: Path, core: ReferringCore, side: Evaluations) -> str:
    """Draw ``turns.png`` and ``first_last.png``; returns the part of the report that shows them."""
    pairs = {
        "greedy": (side["first"], side["greedy"]),
        "sampled": (side["sampled_first"], side["sampled"]),
    }
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    axes = figure.subplots(1, len(pairs))
    for axis, (name, (first, last)) in zip(axes, pairs.items(), strict=True):
        # Outlines that were left unchanged lie on the diagonal.
        axis.plot([0, 1], [0, 1], color="gray", linewidth=0.8)
        axis.scatter(first.iou.ravel(), last.iou.ravel(), s=8, alpha=0.4)
        axis.set(title=name, xlabel="IoU of the first outline", ylabel="IoU of the last")
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axis.grid(alpha=0.3)
    figure.savefig(folder / "turns.png", dpi=110)
    first, last = pairs["greedy"]
    plot_answers(folder / "first_last.png", ("first", core, first), ("last", core, last))
    return """\
What the later turns did to the outlines of the first one, after training:

![IoU of first and last outlines](turns.png)

The target, the first outline and the last, on the first held-out questions:

![First and last outlines](first_last.png)"""
