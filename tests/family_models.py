"""Tiny policies of several families with random weights, and prompts made by hand.

Processors of some families cannot be built everywhere, so inputs are put together here: one prompt
at a time, then padded on the left into a batch.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    Florence2Config,
    Florence2ForConditionalGeneration,
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    Kimi_K25Config,
    Kimi_K25ForConditionalGeneration,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from agents.embedded.tiny import IMAGE, build_tokenizer
from agents.policy.model import VLMPolicy

TOKENIZER = build_tokenizer()
"""Every policy gets one of its own, for the side that prompts are padded on."""
PICTURE = TOKENIZER.convert_tokens_to_ids(IMAGE)
TEXT = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": TOKENIZER.pad_token_id,
    "eos_token_id": TOKENIZER.eos_token_id,
    "bos_token_id": None,
}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
    "image_size": 16,
    "initializer_range": 0.2,
}
QWEN_TOWER = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "out_hidden_size": 32,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}


@dataclass
class FamilyCase:
    """A policy with prompts of unequal lengths, one by one and as a batch."""

    policy: VLMPolicy
    prompts: list[dict]
    answer_types: dict
    """What token type inputs hold for tokens of an answer."""

    @property
    def batch(self):
        """All prompts, padded on the side the policy wants."""
        left = self.policy.tokenizer.padding_side == "left"
        width = max(prompt["input_ids"].shape[1] for prompt in self.prompts)
        batch = {}
        for key in self.prompts[0]:
            values = [prompt[key] for prompt in self.prompts]
            if key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
                fill = TOKENIZER.pad_token_id if key == "input_ids" else 0
                missing = [width - value.shape[1] for value in values]
                values = [
                    torch.nn.functional.pad(value, (some, 0) if left else (0, some), value=fill)
                    for value, some in zip(values, missing, strict=True)
                ]
            batch[key] = torch.cat(values)
        return batch

    def logits(self, row, answer):
        """Logits of one answer to prompt ``row``, by the model itself: no padding, no cache."""
        prompt = self.prompts[row]
        added = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}
        added |= {key: torch.full_like(answer, value) for key, value in self.answer_types.items()}
        if self.policy.model.config.is_encoder_decoder:
            start = torch.tensor([self.policy.model.generation_config.decoder_start_token_id])
            written = torch.cat([start, answer[:-1]])[None]
            return self.policy.model(**prompt, decoder_input_ids=written).logits[0]
        whole = {
            key: torch.cat([value, added[key][None]], 1) if key in added else value
            for key, value in prompt.items()
        }
        return self.policy.model(**whole).logits[0, -len(answer) - 1 : -1]


def _case(model, pictures, tokens_of, types=None, answer_types=None):
    """Prompts about pictures: text, the picture's tokens, more text."""
    model.generation_config = GenerationConfig(
        eos_token_id=TOKENIZER.eos_token_id,
        pad_token_id=TOKENIZER.pad_token_id,
        decoder_start_token_id=TOKENIZER.eos_token_id,
        repetition_penalty=3.0,  # models bring such settings along; none may take effect
    )
    generator = torch.Generator().manual_seed(2)
    prompts = []
    for number, picture in enumerate(pictures):
        words = torch.randint(5, len(TOKENIZER), (7 + 4 * number,), generator=generator)
        middle = torch.full((tokens_of(picture),), PICTURE)
        ids = torch.cat([words[:2], middle, words[2:]])[None]
        prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **picture}
        if types is not None:
            prompt |= types(ids)
        prompts.append(prompt)
    policy = VLMPolicy(model, SimpleNamespace(tokenizer=build_tokenizer()))
    return FamilyCase(policy, prompts, answer_types or {})


def _squares(shape=(3, 16, 16)):
    generator = torch.Generator().manual_seed(1)
    return [{"pixel_values": torch.randn(1, *shape, generator=generator)} for _ in range(3)]


