"""Curves of what happens inside PPO's updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from experiments.common.report import plot_panel

PANELS = (
    ("Value loss", ["train/value_loss"]),
    ("Explained variance", ["train/explained_variance"]),
    ("Reward, and what the critic expects per token", ["rollout/reward", "train/value"]),
    ("KL to the sampling policy, per token", ["train/approx_kl"]),
    (
        "KL to the warm start, per answer, and its weight",
        ["train/reference_kl", "train/kl_coefficient"],
    ),
    ("Clip fractions", ["train/clip_fraction", "train/value_clip_fraction"]),
    ("Entropy per token", ["train/entropy"]),
    ("Gradient norm", ["train/grad_norm"]),
)
"""Titles, and names of metrics."""


def plot_training(metrics: list[dict[str, Any]], path: Path) -> None:
    """Draw the critic, the distances and the clipping of a run over its updates.

    Args:
        metrics: Rows of ``metrics.jsonl``; a panel whose metrics were not logged is left out.
        path: PNG to write.
    """
    figure, axes = plt.subplots(2, 4, figsize=(19, 7.5), layout="constrained")
    logged = {name for row in metrics for name in row}
    panels = [(title, names) for title, names in PANELS if not logged.isdisjoint(names)]
    for axis, (title, names) in zip(axes.flat, panels, strict=False):
        plot_panel(axis, metrics, title, names)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.savefig(path, dpi=110)
    plt.close(figure)
