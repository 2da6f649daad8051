"""Policies on the hub: pushed, described, and loaded again, against a stand-in."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro
import yaml
from hub_server import TOKEN, hub_server
from PIL import Image
from safetensors.torch import load
from safetensors.torch import load_file as load_weights

from agents.settings import BehaviorCloningConfig
from experiments import run_bc, run_gspo
from experiments.common.model_card import write_card
from seg_env.envs.core import PADDING_GRAY, letterbox
from seg_env.tasks import TaskMixture

ROOT = Path(__file__).parents[3]
OPTIONS = (
    *("--updates", "1", "--gspo.prompts-per-update", "2", "--gspo.group-size", "2"),
    *("--gspo.max-new-tokens", "20", "--evaluation.questions", "3", "--evaluation.answers", "1"),
    *("--evaluation.every", "0", "--track", "none"),
)


def call(words, server, home, token=TOKEN, **given):
    """A process to which the stand-in is the hub; it settles that when it is imported."""
    environment = os.environ | {
        **{"HF_ENDPOINT": server.address, "HF_TOKEN": token, "HF_HOME": str(home)},
        **{"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    }
    words = [sys.executable, *words]
    given |= {"env": environment, "capture_output": True, "text": True}
    return subprocess.run(words, timeout=200, check=False, **given)


def train(folder, policy, repository, server, **given):
    words = [
        "experiments/run_gspo.py",
        "--policy",
        str(policy),
        "--output-dir",
        str(folder / "run"),
    ]
    words += ["--push-to-hub", repository, *OPTIONS, "--difficulty", "easy", "--negatives", "0"]
    return call(words, server, folder / "home", cwd=ROOT, **given)


@pytest.fixture(scope="module")
def pushed(policy_folder, tmp_path_factory):
    """A run, whose policy is on the stand-in, and the stand-in."""
    folder = tmp_path_factory.mktemp("pushed")
    with hub_server() as server:
        done = train(folder, policy_folder, "me/tiny", server)
        assert done.returncode == 0, done.stderr
        yield folder, server, done.stdout


def test_the_run_says_where_its_policy_is(pushed):
    folder, server, said = pushed
    assert f"the policy is on the hub: {server.address}/me/tiny" in said
    stored = server.repositories["me/tiny"]
    assert set(stored) == {path.name for path in (folder / "run/policy").iterdir()}


def test_what_is_loaded_again_is_what_was_trained(pushed):
    folder, server, _ = pushed
    stored = load(server.repositories["me/tiny"]["model.safetensors"])
    trained = load_weights(folder / "run/policy/model.safetensors")
    assert stored.keys() == trained.keys()
    assert all((stored[name] == trained[name]).all() for name in trained)


def test_the_card_tells_what_the_policy_is(pushed, policy_folder):
    _, server, _ = pushed
    text = server.repositories["me/tiny"]["README.md"].decode()
    _, head, body = text.split("---\n", 2)
    fields = yaml.safe_load(head)
    assert fields["library_name"] == "transformers"
    assert fields["pipeline_tag"] == "image-text-to-text"
    assert "license" not in fields  # nothing is known of what it started from
    for words in (
        f"`{policy_folder}`",
        "Output the polygon coordinates of {expression} in the image.",
        "mask_iou=1.0 centroid_distance=0.5 format=0.1",
        "Frame of the numbers: unit",
        "Learned from: scenes-easy (train)",
        "run_gspo.py --policy",
        "| greedy gIoU |",
        "3 held-out questions of `scenes-easy` (val)",
    ):
        assert words in body, words


def test_the_lines_of_the_card_load_and_ask_it(pushed, tmp_path):
    _, server, _ = pushed
    text = server.repositories["me/tiny"]["README.md"].decode()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "image.png")
    done = call(["-c", code], server, tmp_path / "home", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def card(folder, task, canvas_size=None):
    """The card of a policy that was not measured, and the lines that use it."""
    scores = {"max_new_tokens": {"measuring": 20}}
    tasks = TaskMixture.from_spec(task)
    write_card(folder, "me/tiny", "new", {}, scores, tasks=tasks, canvas_size=canvas_size)
    text = (folder / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(code, "README.md", "exec")
    return text, code


@pytest.mark.parametrize(
    ("task", "told", "asked"),
    [
        (
            "text->mask",
            "segments by writing outlines\n\nAsked for an object, it answers with its outline as",
            "Output the polygon coordinates of the red star in the image.",
        ),
        (
            "text->bbox",
            "finds objects by writing boxes\n\nAsked for an object, it answers with its box as",
            "Output the bounding box of the red star in the image.",
        ),
        (
            "point->mask=1 text->point=2",
            "segments by writing outlines and points\n\n"
            "Asked for an object, it answers with its outline or a point on it as",
            "Output the center point of the red star in the image.",
        ),
        (
            "bbox->mask",
            "segments by writing outlines\n\nAsked for an object, it answers with its outline as",
            "Output the polygon coordinates of the object in [x0,y0,x1,y1] in the image.",
        ),
    ],
)
def test_the_card_says_what_is_asked_and_what_is_answered(tmp_path, task, told, asked):
    text, code = card(tmp_path, task)
    assert f"# A policy that {told}" in text
    assert f'"text": "{asked}"' in code


def test_the_card_has_the_prompts_of_the_tasks_that_were_trained_and_no_others(tmp_path):
    text, _ = card(tmp_path, "text->bbox=0 text->point=1 point->mask=1")
    assert re.findall("(?m)^- (Prompt: .*)$", text) == [
        "Prompt: `Output the center point of {expression} in the image.`, answered by `[x,y]`",
        "Prompt: `Output the polygon coordinates of the object at [x,y] in the image.`, answered "
        "by `[[[x,y],…],…]`",
    ]


@pytest.mark.parametrize("size", [(30, 40), (41, 30), (300, 200), (64, 64)])
def test_the_lines_of_the_card_place_an_image_as_it_was_in_training(tmp_path, monkeypatch, size):
    text, code = card(tmp_path, "text->mask", (64, 64))
    assert "- Image: as large as fits into the middle of a gray canvas of 64x64 pixels" in text
    image = Image.radial_gradient("L").resize(size).convert("RGB")
    image.save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    names = {}
    lines = code.splitlines()
    places = [line for line in lines if line.startswith(("from PIL", "image ="))]
    exec("\n".join(places), names)
    seen = np.asarray(names["image"])
    wanted = letterbox(np.asarray(image), (64, 64))
    gray = [(picture == PADDING_GRAY).all(axis=2) for picture in (seen, wanted)]
    assert seen.shape == wanted.shape
    for axis in (0, 1):
        edges = [np.flatnonzero(~each.all(axis=axis))[[0, -1]] for each in gray]
        assert np.abs(edges[0] - edges[1]).max() <= 1
    assert "ImageOps" not in card(tmp_path, "text->mask")[1]


def test_a_run_tells_its_card_what_it_was_asked_and_how_it_saw_it(policy_folder, tmp_path):
    args = tyro.cli(
        run_gspo.Args,
        args=[
            *("--policy", str(policy_folder), "--output-dir", str(tmp_path), *OPTIONS),
            *("--evaluation.questions", "0", "--task", "text->bbox", "--image-size", "48"),
        ],
    )
    run_gspo.main(args)
    text = (tmp_path / "policy/README.md").read_text("utf-8")
    assert "it answers with its box as text" in text
    assert "canvas of 48x48 pixels" in text


@pytest.mark.parametrize(
    ("cloning", "tasks"),
    [
        ({}, ("text->mask", "text->bbox", "text->point")),
        ({"outline_share": 1.0}, ("text->mask",)),
        ({"tasks": "point->mask"}, ("point->mask",)),
        ({"points_until": 1.0}, ("text->point",)),
    ],
)
def test_a_cloned_policy_can_do_what_it_was_taught_last(cloning, tasks):
    args = run_bc.Args(cloning=BehaviorCloningConfig(**cloning))
    assert run_bc.learned_last(args).tasks == tasks


def test_this_project_opens_it_by_its_name(pushed, tmp_path):
    _, server, _ = pushed
    code = (
        "from agents import VLMPolicy; policy = VLMPolicy.from_pretrained('me/tiny'); "
        "print(policy.answer_frame.family, policy.model.num_parameters())"
    )
    done = call(["-c", code], server, tmp_path / "home", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "unit"


@pytest.mark.parametrize(("repository", "token"), [("me/tiny", "hf_wrong"), ("not a name", TOKEN)])
def test_what_the_hub_refuses_is_a_sentence_and_the_run_is_there(
    policy_folder, tmp_path, repository, token
):
    with hub_server() as server:
        done = train(tmp_path, policy_folder, repository, server, token=token)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    said = " ".join(done.stderr.split())
    assert f"could not be put on the hub as {repository!r}" in said
    assert "hf auth login" in said
    assert (tmp_path / "run/policy/README.md").exists()
