"""The embedded policy: a LLaVA-form vision-language model small enough to train on two cores.

It is made of ordinary transformers parts (SigLIP tower with learned positions, two-layer projector,
Qwen3 decoder) with a tokenizer of its own, and is saved as an ordinary transformers folder. Nothing
else in the project knows that it is small: a 7B model takes the same code path.
"""

from __future__ import annotations

import string

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen3Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from agents.embedded import TinyConfig as TinyConfig

PAD, END, IMAGE, USER, ASSISTANT = "<pad>", "<end>", "<image>", "<user>", "<assistant>"
SPECIAL_TOKENS = (PAD, END, IMAGE, USER, ASSISTANT)

ANSWER_PIECES = (
    *("[[", "]],[", "],[", "]]]"),
    *(f"{before}0.{number:02d}" for before in ("[", ",", "],[") for number in range(100)),
)
"""Merges that a byte-pair tokenizer would learn from outlines; two tokens write one vertex."""

PROMPT_WORDS = (  # noqa: SIM905 (a list of 72 quoted words is harder to read)
    "Output the polygon coordinates of in image. center point bounding box What is are "
    "a red green blue yellow purple orange cyan pink white black gray brown teal "
    "circle square triangle star cross ring rectangle bar diamond hexagon ellipse crescent heart "
    "arrow L small large big tiny smallest largest left right top bottom above below behind front "
    "leftmost rightmost topmost bottommost middle on to shape object striped dotted checkered "
    "plain at with"
).split()

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<user>{% else %}<assistant>{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}<end>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of single printable characters plus whole words and pieces of outlines.

    Every string of printable ASCII is representable; other characters become the pad token.
    """
    characters = [*string.digits, *sorted(set(string.printable) - set(string.digits))]
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *characters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=PAD))
    tokenizer.decoder = decoders.Fuse()
    words = [f" {word}" for word in PROMPT_WORDS]
    pieces = [*ANSWER_PIECES, "Output", "What", *words]
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": IMAGE},
        chat_template=CHAT_TEMPLATE,
    )


def build_processor(config: TinyConfig) -> LlavaProcessor:
    """The image processor and the tokenizer together."""
    image_processor = SiglipImageProcessorPil(
        size={"height": config.image_size, "width": config.image_size}, resample=2
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(),
        patch_size=config.patch_size,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )


def build_model(config: TinyConfig, processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """A model with random weights; positions of the tower start from two-dimensional sines.

    Seed torch before calling. With positions that start random, a policy spends its first hundreds
    of updates on learning which patches are neighbours.
    """
    tokenizer = processor.tokenizer
    vision = SiglipVisionConfig(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_size=config.vision_width,
        intermediate_size=4 * config.vision_width,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.heads,
        vision_use_head=False,
        initializer_range=config.initializer_range,
    )
    text = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        intermediate_size=3 * config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        head_dim=config.width // config.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=config.initializer_range,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            image_seq_length=(config.image_size // config.patch_size) ** 2,
            tie_word_embeddings=True,
            initializer_range=config.initializer_range,
        )
    )
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    positions = model.model.vision_tower.embeddings.position_embedding.weight
    with torch.no_grad():
        positions.copy_(
            _sine_positions(config.image_size // config.patch_size, config.vision_width)
        )
    return model


def _sine_positions(grid: int, width: int) -> torch.Tensor:
    """Two-dimensional sine-cosine table, ``(grid * grid, width)``, as large as activations are."""
    frequencies = torch.pi * 2.0 ** torch.linspace(
        -1, torch.log2(torch.tensor(grid)).item(), width // 4
    )
    centres = (torch.arange(grid) + 0.5) / grid
    waves = centres[:, None] * frequencies  # (grid, width / 4)
    table = torch.cat([waves.sin(), waves.cos()], dim=1)  # (grid, width / 2)
    rows = table[:, None, :].expand(grid, grid, -1)
    columns = table[None, :, :].expand(grid, grid, -1)
    return 0.5 * torch.cat([rows, columns], dim=-1).reshape(grid * grid, width)
