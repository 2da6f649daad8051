"""The policy: any transformers image-text-to-text model, asked in groups.

A group is ``G`` completions of one prompt. Image and prompt are encoded once; completions continue
from that shared prefix, when sampling and when scoring.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import copy, deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BitsAndBytesConfig, Cache

from agents.policy.adapters import has_adapter, save_adapter
from agents.policy.families import (
    is_tested,
    model_inputs,
    obstacle_to_sharing,
    token_positions,
    vision_parameters,
)
from agents.policy.hub import push_folder
from agents.policy.loading import (
    ANSWER_FRAME,
    open_checkpoint,
    policy_frame,
    quiet_progress,
)
from agents.policy.processing import prepare_checked, special_tokens
from seg_env.errors import WrongOptionError
from seg_env.frames import AUTO, UNIT_ANSWERS, AnswerFrame, is_frame_name

if TYPE_CHECKING:
    from agents.policy.constraint import OutlineConstraint

Precision = Literal["float32", "bfloat16"]
UNTRIED = "its family is in no table, and nobody has tried to share prompts with it"
"""The reason for not sharing prompts before it has been tried."""


@dataclass
class Prefix:
    """Encoded prompts, one row each, from which groups of completions continue."""

    cache: Cache
    """Keys and values of every layer, ``(B, heads, P, head_dim)``."""
    mask: Tensor
    """``(B, P)``, 1 where a token is real (prompts are padded on the left)."""
    next_logits: Tensor
    """``(B, V)`` scores of the first token of an answer."""
    positions: Tensor
    """``(B, P)`` or ``(axes, B, P)``."""


def four_bits(device: str) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that keep linear layers in 4 bits, as in QLoRA.

    Raises:
        WrongOptionError: bitsandbytes or a GPU is missing.
    """
    for there, what in (
        (device.startswith("cuda"), "a CUDA device, and there is none"),
        (find_spec("bitsandbytes") is not None, "bitsandbytes: pip install bitsandbytes"),
    ):
        if not there:
            raise WrongOptionError(f"--load-in-4bit needs {what}; or leave it out")
    kept = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": kept, "device_map": {"": device}}


