"""Several ranks do together what one process does alone, with DeepSpeed and without."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import distributed_job as job
import muon_network
import pytest
import torch
import tyro
from agents_fixtures import cloned_policy, small_policy
from torch import nn

from agents.gspo import GSPOConfig
from agents.policy.adapters import adapter_parameters
from agents.policy.model import VLMPolicy
from agents.training import make_engine
from agents.training.checkpoints import latest_checkpoint
from agents.training.distributed import World, combine
from agents.training.optim import Engine, split_parameters
from agents.training.settings import OptimizerSettings
from experiments import run_gspo
from experiments.common.command import command_words
from experiments.common.launch import fit_to_deepspeed
from experiments.common.logs import read_metrics

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.rounding
LIMIT = 1e-5
"""How far weights may be apart; training moves them by more than fifty times as much."""


def start(*words, processes=2):
    """Start a script on several ranks, as a user does."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*launcher, "--nproc_per_node", str(processes), *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, seconds):
    """Wait for the end; returns what was printed."""
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher ends its ranks
        raise


def distance(weights, others):
    """Largest difference of any weight."""
    assert weights.keys() == others.keys()
    return max((weights[name] - others[name]).abs().max().item() for name in weights)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the ranks leave what they trained; see distributed_job.py."""
    folder = tmp_path_factory.mktemp("job")
    cloned_policy().save(folder / "policy")
    config = json.loads((ROOT / "agents" / "training" / "deepspeed" / "zero3.json").read_text())
    # Parameters as small as these would be left whole on every rank.
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (folder / "zero3.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def network(folder):
    """What one process comes to with Muon; the ranks go on from its first half too."""
    path = folder / "networks" / "alone.pt"
    path.parent.mkdir()
    norms, engine = muon_network.train(halfway=path.with_stem("alone-half"))
    muon_network.write(path, engine, norms)
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def trained(folder, network):
    """Metrics and weights of everything that two ranks trained, by its name."""
    process = start("tests/distributed_job.py", folder)
    output = finish(process, 280)
    assert process.returncode == 0, output
    return {
        path.stem: (
            json.loads(path.with_suffix(".json").read_text()),
            torch.load(path, weights_only=True),
        )
        for path in folder.glob("*.pt")
    }


@pytest.fixture(scope="module")
def alone(folder):
    """Metrics and weights of the same trainings in one process, by the number of minibatches."""
    found = {}
    for minibatches in (1, 2):
        agent = job.make_agent(folder, None, minibatches)
        found[minibatches] = (job.learn(agent), job.weights_of(agent))
    return found


def chosen(weights, names):
    """Some of the weights."""
    return {name: weights[name] for name in names}


def check_equal(ours, theirs):
    """Metrics of updates and final weights are the same up to rounding."""
    (rows, weights), (other_rows, other_weights) = ours, theirs
    assert len(rows) == len(other_rows)
    for row, other in zip(rows, other_rows, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert distance(weights, other_weights) < LIMIT


@pytest.mark.parametrize("name", job.KINDS)
def test_two_ranks_learn_what_one_process_learns(name, trained, alone, folder):
    check_equal(trained[name], alone[job.KINDS[name][1]])
    start_weights = VLMPolicy.from_pretrained(folder / "policy").model.state_dict()
    assert distance(trained[name][1], start_weights) > 50 * LIMIT


@pytest.mark.parametrize(("written", "name"), job.RESUMED.items())
def test_a_checkpoint_is_resumed_by_ranks_of_any_kind(written, name, trained, alone):
    rows, weights = alone[2]
    resumed = trained[f"{written}-as-{name}"]
    check_equal(resumed, (rows[job.HALF :], weights))
    if written == name:  # nothing is lost at all
        assert resumed[0] == trained[name][0][job.HALF :]
        assert distance(resumed[1], trained[name][1]) == 0


@pytest.mark.parametrize("written", ["zero3-2", "zero2-2"])
def test_a_checkpoint_of_two_ranks_is_resumed_by_one_process(written, trained, alone, folder):
    agent = job.make_agent(folder)
    with warnings.catch_warnings(action="error"):  # nothing is lost
        agent.load(folder / "checkpoints" / written)
    rows, weights = alone[2]
    check_equal((job.learn(agent), job.weights_of(agent)), (rows[job.HALF :], weights))


def test_a_checkpoint_holds_an_ordinary_policy(trained, folder):
    halves = [
        VLMPolicy.from_pretrained(folder / "checkpoints" / name / "policy").model.state_dict()
        for name in ("zero3-2", "plain-2")
    ]
    assert distance(*halves) < LIMIT


def test_two_ranks_learn_the_adapter_that_one_process_learns(trained, folder):
    agent = job.make_adapted_agent(folder, None)
    start = job.weights_of(agent)
    wanted = job.learn(agent), job.weights_of(agent)
    for choice in job.ADAPTED:
        rows, weights = trained[f"adapter-{choice}"]
        check_equal((rows, weights), wanted)
        moved = {name for name, value in weights.items() if not torch.equal(value, start[name])}
        assert moved == set(adapter_parameters(agent.policy.model))
    resumed = trained["adapter-zero2-as-zero2"]
    assert resumed[0] == rows[job.HALF :]
    assert distance(resumed[1], weights) == 0


@pytest.mark.parametrize("choice", [None, "zero3"])
def test_a_critic_learns_on_two_ranks_too(choice, trained, folder):
    agent = job.make_critical_agent(folder, None)
    rows = job.learn(agent)
    check_equal(trained[f"ppo-{choice}"], (rows, job.weights_of(agent)))
    assert rows[-1]["train/explained_variance"] != 0


@pytest.mark.parametrize("choice", [None, "zero2"])
def test_behaviour_cloning_on_two_ranks(choice, trained):
    agent = job.make_cloning_agent(muon=False)
    check_equal(trained[f"cloning-{choice}"], (job.clone(agent), job.weights_of(agent)))


def test_a_network_is_moved_and_clipped_enough_to_compare(network):
    assert min(network["norms"]) > 2 * muon_network.SETTINGS.max_grad_norm
    for name, value in muon_network.Network().state_dict().items():
        assert (network["weights"][name] - value).abs().max() > 500 * muon_network.LIMIT


@pytest.mark.parametrize("choice", muon_network.ON_RANKS)
def test_muon_on_two_ranks(choice, trained, network, folder):
    found = torch.load(folder / "networks" / f"{choice}.pt", weights_only=True)
    muon_network.assert_same(found, network)


@pytest.mark.parametrize(("written", "choice"), muon_network.RESUMED)
def test_muon_is_resumed_under_zero(written, choice, trained, network, folder):
    path = folder / "networks" / f"{written}-as-{choice}.pt"
    resumed = torch.load(path, weights_only=True)
    muon_network.assert_same(resumed, network)
    if written == choice:  # nothing is lost at all
        whole = torch.load(path.with_stem(choice), weights_only=True)
        assert resumed["norms"] == whole["norms"][muon_network.HALF :]
        assert distance(resumed["weights"], whole["weights"]) == 0
        for name, state in whole["optimizer"].items():
            assert distance(resumed["optimizer"][name], state) == 0


@pytest.mark.parametrize("written", job.MUON)
def test_muon_under_zero_is_resumed_by_one_process(written, trained, network, folder):
    path = folder / "networks" / f"{written}-half.pt"
    with warnings.catch_warnings(action="error"):  # nothing is lost
        norms, engine = muon_network.train(resumed=path)
    muon_network.write(path.with_stem(f"{written}-as-alone"), engine, norms)
    muon_network.assert_same(
        torch.load(path.with_stem(f"{written}-as-alone"), weights_only=True), network
    )


def test_a_policy_learns_the_same_by_muon_at_both_stages(trained):
    (rows, weights), (other_rows, others) = (trained[f"muon-{choice}"] for choice in job.MUON)
    assert rows == other_rows
    assert distance(weights, others) == 0
    start = small_policy().model.state_dict()
    assert distance(weights, start) > 50 * LIMIT
    assert all(row["train/grad_norm"] > 2 * job.WITH_MUON["max_grad_norm"] for row in rows)
    agent = job.make_cloning_agent(**job.WITH_MUON)
    found = job.clone(agent), job.weights_of(agent)
    # What never has a gradient decays under ZeRO only.
    learning = [name for name, value in found[1].items() if not torch.equal(value, start[name])]
    assert len(start) - len(learning) < 5
    check_equal((rows, chosen(weights, learning)), (found[0], chosen(found[1], learning)))


def test_a_policy_trained_by_muon_is_resumed_without_any_loss(trained):
    (rows, weights), (resumed, others) = trained["muon-zero2"], trained["muon-zero2-as-zero2"]
    assert resumed == rows[job.HALF :]
    assert distance(weights, others) == 0


@pytest.mark.parametrize(("choice", "muon"), job.TOWERS)
def test_towers_have_a_rate_of_their_own_on_two_ranks(choice, muon, trained):
    agent = job.make_cloning_agent(**job.WITH_MUON | job.OWN_RATE | {"muon": muon})
    start = job.weights_of(agent)
    alone = job.clone(agent), job.weights_of(agent)
    rows, weights = trained[f"tower-{choice}-{muon}"]
    # What never has a gradient decays under ZeRO only.
    learning = [name for name, value in alone[1].items() if not torch.equal(value, start[name])]
    check_equal((rows, chosen(weights, learning)), (alone[0], chosen(alone[1], learning)))


@pytest.mark.parametrize("choice", job.MUON)
def test_one_process_gets_all_that_the_ranks_had_of_muon(choice, trained, folder):
    checkpoint = folder / "checkpoints" / f"muon-{choice}"
    agent = job.make_cloning_agent(**job.WITH_MUON)
    with warnings.catch_warnings(action="error"):  # nothing is lost
        agent.load(checkpoint)
    ranks = torch.load(checkpoint / "shares.pt", weights_only=True)
    assert distance(job.weights_of(agent), ranks["weights"]) == 0
    state, model = agent.engine.state_dict(), agent.policy.model
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    hidden, rest = split_parameters(model, muon=True)
    groups = zip((rest, hidden), zip(*ranks["shares"], strict=True), strict=True)
    for parameters, shares in groups:
        for key in shares[0].keys() - {"step"}:
            laid_out = torch.cat([share[key] for share in shares])
            whole = torch.cat([state[names[id(each)]][key].flatten() for each in parameters])
            assert torch.equal(whole, laid_out[: len(whole)])
            assert whole.any()
            assert not laid_out[len(whole) :].any()  # slices are of equal lengths
    assert all(state[names[id(each)]]["step"] == job.HALF for each in [*rest, *hidden])
    assert all(state[names[id(each)]].keys() == {"momentum_buffer", "step"} for each in hidden)


def rank_of(process_id):
    """Which rank a process is, or None."""
    try:
        variables = Path(f"/proc/{process_id}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((int(each[5:]) for each in variables if each.startswith(b"RANK=")), None)


def children_of(process):
    """The processes that a launcher started, by rank."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return {rank_of(child): int(child) for child in path.read_text().split()}


