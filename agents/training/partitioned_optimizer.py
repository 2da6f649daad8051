"""Muon and AdamW under ZeRO 1 and 2, where a rank steps a slice of the weights laid end to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from agents.training.distributed import World
from agents.training.optim import BETAS, MOMENTUM, orthogonalize, split_parameters, step_size
from agents.training.settings import OptimizerSettings


@dataclass(frozen=True)
class Piece:
    """The part of a matrix in a rank's slice; the matrix, too, is laid flat."""

    start: int
    """First element in the matrix."""
    offset: int
    """First element in the slice."""
    count: int

    def of_matrix(self, flat: Tensor) -> Tensor:
        """This part of a matrix laid flat."""
        return flat[self.start : self.start + self.count]

    def of_slice(self, flat: Tensor) -> Tensor:
        """This part of the rank's slice."""
        return flat[self.offset : self.offset + self.count]


@dataclass(frozen=True)
class Matrix:
    """A hidden matrix, and which rank has which part of it."""

    shape: torch.Size
    device: torch.device
    """Where it is orthogonalised; its slice may be kept in main memory."""
    pieces: dict[int, Piece]
    """By rank; ranks that have nothing of it are left out."""


class PartitionedHybridOptimizer(torch.optim.AdamW):
    """`HybridOptimizer` for DeepSpeed to step.

    DeepSpeed averages gradients, clips them by their global norm, puts a rank's slice of every
    group in the place of its parameters, and steps the groups one after another. AdamW and Muon's
    momentum work element by element and so on slices, which also shards their state.
    Orthogonalising takes whole matrices: those that a boundary cuts, one or two for a rank, are put
    together by the ranks that have parts of them, each of which then computes the step and takes
    its part. This is the update of one process, and costs little more communication than AdamW.
    """

    def __init__(self, model: nn.Module, settings: OptimizerSettings) -> None:
        """Sort the trainable parameters of a model, as `split_parameters` does."""
        self.hidden, rest = split_parameters(model, muon=True)
        self.matrices: list[Matrix] = []
        self._muon_precision = settings.muon_precision
        groups = [{"params": rest, "hidden": False}, {"params": self.hidden, "hidden": True}]
        super().__init__(
            [group for group in groups if group["params"]],
            settings.learning_rate,
            BETAS,
            settings.adam_epsilon,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def locate(self, world: World) -> None:
        """Find out who has what; all ranks must call it once DeepSpeed has cut up the weights."""
        found = world.gather([_piece_of(parameter) for parameter in self.hidden])
        for parameter, pieces in zip(self.hidden, zip(*found, strict=True), strict=True):
            held = {rank: piece for rank, piece in enumerate(pieces) if piece is not None}
            self.matrices.append(Matrix(parameter.shape, parameter.device, held))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply the gradients of the groups that there are at the moment."""
        groups = self.param_groups
        loss = None
        for group in groups:
            if group["hidden"]:
                self._step_hidden(group)
            else:
                self.param_groups = [group]
                loss = super().step(closure)
        self.param_groups = groups
        return loss

    def _step_hidden(self, group: dict[str, Any]) -> None:
        """One step of Muon; the slice must have a state already."""
        (weights,) = group["params"]
        state, rank = self.state[weights], World.current().rank
        state["step"] += 1
        momentum = state["momentum_buffer"].lerp_(weights.grad, 1 - MOMENTUM)
        update = weights.grad.lerp_(momentum, MOMENTUM)  # Nesterov's
        weights.mul_(1 - group["lr"] * group["weight_decay"])
        for matrix, whole in whole_matrices(self.matrices, update, rank):
            update = whole.view(matrix.shape).to(matrix.device)
            step = orthogonalize(update, self._muon_precision).flatten()
            piece = matrix.pieces[rank]
            piece.of_slice(weights).add_(
                piece.of_matrix(step).to(weights.device), alpha=-step_size(update, group["lr"])
            )


def whole_matrices(
    matrices: Sequence[Matrix], own: Tensor, rank: int
) -> Iterator[tuple[Matrix, Tensor]]:
    """Each matrix that this rank has a part of, and its elements, laid flat.

    Every rank must call this, with the same matrices in the same order, and its own slice.
    """
    found, exchange = [], []
    for tag, matrix in enumerate(matrices):
        if (piece := matrix.pieces.get(rank)) is None:
            continue
        whole = mine = piece.of_slice(own)
        if len(matrix.pieces) > 1:
            whole = mine.new_empty(matrix.shape.numel())
            piece.of_matrix(whole).copy_(mine)
        for other, theirs in matrix.pieces.items():
            if other != rank:
                exchange.append(dist.P2POp(dist.isend, mine, other, tag=tag))
                exchange.append(dist.P2POp(dist.irecv, theirs.of_matrix(whole), other, tag=tag))
        found.append((matrix, whole))
    for work in dist.batch_isend_irecv(exchange) if exchange else ():
        work.wait()
    yield from found


def _piece_of(parameter: Any) -> Piece | None:
    """The part of a parameter in this rank's slice, as DeepSpeed has it."""
    if (fragment := parameter._hp_mapping) is None:
        return None
    held, slot = fragment.lp_fragment_address, fragment.hp_fragment_address
    return Piece(held.start, slot.start, held.numel)