def llava():
    config = LlavaConfig(
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **TOWER},
        text_config={"model_type": "llama", **TEXT},
        image_token_id=PICTURE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return _case(LlavaForConditionalGeneration(config), _squares(), lambda _: 16)


def paligemma(model_type="gemma", **text):
    text = {**TEXT, "head_dim": 8, "vocab_size": len(TOKENIZER), **text}
    config = PaliGemmaConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "vision_use_head": False,
            "projection_dim": 32,
            **TOWER,
        },
        text_config={"model_type": model_type, **text},
        image_token_index=PICTURE,
        projection_dim=32,
        hidden_size=32,
    )
    return _case(
        PaliGemmaForConditionalGeneration(config),
        _squares(),
        lambda _: 16,
        lambda ids: {"token_type_ids": torch.zeros_like(ids)},
        {"token_type_ids": 1},
    )


def paligemma2(window=64):
    """Scores and logits bounded by a tanh, a sliding window in every other layer."""
    return paligemma("gemma2", sliding_window=window, attn_logit_softcapping=2.0)


def idefics3(config=Idefics3Config, model=Idefics3ForConditionalGeneration):
    built = config(
        vision_config=TOWER,
        text_config={"model_type": "llama", **TEXT},
        image_token_id=PICTURE,
        scale_factor=2,
        tie_word_embeddings=False,
    )
    return _case(model(built), _squares((2, 3, 16, 16)), lambda _: 8)


def smolvlm():
    return idefics3(SmolVLMConfig, SmolVLMForConditionalGeneration)


def _qwen(model):
    generator = torch.Generator().manual_seed(1)
    grids = [[1, 4, 6], [1, 6, 8], [1, 4, 4]]
    pictures = [
        {
            "pixel_values": torch.randn(grid[1] * grid[2], 3 * 2 * 4 * 4, generator=generator),
            "image_grid_thw": torch.tensor([grid]),
        }
        for grid in grids
    ]
    return _case(
        model,
        pictures,
        lambda picture: int(picture["image_grid_thw"].prod()) // 4,
        lambda ids: {"mm_token_type_ids": (ids == PICTURE).int()},
        {"mm_token_type_ids": 0},
    )


def qwen2_5_vl():
    config = Qwen2_5_VLConfig(
        vision_config={**QWEN_TOWER, "window_size": 16, "fullatt_block_indexes": [1]},
        text_config={**TEXT, "rope_parameters": ROPE},
        image_token_id=PICTURE,
    )
    return _qwen(Qwen2_5_VLForConditionalGeneration(config))


