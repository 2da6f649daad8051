"""A network that is trained with Muon by one process and by two ranks, to the same weights.

Its gradients have full rank: a chain of orthogonal matrices, and more rows than any has numbers.
Muon amplifies small singular values several hundred times. Here it orthogonalises in float32: in
bfloat16 the last bit of a gradient may make a difference of 1 in 256 to begin with.
"""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import nn

from agents.training import make_engine
from agents.training.settings import OptimizerSettings

WIDTHS = (41, 24, 40, 24, 41)
"""Of input, hidden layers and output; half of the hidden elements end amid a row of the second."""
ROWS = 512
"""Of a batch, of all ranks together."""
UPDATES, HALF = 5, 3
SETTINGS = OptimizerSettings(
    learning_rate=1e-3, weight_decay=0.1, max_grad_norm=0.05, muon_precision="float32"
)
"""Gradients are four times as long as they may be."""
LIMIT = 5e-6
"""How far weights may be apart; training moves everything by more than 500 times as much."""

ON_RANKS = (None, "zero1", "zero2")
"""How trainings on two ranks are shared out."""
RESUMED = (("zero1", "zero1"), ("zero2", "zero2"), (None, "zero2"), ("alone", "zero2"))
"""Trainings of which the first half is gone on from on two ranks, and as what."""


class Network(nn.Module):
    """Layers of tanh, and a head that Muon leaves to AdamW."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        *hidden, head = (nn.Linear(*widths) for widths in pairwise(WIDTHS))
        for layer in (*hidden, head):
            nn.init.orthogonal_(layer.weight)
        self.hidden, self.head = nn.Sequential(*hidden), head

    def get_output_embeddings(self):
        """As language models tell which layer is the head."""
        return self.head

    def forward(self, values):
        for layer in self.hidden:
            values = torch.tanh(layer(values))
        return self.head(values)


def loss_of(network, update, share):
    """Squared error on some rows of an update's batch: the opposites of its numbers, and noise."""
    generator = torch.Generator().manual_seed(update)
    values, noise = torch.randn(2, ROWS, WIDTHS[0], generator=generator)
    return nn.functional.mse_loss(network(values[share]), (noise - values)[share])


def train(choice=None, resumed=None, halfway=None):
    """Make the updates that are missing.

    Args:
        choice: How to share the training out among the ranks.
        resumed: File to go on from.
        halfway: File to write after the first half.

    Returns:
        Norms of the gradients, and the engine.
    """
    network = Network()
    engine = make_engine(network, replace(SETTINGS, deepspeed=choice))
    if resumed is not None:
        saved = torch.load(resumed, weights_only=True)
        with engine.gathered_weights(change=True):
            network.load_state_dict(saved["weights"])
        engine.load_state_dict(saved["optimizer"])
    share, norms = engine.world.block(ROWS, "rows"), []
    for update in range(0 if resumed is None else HALF, UPDATES):
        engine.backward(engine.forward(partial(loss_of, network, update, share)))
        norms.append(engine.step(SETTINGS.learning_rate))
        if halfway is not None and update + 1 == HALF:
            write(halfway, engine, norms)
    return norms, engine


def write(path, engine, norms):
    """Write down what a training came to; every rank must call it."""
    found = {"norms": norms, "optimizer": engine.state_dict()}
    if engine.world.is_main:
        torch.save(found | {"weights": engine.module.state_dict()}, path)
    engine.world.barrier()


def train_on_ranks(folder):
    """All trainings of two ranks."""
    for choice in ON_RANKS:
        norms, engine = train(choice, halfway=folder / f"{choice}-half.pt")
        if choice is not None:  # otherwise nothing of what is hard would be tested
            assert [len(each.pieces) for each in engine.optimizer.matrices] == [1, 2, 1]
        write(folder / f"{choice}.pt", engine, norms)
    for written, choice in RESUMED:
        norms, engine = train(choice, resumed=folder / f"{written}-half.pt")
        write(folder / f"{written}-as-{choice}.pt", engine, norms)


def assert_same(ours, theirs):
    """What two files hold is the same up to rounding; ours may be of the second half only."""
    norms = theirs["norms"][-len(ours["norms"]) :]
    torch.testing.assert_close(ours["norms"], norms, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours["weights"], theirs["weights"], rtol=0, atol=LIMIT)
    assert ours["optimizer"].keys() == theirs["optimizer"].keys()
    for name, state in theirs["optimizer"].items():
        assert ours["optimizer"][name].keys() == state.keys()
        for key, value in state.items():
            apart = (ours["optimizer"][name][key] - value).abs().max()
            assert apart <= 2e-5 * value.abs().max(), (name, key)
