"""A policy that writes perfect outlines in numbers of its own, by the same path as any other.

Its model has random weights; a constraint leaves it one token at a time. What it writes is put
together here from pixels, without the frames of the library.
"""

import json

import numpy as np
import torch
from agents_fixtures import SMALL, small_policy
from family_models import qwen2_5_vl
from PIL import Image
from released_folders import QwenProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from agents.policy.model import VLMPolicy
from seg_env.frames import ResizeSettings, find_answer_frame

SIZES = ((160, 192), (192, 160), (160, 192), (192, 192))
"""``(H, W)``; half of each is a multiple of what the tiny Qwen2.5-VL rounds to."""
OUTLINES = (
    [(48, 40), (144, 40), (144, 80), (96, 80), (96, 120), (48, 120)],
    [(40, 48), (120, 48), (120, 144), (40, 144)],
    [(0, 0), (192, 0), (192, 80), (96, 80), (96, 160), (0, 160)],
    [(48, 48), (96, 48), (96, 144), (48, 144)],
)
"""Corners ``(x, y)`` in pixels of an object in each image."""


def write_tree(root, sizes=SIZES, outlines=OUTLINES, splits=("train", "val")):
    """RefCOCO's layout with one object in each image; all of them are in every split."""
    folder = root / "refcoco"
    images = root / "images/mscoco/images/train2014"
    folder.mkdir(parents=True)
    images.mkdir(parents=True)
    found = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "shape"}]}
    refs = []
    rng = np.random.default_rng(0)
    for number, ((height, width), corners) in enumerate(zip(sizes, outlines, strict=True), 1):
        name = f"COCO_train2014_{number:012d}.jpg"
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(images / name)
        found["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        found["annotations"].append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "segmentation": [[float(c) for corner in corners for c in corner]],
                "bbox": [0, 0, 1, 1],
                "area": 1.0,
                "iscrowd": 0,
            }
        )
        for place, split in enumerate(splits):
            ref = len(splits) * number + place
            sentence = f"shape {number}"
            refs.append(
                {
                    "ref_id": ref,
                    "ann_id": number,
                    "image_id": number,
                    "category_id": 1,
                    "split": split,
                    "file_name": name,
                    "sent_ids": [ref],
                    "sentences": [
                        {
                            "sent_id": ref,
                            "sent": sentence,
                            "raw": sentence,
                            "tokens": sentence.split(),
                        }
                    ],
                }
            )
    (folder / "instances.json").write_text(json.dumps(found))
    (folder / "refs(unc).json").write_text(json.dumps(refs))
    return root


def in_unit(corners, size, _):
    height, width = size
    points = ",".join(f"[{round(x / width, 3)},{round(y / height, 3)}]" for x, y in corners)
    return f"[[{points}]]"


def in_permille(corners, size, _):
    height, width = size
    points = ",".join(f"[{round(1000 * x / width)},{round(1000 * y / height)}]" for x, y in corners)
    return f"[[{points}]]"


def in_pixels(corners, size, seen):
    height, width = size
    points = ",".join(
        f"[{round(x * seen[1] / width)},{round(y * seen[0] / height)}]" for x, y in corners
    )
    return f"[[{points}]]"


def in_bins(corners, size, _):
    height, width = size
    bins = [(min(999, int(1000 * x / width)), min(999, int(1000 * y / height))) for x, y in corners]
    return "".join(f"<loc_{x}><loc_{y}>" for x, y in bins)


def in_rows(corners, size, _):
    height, width = size
    rows = [(round(1023 * y / height), round(1023 * x / width)) for x, y in corners]
    return "".join(f"<loc{y:04d}><loc{x:04d}>" for y, x in rows)


WRITERS = {
    "unit": in_unit,
    "permille": in_permille,
    "pixels": in_pixels,
    "qwen2.5-vl": in_pixels,
    "florence": in_bins,
    "paligemma": in_rows,
    "pixel:64x32": in_pixels,
}
"""How each frame writes corners of an image of ``size``, seen as ``(H, W)`` pixels."""


class Script:
    """A constraint that leaves the tokens of given texts, those of a prompt to all its answers."""

    def __init__(self, policy):
        self.policy = policy
        self.rows = []

    def walk(self, rows):
        return ScriptWalk(self, rows)


class ScriptWalk:
    """How far each answer has come."""

    def __init__(self, script, rows):
        self.script, self.repeats = script, rows // len(script.rows)
        self.steps = torch.zeros(rows, dtype=torch.long)

    def allowed(self, rows):
        mask = torch.zeros(len(rows), len(self.script.policy.forbidden), dtype=torch.bool)
        for place, (row, step) in enumerate(zip(rows.tolist(), self.steps[rows], strict=True)):
            text = self.script.rows[row // self.repeats]
            mask[place, text[min(int(step), len(text) - 1)]] = True
        return mask

    def advance(self, rows, tokens):
        self.steps[rows] += 1


class ScriptedPolicy(VLMPolicy):
    """Answers every question about the images of `write_tree` perfectly, in a frame of its own."""

    def __init__(self, model, processor, frame, outlines=None):
        super().__init__(
            model,
            processor,
            answer_frame=find_answer_frame(
                frame, resize=getattr(processor, "resize_settings", None)
            ),
        )
        self.outlines = outlines or {f"shape {n}": c for n, c in enumerate(OUTLINES, 1)}
        self.texts_written = []
        self.script = self.constraint = Script(self)

    def prepare(self, images, prompts):
        inputs = super().prepare(images, prompts)
        self.texts_written = [
            self.write(prompt, image.shape[:2], inputs, row)
            for row, (image, prompt) in enumerate(zip(images, prompts, strict=True))
        ]
        self.script.rows = [
            [*self.tokenizer(text, add_special_tokens=False).input_ids, self.end_ids[0]]
            for text in self.texts_written
        ]
        return inputs

    def write(self, prompt, size, inputs, row):
        corners = next(
            found for words, found in self.outlines.items() if f"{words} " in f"{prompt} "
        )
        family = self.answer_frame.family
        seen = size
        if family == "qwen2.5-vl":  # as its processor says, not as the library thinks
            patch = self.processor.image_processor.patch_size
            seen = (inputs["image_grid_thw"][row, 1:] * patch).tolist()
        elif family.startswith("pixel:"):
            width, height = family.removeprefix("pixel:").split("x")
            seen = (int(height), int(width))
        return WRITERS[family](corners, size, seen)


def scripted_policy(frame, outlines=None):
    """One of the form whose processor a frame goes with; outlines by expression."""
    if frame != "qwen2.5-vl":
        policy = small_policy(config=SMALL)
        return ScriptedPolicy(policy.model, policy.processor, frame, outlines)
    processor = QwenProcessor()
    processor.image_processor = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, min_pixels=16 * 16, max_pixels=80 * 96
    )
    processor.resize_settings = ResizeSettings.from_processor(processor.image_processor)
    return ScriptedPolicy(qwen2_5_vl().policy.model, processor, frame, outlines)