def qwen3_vl():
    config = Qwen3VLConfig(
        vision_config={
            **QWEN_TOWER,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
        text_config={**TEXT, "head_dim": 8, "rope_parameters": ROPE},
        image_token_id=PICTURE,
    )
    return _qwen(Qwen3VLForConditionalGeneration(config))


def short_window():
    """Layers that see fewer tokens than a prompt has."""
    return paligemma2(window=12)


def internvl():
    config = InternVLConfig(
        vision_config={**TOWER, "image_size": [16, 16], "patch_size": [4, 4]},
        text_config={"model_type": "qwen2", **TEXT},
        image_token_id=PICTURE,
        downsample_ratio=0.5,
    )
    return _case(InternVLForConditionalGeneration(config), _squares(), lambda _: 4)


def aya_vision():
    """A family that is in no table and can share."""
    config = AyaVisionConfig(
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **TOWER},
        text_config={"model_type": "qwen2", **TEXT},
        image_token_index=PICTURE,
        downsample_factor=2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    return _case(AyaVisionForConditionalGeneration(config), _squares(), lambda _: 4)


def kimi_k25():
    """Kimi-VL's architecture as transformers has it: MoonViT, and a decoder of DeepSeek's form.

    The decoder's keys are wider than its values.
    """
    config = Kimi_K25Config(
        vision_config={
            **{key: TOWER[key] for key in ("hidden_size", "intermediate_size", "patch_size")},
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "pos_emb_height": 8,
            "pos_emb_width": 8,
            "merge_kernel_size": [2, 2],
        },
        text_config={
            "model_type": "deepseek_v3",
            **TEXT,
            "num_key_value_heads": 4,
            "q_lora_rank": 12,
            "kv_lora_rank": 8,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
        },
        projection_hidden_size=16,
        image_token_id=PICTURE,
        video_token_id=len(TOKENIZER) - 1,
    )
    generator = torch.Generator().manual_seed(1)
    sides = [(4, 6), (6, 8), (4, 4)]
    pictures = [
        {
            "pixel_values": torch.randn(height * width, 3, 4, 4, generator=generator),
            "image_grid_thw": torch.tensor([[1, height, width]]),
        }
        for height, width in sides
    ]
    return _case(
        Kimi_K25ForConditionalGeneration(config),
        pictures,
        lambda picture: int(picture["image_grid_thw"].prod()) // 4,
    )


def lfm2_vl():
    """A hybrid of convolutions and attention: its cache is no list of keys and values."""
    config = Lfm2VlConfig(
        vision_config={"model_type": "siglip2_vision_model", "num_patches": 16, **TOWER},
        text_config={
            "model_type": "lfm2",
            **TEXT,
            "layer_types": ["conv", "full_attention", "conv"],
        },
        image_token_id=PICTURE,
        downsample_factor=2,
        projector_hidden_size=32,
    )
    generator = torch.Generator().manual_seed(1)
    pictures = [
        {
            "pixel_values": torch.randn(1, 16, 3 * 4 * 4, generator=generator),
            "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
            "spatial_shapes": torch.tensor([[4, 4]]),
        }
        for _ in range(3)
    ]
    return _case(Lfm2VlForConditionalGeneration(config), pictures, lambda _: 4)


def florence2():
    """An encoder-decoder."""
    config = Florence2Config(
        vision_config={
            "embed_dim": [8, 8, 8, 16],
            "num_heads": [2, 2, 2, 2],
            "num_groups": [2, 2, 2, 2],
            "depths": [1, 1, 1, 1],
            "projection_dim": 16,
            "window_size": 2,
        },
        text_config={
            "model_type": "bart",
            "vocab_size": len(TOKENIZER),
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 24,
            "max_position_embeddings": 64,
            "init_std": 0.2,
            "pad_token_id": TOKENIZER.pad_token_id,
            "bos_token_id": None,
            "eos_token_id": TOKENIZER.eos_token_id,
        },
        image_token_id=PICTURE,
        decoder_start_token_id=TOKENIZER.eos_token_id,
    )
    return _case(Florence2ForConditionalGeneration(config), _squares((3, 64, 64)), lambda _: 5)


FAMILIES = {
    build.__name__: build
    for build in (
        llava,
        qwen2_5_vl,
        qwen3_vl,
        paligemma,
        paligemma2,
        idefics3,
        smolvlm,
        internvl,
    )
}
"""Families that share prompts."""


def build(name_or_function, seed=0):
    """A case with weights drawn from a seed, larger than usual so that nothing is negligible."""
    torch.manual_seed(seed)
    case = FAMILIES.get(name_or_function, name_or_function)()
    for name, parameter in case.policy.model.named_parameters():
        if "vis" in name or "embed" in name:
            continue
        torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else None
    case.policy.model.eval()
    return case


def random_answers(case, group_size=3, longest=7):
    """Answers of unequal lengths, the longest and a single token among them."""
    rows = len(case.prompts) * group_size
    generator = torch.Generator().manual_seed(0)
    allowed = (~case.policy.forbidden).nonzero().squeeze(-1)
    picks = torch.randint(len(allowed), (rows, longest), generator=generator)
    lengths = torch.randint(1, longest + 1, (rows,), generator=generator)
    lengths[0], lengths[1] = longest, 1
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return torch.where(mask.bool(), allowed[picks], TOKENIZER.pad_token_id), mask
