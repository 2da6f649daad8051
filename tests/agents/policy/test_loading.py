"""Opening checkpoints: what cannot be opened says in one line what is missing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from agents_fixtures import QUESTIONS, random_images, small_policy
from huggingface_hub import constants as hub_settings
from transformers import AutoProcessor

from agents.annotators.loading import load_model
from agents.policy import loading
from agents.policy.loading import (
    CheckpointError,
    CheckpointMissingError,
    explained,
    open_checkpoint,
    open_policy_processor,
    open_processor,
)
from agents.policy.model import VLMPolicy
from experiments.common.command import brief_errors
from experiments.common.policies import EMBEDDED, SHIPPED, open_policy

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path):
    """A small policy's folder."""
    small_policy().save(tmp_path / "policy")
    return tmp_path / "policy"


def refusal(name, kind=CheckpointError):
    """What opening a policy says, which must be one line and name what was given."""
    with pytest.raises(kind) as caught:
        VLMPolicy.from_pretrained(name, device="cpu")
    (message,) = str(caught.value).splitlines()
    assert str(name) in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.json", "{broken", "is no JSON"),
        ("config.json", "[1]", "holds a list"),
        ("config.json", "{}", "names no model_type"),
        ("config.json", '{"model_type": "bert"}', "'bert' does not read images"),
        ("config.json", '{"model_type": "newest"}', "'newest' is unknown to the installed"),
        ("config.json", None, "config.json is missing"),
        ("processor_config.json", "{broken", "is no JSON"),
        ("processor_config.json", "[]", "holds a list"),
        ("processor_config.json", "{}", "how images are prepared"),
        ("processor_config.json", None, "how images are prepared"),
        ("tokenizer.json", "{broken", "its processor"),
        ("tokenizer.json", None, "the tokenizer (tokenizer.json) is missing"),
        ("model.safetensors", "x" * 100, "Error while deserializing header"),
        ("model.safetensors", None, "no file named model.safetensors"),
    ],
)
def test_a_damaged_folder_says_what_is_wrong_with_it(folder, file, content, reason):
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    assert reason in refusal(folder)


def test_the_folder_of_a_run_points_to_the_policy_in_it(folder):
    assert refusal(folder.parent).endswith(f"there is one in {folder}")
    assert "is a file" in refusal(folder / "config.json")


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "a/b/c", "~/x", "two words"])
def test_a_path_is_never_looked_for_on_the_hub(name, monkeypatch):
    monkeypatch.setattr(loading, "_hub_answers", lambda: pytest.fail("asked the network"))
    assert "no such folder" in refusal(name, CheckpointMissingError)


def test_an_id_is_given_up_at_once_where_nothing_can_be_fetched(monkeypatch):
    monkeypatch.setattr(hub_settings, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal("nowhere/x", CheckpointMissingError)
    monkeypatch.setattr(hub_settings, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_settings, "ENDPOINT", "http://127.0.0.1:1")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert "127.0.0.1 cannot be reached" in refusal("nowhere/x", CheckpointMissingError)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            ImportError("\nA requires the Torchvision library but it was not found.\nInstall it."),
            "its processor needs torchvision",
        ),
        (
            ImportError("Package `num2words` is required to run SmolVLM processor."),
            "needs num2words, which is not installed: pip install num2words",
        ),
        (OSError("Can't load it. If you were trying\nto load it from elsewhere"), "Can't load it"),
        (ValueError("word " * 500), "word …"),
        (ValueError(), "ValueError"),
    ],
)
def test_what_libraries_say_becomes_one_line(error, reason, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError) as caught, explained("some/model", "its processor"):
        raise error
    message = str(caught.value)
    assert message.startswith("some/model: its processor")
    assert reason in message
    assert len(message.splitlines()) == 1
    assert len(message) < 400


def test_a_torchvision_of_another_release_is_told_from_none(monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: object())
    error = ModuleNotFoundError("Could not import module 'Qwen2VLProcessor'.")
    error.__cause__ = RuntimeError("operator torchvision::nms does not exist")
    with pytest.raises(CheckpointError, match="does not fit torch"), explained("some/model"):
        raise error


