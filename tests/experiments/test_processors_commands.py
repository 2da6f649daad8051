"""The commands on a tiny Qwen2.5-VL with its real processor, and what they leave behind."""

import json

import numpy as np
import pytest
import torch
import tyro
from processor_families import PROCESSOR_FAMILIES
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import is_torchvision_available

from agents.policy.adapters import adapter_parameters, add_adapter, load_adapter
from agents.policy.model import VLMPolicy
from agents.policy.sampling import evaluation_mode
from agents.policy.scoring import score
from experiments import evaluate, run_bc, run_gspo, run_ppo
from experiments.common.logs import read_metrics
from experiments.evaluate import Args as EvaluateArgs
from seg_env.frames import pixel_frame
from seg_env.grammar import decode

pytestmark = pytest.mark.processors

DATA = ("--env", "SimpleSeg-RefCOCO-v0", "--seed", "1", "--precision", "float32")
MEASURES = (
    *("--evaluation.questions", "2", "--evaluation.answers", "1", "--evaluation.every", "0"),
    *("--updates", "2"),
)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A folder as repositories on the hub have it."""
    if not is_torchvision_available():
        pytest.skip("the processor of qwen2_5_vl needs torchvision")
    case = PROCESSOR_FAMILIES["qwen2_5_vl"]
    return case.to_hub_layout(case.save(tmp_path_factory.mktemp("qwen") / "start"))


def changed(start, end):
    """Names of the weights that differ between two folders, opened by transformers alone."""
    before, after = (
        AutoModelForImageTextToText.from_pretrained(folder).state_dict() for folder in (start, end)
    )
    assert before.keys() == after.keys()
    assert all(value.isfinite().all() for value in after.values())
    return [name for name, value in before.items() if not torch.equal(value, after[name])]


def assert_a_whole_policy(start, folder):
    """What training left is an ordinary folder, opens by itself, and has learned."""
    policy = folder / "policy"
    found, wanted = AutoProcessor.from_pretrained(policy), AutoProcessor.from_pretrained(start)
    assert type(found) is type(wanted)
    assert found.chat_template == wanted.chat_template
    assert found.image_processor.size == wanted.image_processor.size
    assert found.tokenizer.get_vocab() == wanted.tokenizer.get_vocab()
    assert changed(start, policy)
    scores = json.loads((folder / "scores.json").read_text())
    assert 0 <= scores["before"]["giou"] <= 1
    assert 0 <= scores["after"]["giou"] <= 1


def gspo_words(start, folder, *more):
    """A command line of run_gspo.py without its name."""
    return [
        *("--policy", str(start), "--output-dir", str(folder), *DATA, *MEASURES),
        *("--gspo.prompts-per-update", "2", "--gspo.group-size", "2"),
        *("--gspo.max-new-tokens", "8", "--gspo.learning-rate", "1e-2", *more),
    ]


TELLING = ("--rewards", "format=1.0", "length_penalty=1.0", "centroid_distance=1.0")
"""Rewards that differ between answers of a policy that knows nothing."""


def test_gspo(start, tmp_path):
    run_gspo.command_line(gspo_words(start, tmp_path, *TELLING))
    assert_a_whole_policy(start, tmp_path)


def test_gspo_under_trl(start, tmp_path):
    words = gspo_words(start, tmp_path, "--backend", "trl", "--gspo.no-muon", *TELLING)
    run_gspo.command_line(words)
    assert_a_whole_policy(start, tmp_path)


def test_gspo_under_trl_with_adapters(start, tmp_path):
    words = gspo_words(start, tmp_path, "--backend", "trl", "--gspo.no-muon", *TELLING)
    run_gspo.command_line([*words, "--trl.lora-rank", "2"])
    assert_a_whole_policy(start, tmp_path)
    assert not any("embed" in name for name in changed(start, tmp_path / "policy"))


def test_gspo_with_adapters(start, tmp_path):
    """Adapters move and the model does not; merged or not, the policy gives the same answers."""
    words = gspo_words(start, tmp_path / "run", *TELLING, "--lora-rank", "2")
    words += ["--gspo.kl-coefficient", "0.1", "--checkpoint-every", "1"]
    run_gspo.command_line(words)
    rows = read_metrics(tmp_path / "run")
    assert all(row["rollout/reward"] for row in rows if "rollout/reward" in row)
    assert rows[-1]["train/reference_kl"] > 0
    folder = tmp_path / "run" / "policy"
    assert (folder / "adapter_model.safetensors").exists()
    assert not (folder / "model.safetensors").exists()
    adapted = VLMPolicy.from_pretrained(start, device="cpu")
    add_adapter(adapted.model, 2)
    load_adapter(adapted.model, folder)
    whole = tmp_path / "merged"
    opened = VLMPolicy.from_pretrained(folder, device="cpu")
    opened.save(whole)
    moved = changed(start, whole)
    assert moved
    assert all("language_model" in name and "proj" in name for name in moved)
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    tokens = torch.arange(40, 52).reshape(2, 6)
    found = []
    for policy in (adapted, opened, VLMPolicy.from_pretrained(whole, device="cpu")):
        inputs = policy.prepare([image], ["the star"])
        with torch.no_grad(), evaluation_mode(policy.model):
            found.append(score(policy, inputs, tokens, torch.ones_like(tokens)).log_probs)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-5, rtol=0)
    run_gspo.command_line([*words, "--resume"])  # makes the last update again
    assert [row["update"] for row in read_metrics(tmp_path / "run")] == [1, 2]
    theirs = AutoModelForImageTextToText.from_pretrained(folder).state_dict()  # with PEFT alone
    for name, value in adapter_parameters(adapted.model).items():
        assert torch.equal(theirs[name], value)
    evaluate.command_line(
        [
            *("--policy", str(folder), "--output-dir", str(tmp_path / "scores"), *DATA),
            *("--questions", "2", "--max-new-tokens", "8"),
        ]
    )


def test_ppo(start, tmp_path):
    words = [
        *("--policy", str(start), "--output-dir", str(tmp_path), *DATA, *MEASURES),
        *("--ppo.prompts-per-update", "2", "--ppo.group-size", "2"),
        *("--ppo.max-new-tokens", "8", "--ppo.learning-rate", "1e-2", *TELLING),
    ]
    run_ppo.main(tyro.cli(run_ppo.Args, args=words))
    assert_a_whole_policy(start, tmp_path)


def test_behaviour_cloning_under_trl(start, tmp_path):
    words = [
        *("--backend", "trl", "--policy", str(start), "--output-dir", str(tmp_path)),
        *(*DATA, *MEASURES, "--sft.batch-size", "2", "--max-new-tokens", "8"),
    ]
    run_bc.command_line(words)
    assert_a_whole_policy(start, tmp_path)


def test_evaluation(start, tmp_path):
    words = ["--policy", str(start), "--output-dir", str(tmp_path), *DATA, "--questions", "3"]
    words += ["--max-new-tokens", "8", "--batch-size", "2"]
    scores = evaluate.main(tyro.cli(EvaluateArgs, args=words))
    assert 0 <= scores["giou"] <= 1
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 3


CONSTRAINED = ("--grammar.constrained", "--grammar.max-vertices", "3", "--max-new-tokens", "48")


def test_answers_held_to_the_grammar_are_outlines(start, tmp_path, capsys):
    """Every answer of a constrained policy is well-formed, in whatever vocabulary it is."""
    words = gspo_words(start, tmp_path, *CONSTRAINED, "--image-size", "112", *TELLING)
    run_gspo.command_line(words)
    assert_a_whole_policy(start, tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())
    for side in ("before", "after"):
        assert scores[side]["well_formed"] == scores[side]["sampled"]["well_formed"] == 1
    assert "also those beyond a border" not in capsys.readouterr().out


def test_borders_of_images_of_all_sizes_are_beyond_the_grammar_and_it_says_so(
    start, tmp_path, capsys
):
    run_gspo.command_line(gspo_words(start, tmp_path, *CONSTRAINED, *TELLING))
    assert "also those beyond a border" in capsys.readouterr().out
    before = json.loads((tmp_path / "before.json").read_text())
    texts = [text for answers in before["sampled"]["texts"] for text in answers]
    for text in texts:
        assert decode(text, pixel_frame(9999, 9999)).valid, text
