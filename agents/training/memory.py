"""The memory that an update of GSPO needs, and for what, from a model's configuration alone.

Weights are counted on a model without storage. What autograd keeps of a layer is counted tensor by
tensor for the layers that decoders and towers share today: a norm, attention over rotated queries
and keys, a norm, an MLP. `kept_by_layer` lists them. Mixtures of experts are counted as if every
expert were one MLP.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from agents.policy.adapters import DECODER
from agents.policy.families import vision_parameters
from seg_env.errors import WrongOptionError

FLOAT32, BFLOAT16 = 4, 2
"""Bytes of a number."""
NF4 = 0.5 + 1 / 64 * (1 + 4 / 256)
"""Bytes of a weight in 4 bits (QLoRA, arXiv 2305.14314, section 3): half a byte, and for every 64
of them a constant of 8 bits, 256 of which share one of float32."""
LOGITS_IN_FORWARD = 3
"""Float32 copies of the logits at the end of a forward pass: their logarithms, and two terms of
the entropy (`agents.policy.scoring.score`)."""
LOGITS_IN_SAMPLING = 6
"""Such copies while a token is drawn: logarithms, probabilities, and two in float64
(`agents.policy.sampling.invert_distribution`)."""


@dataclass(frozen=True)
class Update:
    """What one update asks, samples and learns from, and how."""

    prompts: int
    """Prompts of this rank."""
    group_size: int
    """Answers to each."""
    prompts_per_forward: int
    """Prompts of a forward pass."""
    minibatches: int
    """Optimizer steps that the prompts are split into."""
    prompt_tokens: int
    """Tokens of a prompt, those of its image included."""
    image_tokens: int
    """Those of its image."""
    patches: int
    """Patches that the tower sees of an image."""
    pixels: int
    """Values that the processor makes of an image."""
    answer_tokens: int
    """Tokens of the longest answer."""
    weights: int = FLOAT32
    """Bytes of a weight."""
    computed: int = FLOAT32
    """Bytes of an activation."""
    muon: bool = True
    """Whether hidden matrices are trained by Muon."""
    freeze_vision: bool = False
    """Whether tower and projector are not trained."""
    checkpointing: bool = False
    """Whether layers run again in the backward pass."""
    reference: bool = False
    """Whether there is a KL penalty."""
    lora_rank: int = 0
    """Rank of adapters; 0 trains the weights themselves."""
    lora_targets: tuple[str, ...] = (DECODER,)
    """Linear layers of the decoder that have adapters, see `agents.policy.adapters.add_adapter`."""
    four_bits: bool = False
    """Whether linear layers are kept in 4 bits."""
    ranks: int = 1
    """Processes that share what the stage of ZeRO shards."""
    stage: int = 0
    """Stage of ZeRO: 1 shards the optimizer, 2 gradients too, 3 weights too; 0 shards nothing."""

    @property
    def types(self) -> tuple[int, int]:
        """Bytes of a number of the residual stream, and of what is computed."""
        return BFLOAT16 if self.four_bits else self.weights, self.computed


@dataclass(frozen=True)
class Layer:
    """Widths and kind of a transformer layer."""

    width: int
    queries: int
    keys: int
    """Width of all keys, and of all values."""
    mlp: int
    gated: bool
    rms: bool
    """Whether its norms are RMS norms, in several operations; otherwise they are one operation."""
    query_norms: bool = False
    fused: bool = False
    """Whether one linear layer makes queries, keys and values, which share its output's memory."""


@dataclass(frozen=True)
class Kept:
    """Which linear layers keep their inputs: those that are trained or have an adapter."""

    trained: bool
    """Whether the weights of the layer are trained."""
    into_attention: int = 3
    out_of_attention: int = 1
    into_mlp: int = 2
    out_of_mlp: int = 1


@dataclass(frozen=True)
class Need:
    """Bytes by purpose, in one phase of an update."""

    phase: str
    parts: dict[str, float]

    @property
    def total(self) -> float:
        """All bytes."""
        return sum(self.parts.values())


