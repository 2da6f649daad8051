"""A small data set whose images have sizes of their own."""

import numpy as np

from seg_env.types import Sample, Target


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
