"""Answers by the million: decoding and stepping never raise, never hang and keep what they promise.

pytest -m slow -s tests/fuzz, with SIMPLESEG_FUZZ_SEED for others, SIMPLESEG_FUZZ_SCALE for more.
"""

import itertools
import resource
import time

import gymnasium as gym
import numpy as np
import pytest
from hostile_text import SCALE, SEED, answers

from seg_env.data.scenes import Scenes
from seg_env.frames.answers import AnswerFrame
from seg_env.frames.models import FAMILIES
from seg_env.grammar import MAX_RINGS, MAX_VERTICES, encode
from seg_env.grammar.answers import encode_numbers, read_answer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
DECODINGS, STEPS = int(1_000_000 * SCALE), int(40_000 * SCALE)
FORMS = ("mask", "bbox", "point")
SIZE = (427, 640)


class Kept(list):
    """Samples held in memory, so that the time goes into answers."""

    name = "kept"
    split = "test"


@pytest.fixture(scope="module")
def samples():
    scenes = Scenes(split="val", size=64)
    return Kept(scenes[index] for index in range(16))


def sound_answers(samples, frame, form):
    """Right answers about images of `SIZE`, plain and in a sentence."""
    written = frame.for_image(SIZE)
    for sample in samples:
        rings = sample.target.outline(0.003)
        corners = np.array([rings[0].min(axis=0), rings[0].max(axis=0)])
        match form:
            case "mask":
                text = encode(rings, frame=written)
            case "bbox":
                text = encode_numbers(corners, frame=written)
            case _:
                text = encode_numbers(corners[:1], frame=written)
        yield frame.write(text)
        yield "It is at " + frame.write(text) + "."


def memory():
    """Most memory that the process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def test_decode_keeps_its_promises(samples):
    canvases = (None, (224, 224))
    frames = [AnswerFrame(family, canvas_size=size) for family in FAMILIES for size in canvases]
    asked = list(itertools.product(frames, FORMS))
    texts = (
        (text, frame, form)
        for number, (frame, form) in enumerate(asked)
        for text in answers(
            list(sound_answers(samples, frame, form)), DECODINGS // len(asked) + 1, SEED + number
        )
    )
    done = rings = faultless = 0
    slowest = 0.0
    began, before = time.monotonic(), memory()
    for text, frame, form in texts:
        done += 1
        start = time.thread_time()
        found = read_answer(text, SIZE, frame, form)
        slowest = max(slowest, time.thread_time() - start)
        for ring in found.rings:
            assert ring.dtype == np.float64, repr(text)
            assert ring.ndim == 2, repr(text)
            assert ring.shape[1] == 2, repr(text)
            assert len(ring) >= 3, repr(text)
            assert np.isfinite(ring).all(), repr(text)
        assert len(found.rings) <= MAX_RINGS, repr(text)
        assert sum(map(len, found.rings)) <= MAX_VERTICES, repr(text)
        assert len({issue.kind for issue in found.issues}) == len(found.issues), repr(text)
        assert all(len(issue.detail) <= 80 for issue in found.issues), repr(text)
        assert found.point is None or np.isfinite(found.point).all(), repr(text)
        rings += len(found.rings)
        faultless += found.valid
    print(
        f"\n{done} decodings, seed {SEED}: {rings} rings, {faultless} answers without fault, "
        f"slowest {1000 * slowest:.1f} ms, {time.monotonic() - began:.0f} s in all, "
        f"memory {before} to {memory()} MB"
    )
    assert slowest < 1
    assert memory() - before < 200
    assert done >= DECODINGS
    assert 0.1 * done < faultless < 0.3 * done


@pytest.mark.parametrize("mode", ["answer", "vertex", "refine"])
def test_steps_keep_their_promises(samples, mode):
    name = "SimpleSegRefine-Scenes-v0" if mode == "refine" else "SimpleSeg-Scenes-v0"
    options = {"step_mode": mode} if mode != "refine" else {}
    env = gym.make(f"seg_env:{name}", dataset=samples, **options)
    outlines = list(sound_answers(samples, AnswerFrame(), "mask"))
    going_on = episodes = 0
    slowest = 0.0
    began, before = time.monotonic(), memory()
    for number, answer in enumerate(answers(outlines, STEPS, SEED)):
        if not going_on:
            env.reset(options={"index": number % len(samples)})
            episodes += 1
        start = time.thread_time()
        _, reward, terminated, truncated, info = env.step(answer)
        slowest = max(slowest, time.thread_time() - start)
        assert np.isfinite(reward), repr(answer)
        assert truncated is False or mode == "vertex", repr(answer)
        assert 0 <= info.get("iou", 0) <= 1, repr(answer)
        going_on = not (terminated or truncated)
    print(
        f"\n{STEPS} steps of {mode}, {episodes} episodes, seed {SEED}: slowest "
        f"{1000 * slowest:.0f} ms, {time.monotonic() - began:.0f} s in all, "
        f"memory {before} to {memory()} MB"
    )
    assert slowest < 2
    assert memory() - before < 300
