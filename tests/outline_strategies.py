"""Outlines as Hypothesis draws them, and what tests ask of a prediction."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seg_env.types import Prediction

coordinates = st.floats(0, 1) | st.sampled_from([0.0, 0.0004, 0.5, 0.9996, 1.0])
rings = hnp.arrays(np.float64, st.tuples(st.integers(3, 30), st.just(2)), elements=coordinates)
ring_lists = st.lists(rings, max_size=4)


def kinds(prediction: Prediction) -> list[str]:
    return [issue.kind.value for issue in prediction.issues]


def lengths(prediction: Prediction) -> list[int]:
    return [len(ring) for ring in prediction.rings]


def encloses_something(ring: np.ndarray) -> bool:
    """True if the vertices, rounded to 0.001, are not collinear."""
    steps = np.rint(ring * 1000)
    return np.linalg.matrix_rank(steps - steps[0]) == 2
