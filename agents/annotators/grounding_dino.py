"""Detection by Grounding DINO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from os.path import expanduser

import torch
from transformers import GroundingDinoForObjectDetection

from agents.annotators.loading import load_model
from agents.policy.loading import open_processor
from seg_env.data.annotate.describing import clean_text
from seg_env.data.annotate.stages import DecodedImage, Detection

LABELS = (
    "person", "animal", "vehicle", "food", "furniture", "plant", "clothing", "tool", "toy",
    "building", "sign", "electronic device", "container", "sports equipment", "instrument",
)  # fmt: skip
"""What is looked for by default: broad words for what most web images show."""


@dataclass(eq=False)
class GroundingDino:
    """Finds the objects that labels, or an image's own text, name (arXiv 2303.05499)."""

    model: str = "IDEA-Research/grounding-dino-base"
    """Folder, or id on the hub."""
    labels: Sequence[str] = LABELS
    """What is looked for: phrases without full stops, which separate them."""
    _: KW_ONLY
    use_text: bool = False
    """Look for what the image's own text names; for the labels if it has none."""
    threshold: float = 0.25
    """Least score of a box."""
    text_threshold: float = 0.25
    """Least score of a word to be part of a box's label."""
    device: str | None = None
    """By default CUDA where there is one."""

    def __post_init__(self) -> None:
        """Load the model."""
        labels = self.labels
        if isinstance(labels, str) or not labels or any("." in label for label in labels):
            raise ValueError(f"labels={labels!r} must be a list of phrases without full stops")
        model = expanduser(self.model)
        self._model = load_model(GroundingDinoForObjectDetection, model, self.device)
        self._processor = open_processor(model)
        self._question = ". ".join(label.strip().lower() for label in labels) + "."

    def detect(self, images: Sequence[DecodedImage]) -> list[list[Detection]]:
        """See `seg_env.data.annotate.stages.Detector`."""
        inputs = self._processor(
            images=[each.image for each in images],
            text=[self.question(image) for image in images],
            padding=True,
            truncation=True,
            max_length=self._model.config.max_text_len,
            return_tensors="pt",
        ).to(self._model.device)
        with torch.inference_mode():
            outputs = self._model(**inputs)
        results = self._processor.post_process_grounded_object_detection(
            outputs,
            inputs["input_ids"],
            threshold=self.threshold,
            text_threshold=self.text_threshold,
            target_sizes=[image.size for image in images],
        )
        found = []
        for result in results:
            columns = result["boxes"].tolist(), result["scores"].tolist(), result["text_labels"]
            rows = zip(*columns, strict=True)
            found.append(
                [Detection(tuple(box), score, self._phrase(text)) for box, score, text in rows]
            )
        return found

    def _phrase(self, label: str) -> str:
        """A label without the separators that the processor leaves in it."""
        for token in (*self._processor.tokenizer.all_special_tokens, "."):
            label = label.replace(token, " ")
        return " ".join(label.split())

    def question(self, image: DecodedImage) -> str:
        """What is asked about an image: lower case, with a full stop at the end."""
        text = clean_text(image.text).lower().rstrip(". ") if self.use_text else ""
        return f"{text}." if text else self._question
