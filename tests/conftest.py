"""Small data sets that several test files share."""

import os
import sys

import numpy as np
import pytest
from hypothesis import settings

import agents  # noqa: F401  (before torch: sets how long its threads spin)
from seg_env.data.scenes import Scenes
from seg_env.types import Sample, Target

# The first call of a function imports what it needs; a deadline would blame the example.
# The parent is Hypothesis's own choice: under CI it draws the same examples every time.
settings.register_profile("no_deadline", parent=settings(), deadline=None)
settings.load_profile("no_deadline")


@pytest.fixture(autouse=True)
def same_threads():
    """Every test finds the number of threads that processes started by tests have, too.

    What is computed by one thread differs in the last bits from what several compute; code under
    test may set their number for the whole process.
    """
    yield
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


class SizedImages:
    """White rectangles on black images, each of another size; counts what is loaded."""

    name = "pictures"
    split = "test"
    wording = "rectangle {}"
    sizes = ((40, 60), (60, 40), (33, 33), (30, 90))

    def __init__(self):
        self.loaded = []

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(index)
        self.loaded.append(index)
        height, width = self.sizes[index]
        mask = np.zeros((height, width), dtype=bool)
        mask[height // 5 : height // 2, width // 3 : 2 * width // 3] = True
        picture = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2)
        return Sample(
            f"pictures-{index}", self.wording.format(index), Target.from_mask(mask), picture.copy
        )


@pytest.fixture
def pictures():
    return SizedImages()


@pytest.fixture
def scenes():
    return Scenes(split="val", length=64, size=64)
