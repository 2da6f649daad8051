"""Images that behaviour cloning learns from: rendered scenes, or annotated ones in files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console

from agents.demonstrations import Demonstration, demonstrate, require_plain_prompts
from agents.embedded.tiny import TinyConfig, build_processor
from experiments.common.logs import progress_bar
from experiments.common.policies import open_processor
from seg_env.data import open_dataset
from seg_env.data.base import Dataset
from seg_env.data.readers.annotated_images import AnnotatedImages
from seg_env.envs.left_out import LeftOut, OnError, UnusableSampleError, loading
from seg_env.frames import UNIT_ANSWERS
from seg_env.types import Sample

CHUNK = 250


class LabelledImages(Protocol):
    """Images with samples about each; goes to worker processes."""

    def __len__(self) -> int:
        """Number of images."""

    def samples_of(self, index: int) -> list[Sample]:
        """One sample for each object of image ``index``; they share the image."""

    def name_of(self, index: int) -> str:
        """What image ``index`` is called in reports."""


class RecordedImages:
    """The images of a data set in files, whose samples stand one object a record."""

    def __init__(self, path: str, most: int | None = None) -> None:
        """Find out which records are about which image.

        Args:
            path: Folder of ``experiments/annotate.py``, or a ``.jsonl`` or ``.parquet`` file.
            most: LabelledImages that are used, the first ones; by default all.

        Raises:
            FileNotFoundError: There is no such file, or none in the folder.
            ValueError: A record is malformed, or the name is of no known kind.
        """
        self.dataset = open_records(path)
        groups: dict[str, list[int]] = {}
        for index in range(len(self.dataset)):
            groups.setdefault(_image_of(self.dataset, index), []).append(index)
        self._groups = list(groups.values())[:most]
        self._names = list(groups)[:most]

    def __len__(self) -> int:
        """Number of images."""
        return len(self._groups)

    def name_of(self, index: int) -> str:
        """The file of image ``index``, or the id of a sample about it."""
        return self._names[index]

    def samples_of(self, index: int) -> list[Sample]:
        """The samples about image ``index``; those whose object is absent are left out.

        Nobody can point at what is not there.
        """
        samples = [self.dataset[row] for row in self._groups[index]]
        return [sample for sample in samples if sample.target.area]


def open_records(path: str, split: str = "train") -> Dataset:
    """The samples in a folder that ``experiments/annotate.py`` wrote, or in a file.

    Raises:
        FileNotFoundError: They are not there.
        ValueError: The name is of no known kind.
    """
    place = Path(path).expanduser()
    if not place.is_dir():
        return open_dataset(path)
    lines = place / f"{split}.jsonl"
    if lines.exists():
        return open_dataset(str(lines))
    return open_dataset("parquet", data_root=place, split=split)


def _image_of(dataset: Dataset, index: int) -> str:
    """What tells images apart."""
    photo = dataset.photo_path(index) if isinstance(dataset, AnnotatedImages) else None
    if photo is not None:
        return str(photo)
    sample = dataset[index]
    return str(sample.metadata.get("file_name", sample.id))


def demonstrate_images(
    images: LabelledImages,
    policy: str | None,
    model: TinyConfig,
    *,
    workers: int,
    console: Console,
    left_out: LeftOut | None = None,
    **how: Any,
) -> list[Demonstration]:
    """Write questions and answers about images on several cores, in their order.

    Args:
        images: What is asked about; those without an object are left out.
        policy: Whose processor is used; None for a new policy.
        model: Shape of a new policy.
        workers: Processes.
        console: Where the progress bar is drawn.
        left_out: Told of images that are broken, or that the processor refuses; by default they
            are an error.
        **how: Arguments of `agents.demonstrations.demonstrate`; coordinates have all their digits.

    Raises:
        UnusableSampleError: One is, and images are not to be left out.
    """
    left_out = LeftOut("error") if left_out is None else left_out
    how = {"frame": UNIT_ANSWERS, "pad": True, "on_error": left_out.on_error, **how}
    work = partial(_demonstrate_chunk, images, policy, model, **how)
    count = len(images)
    chunks = [range(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
    found: list[Demonstration] = []
    with progress_bar(console) as progress:
        task = progress.add_task("reading images", total=count, status="")
        parts = _in_order(work, chunks, workers)
        for chunk, (part, reasons) in zip(chunks, parts, strict=True):
            found += part
            left_out.update(reasons)
            progress.advance(task, len(chunk))
    return found


def workers_of(ranks: int) -> int:
    """Worker processes of each of ``ranks`` processes on this machine."""
    return max(1, (os.cpu_count() or 1) // ranks)


_Part = tuple[list[Demonstration], dict[str, str]]
"""Demonstrations of some images, and why others were left out, by their names."""


def _in_order(
    work: Callable[[Sequence[int]], _Part], chunks: Sequence[range], workers: int
) -> Iterator[_Part]:
    """What comes of each chunk; a process is not worth starting for a single one."""
    if min(workers, len(chunks)) <= 1:
        yield from map(work, chunks)
        return
    pool = ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )
    with pool:
        yield from pool.map(work, chunks)


def _demonstrate_chunk(
    images: LabelledImages,
    policy: str | None,
    model: TinyConfig,
    indices: Sequence[int],
    *,
    on_error: OnError,
    **how: Any,
) -> _Part:
    """Demonstrations of some images; ``how`` are arguments of `demonstrate`."""
    processor = build_processor(model) if policy is None else open_processor(policy)
    found: list[Demonstration] = []
    left_out, checked = LeftOut(on_error), False
    for index in indices:
        try:
            with loading():
                samples = images.samples_of(index)
                if not samples:
                    continue
                how["frame"].for_image(samples[0].image.shape[:2])
            if not checked:
                require_plain_prompts(processor, samples[0].image)
                checked = True
            found.append(demonstrate(processor, samples, **how))
        except UnusableSampleError as error:
            left_out.add(images.name_of(index), error)
    return found, left_out.reasons
