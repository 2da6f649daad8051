"""Tables and plots that say what was measured: whole figures, plain words, no empty panels."""

import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from experiments.common.comparison import Arm, Result, Sweep, report
from experiments.common.report import PANELS, curve_label, report_text
from experiments.common.tables import terminal_table
from experiments.evaluation.ceiling import ceiling_table


def test_small_tolerances_are_whole_in_eighty_columns(capsys):
    row = {
        "decimals": 3,
        "giou": 1.0,
        "ciou": 1.0,
        "sizes": {"small": 1.0, "medium": 1.0, "large": 1.0},
        "vertices": {"mean": 1234.5},
        "characters": {"mean": 123456},
    }
    found = {"dataset": "d", "split": "val", "questions": 1, "frame": "unit", "empty_union": 1.0}
    found["ceilings"] = [{"epsilon": epsilon, **row} for epsilon in (0.0, 0.001, 0.005)]
    Console(width=80).print(ceiling_table(found))
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert [line.split()[0] for line in printed.splitlines() if " 1234.5 " in line] == [
        "0",
        "0.001",
        "0.005",
    ]
    assert ", 1 question " in " ".join(printed.split()) + " "


def test_a_table_without_room_is_folded_and_not_cut(capsys):
    Console(width=12).print(terminal_table(["a", "b"], [["0.00123", "0.00456"]], "rr"))
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert {"1", "2", "3", "4", "5", "6"} <= set(printed)


def test_one_update_is_no_updates():
    scores = {"updates": 1, "seed": 0, "left_out": {}}
    assert report_text("GSPO", scores) == "# GSPO: 1 update, seed 0"
    assert report_text("GSPO", scores | {"updates": 2}) == "# GSPO: 2 updates, seed 0"


def test_legends_are_in_words():
    names = [name for _, named in PANELS for name in named if not name.endswith("/")]
    labels = [curve_label(name) for name in (*names, "reward/mask_iou", "reward/length_penalty")]
    assert not [label for label in labels if "_" in label or "/" in label]
    assert curve_label("eval/greedy_giou") == "greedy"
    assert curve_label("reward/length_penalty") == "length penalty"


@pytest.mark.parametrize("logged", [(), ("greedy",), ("greedy", "sampled")])
def test_a_comparison_has_no_panel_of_what_was_not_logged(logged, tmp_path, capsys):
    score = {"giou": 0.5, "ciou": 0.5, "questions": 8}
    for seed in (0, 1):
        folder = tmp_path / f"run{seed}"
        folder.mkdir()
        side = {**score, "sampled": score}
        scores = {"before": side, "after": side, "updates": 2, "minutes": 1.0}
        (folder / "scores.json").write_text(json.dumps(scores))
        (folder / "config.json").write_text(json.dumps({"seed": seed}))
        rows = [
            {"update": n, "loss": 1.0} | {f"eval/{k}_giou": 0.5 for k in logged} for n in (1, 2)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sweep = Sweep("cmp", "Does it gain?", tmp_path, {"one": Arm()})
    results = {"one": [Result(tmp_path / f"run{seed}") for seed in (0, 1)]}
    report(sweep, results, Console())
    image = Image.open(tmp_path / "cmp.png")
    assert image.width == pytest.approx(110 * (5.8 + 4.8 * len(logged)), abs=2)
    assert np.asarray(image).std() > 5
