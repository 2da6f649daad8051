"""Answers that are nearly right, or not at all, from a seed."""

import os
import string
from collections.abc import Iterator

import numpy as np

SEED = int(os.environ.get("SIMPLESEG_FUZZ_SEED", "0"))
SCALE = float(os.environ.get("SIMPLESEG_FUZZ_SCALE", "1"))
"""What every number of tries is multiplied by."""
PIECES = [
    *"[[[[]]]],,,,....0123456789-+eE \n\t(){}<>:;%\"'\\/|",
    *("nan", "NaN", "inf", "-inf", "1e308", "-1e308", "1e-308", "1e999", "0x10", "1_000", "None"),
    *("]]]", "[[[", "],[", "[[0.1,0.2],", "0.5", "[]", "[1,2,3]", "[0.1]", "9" * 400, "-" * 50),
    *("٣", "½", "１", "²", "\x00", "\ud800", "\udfff", "\u202e", "\u200b", "🦆", "\r\n", "\x0b"),
    *("It is at ", "Sure, you can find it at ", "<|im_end|>", "<think>", "</think>", "<answer>"),
    *("</answer>", "```json", "```", '{"bbox_2d": [', '{"point_2d": [', '"x": ', '{"quad_2d": '),
    *("<loc_5>", "<loc0500>", "<seg001>", "<0.5>", "<box>", "</box>", "<|box_start|>", "(1,2)"),
]
ALPHABET = string.printable + "é中🦆"


def answers(outlines: list[str], count: int, seed: int) -> Iterator[str]:
    """Sound answers as they are, cut, changed and joined; pieces and letters at random."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        text = outlines[int(generator.integers(len(outlines)))]
        match number % 7:
            case 0:
                yield text[: int(generator.integers(len(text) + 1))]
            case 1:
                letters = list(text)
                for place in generator.integers(len(letters), size=int(generator.integers(1, 9))):
                    letters[place] = PIECES[int(generator.integers(len(PIECES)))]
                yield "".join(letters)
            case 2:
                size = int(generator.integers(1, 60))
                yield "".join(PIECES[i] for i in generator.integers(len(PIECES), size=size))
            case 3:
                size = int(generator.integers(0, 80))
                yield "".join(ALPHABET[i] for i in generator.integers(len(ALPHABET), size=size))
            case 4:
                start, stop = sorted(generator.integers(len(text) + 1, size=2).tolist())
                yield text[:stop] + text[start:]
            case 5:
                yield text
            case _:
                other = outlines[int(generator.integers(len(outlines)))]
                cut, join = generator.integers(len(text) + 1), generator.integers(len(PIECES))
                yield text[: int(cut)] + PIECES[int(join)] + other
