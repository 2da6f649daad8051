"""Frames of model families: what a family writes is read back to where it was meant."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as oracle

from seg_env.frames import (
    BINS,
    FAMILIES,
    FAMILY_OF_MODEL,
    ROW_FIRST,
    UNIT,
    AnswerFrame,
    ResizeSettings,
    find_answer_frame,
    normalize_tokens,
    pixel_frame,
    smart_resize,
    write_tokens,
)
from seg_env.grammar import decode, encode
from seg_env.types import IssueKind

sides = st.integers(40, 3000)
image_sizes = st.tuples(sides, sides).filter(lambda size: max(size) <= 200 * min(size))
# Corners of a triangle in parts of the image that lie more than a few steps apart.
triangles = st.tuples(
    *(
        st.tuples(st.floats(low, low + 0.2), st.floats(high, high + 0.2))
        for low, high in ((0.0, 0.0), (0.8, 0.4), (0.3, 0.8))
    )
).map(np.array)


def steps_of(family, image_size):
    """Size of one step in pixels of the image, x and y."""
    height, width = image_size
    if family == "pixels":
        return 1.0, 1.0
    if family == "qwen2.5-vl":
        resized = smart_resize(image_size)
        return width / resized[1], height / resized[0]
    parts = {"unit": 1000, "permille": 1000, "florence": 1000, "paligemma": 1023}[family]
    return width / parts, height / parts


@pytest.mark.parametrize("family", FAMILIES)
@given(image_sizes, triangles)
def test_pixels_come_back_from_text_within_half_a_step(family, image_size, triangle):
    frame = AnswerFrame(family).for_view(image_size)
    text = write_tokens(encode([triangle], frame=frame), family)
    prediction = decode(normalize_tokens(text, family), frame)
    assert prediction.valid
    (ring,) = prediction.rings
    scale = image_size[1], image_size[0]
    off = np.abs(ring * scale - triangle * scale)
    assert (off <= np.multiply(steps_of(family, image_size), 0.5) + 1e-9 * max(scale)).all()


@given(
    st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    st.sampled_from([28, 32, 14]),
    st.integers(1, 400),
    st.integers(1, 4000),
)
def test_resizing_is_that_of_the_processor(size, factor, least, more):
    settings = ResizeSettings(factor, least * factor**2, (least + more) * factor**2)
    if max(size) > 200 * min(size):
        with pytest.raises(ValueError, match="200"):
            smart_resize(size, settings)
        return
    assert smart_resize(size, settings) == oracle.smart_resize(
        *size, factor=factor, min_pixels=settings.min_pixels, max_pixels=settings.max_pixels
    )


@pytest.mark.parametrize(
    ("size", "resized"),
    [((480, 640), (476, 644)), ((10, 10), (56, 56)), ((6000, 8000), (3080, 4116))],
)
def test_resizing_with_the_settings_that_the_models_ship(size, resized):
    assert smart_resize(size) == resized
    assert find_answer_frame("qwen2_5_vl").for_image(size) == pixel_frame(resized[1], resized[0])


def test_settings_are_read_from_a_processor():
    processor = oracle.Qwen2VLImageProcessorPil(min_pixels=784, max_pixels=78400, patch_size=16)
    settings = ResizeSettings.from_processor(processor)
    assert settings == ResizeSettings(factor=32, min_pixels=784, max_pixels=78400)
    pixels = processor(np.zeros((333, 500, 3), np.uint8), return_tensors="np")["image_grid_thw"]
    assert smart_resize((333, 500), settings) == tuple(16 * pixels[0, 1:])
    assert ResizeSettings.from_processor(None) == ResizeSettings()


def test_every_model_type_has_a_family():
    assert set(FAMILY_OF_MODEL.values()) == set(FAMILIES) - {"pixels"}
    assert find_answer_frame("florence2").for_image((9, 9)) == BINS
    assert find_answer_frame("paligemma").for_image((9, 9)) == ROW_FIRST
    assert find_answer_frame("qwen3_vl").for_image((9, 9)).name == "permille"
    assert find_answer_frame("llava").for_image((9, 9)) is UNIT
    assert find_answer_frame("auto", model_type="something_new").family == "unit"


def test_a_bin_is_the_one_of_florence():
    frame = BINS
    points = np.random.default_rng(0).uniform(0, 1, (1000, 2))
    text = encode([points], frame=frame)
    written = np.array(eval(text)[0])
    np.testing.assert_array_equal(written, np.floor(points * 1000))
    np.testing.assert_allclose(frame.to_unit(np.array([[0.0, 999.0]])), [[0.0005, 0.9995]])


def test_paligemma_writes_y_first():
    frame = ROW_FIRST
    np.testing.assert_array_equal(frame.from_unit(np.array([[1.0, 0.0]])), [[0, 1023]])
    np.testing.assert_array_equal(frame.to_unit(np.array([[0.0, 1023.0]])), [[1, 0]])


@pytest.mark.parametrize(
    ("family", "text", "read"),
    [
        ("florence", "<loc_1><loc_2><loc_3><loc_4><loc_5><loc_6>", "[[[1,2],[3,4],[5,6]]]"),
        (
            "florence",
            "</s><s>a dog<poly><loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><sep>"
            "<loc_7><loc_8><loc_9><loc_10><loc_11><loc_12></poly></s>",
            "[[[1,2],[3,4],[5,6]],[[7,8],[9,10],[11,12]]]",
        ),
        ("florence", "dog<loc_1><loc_2><loc_3><loc_4>", "[[[1,2],[3,2],[3,4],[1,4]]]"),
        (
            "paligemma",
            "<loc0001><loc0002><loc0003><loc0004> dog ; <loc0005><loc0006><loc0007><loc0008> dog",
            "[[[1,2],[3,2],[3,4],[1,4]],[[5,6],[7,6],[7,8],[5,8]]]",
        ),
        ("paligemma", "nothing here", "nothing here"),
        ("florence", "[[[1,2],[3,4],[5,6]]]", "[[[1,2],[3,4],[5,6]]]"),
        ("unit", "<loc_1>", "<loc_1>"),
    ],
)
def test_tokens_become_numbers(family, text, read):
    assert normalize_tokens(text, family) == read


def test_what_is_not_an_outline_stays_to_be_reported():
    codes = "<loc0001><loc0002><loc0300><loc0400><seg001><seg002> dog"
    found = decode(normalize_tokens(codes, "paligemma"), ROW_FIRST)
    assert [issue.kind for issue in found.issues] == [IssueKind.SURROUNDING_TEXT]
    odd = "<loc_1><loc_2><loc_300><loc_4><loc_5><loc_600><loc_7>"
    assert not decode(normalize_tokens(odd, "florence"), BINS).valid


@given(st.text("<loc_0123456789>;sep/ ", max_size=80), st.sampled_from(list(FAMILIES)))
def test_any_text_is_rewritten_and_read(text, family):
    decode(normalize_tokens(text, family), AnswerFrame(family).for_view((20, 30)))


def test_hostile_tokens_take_linear_time():
    for text in ("<loc_1>" * 37_000, "<loc_" * 50_000, "<" * 262_000, "<loc_1><" * 30_000):
        assert len(normalize_tokens(text, "florence")) <= 2 * len(text)
    long = "<loc_1>" * 100_000
    assert normalize_tokens(long, "florence") is long


def test_unknown_families_are_named():
    with pytest.raises(ValueError, match=r"bins.*florence"):
        AnswerFrame("bins").for_view((1, 1))
    with pytest.raises(ValueError, match="bins"):
        normalize_tokens("", "bins")
