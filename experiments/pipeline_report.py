"""One report of all stages: scores after each, a curve through all, and outlines of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.common.logs import read_metrics, write_atomically, write_json
from experiments.common.policies import open_policy
from experiments.common.questions import open_questions
from experiments.common.report import draw_answers
from experiments.evaluation.loop import evaluate
from experiments.pipeline_steps import Step, read_scores

mpl.use("Agg")
import matplotlib.pyplot as plt

TITLES = {"annotate": "annotate", "pretrain": "pre-train", "sft": "SFT", "rl": "RL"}
HEADER = (
    *("after", "updates", "greedy gIoU [95 %]", "greedy cIoU [95 %]"),
    *("sampled gIoU [95 %]", "well-formed", "minutes"),
)
PICTURES = 12
"""Questions whose answers are drawn."""


def write_report(
    folder: Path, steps: Sequence[Step], split: str, difficulty: str, seed: int
) -> dict[str, Any]:
    """Write ``scores.json``, ``report.md``, ``curve.png`` and ``outlines.png``.

    Args:
        folder: Folder of the pipeline.
        steps: Its stages, all finished.
        split: Split of the held-out scenes.
        difficulty: Of the scenes.
        seed: Of the pipeline.

    Returns:
        What ``scores.json`` holds: ``stages`` with the scores after each trained one, and the
        first and last of them once more as ``before`` and ``after``.
    """
    trained = [step for step in steps if step.trains]
    scores: dict[str, Any] = {"dataset": f"scenes-{difficulty}", "split": split, "seed": seed}
    if trained:
        stages = {step.stage: read_scores(step.folder) for step in trained}
        found = list(stages.values())
        scores |= {
            "before": {**found[0]["greedy"], "sampled": found[0]["sampled"]},
            "after": {**found[-1]["greedy"], "sampled": found[-1]["sampled"]},
            "stages": stages,
            "minutes": sum(each["minutes"] for each in found),
        }
        plot_curve(trained, folder / "curve.png")
        draw_outlines(trained, split, difficulty, folder / "outlines.png")
    write_atomically(folder / "report.md", markdown(scores, steps))
    write_json(folder / "scores.json", scores)
    return scores


def table_rows(scores: dict[str, Any]) -> list[list[str]]:
    """Cells of the table, a row for each trained stage; scores in per cent."""
    return [
        [
            TITLES[stage],
            str(found["updates"]),
            _score(found["greedy"], "giou"),
            _score(found["greedy"], "ciou"),
            _score(found["sampled"], "giou"),
            f"{100 * found['greedy']['well_formed']:.1f}",
            f"{found['minutes']:.1f}",
        ]
        for stage, found in scores.get("stages", {}).items()
    ]


def _score(summary: dict[str, Any], name: str) -> str:
    low, high = summary[f"{name}_interval"]
    return f"{100 * summary[name]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def print_scores(scores: dict[str, Any], console: Console) -> None:
    """The table for a terminal."""
    table = Table(title=f"{scores['dataset']} ({scores['split']}), seed {scores['seed']}")
    for column in HEADER:
        table.add_column(column)
    for row in table_rows(scores):
        table.add_row(*row)
    console.print(table)


def markdown(scores: dict[str, Any], steps: Sequence[Step]) -> str:
    """The report as text."""
    names = " → ".join(TITLES[step.stage] for step in steps)
    lines = [f"# {names}, seed {scores['seed']}", ""]
    if "stages" in scores:
        after = scores["after"]
        lines += [
            f"{after['questions']} held-out questions of `{scores['dataset']}` "
            f"({scores['split']}), the same after every stage; sampled answers: "
            f"{after['sampled']['answers_per_question']} each, at temperature 1. Intervals: "
            "bootstrap over questions. An empty union counts as IoU 1.",
            "",
            f"| {' | '.join(HEADER)} |",
            "|---|" + "---:|" * (len(HEADER) - 1),
            *(f"| {' | '.join(row)} |" for row in table_rows(scores)),
            "",
        ]
    for step in steps:
        if not step.trains:
            lines += [_records(step), ""]
    lines += ["Each stage by hand:", "", *(f"    {step.command}" for step in steps), ""]
    if "stages" in scores:
        lines += ["![Held-out gIoU across the stages](curve.png)", ""]
        lines += [
            "The target, then the greedy answer after each stage, on the first held-out questions:",
            "",
            "![Outlines](outlines.png)",
            "",
        ]
    return "\n".join(lines)


def _records(step: Step) -> str:
    """What was annotated, and how right it is where the truth is known."""
    report = json.loads((step.folder / "report.json").read_text())
    text = (
        f"Annotated: {report['pictures']['annotated']} pictures with "
        f"{report['objects']['written']} records ([report](annotate/report.md))"
    )
    if truth := report.get("truth", {}).get("records"):
        found = report["truth"]
        text += (
            f"; of {truth} compared with the truth, mask IoU {found['mask_iou']:.3f} on average, "
            f"{found['right_expressions']:.1%} of expressions right"
        )
    return text + "."


def plot_curve(trained: Sequence[Step], path: Path) -> None:
    """Held-out gIoU over the updates of each stage; stages are drawn equally wide."""
    figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
    scores = [read_scores(step.folder) for step in trained]
    for kind, color in (("greedy", "tab:orange"), ("sampled", "tab:blue")):
        for number, (step, found) in enumerate(zip(trained, scores, strict=True)):
            name = f"eval/{kind}_giou"
            rows = [row for row in read_metrics(step.folder) if name in row]
            places = [number + row["update"] / found["updates"] for row in rows]
            axis.plot(places, [row[name] for row in rows], ".-", color=color)
            label = None if number else f"{kind}; diamonds: all questions"
            axis.plot(number + 1, found[kind]["giou"], "D", color=color, label=label)
    for number in range(1, len(trained)):
        axis.axvline(number, color="gray", linewidth=0.8)
    labels = [
        f"{TITLES[step.stage]}\n{found['updates']} updates"
        for step, found in zip(trained, scores, strict=True)
    ]
    axis.set_xticks([number + 0.5 for number in range(len(trained))], labels)
    axis.set(ylabel="gIoU on held-out scenes", xlim=(0, len(trained) + 0.05))
    axis.grid(alpha=0.3, axis="y")
    axis.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_outlines(trained: Sequence[Step], split: str, difficulty: str, path: Path) -> None:
    """Target and greedy answer after each stage, on the first questions, unselected."""
    policies = [open_policy(str(step.folder / "policy"), "auto") for step in trained]
    cores = [
        open_questions(
            "SimpleSeg-Scenes-v0",
            split=split,
            difficulty=difficulty,
            frame=policy.answer_frame,
        )
        for policy in policies
    ]
    found = [
        evaluate(policy, core, np.arange(PICTURES))
        for policy, core in zip(policies, cores, strict=True)
    ]
    columns = 2
    figure, axes = plt.subplots(
        -(-PICTURES // columns),
        columns,
        figsize=(2.1 * columns * (1 + len(trained)), 2.4 * (PICTURES // columns)),
        layout="constrained",
    )
    for number, axis in enumerate(axes.flat):
        questions = [core.ask(number) for core in cores]
        read = [
            core.read(each.texts[number], [question])[0]
            for core, each, question in zip(cores, found, questions, strict=True)
        ]
        axis.imshow(draw_answers(questions[0], read))
        scored = " · ".join(
            f"{TITLES[step.stage]} {each.iou[number, 0]:.2f}"
            for step, each in zip(trained, found, strict=True)
        )
        axis.set_title(f"{questions[0].sample.expression}: target · {scored}", fontsize=9)
        axis.axis("off")
    figure.savefig(path, dpi=80)
    plt.close(figure)