def test_running_out_of_memory_is_no_fault_of_the_checkpoint():
    with pytest.raises(torch.OutOfMemoryError), explained("some/model"):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_all_ways_to_open_a_processor_prepare_images_alike(folder):
    opened = [
        open_policy_processor(folder),
        open_processor(str(folder)),
        VLMPolicy.from_pretrained(folder, device="cpu").processor,
        open_checkpoint(folder, dtype=torch.float32)[1],
        AutoProcessor.from_pretrained(folder, backend="pil"),  # works where there is no video part
    ]
    kinds = {type(processor.image_processor).__name__ for processor in opened}
    assert kinds == {"SiglipImageProcessorPil"}
    image = random_images(1)[0]
    found = [
        processor(text="<image>", images=[image], return_tensors="pt")["pixel_values"]
        for processor in opened
    ]
    for pixels in found[1:]:
        assert torch.equal(pixels, found[0])


def test_the_embedded_policy_sees_the_same_with_and_without_torchvision():
    """Its published figures hold for this implementation; torchvision's rounds otherwise."""
    processor = open_processor(SHIPPED[EMBEDDED])
    assert type(processor.image_processor).__name__ == "SiglipImageProcessorPil"
    saved = json.loads((SHIPPED[EMBEDDED] / "processor_config.json").read_text())
    assert saved["image_processor"]["image_processor_type"] == "SiglipImageProcessor"


@pytest.mark.parametrize("place", ["jinja", "json", "tokenizer"])
def test_the_chat_template_is_found_wherever_it_lies(folder, place):
    wanted = open_policy_processor(folder).chat_template
    template = folder / "chat_template.jinja"
    text = template.read_text()
    if place != "jinja":
        template.unlink()
        if place == "json":
            (folder / "chat_template.json").write_text(json.dumps({"chat_template": text}))
        else:
            settings = folder / "tokenizer_config.json"
            held = json.loads(settings.read_text())
            settings.write_text(json.dumps(held | {"chat_template": text}))
    policy = VLMPolicy.from_pretrained(folder, device="cpu")
    assert policy.processor.chat_template == wanted
    assert len(policy.prepare(random_images(1), QUESTIONS[:1])["input_ids"]) == 1


def test_annotators_say_the_same(tmp_path):
    for load in (
        lambda: load_model(object, str(tmp_path / "x"), "cpu"),
        lambda: open_processor("./x"),
    ):
        with pytest.raises(CheckpointMissingError, match="no such folder"):
            load()


def test_read_only_images_are_taken_without_a_warning(folder, recwarn):
    policy = small_policy()
    images = random_images(2)
    wanted = policy.prepare(images, QUESTIONS[:2])
    for image in images:
        image.setflags(write=False)
    turned = [np.flip(np.flip(image, 1), 1) for image in images]  # a view with negative strides
    for given in (images, turned):
        found = policy.prepare(given, QUESTIONS[:2])
        assert torch.equal(found["pixel_values"], wanted["pixel_values"])
    assert not [warning for warning in recwarn if "writable" in str(warning.message)]


def test_scripts_end_with_one_line(capsys):
    with pytest.raises(SystemExit) as ended, brief_errors():
        open_policy("./nowhere", "float32")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: --policy ./nowhere: no such folder")
    with pytest.raises(ValueError, match="another"), brief_errors():
        raise ValueError("another error keeps its traceback")


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", ["evaluate", "run_gspo", "run_ppo", "run_bc --backend trl", "run_gspo --backend trl"]
)
def test_the_command_line_prints_one_line(script, tmp_path):
    name, *words = script.split()
    command = [sys.executable, f"experiments/{name}.py", *words, "--policy", "nowhere/x"]
    command += ["--output-dir", str(tmp_path / "out")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    (line,) = [line for line in ran.stderr.splitlines() if line.strip()][-1:]
    assert line.startswith("error: nowhere/x: ")
    assert "Traceback" not in ran.stderr
