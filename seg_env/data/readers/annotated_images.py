"""The base of all data sets that read annotated images from files."""

from __future__ import annotations

import operator
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Generic, TypedDict, TypeVar, get_args

from seg_env.data.images import image_size, is_turned, read_image
from seg_env.data.rasters import Stretch
from seg_env.data.records import Fault, Id, OnError, RecordError
from seg_env.types import Sample, Target

Key = TypeVar("Key")
_COCO_NAME = re.compile(r"(?:coco_(?:train|val|test)\d{4}_)?(\d{12})(?:_\d+)?")


@dataclass(frozen=True, eq=False)
class Entry:
    """What files say about an object of an image, or about several that are asked for together."""

    id: str
    """Of the sample; where each sentence is a sample, the number of the sentence is added."""
    sentences: Mapping[Id, str]
    """Expressions for it by their numbers, or other names."""
    image: Path | bytes
    """The file of the image, or its content."""
    size: tuple[int, int]
    """``(H, W)`` of the image."""
    target: Callable[[], Target]
    """Builds the mask, or raises what is wrong with the annotation."""
    metadata: dict[str, Any]
    others: Iterable[Callable[[], Target]] = ()
    """Build the masks of the other objects of the image."""
    image_name: str = ""
    """The name of the image in errors, by default its path."""
    upright: bool = False
    """Whether annotations are drawn on the image as EXIF data turn it, not as it is stored."""


class Options(TypedDict, total=False):
    """The options that every reader takes."""

    exclude_images: Collection[str | int] | None
    """Image ids or names of image files to leave out, see `seg_env.data.held_out_images`."""
    on_error: OnError
    """What to do about broken records."""
    encoding: str | None
    """Of annotation files that are neither UTF-8 nor UTF-16; without it they are an error."""
    stretch: Stretch
    """How images deeper than 8 bits become bytes, see `seg_env.data.rasters.Stretch`."""
    bands: Sequence[int] | None
    """Bands to read as gray, or as red, green and blue, see `seg_env.data.images.read_image`."""


