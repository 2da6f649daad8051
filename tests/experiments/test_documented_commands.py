"""Commands of README and docs that name a model on the hub run, word for word, on tiny models.

    pytest -m processors tests/experiments/test_documented_commands.py

An id on the hub is a path, too: the tiny models lie below the folder that the commands run in. What
makes a run short is appended to a command, and ``/data`` is put below that folder.
"""

import io
import json
import re
import runpy
import shlex
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from annotator_folders import dino, sam2  # noqa: F401  (fixtures)
from PIL import Image
from processor_families import PROCESSOR_FAMILIES
from released_folders import kimi_folder  # noqa: F401  (a fixture)
from scripted_policy import write_tree

from seg_env.data import export_jsonlines, open_dataset

pytestmark = pytest.mark.processors

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMED = re.compile(r"\b(?:Qwen|sthui)/")
SHORT = {
    "evaluate.py": "--questions 2 --max-new-tokens 8 --no-details --no-pictures",
    "run_gspo.py": "--updates 1 --gspo.prompts-per-update 2 --gspo.group-size 2 --max-new-tokens 8 "
    "--evaluation.questions 2 --evaluation.answers 1 --evaluation.every 0",
    "run_bc.py": "--updates 2 --evaluation.questions 2 --evaluation.answers 1 --evaluation.every 0 "
    "--max-new-tokens 8",
    "annotate.py": "--workers 1",
}
"""What is appended to a command, by its script."""


def commands():
    """Commands in fenced blocks that name a model, with the page they stand on."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```bash\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
            lines = [" ".join(line.split()) for line in block.replace("\\\n", " ").splitlines()]
            found += [pytest.param(line, id=page.name) for line in lines if NAMED.search(line)]
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch, dino, sam2, kimi_folder):
    """Where commands run: with tiny models by the names of large ones, and data."""
    qwen = PROCESSOR_FAMILIES["qwen2_5_vl"].save(tmp_path / "Qwen" / "Qwen2.5-VL-7B-Instruct")
    shutil.copytree(qwen, tmp_path / "sthui" / "SimpleSeg-Qwen2.5-VL")
    shutil.copytree(kimi_folder, tmp_path / "sthui" / "SimpleSeg-Kimi-VL")
    shutil.copytree(dino, tmp_path / "IDEA-Research" / "grounding-dino-base")
    shutil.copytree(sam2, tmp_path / "facebook" / "sam2.1-hiera-large")
    write_tree(tmp_path / "DATA", splits=("train", "val", "testA"))
    dataset = open_dataset("refcoco", data_root=tmp_path / "DATA", split="train")
    export_jsonlines(dataset, tmp_path / "data" / "annotated")
    for split in ("train", "val"):
        dataset = open_dataset("refcoco", data_root=tmp_path / "DATA", split=split)
        export_jsonlines(dataset, tmp_path / "MY_DATA")
    write_archive(tmp_path / "data" / "laion" / "0.tar")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_archive(path):
    """A WebDataset archive of two pictures with captions."""
    path.parent.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as archive:
        for name in ("0", "1"):
            picture = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (80, 96, 3), dtype=np.uint8)).save(picture, "PNG")
            for suffix, data in ((".png", picture.getvalue()), (".txt", b"red star. dog.")):
                member = tarfile.TarInfo(name + suffix)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def test_models_are_named_where_they_should_be():
    pages = {case.id for case in commands()}
    assert {"README.md", "models.md", "checkpoints.md", "annotate.md", "stages.md"} <= pages


@pytest.mark.parametrize("command", commands())
def test_it_runs(command, folder, monkeypatch, capsys):
    python, script, *words = shlex.split(command.replace("/data/", f"{folder}/data/"))
    assert python == "python"
    name = Path(script).name
    if name == "annotate.py":
        shutil.rmtree(folder / "data" / "annotated")
    monkeypatch.setattr(sys, "argv", [script, *words, *shlex.split(SHORT[name])])
    runpy.run_path(str(ROOT / script), run_name="__main__")
    told = " ".join(capsys.readouterr().out.split())
    if name != "annotate.py":
        wrote = "unit" if "sthui/" in command else "qwen2.5-vl"
        assert f"answers in frame {wrote} (" in told
    defaults = {"evaluate.py": "runs/evaluate", "run_gspo.py": "runs/gspo"}
    given = words[words.index("--output-dir") + 1] if "--output-dir" in words else defaults[name]
    output = Path(given)
    if name == "evaluate.py":
        leaves = {"--check-vision": "vision.json", "guess": "frames.json"}
        leaf = next((leaves[word] for word in words if word in leaves), "scores.json")
        assert json.loads((output / leaf).read_text())
    elif name == "annotate.py":
        assert (output / "report.md").exists()
    else:
        assert json.loads((output / "scores.json").read_text())["frame"].startswith(wrote)
        if "--lora-rank" in words:
            assert (output / "policy" / "adapter_model.safetensors").exists()
            return
        config = json.loads((output / "policy" / "config.json").read_text())
        # An answer of a few tokens earns what all others earn: nothing is learned from them.
        assert config.get("answer_frame") == (wrote if name == "run_bc.py" else None)
