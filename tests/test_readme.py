"""What the README shows works as it stands."""

import re
from pathlib import Path

README = Path(__file__).parent.parent.joinpath("README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_python_blocks_run_one_after_the_other(capsys):
    names = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    reward, iou, valid, _ = capsys.readouterr().out.split()
    assert 0 < float(iou) < 1
    assert float(reward) > float(iou)
    assert valid == "True"
    assert len(names["envs"].unwrapped.dataset[0].target.rings) >= 1
    assert names["envs"].num_envs == 64
    env = names["gym"].make("SimpleSeg-Scenes-v0", rewards=[(names["Compactness"](), 1.0)])
    env.reset(seed=0)
    assert env.step(names["answer"])[1] == 1.0


def test_every_script_and_document_it_names_exists():
    root = Path(__file__).parent.parent
    named = set(re.findall(r"(?:experiments|docs|agents|rewards)/[\w/]+\.(?:py|md|png)", README))
    assert {name for name in named if not (root / name).exists()} == set()
    assert {"experiments/run_gspo.py", "docs/learning.md"} <= named
