"""Muon beside AdamW and torch's own, and the learning-rate schedule."""

import copy

import pytest
import torch
from agents_fixtures import parameters_of, same_parameters, small_policy
from torch import nn

from agents.critic import Critic
from agents.training import optim
from agents.training.optim import Engine, HybridOptimizer, orthogonalize, split_parameters
from agents.training.settings import OptimizerSettings


class Network(nn.Module):
    """One parameter of every kind."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.patches = nn.Conv2d(3, 4, 2)
        self.hidden = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.head = nn.Linear(6, 5, bias=False)

    def get_output_embeddings(self):
        return self.head

    def forward(self, words, image):
        seen = self.table(words) + self.patches(image).mean((-2, -1))
        return self.head(self.norm(self.hidden(seen)))


def hybrid(model, learning_rate, **settings):
    return HybridOptimizer(model, OptimizerSettings(learning_rate, **settings))


def network():
    torch.manual_seed(0)
    return Network()


def gradients(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(5, 3, 4, 4, generator=generator)
    targets = torch.randint(5, (5,), generator=generator)
    nn.functional.cross_entropy(model(torch.arange(5), image), targets).backward()


def test_only_hidden_matrices_go_to_muon():
    model = network()
    hidden, rest = split_parameters(model, muon=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in hidden} == {"hidden.weight"}
    assert {names[id(p)] for p in rest} == {
        *("table.weight", "patches.weight", "patches.bias"),
        *("hidden.bias", "norm.weight", "norm.bias", "head.weight"),
    }


def test_without_muon_all_trainable_parameters_go_to_adamw():
    hidden, rest = split_parameters(network(), muon=False)
    assert hidden == []
    assert len(rest) == 8


def test_tied_embeddings_are_no_hidden_matrices_and_nothing_is_counted_twice():
    model = small_policy().model
    hidden, rest = split_parameters(model, muon=True)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert all(parameter is not model.get_input_embeddings().weight for parameter in hidden)
    assert len({id(p) for p in [*hidden, *rest]}) == len(hidden) + len(rest)
    assert len(hidden) + len(rest) == len(list(model.parameters()))


def untied_policy():
    """A policy whose head has weights of its own."""
    policy = small_policy()
    embeddings = policy.model.get_input_embeddings()
    policy.model.set_output_embeddings(nn.Linear(*reversed(embeddings.weight.shape), bias=False))
    return policy


@pytest.mark.parametrize("make", [small_policy, untied_policy], ids=["tied", "untied"])
def test_no_head_is_a_hidden_matrix_of_a_policy_or_its_critic(make):
    policy = make()
    critic = Critic(policy, "separate", rate=1.0)
    actor_critic = nn.ModuleDict({"model": policy.model, "critic": critic})
    hidden, rest = split_parameters(actor_critic, muon=True)
    names = {id(each): name for name, each in actor_critic.named_parameters()}
    assert len(hidden) + len(rest) == len(names)
    tables = ("lm_head", "embed_tokens", "position_embedding")
    assert not [names[id(each)] for each in hidden if any(t in names[id(each)] for t in tables)]
    for model in (policy.model, critic.model):
        head = model.get_output_embeddings().weight
        assert (head is model.get_input_embeddings().weight) == (make is small_policy)
        assert any(head is each for each in rest)
    layers = [name for name in names.values() if "_proj.weight" in name]
    assert layers
    assert set(layers) <= {names[id(each)] for each in hidden}


def test_a_head_that_muon_trained_before_starts_afresh_with_a_warning():
    model = network()
    optimizer = hybrid(model, 1e-2)
    gradients(model)
    optimizer.step()
    old = optimizer.named_state() | {"head.weight": {"momentum_buffer": torch.ones(5, 6)}}
    with pytest.warns(UserWarning, match="1 parameters in the checkpoint is lost.*head.weight"):
        optimizer.load_named_state(old)
    assert "head.weight" not in optimizer.named_state()


def test_adamw_alone_equals_torchs():
    ours, theirs = network(), network()
    optimizer = hybrid(ours, 1e-2, weight_decay=0.1, muon=False)
    reference = torch.optim.AdamW(theirs.parameters(), 1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    for seed in range(3):
        gradients(ours, seed)
        gradients(theirs, seed)
        for each in (optimizer, reference):
            each.step()
            each.zero_grad()
    for ours_p, theirs_p in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours_p, theirs_p)


def test_muon_steps_are_orthogonal_and_of_the_size_of_adamws():
    model = network()
    before = model.hidden.weight.detach().clone()
    optimizer = hybrid(model, 1e-2)
    gradients(model)
    optimizer.step()
    step = (model.hidden.weight.detach() - before) / 1e-2
    # Moonlight's scale: 0.2 * sqrt(max(rows, columns)) times an orthogonal matrix.
    spectrum = torch.linalg.svdvals(step) / (0.2 * 6**0.5)
    assert ((spectrum > 0.6) & (spectrum < 1.3)).all()


def test_an_engines_step_clears_the_gradients_and_frozen_parameters_stay():
    model = network()
    frozen = model.frozen.weight.detach().clone()
    gradients(model)
    Engine(model, OptimizerSettings()).step(1e-2)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(model.frozen.weight, frozen)


def test_the_learning_rate_reaches_both_parts():
    model = network()
    optimizer = hybrid(model, 1e-2)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = copy.deepcopy(model.state_dict())
    gradients(model)
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_restored_optimizer_goes_on_exactly():
    model = network()
    optimizer = hybrid(model, 1e-2)
    gradients(model, 0)
    optimizer.step()
    other = copy.deepcopy(model)
    restored = hybrid(other, 1e-2)
    restored.load_named_state(copy.deepcopy(optimizer.named_state()))
    for each, its in ((model, optimizer), (other, restored)):
        its.zero_grad()
        gradients(each, 1)
        its.step()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_it_steps_like_torchs_two_and_is_restored_as_any_optimizer_of_torch():
    def step(gradient, policy, *optimizers):
        for parameter in policy.model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        for optimizer in optimizers:
            optimizer.step()

    ours, theirs, loaded = small_policy(), small_policy(), small_policy()
    joint = hybrid(ours.model, 1e-2, muon_precision="bfloat16")
    hidden, rest = split_parameters(theirs.model, muon=True)
    parts = (
        torch.optim.AdamW(rest, 1e-2, optim.BETAS, weight_decay=0.0, fused=True),
        torch.optim.Muon(hidden, 1e-2, 0.0, optim.MOMENTUM, adjust_lr_fn="match_rms_adamw"),
    )
    step(0.1, ours, joint)
    step(0.1, theirs, *parts)
    assert same_parameters(ours, theirs)

    other = hybrid(loaded.model, 5e-2, muon_precision="bfloat16")
    loaded.model.load_state_dict(ours.model.state_dict())
    other.load_state_dict(joint.state_dict())
    assert {group["lr"] for group in other.param_groups} == {1e-2}
    step(0.3, loaded, other)
    step(0.3, theirs, *parts)
    assert same_parameters(loaded, theirs)


SHAPES = [(6, 4), (4, 6), (24, 24), (128, 512)]


@pytest.mark.parametrize("muon", [False, True])
def test_towers_have_a_rate_of_their_own(muon):
    moved = {}
    for rate in (None, 1e-3):
        policy = small_policy()
        before = parameters_of(policy)
        settings = OptimizerSettings(1e-2, muon=muon, vision_learning_rate=rate)
        engine = Engine(policy.model, settings)
        for parameter in policy.model.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)
        engine.step(0.5e-2)  # of a schedule that is halfway
        moved[rate] = {
            name: value - before[name] for name, value in policy.model.named_parameters()
        }
    towers = [name for name in moved[None] if "vision_tower" in name or "projector" in name]
    assert 10 < len(towers) < len(moved[None]) - 10
    for name, found in moved[1e-3].items():
        share = 0.1 if name in towers else 1.0
        torch.testing.assert_close(found, share * moved[None][name], rtol=1e-3, atol=1e-7)


def in_bfloat16():
    policy = small_policy()
    policy.model.to(torch.bfloat16)
    return policy


@pytest.mark.parametrize("muon", [False, True])
def test_steps_too_small_for_weights_in_bfloat16_add_up_in_their_masters(muon):
    policy, exact = in_bfloat16(), in_bfloat16()
    exact.model.float()
    before = parameters_of(policy)
    settings = OptimizerSettings(1e-5, muon=muon, muon_precision="float32", max_grad_norm=1e9)
    engines = [Engine(each.model, settings) for each in (policy, exact)]
    generator = torch.Generator().manual_seed(0)
    for step in range(30):
        pairs = zip(policy.model.parameters(), exact.model.parameters(), strict=True)
        for ours, theirs in pairs:
            ours.grad = torch.randn(ours.shape, generator=generator).abs().bfloat16()
            theirs.grad = ours.grad.float()
        for engine in engines:
            engine.step(1e-5)
        if step == 14:
            saved = copy.deepcopy((policy.model.state_dict(), engines[0].state_dict()))
            policy = in_bfloat16()
            engines[0] = Engine(policy.model, settings)
            policy.model.load_state_dict(saved[0])
            engines[0].load_state_dict(saved[1])
        assert all(parameter.grad is None for parameter in policy.model.parameters())
    moved = 0
    for name, value in policy.model.state_dict().items():
        wanted = exact.model.state_dict()[name]
        assert torch.equal(value, wanted.bfloat16()), name
        moved += (value != before[name]).sum().item()
    assert moved > 1000


def test_masters_take_over_weights_that_are_set():
    policy = in_bfloat16()
    engine = Engine(policy.model, OptimizerSettings(1e-5))
    with engine.gathered_weights(change=True), torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.fill_(0.5)
    for parameter in policy.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    engine.step(1e-5)
    assert all((parameter == 0.5).all() for parameter in policy.model.parameters())


def matrices(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator) for shape in SHAPES]


def after_steps(make, gradients=3):
    """Weights and states of all matrices once an optimizer has stepped them."""
    parameters = [nn.Parameter(each) for each in matrices(0)]
    optimizer = make(parameters)
    for seed in range(1, gradients + 1):
        for parameter, gradient in zip(parameters, matrices(seed, 1e-3), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return parameters, [optimizer.state[parameter] for parameter in parameters]


def test_steps_in_bfloat16_are_torchs_bit_for_bit():
    ours, our_states = after_steps(
        lambda each: hybrid(
            nn.ParameterList(each), 1e-2, weight_decay=0.1, muon_precision="bfloat16"
        )
    )
    theirs, their_states = after_steps(
        lambda each: torch.optim.Muon(
            each, 1e-2, 0.1, optim.MOMENTUM, adjust_lr_fn="match_rms_adamw"
        )
    )
    assert all(map(torch.equal, ours, theirs))
    for state, other in zip(our_states, their_states, strict=True):
        assert state.keys() - other.keys() == {"step"}
        assert torch.equal(state["momentum_buffer"], other["momentum_buffer"])


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_singular_values_go_where_the_polynomial_takes_them(precision, tolerance):
    first, third, fifth = optim.COEFFICIENTS
    for matrix in matrices(5, scale=30.0):
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        values = values / values.norm()
        for _ in range(optim.ROUNDS):
            values = first * values + third * values**3 + fifth * values**5
        found = orthogonalize(matrix, precision)
        assert found.dtype == getattr(torch, precision)
        apart = found.double() - left @ values.diag() @ right
        assert torch.linalg.matrix_norm(apart, 2) < tolerance
        spectrum = torch.linalg.svdvals(found.double())
        assert ((spectrum > 0.3) & (spectrum < 1.3)).all()


def test_a_matrix_of_zeros_stays_one():
    assert not orthogonalize(torch.zeros(3, 5), "float32").any()


def test_a_parameter_without_a_gradient_is_left_alone():
    kept, moved = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    moved.grad = torch.eye(3)
    optimizer = hybrid(nn.ParameterList([kept, moved]), 1e-2, weight_decay=0.1)
    optimizer.step()
    assert torch.equal(kept, torch.ones(3, 3))
    assert kept not in optimizer.state
    assert not torch.equal(moved, torch.ones(3, 3))


def test_schedule_by_hand():
    settings = OptimizerSettings(2.0, warmup=0.1, final_rate=0.04)
    rates = [settings.rate_at(i, 100) for i in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == 2.0
    assert rates[55] == pytest.approx((2.0 + 0.08) / 2)  # half way down the cosine
    assert rates[100] == pytest.approx(0.08)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_the_schedule_is_the_papers_by_default():
    rates = [OptimizerSettings(5e-5).rate_at(i, 1000) for i in range(1001)]
    assert rates[0] == pytest.approx(5e-5 / 30)
    assert rates[29] == rates[30] == max(rates) == 5e-5
    assert rates[1000] == pytest.approx(2e-6)


def test_the_schedule_of_a_single_update_is_its_peak():
    assert OptimizerSettings(3.0).rate_at(0, 1) == 3.0
