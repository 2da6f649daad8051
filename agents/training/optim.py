"""From losses to weights: the engine that steps them, and its optimizer, also under ZeRO.

The optimizer is Muon for hidden matrices, with AdamW for the rest.

Muon's update is that of ``torch.optim.Muon`` (Jordan 2024), bit for bit in bfloat16, the only type
torch's supports: without bfloat16 instructions it takes longer than a small policy's gradients.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from agents.policy.families import vision_parameters
from agents.training.distributed import World
from agents.training.hardware import multiplies_bfloat16
from agents.training.settings import MuonPrecision, OptimizerSettings

BETAS = (0.9, 0.95)
"""Of AdamW."""
MOMENTUM = 0.95
"""Of Muon, with Nesterov's look-ahead."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: five rounds bring singular values between 0.7 and 1.2, not to 1."""
ROUNDS = 5
MASTER = "master"
"""Key of the float32 weights that ZeRO keeps beside weights of lower precision."""

OptimizerState = dict[str, dict[str, Tensor]]
"""By the names of parameters: ``step``, with ``exp_avg`` and ``exp_avg_sq`` of AdamW or the
``momentum_buffer`` of Muon, and `MASTER`, all but ``step`` of the parameter's shape."""


class Engine:
    """Accumulates gradients of a module and applies them.

    Every rank has the whole module, and gradients are averaged: plain data parallelism.
    """

    def __init__(self, module: nn.Module, settings: OptimizerSettings) -> None:
        """Make the optimizer of a module's parameters; every rank takes rank 0's weights."""
        self.module, self.settings, self.world = module, settings, World.current()
        if self.world.size > 1:
            for tensor in chain(module.parameters(), module.buffers()):
                dist.broadcast(tensor.data, 0)
        self.optimizer = HybridOptimizer(module, settings)

    def forward(self, function: Callable[[], Tensor]) -> Tensor:
        """Call a function that passes through the module.

        Every pass but those inside `gathered_weights` goes through here, and ranks must make the
        same passes in the same order: DeepSpeed may have to gather weights on the way.
        """
        return function()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar loss, a mean over this rank's share."""
        loss.backward()

    def step(self, learning_rate: float) -> float:
        """Apply and clear the gradients; returns their norm before clipping.

        Gradients whose norm is not finite are not applied.
        """
        parameters = [each for each in self.module.parameters() if each.grad is not None]
        if self.world.size > 1:
            for parameter in parameters:
                assert parameter.grad is not None
                dist.all_reduce(parameter.grad.div_(self.world.size))
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm).item()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate"]
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    @contextmanager
    def gathered_weights(self, *, change: bool = False) -> Iterator[None]:
        """Hold all weights inside the block, to use them at this rank's own pace.

        With ``change`` the block sets weights, the same ones on every rank.
        """
        yield
        if change:
            self.optimizer.refresh_masters()

    def state_dict(self) -> dict[str, Any]:
        """State of the optimizer by the names of parameters: tensors and numbers only.

        Every rank must call this; only the main one gets the whole state.
        """
        return self.optimizer.named_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict` of any kind of engine and any number of ranks."""
        self.optimizer.load_named_state(state)


class HybridOptimizer(torch.optim.AdamW):
    """Muon on hidden matrices and AdamW on everything else.

    Muon (update scale of Moonlight, arXiv 2502.16982, the variant SimpleSeg names) orthogonalises
    the momentum of hidden matrices. Embeddings, output heads, norms, biases and convolutions stay
    with AdamW. Each of the two has a parameter group, told apart by ``"hidden"``; if towers have a
    learning rate of their own there are two more, whose ``"rate"`` multiplies the common one.

    Half-precision weights have float32 masters, which are stepped instead (arXiv 1710.03740,
    section 3.1): most steps are smaller than the smallest change of such a weight.
    """

    makes_masters = True

    def __init__(self, model: nn.Module, settings: OptimizerSettings) -> None:
        """Sort the trainable parameters of a model; without Muon all go to AdamW."""
        self.hidden, rest = split_parameters(model, settings.muon)
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.precision: MuonPrecision = settings.muon_precision
        self.sources: dict[int, nn.Parameter] = {}
        """The weight of each float32 master, by the master's id."""
        self.towers = frozenset[int]()
        """Ids of the parameters with a rate of their own."""
        if (own := settings.vision_learning_rate) is not None:
            policies = _policies_in(model)
            self.towers = frozenset(id(x) for each in policies for x in vision_parameters(each))
        groups: list[dict[str, Any]] = [
            {
                "params": [
                    self._stepped(each) for each in chosen if (id(each) in self.towers) is vision
                ],
                "hidden": hidden,
                "vision": vision,
                "rate": own / settings.learning_rate if vision and own is not None else 1.0,
            }
            for vision in (False, True)
            for hidden, chosen in ((False, rest), (True, self.hidden))
        ]
        super().__init__(
            [group for group in groups if group["params"]],
            settings.learning_rate,
            BETAS,
            settings.adam_epsilon,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    @property
    def hidden_names(self) -> frozenset[str]:
        """Names of the parameters that Muon trains."""
        return frozenset(self.names[id(parameter)] for parameter in self.hidden)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply the gradients of the current parameter groups."""
        groups = self.param_groups
        loss = None
        for group in groups:
            masters = [each for each in group["params"] if id(each) in self.sources]
            plain = [each for each in group["params"] if id(each) not in self.sources]
            found = self._step_group(group | {"params": plain}, closure)
            loss = loss if found is None else found
            for master in masters:  # one at a time, for the memory of float32 gradients
                source = self.sources[id(master)]
                if source.grad is not None:
                    master.grad = source.grad.float()
                    self._step_group(group | {"params": [master]})
                    source.copy_(master)
                    master.grad = None
        self.param_groups = groups
        return loss

    def _step_group(self, group: dict[str, Any], closure: Callable[[], Any] | None = None) -> Any:
        if not group["hidden"]:
            self.param_groups = [group]
            return super().step(closure)
        for weights in group["params"]:
            if weights.grad is not None:
                self._step_hidden(weights, self._follow_momentum(weights, group), group)
        return None

    def _step_hidden(self, weights: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        """One step of Muon along an update of weights of a group."""
        step = orthogonalize(update, self.precision)
        weights.add_(step, alpha=-step_size(update, group["lr"]))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, those of half precision too."""
        super().zero_grad(set_to_none)
        for source in self.sources.values():
            source.grad = None

    def _stepped(self, parameter: nn.Parameter) -> nn.Parameter:
        """What is stepped for a parameter: itself or, in half precision, its float32 master."""
        if not self.makes_masters or parameter.dtype not in (torch.bfloat16, torch.float16):
            return parameter
        master = nn.Parameter(parameter.detach().float())
        self.sources[id(master)] = parameter
        self.names[id(master)] = self.names[id(parameter)]
        return master

    @torch.no_grad()
    def refresh_masters(self) -> None:
        """Take over weights that were set from outside."""
        for group in self.param_groups:
            for each in group["params"]:
                if id(each) in self.sources:
                    each.copy_(self.sources[id(each)])

    def _follow_momentum(self, weights: Tensor, group: dict[str, Any]) -> Tensor:
        """Decay weights and update their momentum; returns the direction, in the gradient's memory.

        All of this is element by element, and so can be done to any part of the weights.
        """
        state, gradient = self.state[weights], weights.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weights)
        state["step"] = state.get("step", torch.tensor(0.0)) + 1  # torch expects it of every state
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
        weights.mul_(1 - group["lr"] * group["weight_decay"])
        return gradient.lerp_(momentum, MOMENTUM)  # Nesterov's

    def named_state(self) -> OptimizerState:
        """State by the names of parameters; those that never had a gradient have none."""
        return {
            self.names[id(stepped)]: state
            | ({MASTER: stepped.detach()} if id(stepped) in self.sources else {})
            for stepped, state in self.state.items()
        }

    def load_named_state(self, states: OptimizerState) -> None:
        """Resume from a state; warns of unusable parts, which start afresh."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        trained = {self.names[id(parameter)]: parameter for parameter in parameters}
        self.state.clear()
        self.refresh_masters()
        for name, state in usable_states(states, trained, self.hidden_names).items():
            device = trained[name].device
            self.state[trained[name]] = {
                key: value.to(device, copy=True) for key, value in state.items() if key != MASTER
            }
            if MASTER in state and id(trained[name]) in self.sources:
                trained[name].data.copy_(state[MASTER])


def step_size(matrix: Tensor, learning_rate: float) -> float:
    """Factor of an orthogonal matrix in a step: ``0.2 sqrt(max(rows, columns))`` times the rate.

    Steps are then of the size of AdamW's (arXiv 2502.16982, equation 4).
    """
    return learning_rate * 0.2 * math.sqrt(max(matrix.shape))


def orthogonalize(matrix: Tensor, precision: MuonPrecision = "auto") -> Tensor:
    """Bring a matrix's singular values near 1, ``(rows, columns)``, in the type of a precision."""
    first, third, fifth = COEFFICIENTS
    if precision == "auto":
        precision = "bfloat16" if multiplies_bfloat16(matrix.device) else "float32"
    found = matrix.to({"float32": torch.float32, "bfloat16": torch.bfloat16}[precision])
    tall = len(found) > found.shape[1]
    if tall:
        found = found.T
    found = found / found.norm().clamp(min=1e-7)
    for _ in range(ROUNDS):
        gram = found @ found.T
        change = torch.addmm(gram, gram, gram, beta=third, alpha=fifth)
        found = torch.addmm(found, change, found, beta=first)
    return found.T if tall else found


def split_parameters(model: nn.Module, muon: bool) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters as (hidden matrices for Muon, all others).

    The two matrices of an adapter form one of low rank, which Muon would not know: AdamW trains
    them.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    finders: list[Any] = [getattr(each, "get_output_embeddings", None) for each in model.modules()]
    heads = [find() for find in finders if find is not None]
    excluded = tables | {id(head.weight) for head in heads if head is not None}
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        matrix = muon and parameter.ndim == 2 and id(parameter) not in excluded
        matrix = matrix and ".lora_" not in name
        (hidden if matrix else rest).append(parameter)
    return hidden, rest


def _policies_in(module: nn.Module) -> list[Any]:
    """Models with an output layer: a policy's, and a critic's of its own."""
    models = [each for each in module.modules() if isinstance(each, PreTrainedModel)]
    return [each for each in models if each.get_output_embeddings() is not None]


def usable_states(
    states: OptimizerState, names: Collection[str], hidden: Collection[str] = ()
) -> OptimizerState:
    """The part of a saved state that an optimizer can go on from; warns of what is lost.

    ``names`` are the trained parameters, ``hidden`` those of them that Muon trains.
    """
    known = {name: state for name, state in states.items() if name in names and state}
    found = {
        name: state
        for name, state in known.items()
        if ("momentum_buffer" in state) == (name in hidden)
    }
    for lost, why in (
        (known.keys() - found.keys(), "were trained by another optimizer (Muon, AdamW) before"),
        (states.keys() - names, "are not trained here"),
    ):
        if lost:
            warnings.warn(
                f"the optimizer state of {len(lost)} parameters in the checkpoint is lost, they "
                f"{why}: {min(lost)}{', …' if len(lost) > 1 else ''}",
                stacklevel=2,
            )
    return found


class Piece(NamedTuple):
    """The part of a matrix, laid flat, that a rank holds in its slice of all hidden matrices."""

    in_matrix: slice
    in_slice: slice


@dataclass(frozen=True)
class Matrix:
    """A hidden matrix, and which rank has which part of it."""

    shape: torch.Size
    device: torch.device
    """Where it is orthogonalised; its slice may be kept in main memory."""
    pieces: dict[int, Piece]
    """By rank; ranks that have nothing of it are left out."""
    vision: bool
    """Whether it is one of the tower's, which then has a parameter group of its own."""


class PartitionedHybridOptimizer(HybridOptimizer):
    """`HybridOptimizer` under ZeRO, where a rank steps a slice of the weights laid end to end.

    DeepSpeed averages gradients, clips them by their global norm, replaces the parameters of every
    group by the rank's slice of them, and steps the groups one after another. AdamW and Muon's
    momentum work element by element and so on slices, which also shards their state.
    Orthogonalising needs whole matrices: those that a boundary cuts, one or two per rank, are
    assembled by the ranks that have parts of them, each of which computes the step and takes its
    part. The update equals that of one process, with little more communication than AdamW.
    """

    makes_masters = False  # DeepSpeed has its own
    matrices: Sequence[Matrix] = ()

    def locate(self, world: World) -> None:
        """Find out which rank has what; all ranks must call it once weights are sharded."""
        found = world.gather([_piece_of(parameter) for parameter in self.hidden])
        self.matrices = [
            Matrix(
                parameter.shape,
                parameter.device,
                {rank: piece for rank, piece in enumerate(pieces) if piece is not None},
                id(parameter) in self.towers,
            )
            for parameter, pieces in zip(self.hidden, zip(*found, strict=True), strict=True)
        ]

    def _step_hidden(self, weights: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        """One step of Muon on this rank's slice; all ranks must call it together."""
        rank = World.current().rank
        wholes: list[tuple[Matrix, Tensor]] = []
        exchange = []
        for tag, matrix in enumerate(self.matrices):
            if matrix.vision != group["vision"] or (piece := matrix.pieces.get(rank)) is None:
                continue
            whole = mine = update[piece.in_slice]
            if len(matrix.pieces) > 1:
                whole = mine.new_empty(matrix.shape.numel())
                whole[piece.in_matrix] = mine
            for other, theirs in matrix.pieces.items():
                if other != rank:
                    exchange.append(dist.P2POp(dist.isend, mine, other, tag=tag))
                    exchange.append(dist.P2POp(dist.irecv, whole[theirs.in_matrix], other, tag=tag))
            wholes.append((matrix, whole.view(matrix.shape)))
        for work in dist.batch_isend_irecv(exchange) if exchange else ():
            work.wait()
        for matrix, whole in wholes:
            piece = matrix.pieces[rank]
            part = weights[piece.in_slice]
            step = orthogonalize(whole.to(matrix.device), self.precision).flatten()
            step = step[piece.in_matrix].to(weights.device)
            part.add_(step, alpha=-step_size(whole, group["lr"]))


def _piece_of(parameter: Any) -> Piece | None:
    """The part of a parameter in this rank's slice, as DeepSpeed has it."""
    if (fragment := parameter._hp_mapping) is None:
        return None
    held, slot = fragment.lp_fragment_address, fragment.hp_fragment_address
    return Piece(
        slice(held.start, held.start + held.numel), slice(slot.start, slot.start + held.numel)
    )
