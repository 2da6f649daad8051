"""Models as stages of annotation: the real architectures with small random weights."""

import json

import numpy as np
import pytest
import torch
from agents_fixtures import demonstration_rows, small_policy
from annotator_folders import SIDE, dino, sam, sam2  # noqa: F401  (fixtures)
from PIL import Image
from transformers import (
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
)

from agents.annotators.grounding_dino import GroundingDino
from agents.annotators.sam import MEAN, Sam
from agents.annotators.vlm import VlmDescriber
from seg_env.data import open_dataset
from seg_env.data.annotate import Job, annotate
from seg_env.data.annotate.stages import DecodedImage, Detection, Found, Segment
from seg_env.geometry.rle import Rle

LABELS = ["red star", "dog", "green ring"]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    """A folder with a tiny vision-language model."""
    folder = tmp_path_factory.mktemp("vlm")
    small_policy().save(folder)
    return str(folder)


def noise(height, width, text="", seed=0):
    """An image of noise."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return DecodedImage(f"{seed}", b"", text, suffix=".png", image=image)


@pytest.mark.parametrize("size", [(48, 80), (90, 30)])
def test_boxes_are_the_models_own_in_pixels_of_the_image(dino, size):
    image = noise(*size)
    (found,) = GroundingDino(dino, LABELS, threshold=0.0, device="cpu").detect([image])
    inputs = GroundingDinoProcessor.from_pretrained(dino, backend="pil")(
        images=image.image, text="red star. dog. green ring.", return_tensors="pt"
    )
    with torch.no_grad():
        raw = GroundingDinoForObjectDetection.from_pretrained(dino).eval()(**inputs)
    middle, side = raw.pred_boxes[0].split(2, dim=-1)
    expected = torch.cat([middle - side / 2, middle + side / 2], -1) * torch.tensor(size[::-1] * 2)
    boxes = torch.tensor([each.box for each in found])
    torch.testing.assert_close(boxes, expected, atol=1e-2, rtol=1e-3)
    scores = torch.tensor([each.score for each in found])
    torch.testing.assert_close(scores, raw.logits[0].sigmoid().max(-1).values, atol=1e-4, rtol=0)


def test_a_threshold_keeps_the_sure_ones_and_labels_are_words_of_the_question(dino):
    everything = GroundingDino(dino, LABELS, threshold=0.0, text_threshold=0.0, device="cpu")
    (found,) = everything.detect([noise(64, 64)])
    asked = {"red", "star", "dog", "green", "ring"}
    assert found
    assert all(set(each.label.split()) <= asked for each in found)
    limit = sorted(each.score for each in found)[3]
    (fewer,) = GroundingDino(dino, LABELS, threshold=limit, device="cpu").detect([noise(64, 64)])
    assert len(fewer) < len(found)
    assert all(each.score > limit for each in fewer)


def test_the_text_of_an_image_is_what_is_looked_for(dino):
    detector = GroundingDino(dino, LABELS, use_text=True, device="cpu")
    assert detector.question(noise(40, 40, "A Dog\x00 on\u202e grass.\n")) == "a dog on grass."
    assert detector.question(noise(40, 40)) == "red star. dog. green ring."
    long = noise(40, 40, "dog " * 5000)
    assert len(detector.question(long)) < 400
    assert len(detector.detect([long, noise(40, 40)])) == 2


@pytest.mark.parametrize("labels", [[], "dog", ["a. b"]])
def test_labels_are_checked(dino, labels):
    with pytest.raises(ValueError, match="list of phrases"):
        GroundingDino(dino, labels)


@pytest.mark.parametrize("family", ["sam", "sam2"])
@pytest.mark.parametrize("size", [(48, 80), (100, 30)])
def test_masks_come_back_where_boxes_lie(family, size, request):
    """Boxes go into the model's frame and masks out of it by the same map."""
    frame = Sam(request.getfixturevalue(family), device="cpu")._frame
    height, width = size
    box = (0.25 * width, 0.5 * height, 0.75 * width, 0.9 * height)
    inputs = frame.inputs(noise(height, width).image, [box, (0, 0, 1, 1)])
    assert inputs["pixel_values"].shape == (1, 3, SIDE, SIDE)
    x0, y0, x1, y1 = (inputs["input_boxes"][0, 0] / SIDE * 16).tolist()
    places = torch.arange(16) + 0.5
    inside = ((places > y0) & (places < y1))[:, None] & ((places > x0) & (places < x1))
    logits = torch.where(inside, 5.0, -5.0).expand(1, 2, 1, 16, 16)
    masks = frame.masks(logits, inputs)
    assert masks.shape == (2, height, width)
    rows, columns = np.nonzero(masks[0].numpy())
    reached = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    step = max(size) / 16
    np.testing.assert_allclose(reached, box, atol=step)