class VLMPolicy:
    """A vision-language model as a policy over answers.

    Attributes:
        model: The transformers model; trained in place.
        processor: Its processor (image processor, tokenizer, chat template).
        precision: ``"bfloat16"`` runs forward and backward under autocast; weights stay as loaded.
        shared_prefix: False to repeat the prompt for each answer: slower, with the same numbers.
        constraint: A rule about tokens. The policy then is the model renormalised over what the
            rule allows, when sampling and when scoring.
        forbidden: ``(V,)`` bool, tokens that no answer may contain.
        end_ids: Tokens that end an answer.
        pad_id: Token that pads answers after their end.
        sharing_trial: What is wrong with sharing prompts, "" if nothing is; for an untested family
            `UNTRIED`, until `agents.policy.checks.try_sharing` has tried it.
        trust_remote_code: Whether code that came with the checkpoint was allowed.
        answer_frame: Frame of the numbers it writes, in which it is trained and measured.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        precision: Precision = "float32",
        shared_prefix: bool = True,
        constraint: OutlineConstraint | None = None,
        answer_frame: AnswerFrame = UNIT_ANSWERS,
    ) -> None:
        """Wrap a loaded model; see `from_pretrained`."""
        self.model = model
        self.processor = processor
        self.precision: Precision = precision
        self.shared_prefix = shared_prefix
        self.constraint = constraint
        self.answer_frame = answer_frame
        self.tokenizer = processor.tokenizer
        # An encoder reads prompts on their own, and may number positions from the first column.
        self.tokenizer.padding_side = "right" if model.config.is_encoder_decoder else "left"
        end = model.generation_config.eos_token_id
        end = self.tokenizer.eos_token_id if end is None else end
        self.end_ids: list[int] = [end] if isinstance(end, int) else list(end)
        pad = self.tokenizer.pad_token_id
        self.pad_id: int = self.end_ids[0] if pad is None else pad
        self.forbidden = self._forbidden_tokens()
        self.forward_arguments = frozenset(inspect.signature(model.forward).parameters)
        self.sharing_trial = "" if is_tested(model) else UNTRIED
        self.trust_remote_code = False
        self._noticed: set[str] = set()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: str | None = None,
        precision: Precision = "float32",
        dtype: torch.dtype | None = None,
        trust_remote_code: bool = False,
        frame: str = AUTO,
        load_in_4bit: bool = False,
    ) -> VLMPolicy:
        """Load a transformers folder or hub id, or an adapter's, which is merged into its model.

        Args:
            name_or_path: Folder written by `save`, or the id of a model on the hub.
            device: ``"cpu"``, ``"cuda"``, …; by default CUDA where there is one.
            precision: See the class.
            dtype: Type of the weights; by default float32 on a CPU and as saved elsewhere.
            trust_remote_code: Run code that comes with the checkpoint, which you should have read.
            frame: Frame of the numbers it writes, see `seg_env.frames.find_answer_frame`; by
                default the one the folder records, else its family's.
            load_in_4bit: Keep the linear layers in 4 bits (NF4, arXiv 2305.14314), to train an
                adapter on; they cannot be trained or saved themselves.

        Raises:
            CheckpointError: It cannot be opened, or needs code of its own, which was not allowed.
            ValueError: There is no such frame.
            WrongOptionError: 4 bits were asked for, and bitsandbytes or a GPU is missing.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        options = four_bits(device) if load_in_4bit else {}
        model, processor = open_checkpoint(
            name_or_path,
            dtype=dtype or (torch.float32 if device == "cpu" else "auto"),
            trust_remote_code=trust_remote_code,
            **options,
        )
        answer_frame = policy_frame(frame, model, processor, str(name_or_path))
        if not load_in_4bit:
            model = model.to(device)
        policy = cls(model, processor, precision=precision, answer_frame=answer_frame)
        policy.trust_remote_code = trust_remote_code
        return policy

    def copy(self) -> VLMPolicy:
        """A copy of the policy, with weights of its own."""
        policy = copy(self)
        policy.model = deepcopy(self.model)
        return policy

    def save(self, path: str | Path) -> None:
        """Write an ordinary transformers folder: safetensors weights, processor, chat template.

        With an adapter, only the adapter is written, as PEFT does, and the processor.
        """
        # Saving imports DeepSpeed, to see whether the model is one of its own. It would warn if
        # there is no accelerator.
        if not torch.accelerator.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        if has_adapter(self.model):
            save_adapter(self.model, Path(path))
        else:
            with quiet_progress():
                self.model.save_pretrained(path)
        self.processor.save_pretrained(path)

    def push_to_hub(self, repository: str, *, private: bool | None = None) -> str:
        """Upload the policy to the Hugging Face hub as ``"owner/name"``; see `push_folder`."""
        with TemporaryDirectory() as folder:
            self.save(folder)
            return push_folder(folder, repository, private=private)

    def mark_trained(self) -> None:
        """Record the frame in the configuration, once training has changed the weights."""
        if is_frame_name(self.answer_frame.family):
            setattr(self.model.config, ANSWER_FRAME, self.answer_frame.family)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision context of every forward pass."""
        enabled = self.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def prepare(
        self, images: Sequence[NDArray[np.uint8]], prompts: Sequence[str]
    ) -> dict[str, Tensor]:
        """Turn ``B`` images and questions into model inputs, padded on the left.

        Raises:
            ImageTokensError: A prompt has another number of image tokens than its image has
                features.
        """
        inputs = self.prepare_on_cpu(images, prompts)
        return {key: value.to(self.device) for key, value in inputs.items()}

    def prepare_on_cpu(
        self, images: Sequence[NDArray[np.uint8]], prompts: Sequence[str]
    ) -> dict[str, Tensor]:
        """As `prepare`, for processes that do not touch the device."""
        return prepare_checked(self.model, self.processor, images, prompts)

    def encode(self, inputs: dict[str, Tensor]) -> Prefix:
        """Run images and prompts through the model once, keeping keys and values."""
        inputs = model_inputs(self.model, inputs)
        positions = token_positions(self.model, inputs)
        with self.autocast():
            output = self.model(
                **inputs,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
            )
        logits = output.logits[:, -1].float()
        return Prefix(output.past_key_values, inputs["attention_mask"], logits, positions)

    @property
    def needs_trial(self) -> bool:
        """Whether `agents.policy.checks.try_sharing` still has to run."""
        return self.shared_prefix and self.sharing_trial == UNTRIED

    def shares_prefix(self, inputs: dict[str, Tensor], new_tokens: int) -> bool:
        """Whether answers share their prompt; warns once if that was asked for and cannot be."""
        if not self.shared_prefix:
            return False
        length = inputs["input_ids"].shape[1] + new_tokens
        reason = obstacle_to_sharing(self.model, length) or self.sharing_trial
        if reason and reason not in self._noticed:
            self._noticed.add(reason)
            name = self.model.config.model_type
            warnings.warn(
                f"every answer of this {name!r} policy gets a prompt of its own: {reason}",
                stacklevel=3,
            )
        return not reason

    def freeze_vision(self) -> None:
        """Freeze tower and projector: all but decoder and output layer."""
        for parameter in vision_parameters(self.model):
            parameter.requires_grad_(False)

    def checkpoint_gradients(self) -> None:
        """Keep no activations of layers while training; recompute them in the backward pass."""
        self.model.activation_checkpointing_enable({"use_reentrant": False})

    def log_softmax(
        self, logits: Tensor, temperature: float, allowed: Tensor | None = None
    ) -> Tensor:
        """Log-probabilities ``(..., V)`` over the tokens that are allowed, ``(..., V)`` bool.

        By default all but the forbidden ones are.
        """
        excluded = self.forbidden if allowed is None else ~allowed
        # Not minus infinity: zero times that, in the entropy, would be NaN.
        return torch.log_softmax(logits.masked_fill(excluded, -1e9) / temperature, -1)

    def texts(self, tokens: Tensor, mask: Tensor) -> list[str]:
        """Answers as text, without the end token."""
        rows = [row[keep.bool()].tolist() for row, keep in zip(tokens, mask, strict=True)]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def _forbidden_tokens(self) -> Tensor:
        """Special tokens other than the end, and rows of the embedding beyond the tokenizer.

        A sampled image placeholder would make scoring fail: "image features and image tokens do
        not match". Large models pad their vocabulary by rows that have no text at all.
        """
        size = self.model.get_output_embeddings().weight.shape[0]
        forbidden = torch.zeros(size, dtype=torch.bool)
        forbidden[len(self.tokenizer) :] = True
        forbidden[[index for index in special_tokens(self.tokenizer) if index < size]] = True
        forbidden[self.end_ids] = False
        return forbidden.to(self.model.device)
