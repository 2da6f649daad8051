"""``check-memory`` takes the words of a training command, and says what its updates need."""

import json
import re

import pytest
import torch
from agents_fixtures import small_policy

from agents.training.memory import empty_model
from experiments.benchmarks.train_legs import Work, make_policy
from experiments.check_memory import SHAPES, command_line, image_numbers
from experiments.run_gspo import Args

SHORT = ["--gspo.prompts-per-update", "4", "--gspo.max-new-tokens", "24"]
LARGE = ["--shape", "qwen2.5-vl-7b", "--device", "cuda", "--gspo.no-muon"]


def test_it_takes_the_options_of_a_training_command(capsys):
    words = ["--env", "SimpleSeg-Scenes-v0", "--updates", "3", "--gspo.kl-coefficient", "0.1"]
    found = command_line([*words, *SHORT, "--freeze-vision"])
    told = capsys.readouterr().out
    assert (
        "embedded: 2.3 M weights of 4 bytes, prompts of 104 tokens (64 of the image)"
        in " ".join(told.split())
    )
    assert re.search(r"^ *KL reference", told, re.M)
    totals = [sum(parts.values()) for parts in found.values() if isinstance(parts, dict)]
    assert found["peak"] == max(totals)
    assert f"most memory: {found['peak'] / 2**20:.2f} MiB" in told


def test_a_folder_needs_no_weights(tmp_path):
    small_policy().save(tmp_path)
    whole = command_line(["--policy", str(tmp_path), *SHORT])
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert command_line(["--policy", str(tmp_path), *SHORT]) == whole


def weights_of(*words):
    return command_line([*LARGE, *words])["step"]


@pytest.mark.parametrize(
    ("name", "decoder", "tower"), [("qwen2.5-vl-3b", 3.086, 0.669), ("qwen2.5-vl-7b", 7.616, 0.677)]
)
def test_published_shapes_have_their_published_sizes(name, decoder, tower):
    from transformers import AutoConfig

    model = empty_model(AutoConfig.from_pretrained(SHAPES / name))
    billions = sum(each.numel() for each in model.parameters()) / 1e9
    assert billions == pytest.approx(decoder + tower, abs=0.002)
    assert json.loads((SHAPES / name / "config.json").read_text())["dtype"] == "bfloat16"


def test_states_of_a_7b_policy_are_sixteen_bytes_a_weight():
    """ZeRO, arXiv 1910.02054, section 3.1: 2 + 2 + 12."""
    parts = weights_of()
    bytes_per_weight = sum(parts[name] for name in ("weights", "gradients", "optimizer")) / 8.292e9
    assert bytes_per_weight == pytest.approx(16, rel=1e-3)
    adapters = weights_of("--lora-rank", "16", "--load-in-4bit")
    assert adapters["weights"] < 0.36 * parts["weights"]
    assert adapters["optimizer"] == 2 * adapters["adapters"]
    # Seven matrices of 28 layers: (in + out) x 16.
    wide, inner, keys = 3584, 18944, 512
    expected = 28 * 16 * (2 * 2 * wide + 2 * (wide + keys) + 3 * (wide + inner))
    assert adapters["adapters"] == 4 * expected
    one = weights_of("--lora-rank", "16", "--lora-targets", "q_proj")
    assert one["adapters"] == 4 * 28 * 16 * 2 * wide


def test_an_image_has_the_tokens_that_a_processor_gives_it():
    policy = make_policy(Work("small", 20, 6, 2, 2, "float32", "sdpa", "cpu", seed=0))
    image = torch.zeros(90, 90, 3, dtype=torch.uint8).numpy()
    inputs = policy.prepare([image], ["a"])
    config = policy.model.config
    from experiments.check_memory import Args as MemoryArgs

    tokens, patches, pixels = image_numbers(MemoryArgs(image="90x90"), config, None)
    assert tokens == (inputs["input_ids"] == config.image_token_id).sum() == patches
    assert pixels == inputs["pixel_values"].numel()
    assert Args().policy == "embedded"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--image", "640"], "--image 640: give width and height, as 640x480"),
        (["--image", "0x480"], "--image 0x480: give width and height"),
        (["--load-in-4bit"], "--load-in-4bit trains adapters only: add --lora-rank 16"),
        (["--ranks", "3"], "--gspo.prompts-per-update 32 cannot be shared out among --ranks 3"),
        (["--policy", "/nowhere"], "/nowhere: no such folder"),
        (["--weights", "bfloat16", "--precision", "float32"], "leave one of them out"),
        (["--freeze-vision", "--vision-learning-rate", "1e-5"], "leave one of them out"),
    ],
)
def test_what_cannot_be_counted_is_refused_in_a_sentence(words, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        command_line(words)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert "Traceback" not in told