def test_colours_are_normalised_alike(sam, sam2):
    """Both models see gray as ImageNet's mean says; only the padding differs."""
    gray = np.tile(np.round(np.array(MEAN) * 255).astype(np.uint8), (48, 48, 1))
    for folder in (sam, sam2):
        frame = Sam(folder, device="cpu")._frame
        pixels = frame.inputs(gray, [(0, 0, 8, 8)])["pixel_values"]
        assert pixels.abs().max() < 0.01


@pytest.mark.parametrize("family", ["sam", "sam2"])
def test_masks_of_several_boxes_are_those_of_each_box(family, request):
    segmenter = Sam(request.getfixturevalue(family), device="cpu")
    image = noise(48, 80)
    detections = [Detection((4.0, 4.0, 40.0, 30.0), 0.9), Detection((30.0, 10.0, 79.0, 47.0), 0.8)]
    together = segmenter.segment([Found(image, each) for each in detections])
    assert [segment.rle.size for segment in together] == [(48, 80)] * 2
    for detection, segment in zip(detections, together, strict=True):
        (alone,) = segmenter.segment([Found(image, detection)])
        assert alone.rle == segment.rle
        assert 0 <= alone.score <= 1
        assert alone.score == pytest.approx(segment.score, abs=1e-5)


def test_other_models_are_refused(vlm):
    with pytest.raises(ValueError, match="'llava' model"):
        Sam(vlm)


def test_descriptions_are_what_the_model_generates(vlm):
    describer = VlmDescriber(vlm, prompt="What is red?", batch_size=2, max_new_tokens=5)
    mask = np.zeros((40, 60), dtype=bool)
    mask[10:30, 20:40] = True
    box, segment = Detection((20, 10, 40, 30), 1.0), Segment(Rle.from_mask(mask))
    one, other = (Found(noise(40, 60, seed=seed), box, segment) for seed in (0, 2))
    texts = describer.describe([one, one, other])
    assert len(texts) == 3
    assert texts[0] == texts[1]
    assert describer.describe([other]) == texts[2:]


@pytest.mark.parametrize("family", ["sam", "sam2"])
def test_the_whole_path_with_models(family, dino, vlm, tmp_path, request):
    web = tmp_path / "web"
    web.mkdir()
    for number in range(3):
        Image.fromarray(noise(48, 64 + number, seed=number).image).save(web / f"{number}.png")
    (web / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n rubbish")
    folder = request.getfixturevalue(family)
    options = {"model": dino, "labels": LABELS, "threshold": 0.0, "device": "cpu"}
    speech = {"model": vlm, "max_new_tokens": 6, "prompt": "What is it?", "device": "cpu"}
    job = Job(
        f"folder{json.dumps({'path': str(web)})}",
        f"grounding_dino{json.dumps(options)}",
        f"sam{json.dumps({'model': folder, 'device': 'cpu'})}",
        f"vlm{json.dumps(speech)}",
        filters=("duplicates",),
        batch_size=2,
    )
    manifest = annotate(job, tmp_path / "out")
    assert manifest["pictures"]["read"] == 3
    assert manifest["pictures"]["rejected"] == {"unreadable picture": 1}
    objects = manifest["objects"]
    assert objects["detected"] == objects["written"] + sum(objects["dropped"].values()) == 18
    records = open_dataset(str(tmp_path / "out/train.jsonl"), on_error="skip")
    assert len(records) == objects["written"] > 0
    assert not records.skipped
    row = demonstration_rows(records, "mask=1")[0]
    assert row["images"][0].shape == records[0].image.shape or len(records) > 1
    assert row["completion"][0]["content"].startswith("[[[")
