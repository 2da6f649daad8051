"""Folders and processors as those of the released checkpoints."""

import json

import pytest
from agents_fixtures import small_policy
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import seg_env  # noqa: F401  (registers the environments)
from agents.embedded.tiny import IMAGE, build_tokenizer


class QwenProcessor:
    """Image processor and tokenizer put together: Qwen2.5-VL's own processor needs torchvision."""

    def __init__(self):
        self.tokenizer = build_tokenizer()
        self.image_token = IMAGE
        sizes = {"min_pixels": 16 * 16, "max_pixels": 32 * 32}
        self.image_processor = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, **sizes)

    def apply_chat_template(self, messages, add_generation_prompt):
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def __call__(self, text, images, return_tensors, padding):
        pictures = dict(
            self.image_processor([one for (one,) in images], return_tensors=return_tensors)
        )
        counts = pictures["image_grid_thw"].prod(-1) // 4
        whole = [t.replace(IMAGE, IMAGE * int(n)) for t, n in zip(text, counts, strict=True)]
        tokens = self.tokenizer(whole, return_tensors=return_tensors, padding=padding)
        return {key: tokens[key] for key in ("input_ids", "attention_mask")} | pictures


CONFIGURATION = """
from pathlib import Path
from transformers import LlavaConfig

Path({marker!r}).touch()

class KimiVLConfig(LlavaConfig):
    model_type = "kimi_vl"
"""


MODELING = """
from transformers import LlavaForConditionalGeneration
from .configuration_kimi_vl import KimiVLConfig

class KimiVLForConditionalGeneration(LlavaForConditionalGeneration):
    config_class = KimiVLConfig
"""


AUTO_MAP = {
    "AutoConfig": "configuration_kimi_vl.KimiVLConfig",
    "AutoModelForCausalLM": "modeling_kimi_vl.KimiVLForConditionalGeneration",
}


@pytest.fixture
def kimi_folder(tmp_path, monkeypatch):
    """A checkpoint that brings its code along, under the names that Kimi-VL's has."""
    cache = tmp_path / "modules"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(cache))
    folder = tmp_path / "Kimi-VL"
    small_policy().save(folder)
    (folder / "configuration_kimi_vl.py").write_text(
        CONFIGURATION.format(marker=str(tmp_path / "code-was-run"))
    )
    (folder / "modeling_kimi_vl.py").write_text(MODELING)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "kimi_vl", "auto_map": AUTO_MAP}
    config["architectures"] = ["KimiVLForConditionalGeneration"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder
