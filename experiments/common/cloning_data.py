"""Images that behaviour cloning learns from: rendered scenes, or annotated ones in files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from rich.console import Console

from agents.demonstrations import Demonstration, demonstrate
from experiments.common.logs import progress_bar
from seg_env.data import open_dataset
from seg_env.data.base import Dataset
from seg_env.data.readers.annotated_images import AnnotatedImages
from seg_env.data.scenes import Scenes
from seg_env.envs.left_out import LeftOut, UnusableSampleError, loading
from seg_env.types import Sample, Target


class RecordedImages:
    """The images of a data set whose files hold one object per record."""

    def __init__(self, dataset: str | Dataset, most: int | None = None) -> None:
        """Find out which records are about which image, for the first ``most`` images or all.

        ``dataset`` is a data set, or the name of one, whose training split is taken.

        Raises:
            FileNotFoundError: There is no such file, or none in the folder.
            ValueError: A record is malformed, or the name is of no known kind.
        """
        named = isinstance(dataset, str)
        self.dataset = open_dataset(dataset, split="train" if named else None)
        groups: dict[str, list[int]] = {}
        for index in range(len(self.dataset)):
            groups.setdefault(_image_of(self.dataset, index), []).append(index)
        self._groups = list(groups.items())[:most]

    def __len__(self) -> int:
        return len(self._groups)

    def name_of(self, index: int) -> str:
        """The file of image ``index``, or the id of a sample about it."""
        return self._groups[index][0]

    def samples_of(self, index: int) -> list[Sample]:
        """The samples about image ``index``, without those whose object is absent."""
        samples = [self.dataset[row] for row in self._groups[index][1]]
        return [sample for sample in samples if sample.target.area]


class JoinedImages:
    """The images of several sets, one set after the other."""

    def __init__(self, parts: Sequence[LabelledImages]) -> None:
        """Join them."""
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def name_of(self, index: int) -> str:
        """What its set calls image ``index``."""
        part, own = self._find(index)
        return part.name_of(own)

    def samples_of(self, index: int) -> list[Sample]:
        """The samples about image ``index``."""
        part, own = self._find(index)
        return part.samples_of(own)

    def _find(self, index: int) -> tuple[LabelledImages, int]:
        """The set that has image ``index``, and its index there."""
        own = index
        for part in self.parts:
            if own < len(part):
                return part, own
            own -= len(part)
        raise IndexError(f"image {index} is beyond the last one")


class LookalikeScenes:
    """Easy scenes of two objects of one shape, which only the word for their colour tells apart.

    One in seven easy scenes is of this kind. With so few, a policy learns to find shapes and then
    stays with them: colour would gain it too little to be learned.
    """

    SPAN = 100
    """Scenes that are searched for one; the chance that there is none among them is 1e-7."""

    def __init__(self, count: int) -> None:
        """Find ``count`` of them, none of which is among the scenes of seed 0."""
        self._scenes = Scenes("train", "easy", seed=1, length=self.SPAN * count)

    def __len__(self) -> int:
        return len(self._scenes) // self.SPAN

    def name_of(self, index: int) -> str:
        """The name of the first scene that is searched for image ``index``."""
        return self._scenes.name_of(self.SPAN * index)

    def samples_of(self, index: int) -> list[Sample]:
        """The samples about image ``index``."""
        for number in range(self.SPAN * index, len(self._scenes)):
            samples = self._scenes.samples_of(number)
            if len(samples) == 2 and len({each.metadata["shape"] for each in samples}) == 1:
                return samples
        raise IndexError(f"image {index} is beyond the last one")


class MirroredImages:
    """All images as they are, and after them all images mirrored, left to right.

    Left and right are swapped in expressions, too. Letters in an image come out reversed.
    """

    def __init__(self, images: LabelledImages) -> None:
        """Double a set."""
        self.images = images

    def __len__(self) -> int:
        return 2 * len(self.images)

    def name_of(self, index: int) -> str:
        """What image ``index`` is called."""
        return self.images.name_of(index % len(self.images))

    def samples_of(self, index: int) -> list[Sample]:
        """The samples about image ``index``."""
        samples = self.images.samples_of(index % len(self.images))
        return samples if index < len(self.images) else [mirror(each) for each in samples]


def mirror(sample: Sample) -> Sample:
    """A sample with left and right swapped, in its image, its mask and its words."""
    return Sample(
        f"{sample.id}-mirrored",
        SIDES.sub(lambda found: OTHER_SIDE[found[0].lower()], sample.expression),
        Target.from_mask(np.ascontiguousarray(sample.target.mask()[:, ::-1])),
        lambda: np.ascontiguousarray(sample.image[:, ::-1]),
    )


OTHER_SIDE = {"left": "right", "right": "left", "leftmost": "rightmost", "rightmost": "leftmost"}
SIDES = re.compile(rf"\b({'|'.join(OTHER_SIDE)})\b", re.IGNORECASE)

LabelledImages = Scenes | LookalikeScenes | RecordedImages | JoinedImages | MirroredImages
"""Images with samples about each; they go to worker processes."""


def _image_of(dataset: Dataset, index: int) -> str:
    """The path of a sample's image, or another name that is unique to the image."""
    path = dataset.image_path(index) if isinstance(dataset, AnnotatedImages) else None
    if path is not None:
        return str(path)
    sample = dataset[index]
    return str(sample.metadata.get("file_name", sample.id))


def demonstrate_images(
    images: LabelledImages,
    processor: Any,
    *,
    workers: int,
    console: Console,
    left_out: LeftOut,
    **settings: Any,
) -> list[Demonstration]:
    """Write questions and answers about images in ``workers`` processes, in the images' order.

    Images without an object are passed over.

    Args:
        images: What is asked about.
        processor: That of the policy to be taught.
        workers: Processes.
        console: Where the progress bar is drawn.
        left_out: Gets images that are broken or that the processor refuses, and samples whose
            outlines are too long.
        **settings: Of `agents.demonstrations.demonstrate`; coordinates have all their digits.

    Raises:
        UnusableSampleError: An image cannot be used and is not to be left out.
    """
    work = partial(_demonstrate, images, processor, settings | {"pad": True})
    found: list[Demonstration] = []
    pool = ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )
    with progress_bar(console) as progress, pool:
        alone = workers == 1 or len(images) <= 250  # a process takes seconds to start
        places = range(len(images))
        parts = map(work, places) if alone else pool.map(work, places, chunksize=250)
        task = progress.add_task("reading images", total=len(images), status="")
        for index, part in enumerate(parts):
            if isinstance(part, UnusableSampleError):
                left_out.add(images.name_of(index), part)
            elif part is not None:
                for name in part.too_long:
                    problem = f"no outline of it fits in {settings['longest']} tokens"
                    left_out.add(name, UnusableSampleError(problem))
                if part.dialogues:
                    found.append(part)
            progress.advance(task)
    return found


def _demonstrate(
    images: LabelledImages, processor: Any, settings: dict[str, Any], index: int
) -> Demonstration | UnusableSampleError | None:
    """The demonstration of an image, if there is an object in it, or why it cannot be used."""
    try:
        with loading():
            samples = images.samples_of(index)
            if not samples:
                return None
            settings["frame"].for_image(samples[0].image.shape[:2])
        return demonstrate(processor, samples, **settings)
    except UnusableSampleError as error:
        return error
