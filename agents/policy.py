"""The policy: any transformers image-text-to-text model, asked in groups.

The unit is a *group*: ``G`` completions of one prompt. The picture and the prompt are encoded once
per prompt; completions continue from that shared prefix, when sampling and when scoring.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, Cache
from transformers.utils import logging as transformers_logging

Precision = Literal["float32", "bfloat16"]
FORBIDDEN_LOGIT = -1e9
"""Stands for minus infinity: exp() of it is zero, and so is zero times it in the entropy."""


@dataclass
class Prefix:
    """Encoded prompts, one row each, from which groups of completions continue."""

    cache: Cache
    """Keys and values of every layer, ``(B, heads, P, head_dim)``."""
    mask: Tensor
    """``(B, P)``, 1 where a token is real (prompts are padded on the left)."""
    next_logits: Tensor
    """``(B, V)`` scores of the first token of an answer."""


@dataclass
class TokenScores:
    """What the policy thinks of given completions, all ``(N, T)`` float32."""

    log_probs: Tensor
    """Log-probability of every token under the policy, at the given temperature."""
    entropies: Tensor
    """Entropy of the distribution each token was drawn from, in nats."""


class VLMPolicy:
    """A vision-language model as a policy over answers.

    Attributes:
        model: The transformers model; trained in place.
        processor: Its processor (image processor, tokenizer, chat template).
        precision: ``"bfloat16"`` runs forward and backward under autocast; weights stay as loaded.
    """

    def __init__(self, model: Any, processor: Any, *, precision: Precision = "float32") -> None:
        """Wrap a loaded model; see `from_pretrained`."""
        self.model = model
        self.processor = processor
        self.precision: Precision = precision
        self.tokenizer = processor.tokenizer
        self.tokenizer.padding_side = "left"
        end = model.generation_config.eos_token_id
        end = self.tokenizer.eos_token_id if end is None else end
        self.end_ids: list[int] = [end] if isinstance(end, int) else list(end)
        self.forbidden = self._forbidden_tokens()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: str | None = None,
        precision: Precision = "float32",
        dtype: torch.dtype | None = None,
        trust_remote_code: bool = False,
    ) -> VLMPolicy:
        """Load a transformers folder or hub id.

        Args:
            name_or_path: Folder written by `save`, or the id of a model on the hub.
            device: ``"cpu"``, ``"cuda"``, …; by default CUDA where there is one.
            precision: See the class.
            dtype: Type of the weights; by default float32 on a CPU and as saved elsewhere.
            trust_remote_code: Passed on; leave it off for models you have not read.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        on_cpu = device == "cpu"
        # On a CPU the fused attention kernel's backward costs twice the plain one at these lengths.
        with quiet_progress():
            model = AutoModelForImageTextToText.from_pretrained(
                name_or_path,
                dtype=dtype or (torch.float32 if on_cpu else "auto"),
                attn_implementation="eager" if on_cpu else "sdpa",
                trust_remote_code=trust_remote_code,
            )
        processor = AutoProcessor.from_pretrained(
            name_or_path, trust_remote_code=trust_remote_code, backend="pil" if on_cpu else None
        )
        return cls(model.to(device), processor, precision=precision)

    def save(self, path: str | Path) -> None:
        """Write an ordinary transformers folder: safetensors weights, processor, chat template."""
        with quiet_progress():
            self.model.save_pretrained(path)
        self.processor.save_pretrained(path)

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
        """Turn ``B`` pictures and questions into model inputs, padded on the left."""
        batch = prepare_inputs(self.processor, images, prompts)
        return {key: value.to(self.device) for key, value in batch.items()}

    def encode(self, inputs: dict[str, Tensor]) -> Prefix:
        """Run pictures and prompts through the model once, keeping keys and values."""
        with self.autocast():
            output = self.model(
                **inputs,
                position_ids=positions_of(inputs["attention_mask"]),
                use_cache=True,
                logits_to_keep=1,
            )
        logits = output.logits[:, -1].float()
        return Prefix(output.past_key_values, inputs["attention_mask"], logits)

    def continue_from(self, prefix: Prefix, tokens: Tensor, mask: Tensor) -> Tensor:
        """Logits that predict every token of completions which continue ``prefix``.

        Args:
            prefix: ``B`` encoded prompts; its cache is consumed.
            tokens: ``(N, T)`` with ``N = B * G``, the completions of a prompt next to each other.
            mask: ``(N, T)``, 1 for real tokens, padded on the right.

        Returns:
            ``(N, T, V)`` float32; ``[:, t]`` predicts ``tokens[:, t]``.
        """
        group_size = tokens.shape[0] // prefix.mask.shape[0]
        first = prefix.next_logits.repeat_interleave(group_size, dim=0)[:, None]
        if tokens.shape[1] == 1:
            return first
        prefix.cache.batch_repeat_interleave(group_size)
        prefix_mask = prefix.mask.repeat_interleave(group_size, dim=0)
        full_mask = torch.cat([prefix_mask, mask[:, :-1].to(prefix_mask.dtype)], dim=1)
        with self.autocast():
            output = self.model(
                input_ids=tokens[:, :-1],
                attention_mask=full_mask,
                position_ids=positions_of(full_mask)[:, prefix_mask.shape[1] :],
                past_key_values=prefix.cache,
                use_cache=True,
            )
        return torch.cat([first, output.logits.float()], dim=1)

    def score(
        self, inputs: dict[str, Tensor], tokens: Tensor, mask: Tensor, temperature: float = 1.0
    ) -> TokenScores:
        """Log-probabilities and entropies of ``(N, T)`` completions of ``B`` prompts.

        Differentiable; gradients flow through the shared prefix and the vision tower. Padding
        positions hold zeros.
        """
        logits = self.continue_from(self.encode(inputs), tokens, mask)
        log_probs = self.log_softmax(logits, temperature)
        chosen = log_probs.gather(-1, tokens[..., None]).squeeze(-1)
        entropies = -(log_probs.exp() * log_probs).sum(-1)
        return TokenScores(chosen * mask, entropies.detach() * mask)

    def log_softmax(self, logits: Tensor, temperature: float) -> Tensor:
        """Log-probabilities over the tokens an answer may contain, ``(..., V)`` float32."""
        allowed = logits.masked_fill(self.forbidden, FORBIDDEN_LOGIT)
        return torch.log_softmax(allowed / temperature, dim=-1)

    def texts(self, tokens: Tensor, mask: Tensor) -> list[str]:
        """Answers as text, without the end token."""
        rows = [row[keep.bool()].tolist() for row, keep in zip(tokens, mask, strict=True)]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def _forbidden_tokens(self) -> Tensor:
        """``(V,)`` bool: tokens no answer may contain.

        Special tokens other than the end: a sampled image placeholder makes scoring fail with
        "image features and image tokens do not match". Rows of the embedding beyond the tokenizer
        (large models pad their vocabulary) have no text at all.
        """
        size = self.model.get_output_embeddings().weight.shape[0]
        forbidden = torch.zeros(size, dtype=torch.bool)
        forbidden[len(self.tokenizer) :] = True
        forbidden[[index for index in special_tokens(self.tokenizer) if index < size]] = True
        forbidden[self.end_ids] = False
        return forbidden.to(self.model.device)


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Tokens that are no text, such as the image placeholder, by their ids."""
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    added = tokenizer.added_tokens_decoder.items()
    return dict(named) | {index: token.content for index, token in added if token.special}


@contextmanager
def quiet_progress() -> Iterator[None]:
    """No progress bars of transformers inside the block: they would break those of a run."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def positions_of(mask: Tensor) -> Tensor:
    """Position of every token of left-padded rows, ``(N, L)``; padding is put at 0."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def prepare_inputs(
    processor: Any, images: Sequence[NDArray[np.uint8]], prompts: Sequence[str]
) -> dict[str, Tensor]:
    """Pictures and questions as model inputs, padded as the tokenizer is set to."""
    texts = [chat_text(processor, prompt) for prompt in prompts]
    pictures = [[image] for image in images]
    return dict(processor(text=texts, images=pictures, return_tensors="pt", padding=True))


def chat_text(processor: Any, prompt: str) -> str:
    """One question about one picture in the model's own chat format, ready to be answered.

    Whatever reads as a special token in the prompt is broken up by a space: an expression is data
    from outside, and ``<image>`` in it would ask for a second picture.
    """
    for token in special_tokens(processor.tokenizer).values():
        prompt = prompt.replace(token, f"{token[0]} {token[1:]}")
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    message = [{"role": "user", "content": content}]
    text: str = processor.apply_chat_template(message, add_generation_prompt=True)
    return text
