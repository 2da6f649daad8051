"""Spaces that Gymnasium lacks: outlines written as text, free text, images of any size."""

from __future__ import annotations

import string
from typing import Any, NoReturn

import numpy as np
from gymnasium import spaces
from gymnasium.error import CustomSpaceError
from gymnasium.vector.utils import create_shared_memory
from numpy.typing import NDArray

from seg_env.frames import UNIT, Frame
from seg_env.grammar import encode
from seg_env.grammar.answers import encode_numbers
from seg_env.types import Form, Ring


class FreeText(spaces.Text):
    """Any string up to a length, whatever its characters.

    Gymnasium's ``Text`` accepts a closed character set only, but expressions are written by people.
    Samples consist of printable ASCII characters. In arrays, in which Stable-Baselines3 keeps
    observations, a text is one object: as type ``str``, NumPy would keep only its first character.
    """

    def __init__(self, max_length: int = 1024, *, seed: int | None = None) -> None:
        super().__init__(max_length, min_length=0, charset=string.printable, seed=seed)
        self._shape, self.dtype = (), np.dtype(object)

    def contains(self, x: Any) -> bool:
        """True for every string of at most ``max_length`` characters."""
        return isinstance(x, str) and len(x) <= self.max_length

    def __repr__(self) -> str:
        # Without the hundred characters of the alphabet.
        return f"{type(self).__name__}(max_length={self.max_length})"


@create_shared_memory.register(FreeText)
def _refuse_shared_memory(space: FreeText, n: int = 1, ctx: Any = None) -> NoReturn:
    """Refuse shared memory, in which Gymnasium would read text once, before there is any."""
    raise CustomSpaceError(
        f"{space!r} cannot be shared between processes, all text would read '000...': use "
        "shared_memory=False, or gymnasium.make_vec without vectorization_mode, which scores all "
        "answers in one call"
    )


class PolygonText(FreeText):
    """Answers of a segmentation policy: any string at all, sampled as well-formed outlines.

    The environment accepts every string and scores what it can read, so `contains` does too;
    ``max_length`` is only what Gymnasium's tools size their buffers by. A sample is one or two
    star-shaped rings inside the image, clockwise on screen, of 3 to 12 vertices each; or where
    boxes or points may be asked for, one of the forms at random.
    """

    def __init__(
        self,
        max_length: int = 4096,
        *,
        frame: Frame = UNIT,
        forms: tuple[Form, ...] = ("mask",),
        seed: int | None = None,
    ) -> None:
        """Describe the space; frame and forms are those of its samples."""
        super().__init__(max_length, seed=seed)
        self.frame = frame
        self.forms = forms

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Draw a well-formed answer, for example ``[[[0.31,0.2],[0.52,0.44],[0.2,0.41]]]``."""
        if mask is not None or probability is not None:
            raise ValueError("sampling takes no mask and no probability; call sample()")
        return self._draw()

    def _draw(self) -> str:
        form = self.forms[self.np_random.integers(len(self.forms)) if len(self.forms) > 1 else 0]
        if form != "mask":
            points = np.sort(self.np_random.random((1 if form == "point" else 2, 2)), axis=0)
            return encode_numbers(points, frame=self.frame)
        rings = [self._star() for _ in range(1 + int(self.np_random.random() < 0.25))]
        return encode(rings, frame=self.frame)

    def contains(self, x: Any) -> bool:
        """True for every string: what cannot be read scores badly, but it may be answered."""
        return isinstance(x, str)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, PolygonText)
            and type(other) is type(self)
            and super().__eq__(other)
            and (self.frame, self.forms) == (other.frame, other.forms)
        )

    __hash__ = None  # type: ignore[assignment]

    def _star(self) -> Ring:
        """A ring around a random centre: angles grow with y pointing down, so it runs clockwise."""
        rng = self.np_random
        vertices = int(rng.integers(3, 13))
        centre = rng.uniform(0.2, 0.8, size=2)
        largest = min(centre.min(), (1.0 - centre).min())
        radii = largest * rng.uniform(0.4, 1.0, size=vertices)
        angles = 2.0 * np.pi * (np.arange(vertices) + rng.uniform(0.1, 0.9, vertices)) / vertices
        offsets = np.stack([np.cos(angles), np.sin(angles)], axis=1)  # (V, 2)
        return np.asarray(centre + radii[:, None] * offsets, dtype=np.float64)


class ImageSpace(spaces.Space[NDArray[np.uint8]]):
    """Images ``(H, W, 3) uint8`` of any height and width, for observations at native size."""

    def __init__(self, *, seed: int | None = None) -> None:
        super().__init__(shape=None, dtype=np.uint8, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        """False: images of different sizes have no common length."""
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> NDArray[np.uint8]:
        """Draw noise of a random size, at most 256 pixels a side to stay cheap."""
        if mask is not None or probability is not None:
            raise ValueError("sampling takes no mask and no probability; call sample()")
        height, width = self.np_random.integers(1, 257, size=2)
        return self.np_random.integers(0, 256, size=(height, width, 3), dtype=np.uint8)

    def contains(self, x: Any) -> bool:
        """True for an ``(H, W, 3) uint8`` array with at least one pixel."""
        is_image = isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.ndim == 3
        return is_image and x.shape[2] == 3 and x.size > 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageSpace)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "ImageSpace()"