def run_arguments(folder, output):
    return [
        *("--policy", folder / "policy", "--precision", "float32", "--output-dir", output),
        *("--seed", "3", "--updates", "8", "--checkpoint-every", "1", "--gspo.no-muon"),
        *("--difficulty", "easy", "--negatives", "0"),
        *("--gspo.prompts-per-update", "4", "--gspo.group-size", "3"),
        *("--gspo.max-new-tokens", "24", "--gspo.learning-rate", "3e-4"),
        *("--gspo.adam-epsilon", str(job.STEADY["adam_epsilon"])),
        *("--evaluation.questions", "5", "--evaluation.answers", "2", "--evaluation.every", "4"),
    ]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds ranks in /proc")
def test_a_killed_rank_ends_the_others_and_the_run_goes_on(folder, tmp_path):
    output, whole = tmp_path / "killed", tmp_path / "whole"

    def launched(to):
        return ["experiments/run_gspo.py", *run_arguments(folder, to), "--deepspeed", "zero2"]

    words = launched(output)
    process = start(*words)
    deadline = time.monotonic() + 200
    while latest_checkpoint(output / "checkpoints") is None:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.01)
    os.kill(children_of(process)[1], signal.SIGKILL)
    killed = time.monotonic()
    printed = finish(process, 100)
    assert time.monotonic() - killed < 60
    assert process.returncode != 0
    assert "rank 0: another process of this run is gone" in printed
    assert "--resume" in printed
    assert re.search(r"Signal 9 \(SIGKILL\)", printed), "torchrun tells which one it was"
    assert not (output / "scores.json").exists()

    resumed = start(*words, "--resume")
    printed = finish(resumed, 250)
    assert resumed.returncode == 0, printed
    uninterrupted = start(*launched(whole))
    printed = finish(uninterrupted, 250)
    assert uninterrupted.returncode == 0, printed
    assert metrics_of(output) == metrics_of(whole)
    found, expected = [json.loads((each / "scores.json").read_text()) for each in (output, whole)]
    for when in ("before", "after"):
        assert found[when] == expected[when]
    assert distance(policy_weights(output), policy_weights(whole)) == 0

    # One process finds the same of the policy that both began with. (What it comes to with the same
    # rollouts is told above: sampling further, a last digit may one day choose another token.)
    words = [*run_arguments(folder, tmp_path / "alone"), "--updates", "1"]
    scores = run_gspo.main(tyro.cli(run_gspo.Args, args=[str(word) for word in words]))
    before, alone = found["before"], scores["before"]
    assert before["giou"] == pytest.approx(alone["giou"])
    assert before["sampled"]["giou"] == pytest.approx(alone["sampled"]["giou"])


