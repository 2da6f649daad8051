"""Small data sets that several test files share."""

import os
import sys

import pytest
from hypothesis import settings
from sized_images import SizedImages

import agents  # noqa: F401  (before torch: sets how long its threads spin)
from seg_env.data.scenes import Scenes

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


@pytest.fixture
def pictures():
    return SizedImages()


@pytest.fixture
def scenes():
    return Scenes(split="val", length=64, size=64)
