"""Answers are hostile data: none of them raises, hangs or blows up memory."""

import string
import time
import tracemalloc

import numpy as np
import pytest

from seg_env.data.scenes import Scenes
from seg_env.envs.referring import ReferringSegmentationEnv
from seg_env.envs.vector import ReferringSegmentationVectorEnv
from seg_env.grammar import encode

ANSWERS = 5000
PIECES = [
    *"[[[[]]]],,,,....0123456789-+eE \n\t",
    *("nan", "NaN", "inf", "-inf", "1e308", "-1e308", "1e-308", "1e999", "0x10", "1_000", "None"),
    *("]]]", "[[[", "],[", "[[0.1,0.2],", "0.5", "٣", "½", "１", "²", "\x00", "\ud800", "🦆"),
    *("It is at ", "Sure, you can find it at ", "9" * 400, "<|im_end|>", "{", "}", '"', "\\"),
]
HUGE = {
    "brackets": "[" * 1_000_000,
    "both brackets": "[]" * 500_000,
    "nested": "[" * 500_000 + "]" * 500_000,
    "digits": "[[[0." + "1" * 1_000_000,
    "vertices": "[[" + "[0.1,0.2]," * 100_000 + "[0.3,0.4]]]",
    "rings": "[" + "[[0.1,0.1],[0.9,0.1],[0.5,0.9]]," * 30_000 + "[]]",
    "commas": "," * 1_000_000,
    "spaces": " " * 1_000_000,
    "prose": "the polygon is at " * 55_000,
    "far away": "[[[" + "],[".join(["1e308,-1e308"] * 70_000) + "]]]",
    "large": "[[[0,0],[999999999999,0],[0,999999999999]]]" * 20_000,
}


class Kept(list):
    """Samples held in memory, so that the time goes into answers."""

    name = "kept"
    split = "test"


@pytest.fixture(scope="module")
def samples():
    scenes = Scenes(split="val", size=64)
    return Kept(scenes[index] for index in range(16))


def fuzzed_answers(samples, seed):
    """Outlines cut short, changed in places, or put together from pieces at random."""
    generator = np.random.default_rng(seed)
    outlines = [encode(sample.target.outline(0.003)) for sample in samples]
    for number in range(ANSWERS):
        text = outlines[int(generator.integers(len(outlines)))]
        kind = number % 4
        if kind == 0:
            yield text[: int(generator.integers(len(text)))]
        elif kind == 1:
            letters = list(text)
            for place in generator.integers(len(letters), size=int(generator.integers(1, 9))):
                letters[place] = PIECES[int(generator.integers(len(PIECES)))]
            yield "".join(letters)
        elif kind == 2:
            yield "".join(PIECES[i] for i in generator.integers(len(PIECES), size=60))
        else:
            alphabet = string.printable + "é中🦆"
            size = int(generator.integers(0, 80))
            yield "".join(alphabet[i] for i in generator.integers(len(alphabet), size=size))


@pytest.mark.parametrize("frame", ["unit", "permille"])
def test_no_answer_raises_or_hangs(samples, frame):
    env = ReferringSegmentationEnv(samples, image_size=(50, 70), frame=frame)
    slowest = 0.0
    outcomes = set()
    for number, answer in enumerate(fuzzed_answers(samples, seed=0)):
        env.reset(options={"index": number % len(samples)})
        start = time.process_time()
        _, reward, terminated, truncated, info = env.step(answer)
        slowest = max(slowest, time.process_time() - start)
        assert np.isfinite(reward)
        assert 0.0 <= info["iou"] <= 1.0
        assert (terminated, truncated) == (True, False)
        assert len(info["issues"]) < 300
        outcomes.update(info["issues"].split(","))
    assert slowest < 0.5
    assert {"empty", "truncated", "bad_number", "no_polygon", "surrounding_text"} <= outcomes


@pytest.mark.parametrize("name", HUGE)
def test_a_megabyte_of_anything_takes_bounded_time_and_memory(samples, name):
    env = ReferringSegmentationEnv(samples, render_mode="rgb_array")
    env.reset(options={"index": 0})
    start = time.process_time()
    info = env.step(HUGE[name])[4]
    image = env.render()
    assert time.process_time() - start < 5.0
    assert info["num_vertices"] <= 4096
    assert image.nbytes < 10_000_000


def test_memory_does_not_follow_the_numbers_in_the_text(samples):
    env = ReferringSegmentationEnv(samples)
    env.reset(options={"index": 0})
    tracemalloc.start()
    env.step("[[[0,0],[1e15,0],[1e300,1e300],[-1e9,2000000000]]]")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_one_hostile_answer_does_not_disturb_its_neighbours(samples):
    envs = ReferringSegmentationVectorEnv(samples, num_envs=3, autoreset_mode="Disabled")
    good = encode(samples[0].target.rings, decimals=9)
    for bad in HUGE.values():
        envs.reset(options={"indices": [0, 0, 0]})
        infos = envs.step([good, bad, good])[4]
        assert infos["iou"][[0, 2]].tolist() == [1.0, 1.0]