def empty_model(config: Any) -> Any:
    """The model of a configuration, its weights without storage."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def needs_of(model: Any, update: Update) -> list[Need]:
    """The memory that each phase of an update needs; the largest is the peak.

    The optimizer already has its state, as from the second update on. Answers share their prompt,
    which the policy's family must support.

    Raises:
        WrongOptionError: The configuration does not tell how wide layers are.
    """
    try:
        decoder, tower = decoder_layer(model), tower_layer(model)
    except AttributeError as error:
        raise WrongOptionError(
            f"the configuration of {model.config.model_type!r} does not tell how wide its layers "
            f"are ({error})"
        ) from None
    weights = count_weights(model, update)
    optimizer_ranks, gradient_ranks, weight_ranks = (
        update.ranks if update.stage >= stage else 1 for stage in (1, 2, 3)
    )
    base = {
        "weights": weights.loaded / weight_ranks,
        "adapters": weights.adapter * FLOAT32 / weight_ranks,
        "optimizer": weights.optimizer / optimizer_ranks,
        "images": update.prompts * update.pixels * FLOAT32,
    }
    if update.reference and not update.lora_rank:
        base["KL reference"] = weights.loaded
    gradients = (weights.trained * update.weights + weights.adapter * FLOAT32) / gradient_ranks
    # Autocast keeps its copies of weights while a pass lasts; the backward pass needs them, too.
    cast = weights.linear * BFLOAT16 if update.computed < update.weights else 0.0
    unpacked = weights.widest * BFLOAT16 if update.four_bits else 0.0
    vocabulary = model.config.get_text_config(decoder=True).vocab_size

    # Sampling: all prompts of the rank are read at once.
    keys = decoder.keys * depth_of(model.config.get_text_config(decoder=True))
    cached = sum(update.types)  # rotary embeddings leave keys in the type of the stream
    tokens, answers = update.prompt_tokens, update.group_size * update.answer_tokens
    prompts = update.prompts * tokens * keys * (cached + update.types[0])  # keys in two orders
    written = update.prompts * answers * (keys + decoder.keys) * cached
    work = max(tokens * working(decoder, update), update.patches * working(tower, update))
    sampling = base | {"cast weights": cast}
    reading = sampling | {
        "keys and values": prompts,
        "work on a layer": update.prompts * work + unpacked,
    }
    drawn = update.prompts * update.group_size * vocabulary
    writing = sampling | {
        "keys and values": prompts + written,
        "logits": drawn * (update.computed + LOGITS_IN_SAMPLING * FLOAT32),
    }

    # Training: gradients of earlier parts of a minibatch, and what is kept for the backward pass.
    share = update.prompts // update.minibatches
    part = min(update.prompts_per_forward or share, share)
    kept = base | {"cast weights": 0.0 if update.checkpointing else cast}
    kept |= kept_activations(model, update, part)
    kept["gradients"] = gradients if part < share else 0.0
    rows = part * (tokens + answers)
    logits = part * answers * vocabulary
    scored = logits * (update.computed + LOGITS_IN_FORWARD * FLOAT32)
    if update.reference:  # it is scored while the policy's log-probabilities are kept
        scored = logits * FLOAT32 + max(scored, rows * working(decoder, update) + cast + unpacked)
    backward = kept | {
        "logits": logits * update.computed,
        "work on a layer": rows * working(decoder, update, backward=True) + unpacked,
    }
    step = base | {"gradients": gradients, "work on a matrix": weights.stepping}
    return [
        Need("reading prompts", reading),
        Need("writing answers", writing),
        Need("forward", kept | {"logits": scored}),
        Need("backward", backward),
        Need("step", step),
    ]


def kept_activations(model: Any, update: Update, prompts: int) -> dict[str, float]:
    """Bytes that autograd keeps between a forward pass over some prompts and the backward pass.

    Answers share their prompt. With checkpointing layers keep only their inputs, and one of them at
    a time all the rest (arXiv 1604.06174, section 4).
    """
    decoder, tower = decoder_layer(model), tower_layer(model)
    (stream, computed), trained = update.types, not update.lora_rank
    kept = Kept(trained) if trained else adapted(update.lora_targets)
    rows = prompts * (update.prompt_tokens + update.group_size * (update.answer_tokens - 1))
    layer = rows * kept_by_layer(decoder, update.types, kept)
    if decoder.queries > decoder.keys:  # kernels of prompts take as many keys as queries
        layer += prompts * update.prompt_tokens * 2 * decoder.queries * computed
    layers = depth_of(model.config.get_text_config(decoder=True))
    found = through(layers, layer, rows * decoder.width * stream, update.checkpointing)
    found += rows * kept_by_norm(decoder.width, decoder.rms, update.types, 0, trained)
    seen = 0.0
    if trained and not update.freeze_vision:
        layer = prompts * update.patches * kept_by_layer(tower, update.types, Kept(True))
        given = prompts * update.patches * tower.width * stream
        layers = depth_of(model.config.vision_config)
        seen = through(layers, layer, given, update.checkpointing)
        seen += prompts * update.image_tokens * projector_width(model) * computed
        if computed < FLOAT32:  # patches are embedded from a copy
            seen += prompts * update.pixels * computed
    return {"activations of the decoder": found, "activations of the tower": seen}


def through(layers: int, kept: float, given: float, checkpointing: bool) -> float:
    """Bytes of all layers, each of which keeps ``kept`` bytes or, checkpointed, its input."""
    return layers * given + kept if checkpointing else layers * kept


@dataclass(frozen=True)
class Weights:
    """Counts of weights, and bytes."""

    loaded: float
    """Bytes of the model as it is loaded."""
    trained: int
    """Weights of the model that are trained."""
    adapter: int
    """Weights of adapters."""
    optimizer: float
    """Bytes of the optimizer's state."""
    linear: int
    """Weights that autocast copies: of linear layers and convolutions."""
    stepping: float
    """Bytes of a step's work on one matrix: a gradient for its master, and what Muon multiplies."""
    widest: int
    """Weights of the largest linear layer but the output's."""