class AnnotatedImages(ABC, Generic[Key]):
    """A data set whose records lie in files: indexing, leaving out, counting what was left out.

    Readers take `Options`. They raise a `FileNotFoundError` that says what is missing and what was
    looked for, and a `ValueError` that names file and record.

    A reader's constructor makes a *key* for each of its objects, whatever it needs to find it again
    (the number of a file, ids), and calls `_ask` with it, once `_read` and `_image_name` can be
    called. The object itself is read by `_read` when it is asked for.
    """

    sentence_key: ClassVar[str | None] = None
    """The name of a sentence's number in the metadata, or "" if it is not there; None where
    sentences are not samples of their own."""

    def __init__(
        self,
        name: str,
        split: str,
        *,
        per_reference: bool = False,
        exclude_images: Collection[str | int] | None = None,
        on_error: OnError = "raise",
        encoding: str | None = None,
        stretch: Stretch = "full",
        bands: Sequence[int] | None = None,
    ) -> None:
        """Start with nothing asked for and nothing left out."""
        if on_error not in get_args(OnError):
            raise ValueError(f"{on_error=} is unknown; use one of {', '.join(get_args(OnError))}")
        if encoding is not None:
            try:
                "a".encode(encoding)
            except (LookupError, ValueError):
                raise ValueError(f"{encoding=} is unknown; use one that Python knows") from None
        if stretch not in get_args(Stretch):
            raise ValueError(f"{stretch=} is unknown; use one of {', '.join(get_args(Stretch))}")
        self.name = name
        self.split = split
        self.faults: dict[str, str] = {}
        """The message about the first record left out, by `seg_env.data.records.Fault`."""
        self.skipped: Counter[str] = Counter()
        """Number of records left out for being broken, by `seg_env.data.records.Fault`."""
        self.unused: Counter[str] = Counter()
        """Number of sound shapes, annotations, references and images not asked for, by reason."""
        self.excluded = 0
        """Number of samples left out for their image (``exclude_images=``)."""
        self.per_reference = per_reference
        """Whether an object is one sample, with its first sentence."""
        self._exclude = {image_key(image) for image in exclude_images or ()}
        self._on_error = on_error
        self._encoding = encoding
        self._read_image = partial(read_image, stretch=stretch, bands=bands)
        self._questions: list[tuple[Key, Id]] = []  # an object and the number of a sentence

    def __len__(self) -> int:
        return len(self._questions)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int, /) -> Sample:
        """The sample at ``index``; negative indices count from the end.

        Raises:
            IndexError: Outside ``[-len, len)``.
            ValueError: The record is broken; names file and record.
        """
        entry, number = self._at(index)
        if number not in entry.sentences:
            raise RecordError(f"{entry.id} has changed since it was opened; open it again")
        identifier, metadata = entry.id, dict(entry.metadata)
        if self.sentence_key:
            metadata[self.sentence_key] = number
        if self.per_reference:
            metadata["sentences"] = list(entry.sentences.values())
        elif self.sentence_key is not None:
            identifier += f"-{number}"
        where = entry.image, entry.size, entry.image_name
        load = partial(self._read_image, *where, upright=entry.upright)
        target = replace(entry.target(), record=identifier)
        return Sample(identifier, entry.sentences[number], target, load, metadata)

    def others(self, index: int, /) -> list[Target]:
        """Masks of the other annotated objects in the image; broken annotations are left out."""
        found = []
        for build in self._at(index)[0].others:
            with suppress(RecordError):
                found.append(build())
        return found

    def image_path(self, index: int, /) -> Path | None:
        """The file of a sample's image, or None where it does not lie in a file."""
        image = self._at(index)[0].image
        return image if isinstance(image, Path) else None

    def is_turned(self, index: int, /) -> bool:
        """Whether a sample's image is read turned, as the EXIF data of its file say."""
        entry = self._at(index)[0]
        return is_turned(entry.image, entry.size, upright=entry.upright)

    def image_names(self) -> frozenset[str]:
        """Names of the files of all images, as far as they are known without reading them."""
        return frozenset(self._image_name(key) for key, _ in self._questions)

    def keep_images(self, keys: Collection[str]) -> None:
        """Forget the samples of all images but these, by `image_key`."""
        asked = self._questions
        self._questions = [one for one in asked if image_key(self._image_name(one[0])) in keys]

    def _at(self, index: int) -> tuple[Entry, Id]:
        """The object of a sample and the number of its sentence."""
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"index {number} is outside of {len(self)} samples")
        key, sentence = self._questions[number]
        return self._read(key), sentence

    @abstractmethod
    def _read(self, key: Key) -> Entry:
        """The object of a key, read from its file."""

    @abstractmethod
    def _image_name(self, key: Key) -> str:
        """The name of the image's file."""

    def _ask(self, key: Key, numbers: Iterable[Id] = (0,)) -> None:
        """Add a sample for each sentence about an object, or for the first one only.

        Excluded images are left out and, where broken records are skipped, also objects whose
        annotation is broken, or whose image is by its header.
        """
        asked = list(numbers)[: 1 if self.per_reference else None]
        if not asked:
            self.unused["references without a sentence"] += 1
        with self._reading_record(len(asked), (ValueError, FileNotFoundError)):
            if self._exclude and image_key(self._image_name(key)) in self._exclude:
                self.excluded += len(asked)
                return
            if self._on_error == "skip":
                entry = self._read(key)
                entry.target()
                image_size(entry.image, entry.image_name, entry.size, upright=entry.upright)
            self._questions += [(key, number) for number in asked]

    @contextmanager
    def _reading_record(
        self, count: int = 1, faults: tuple[type[Exception], ...] = (RecordError,)
    ) -> Iterator[None]:
        """Raise ``faults`` of the block, or count them where broken records are left out."""
        try:
            yield
        except faults as error:
            if self._on_error == "raise":
                raise
            missing = isinstance(error, FileNotFoundError)
            fault = Fault.MISSING_IMAGE if missing else getattr(error, "fault", Fault.MALFORMED)
            if count:
                self.skipped[str(fault)] += count
                self.faults.setdefault(str(fault), str(error))


def images_of(datasets: Iterable[AnnotatedImages[Any]]) -> frozenset[str]:
    """The keys of all images of some data sets, for ``exclude_images=``."""
    return frozenset(image_key(name) for each in datasets for name in each.image_names())


def image_key(name: str | int) -> str:
    """A key that all names of one image share: the file's name without folder and ending.

    Of COCO's names only the number is kept: ``COCO_train2014_000000581857.jpg``, the same followed
    by an object's number, ``000000581857.jpg`` of 2017 and the id ``581857`` are one image.
    """
    if isinstance(name, int):
        return str(name)
    stem = PurePosixPath(name.replace("\\", "/")).stem.casefold()
    match = _COCO_NAME.fullmatch(stem)
    return str(int(match[1])) if match else stem
