"""A data set in which some expressions mean nothing."""

import numpy as np

from seg_env.data.scenes import Scenes
from seg_env.types import Sample, Target


class SomeAbsent(list):
    """Scenes, and pictures in which nothing is to be found, in turn."""

    name = "some-absent"
    split = "test"

    def __init__(self):
        for sample in Scenes(split="val", length=8, size=48):
            nothing = Target.from_mask(np.zeros(sample.target.size, dtype=bool))
            absent = Sample(f"{sample.id}-absent", "the unicorn", nothing, sample.image.copy)
            self += [sample, absent]