def count_weights(model: Any, update: Update) -> Weights:
    """Count the weights of a model, and the bytes that training them takes.

    AdamW has two moments of every weight (arXiv 1412.6980, algorithm 1), Muon one (arXiv
    2502.16982, section 2), in float32; weights in bfloat16 have float32 masters
    (`agents.training.optim.HybridOptimizer`), under ZeRO all have.
    """
    head = model.get_output_embeddings().weight
    tower = {id(parameter) for parameter in vision_parameters(model)}
    tables = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    matrices = [
        each for each in model.modules() if isinstance(each, (nn.Linear, nn.Conv2d, nn.Conv3d))
    ]
    packed = {
        id(each.weight)
        for each in matrices
        if isinstance(each, nn.Linear) and each.weight is not head and update.four_bits
    }
    masters = update.weights < FLOAT32 or update.stage > 0
    loaded, trained, optimizer, stepping = 0.0, 0, 0.0, 0.0
    for parameter in model.parameters():
        loaded += parameter.numel() * (NF4 if id(parameter) in packed else update.weights)
        if update.lora_rank or (update.freeze_vision and id(parameter) in tower):
            continue
        hidden = parameter.ndim == 2 and id(parameter) not in tables and parameter is not head
        by_muon = update.muon and hidden
        state = (1 if by_muon else 2) + masters
        trained += parameter.numel()
        optimizer += parameter.numel() * state * FLOAT32
        work = masters + 3 * by_muon
        stepping = max(stepping, parameter.numel() * work * FLOAT32)
    adapter = 0
    if update.lora_rank:
        for name, each in model.get_decoder().named_modules():
            if isinstance(each, nn.Linear) and is_target(name, update.lora_targets):
                adapter += update.lora_rank * (each.in_features + each.out_features)
        optimizer += adapter * 2 * FLOAT32
    return Weights(
        loaded=loaded,
        trained=trained,
        adapter=adapter,
        optimizer=optimizer,
        linear=sum(each.weight.numel() for each in matrices),
        stepping=stepping,
        widest=max(each.weight.numel() for each in matrices if each.weight is not head),
    )


def is_target(name: str, targets: Iterable[str]) -> bool:
    """Whether a linear layer of the decoder has an adapter, by the last part of its name."""
    chosen = tuple(targets)
    return DECODER in chosen or name.rpartition(".")[2] in chosen


def adapted(targets: tuple[str, ...]) -> Kept:
    """What adapters on some linear layers keep."""
    into = sum(is_target(name, targets) for name in ("q_proj", "k_proj", "v_proj"))
    mlp = sum(is_target(name, targets) for name in ("gate_proj", "up_proj"))
    after, down = is_target("o_proj", targets), is_target("down_proj", targets)
    return Kept(False, into, int(after), mlp, int(down))


