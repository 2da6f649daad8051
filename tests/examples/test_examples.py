"""Examples run as they stand, with small budgets, and are as short as they say."""

import json
import re
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
BUDGETS = {"UPDATES": "1"}
"""What is set to less than a reader would."""


@pytest.fixture
def example_path(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def test_the_loop_of_ones_own_trains_in_few_lines(example_path, capsys):
    import ppo_loop

    assert len((EXAMPLES / "ppo_loop.py").read_text().splitlines()) < 120
    history = ppo_loop.train(updates=2, prompts=4, answers=4, max_new_tokens=40)
    assert len(history) == 2
    assert all(0 <= iou <= 1 for iou in history)
    assert "update 2: reward" in capsys.readouterr().out


def code_of(notebook):
    """The code cells of a notebook, with small budgets."""
    cells = json.loads((EXAMPLES / notebook).read_text("utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    for name, value in BUDGETS.items():
        texts = [re.sub(rf"(?m)^{name} = .*$", f"{name} = {value}", text) for text in texts]
    return texts


@pytest.mark.parametrize("notebook", sorted(path.name for path in EXAMPLES.glob("*.ipynb")))
def test_notebooks_run_from_top_to_bottom(notebook, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    rng = np.random.get_state()
    namespace = {"__name__": "__main__"}
    for number, text in enumerate(code_of(notebook)):
        exec(compile(text, f"{notebook}, cell {number}", "exec"), namespace)
    np.random.set_state(rng)
    matplotlib.pyplot.close("all")


def test_notebooks_hold_no_outputs():
    for path in EXAMPLES.glob("*.ipynb"):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        assert not any(cell.get("outputs") for cell in cells), path.name
    assert sys.version_info >= (3, 11)