def metrics_of(output):
    return [
        {key: value for key, value in row.items() if not key.startswith("time/")}
        for row in read_metrics(output)
    ]


def policy_weights(output):
    return VLMPolicy.from_pretrained(output / "policy").model.state_dict()


def test_things_are_shared_out_in_contiguous_blocks():
    blocks = [World(rank, 3).block(12, "batch_size") for rank in range(3)]
    assert [list(range(12))[block] for block in blocks] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    with pytest.raises(ValueError, match=r"batch_size=8 .*among 3 processes: .*multiple of 3"):
        World(0, 3).block(8, "batch_size")


def test_prompts_share_out_over_ranks_and_minibatches():
    config = GSPOConfig(prompts_per_update=8, group_size=5, minibatches=2)
    assert config.rows_of(World()) == 40
    assert config.rows_of(World(1, 2)) == 20
    assert config.prompts_of(World(1, 2)) == slice(4, 8)
    with pytest.raises(ValueError, match=r"prompts_per_update=8 .*8 processes.*multiple of 16"):
        config.rows_of(World(0, 8))


@pytest.mark.parametrize(("prompts", "minibatches"), [(1, 2), (4, 0)])
def test_every_minibatch_needs_a_prompt(prompts, minibatches):
    config = GSPOConfig(prompts_per_update=prompts, minibatches=minibatches)
    with pytest.raises(ValueError, match=rf"minibatches={minibatches} of .*update={prompts}:"):
        config.prompts_of(World())