def kept_by_norm(
    width: int, rms: bool, types: tuple[int, int], readers: int, trained: bool
) -> float:
    """Bytes per token that autograd keeps of a norm and of the inputs of ``readers`` linear layers.

    ``types`` are bytes of the residual stream and of what is computed. RMS norms square float32
    numbers and multiply them by their scale, and then by a weight, which needs its factor kept if
    it is trained. Under autocast every linear layer reads a copy of its own, and so does every
    adapter in half precision.
    """
    stream, computed = types
    kept = FLOAT32 + (stream if rms and trained else 0)
    mixed = stream != computed or (computed < FLOAT32 and not (rms and trained))
    reads = readers if mixed else min(readers, 1)
    return width * (kept + reads * computed)


def kept_by_layer(layer: Layer, types: tuple[int, int], kept: Kept) -> float:
    """Bytes per token that autograd keeps of a layer (as in arXiv 2205.05198, section 4.1).

    Attention keeps its rotated queries and keys, its values and its output, and once more the
    output in the order of tokens if the layer after it keeps its input; no scores.
    """
    _, computed = types
    found = kept_by_norm(layer.width, layer.rms, types, kept.into_attention, kept.trained)
    found += computed * (2 * layer.queries + 2 * layer.keys + layer.queries * kept.out_of_attention)
    if layer.fused:
        found += computed * (layer.queries + layer.keys)
    if layer.query_norms:
        norms = kept_by_norm(1, True, (computed, computed), 0, kept.trained)
        found += norms * (layer.queries + layer.keys)
    found += kept_by_norm(layer.width, layer.rms, types, kept.into_mlp, kept.trained)
    inner = (3 if layer.gated else 1) + kept.out_of_mlp
    return found + computed * inner * layer.mlp


def working(layer: Layer, update: Update, *, backward: bool = False) -> float:
    """Bytes per token that a layer needs while it runs, and then frees."""
    stream, computed = update.types
    attention = (6 if backward else 3) * layer.queries * computed
    mlp = 3 * layer.mlp * computed
    return 2 * layer.width * stream + max(attention, mlp)


def decoder_layer(model: Any) -> Layer:
    """The layers of a model's decoder."""
    config = model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    names = {name.rpartition(".")[2] for name, _ in model.get_decoder().named_modules()}
    return Layer(
        width=config.hidden_size,
        queries=heads * size,
        keys=keys * size,
        mlp=config.intermediate_size,
        gated="gate_proj" in names,
        rms=not any(isinstance(each, nn.LayerNorm) for each in model.get_decoder().modules()),
        query_norms="q_norm" in names,
    )


def tower_layer(model: Any) -> Layer:
    """The layers of a model's vision tower."""
    config = model.config.vision_config
    decoder = {id(each) for each in model.get_decoder().modules()}
    own = [(name, each) for name, each in model.named_modules() if id(each) not in decoder]
    width = getattr(config, "embed_dim", None) or config.hidden_size
    inner = getattr(config, "intermediate_size", None)
    return Layer(
        width=width,
        queries=width,
        keys=width,
        mlp=inner or int(width * config.mlp_ratio),
        gated=any(name.endswith("gate_proj") for name, _ in own),
        rms=not any(isinstance(each, nn.LayerNorm) for _, each in own),
        fused=any(name.endswith("qkv") for name, _ in own),
    )


def depth_of(config: Any) -> int:
    """Layers of a decoder or a tower."""
    found: int = getattr(config, "depth", None) or config.num_hidden_layers
    return found


def projector_width(model: Any) -> int:
    """Values per token that the projector keeps: what its linear layers read and write."""
    decoder = {id(each) for each in model.get_decoder().modules()}
    found = [
        each
        for name, each in model.named_modules()
        if isinstance(each, nn.Linear)
        and not re.search(r"\.(blocks|layers?)\.\d", name)
        and id(each) not in decoder
        and each is not model.get_output_embeddings()
    ]
    written = sum(each.out_features for each in found[:-1])  # the last output is not kept
    return written + sum(each.in_features for each in found)
