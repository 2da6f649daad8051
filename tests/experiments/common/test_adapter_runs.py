"""Runs that train an adapter: what they say, what they leave, and what is refused."""

import re

import pytest
import torch
import tyro
from agents_fixtures import same_parameters

from agents.policy.model import VLMPolicy
from agents.settings import GSPOConfig
from experiments import evaluate, run_bc, run_gspo, run_ppo
from seg_env.errors import WrongOptionError

MEASURES = (
    *("--evaluation.questions", "4", "--evaluation.answers", "1", "--evaluation.every", "0"),
    *("--precision", "float32", "--updates", "2", "--lora-rank", "2"),
)
ROLLOUT = ("prompts-per-update 2", "group-size 3", "max-new-tokens 24", "learning-rate 1e-2")


def words(policy, output, algorithm="gspo"):
    """A command line of an on-policy algorithm that takes seconds."""
    settings = [word for each in ROLLOUT for word in f"--{algorithm}.{each}".split()]
    return ["--policy", str(policy), "--output-dir", str(output), *MEASURES, *settings]


def test_gspo_leaves_an_adapter_or_a_merged_model(policy_folder, tmp_path, capsys):
    before = (policy_folder / "model.safetensors").read_bytes()
    for name, more in (("adapter", []), ("merged", ["--merge-adapter"])):
        run_gspo.command_line([*words(policy_folder, tmp_path / name), *more])
        told = " ".join(capsys.readouterr().out.split())
        assert "the adapter is trained by AdamW, at the learning rate as it is given (0.01)" in told
        assert re.search(r"adapters of rank 2 on \d+ layers: 0.00 M weights are trained", told)
    adapter, merged = (tmp_path / name / "policy" for name in ("adapter", "merged"))
    assert (adapter / "adapter_model.safetensors").exists()
    assert (merged / "model.safetensors").exists()
    assert not list(adapter.glob("model*"))
    assert not list(merged.glob("adapter*"))
    assert (policy_folder / "model.safetensors").read_bytes() == before
    opened, whole = (VLMPolicy.from_pretrained(each, device="cpu") for each in (adapter, merged))
    for ours, theirs in zip(opened.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert not same_parameters(opened, VLMPolicy.from_pretrained(policy_folder, device="cpu"))
    scores = evaluate.command_line(
        ["--policy", str(adapter), "--output-dir", str(tmp_path / "scores"), "--questions", "3"]
    )
    assert scores["frame"] == opened.answer_frame.description


def test_ppo_and_behaviour_cloning_train_adapters_too(policy_folder, tmp_path):
    run_ppo.command_line(words(policy_folder, tmp_path / "ppo", "ppo"))
    run_bc.command_line(
        [
            *("--policy", str(policy_folder), "--output-dir", str(tmp_path / "bc"), *MEASURES),
            *("--scenes", "24", "--cloning.learning-rate", "1e-2"),
        ]
    )
    start = VLMPolicy.from_pretrained(policy_folder, device="cpu")
    for name in ("ppo", "bc"):
        policy = tmp_path / name / "policy"
        assert (policy / "adapter_model.safetensors").exists()
        assert not same_parameters(VLMPolicy.from_pretrained(policy, device="cpu"), start)


@pytest.mark.parametrize(
    ("command", "options", "reason"),
    [
        (run_gspo, "--merge-adapter", "--merge-adapter is of adapters: give their --lora-rank"),
        (run_gspo, "--load-in-4bit", "--load-in-4bit is of adapters: give their --lora-rank"),
        (run_gspo, "--lora-rank 2 --load-in-4bit --merge-adapter", "leave one of them out"),
        (run_gspo, "--lora-rank -1", "a rank of -1 is no adapter's"),
        (run_gspo, "--lora-rank 2 --lora-targets q_prj", "--lora-targets q_prj: PEFT can adapt no"),
        (run_gspo, "--lora-rank 2 --deepspeed zero3", "use zero1 or zero2 with --lora-rank"),
        (run_bc, "--lora-rank 2", "--lora-rank adapts a policy that there is: name it by --policy"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(command, options, reason, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        command.command_line([*options.split(), "--output-dir", str(tmp_path / "run")])
    assert caught.value.code == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert reason in message
    assert not (tmp_path / "run").exists()


def test_under_trl_adapters_are_trl_s(tmp_path, monkeypatch):
    args = tyro.cli(run_gspo.Args, args=["--backend", "trl", "--lora-rank", "4"])
    args.output_dir = tmp_path
    args.gspo = GSPOConfig()  # whose Muon TRL does not have with adapters
    with pytest.raises(ValueError, match="muon=True needs whole matrices"):
        run_gspo.main(args)
    assert (args.trl.lora_rank, args.trl.lora_alpha) == (4, 32)
    args = tyro.cli(run_gspo.Args, args=["--backend", "trl", "--lora-targets", "q_proj"])
    with pytest.raises(WrongOptionError, match="--lora-targets has no counterpart"):
        run_gspo.main(args)