def test_metrics_of_parts_are_averaged_and_the_largest_of_maxima_is_kept():
    parts = [{"loss": 1.0, "ratio_max": 3.0}, {"loss": 4.0, "ratio_max": 2.0}]
    assert combine(parts) == {"loss": 2.5, "ratio_max": 3.0}
    assert combine(parts, [0.75, 0.25]) == {"loss": 1.75, "ratio_max": 3.0}


def test_muon_is_refused_at_stage_3_and_replaced_on_the_command_line(capsys):
    from rich.console import Console

    with pytest.raises(ValueError, match=r"Muon needs whole matrices.*--gspo.no-muon"):
        make_engine(nn.Linear(2, 2), OptimizerSettings(1e-3, deepspeed="zero3"))
    config = GSPOConfig(learning_rate=3e-4)
    fit_to_deepspeed(config, None, Console())
    assert config == GSPOConfig(learning_rate=3e-4)
    fit_to_deepspeed(config, "zero3", Console(width=300))
    assert (config.muon, config.deepspeed) == (False, "zero3")
    assert config.learning_rate == pytest.approx(1e-4)
    assert "a third of the learning rate (0.0001)" in capsys.readouterr().out
    given = GSPOConfig(learning_rate=3e-4, muon=False)
    fit_to_deepspeed(given, "zero3", Console())
    assert given.learning_rate == 3e-4


@pytest.mark.parametrize("choice", ["zero1", "zero2"])
def test_muon_stays_where_weights_are_whole(choice, capsys):
    from rich.console import Console

    config = GSPOConfig(learning_rate=3e-4)
    fit_to_deepspeed(config, choice, Console())
    assert config == GSPOConfig(learning_rate=3e-4, deepspeed=choice)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "give zero1, zero2, zero3, or the path"),
        ({"zero_optimization": {"stage": 0}}, ValueError, "stage 0: use 1, 2 or 3"),
        ({"optimizer": {"type": "Adam"}}, ValueError, "sets optimizer, which is the agent's"),
    ],
)
def test_a_configuration_of_deepspeed_that_cannot_be_used_is_named(
    content, error, message, tmp_path
):
    path = tmp_path / "own.json"
    if content is not None:
        path.write_text(json.dumps(content))
    settings = OptimizerSettings(1e-3, muon=False)
    with pytest.raises(error, match=f"own.json.*{message}"):
        make_engine(nn.Linear(2, 2), replace(settings, deepspeed=str(path)))


def test_the_word_that_the_deepspeed_launcher_adds_is_left_out():
    assert command_words(["--local_rank=1", "--seed", "3"]) == ["--seed", "3"]


def test_what_another_optimizer_left_behind_is_lost_with_a_warning():
    muon, adamw = (
        Engine(small_policy().model, OptimizerSettings(1e-3, muon=muon)) for muon in (True, False)
    )
    for engine in (muon, adamw):
        sum(parameter.square().sum() for parameter in engine.module.parameters()).backward()
        engine.step(1e-3)
    with pytest.warns(UserWarning, match="lost, they were trained by another optimizer"):
        adamw.load_state_dict(muon.state_dict())
    with pytest.warns(UserWarning, match="lost, they are not trained here: stranger"):
        muon.load_state_dict(muon.state_dict() | {"stranger": {"step": torch.tensor(1.0)}})


@pytest.mark.timeout(900)  # a quarter of a core, of a machine that may be busy with others too
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be pinned here")
def test_ranks_end_in_good_order_on_a_busy_processor():
    busy = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass"
    others = [subprocess.Popen([sys.executable, "-c", busy]) for _ in range(3)]
    try:
        for _ in range(2):
            process = start("tests/leaving_job.py")
            output = finish(process, 400)
            assert process.returncode == 0, output
    finally:
        for other in others:
            other.kill()
            other.wait()
