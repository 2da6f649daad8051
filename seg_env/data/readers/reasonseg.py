"""ReasonSeg: questions that need reasoning, with regions that do not count."""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seg_env.data.images import image_size, read_image
from seg_env.data.readers.annotated_images import AnnotatedImages
from seg_env.data.readers.labelme import image_beside, points_of, read_json_file, shapes_of
from seg_env.data.records import Fault, OnError, RecordError, describe
from seg_env.data.segmentations import check_inside
from seg_env.geometry.rle import Rle
from seg_env.types import Sample, Target


class ReasonSeg(AnnotatedImages):
    """One split of ReasonSeg (Lai et al. 2023, arXiv 2308.00692): one sample for each sentence.

    On disk, as it was published::

        <data_root>/
          ReasonSeg/
            train/  00001_abc.jpg  00001_abc.json ...        (239 images)
            val/    ...                                      (200)
            test/   ...                                      (779)

    with ``<data_root>/train`` and so on being found too. A ``.json`` holds ``text`` (a list of
    sentences, or one), ``is_sentence`` and ``shapes``, each with a ``label`` and ``points`` in
    pixels. A label that contains "ignore" marks void pixels (`Target.ignore`), a shape named "flag"
    is passed over, all others are the target. Shapes are painted from the largest to the smallest,
    borders included, see `fill_inclusive`: pixels are those that the published evaluation scores.

    A few images are left with an empty target, as in the published evaluation: there ``[]`` is
    the right answer. The metadata holds ``file_name``, ``is_sentence`` and ``sentence`` (its
    number), and ``sentences`` where samples are images.
    """

    def __init__(
        self,
        data_root: str | os.PathLike[str],
        split: str = "val",
        *,
        per_reference: bool = False,
        exclude_images: Collection[str | int] | None = None,
        on_error: OnError = "raise",
    ) -> None:
        """Read the sentences of a split.

        With ``per_reference`` an image is one sample, with its first sentence, as in the published
        evaluation.
        """
        super().__init__("reasonseg", split, on_error)
        root = Path(data_root).expanduser().absolute()
        folders = [root / "ReasonSeg" / split, root / split]
        existing = [folder for folder in folders if folder.is_dir()]
        if not existing:
            looked = ", ".join(str(folder) for folder in folders)
            raise FileNotFoundError(
                f"there is no folder of the split {split!r}; looked for {looked}"
            )
        self.image_root = existing[0]
        self.per_reference = per_reference
        self._files = sorted(path.name for path in self.image_root.glob("*.json"))
        if not self._files:
            raise FileNotFoundError(f"{self.image_root} has no .json files")
        self._questions: list[tuple[int, int]] = []  # number of the file, of the sentence
        for number, name in enumerate(self._files):
            path = self.image_root / name
            with self._reading_record():
                count = len(_texts(read_json_file(path), path))
                sentences = range(1 if per_reference else count)
                self._questions += [(number, sentence) for sentence in sentences]
        self._choose_rows(range(len(self._questions)), exclude_images)

    def _sample(self, row: int) -> Sample:
        number, sentence = self._questions[row]
        path = self.image_root / self._files[number]
        record = read_json_file(path)
        texts = _texts(record, path)
        if sentence >= len(texts):
            raise RecordError(f"{path} has changed since it was opened; open it again")
        image = image_beside(path)
        size = image_size(image)
        metadata: dict[str, Any] = {
            "file_name": image.name,
            "is_sentence": bool(record.get("is_sentence", True)),
            "sentence": sentence,
        }
        identifier = f"{self.name}-{self.split}-{path.stem}"
        if self.per_reference:
            metadata["sentences"] = texts
        else:
            identifier += f"-{sentence}"
        return Sample(
            id=identifier,
            expression=texts[sentence],
            target=painted_target(record, path, size),
            load_image=partial(read_image, image, size),
            metadata=metadata,
        )

    def _unit(self, row: int) -> int:
        return self._questions[row][0]

    def _image_name(self, row: int) -> str:
        return self._files[self._unit(row)]

    def _image_path(self, row: int) -> Path:
        return image_beside(self.image_root / self._files[self._unit(row)])


def painted_target(record: dict[str, Any], path: Path, size: tuple[int, int]) -> Target:
    """Paint the shapes of a file, the largest first; smaller ones cover larger ones."""
    layers: list[tuple[int, bool, NDArray[np.bool_]]] = []
    for number, shape in enumerate(shapes_of(record, path)):
        label = shape["label"].lower()
        if label == "flag":
            continue
        where = f"{path}: shape {number}"
        points = points_of(shape, where)
        check_inside(np.trunc(points) + 0.5, size, where)
        filled = fill_inclusive(points, size)
        layers.append((int(filled.sum()), "ignore" in label, filled))
    if not layers:
        raise RecordError(f"{path}: 'shapes' is empty: there is nothing to outline", Fault.EMPTY)
    target, void = np.zeros(size, dtype=np.bool_), np.zeros(size, dtype=np.bool_)
    order = np.argsort([area for area, _, _ in layers], kind="stable")[::-1]
    for index in order.tolist():
        _, is_void, filled = layers[index]
        target[filled], void[filled] = not is_void, is_void
    ignore = Rle.from_mask(void) if void.any() else None
    return Target(Rle.from_mask(target), ignore=ignore)


def _texts(record: dict[str, Any], path: Path) -> list[str]:
    listed = record.get("text")
    texts = [listed] if isinstance(listed, str) else listed
    if not isinstance(texts, list) or not texts or not all(isinstance(each, str) for each in texts):
        raise RecordError(f"{path}: 'text' must be a list of sentences, got {describe(listed)}")
    return texts


def fill_inclusive(points: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill a polygon, ``(V, 2)`` in pixels, borders included; even-odd where it crosses itself.

    LISA (arXiv 2308.00692) publishes polygons together with the code that paints them: OpenCV's
    ``polylines`` over ``fillPoly``. It cuts off fractions, takes corners as centres of pixels and
    fills borders as well; COCO's rule would leave out half a pixel all around, some percent of IoU
    on small objects. One or two vertices draw a point or a line.

    Pixels are OpenCV's for polygons within the image. When one reaches out, OpenCV moves corners to
    the border by rules that differ between its versions; here what lies outside is cut off. Time
    and memory are bounded by the number of vertices times the sides of the image.
    """
    height, width = size
    mask = np.zeros(size, dtype=np.bool_)
    if not len(points) or not mask.size:
        return mask
    corners = np.trunc(np.clip(points, -(2.0**30), 2.0**30)).astype(np.int64)
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        _toggle_right_of(mask, start, end)
    np.logical_xor.accumulate(mask, axis=1, out=mask)
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        columns, rows = _line(start, end, (width, height))
        mask[rows, columns] = True
    return mask


def _toggle_right_of(
    mask: NDArray[np.bool_], start: NDArray[np.int64], end: NDArray[np.int64]
) -> None:
    """Toggle, in every row that an edge crosses, the first pixel that is not left of it."""
    (x0, y0), (x1, y1) = start.tolist(), end.tolist()
    if y0 > y1:
        x0, y0, x1, y1 = x1, y1, x0, y0
    rows = np.arange(max(y0, 0), min(y1, mask.shape[0]))  # the lower end belongs to the next edge
    columns = -((rows - y0) * (x0 - x1) // max(y1 - y0, 1)) + x0  # rounded up
    inside = columns < mask.shape[1]
    mask[rows[inside], np.maximum(columns[inside], 0)] ^= True


def _line(
    start: NDArray[np.int64], end: NDArray[np.int64], limits: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bresenham's line from left to right: columns and rows of its pixels within the image."""
    if start[0] > end[0]:
        start, end = end, start
    steps = np.abs(end - start)
    major = 0 if steps[0] >= steps[1] else 1
    minor = 1 - major
    signs = np.where(end >= start, 1, -1)
    length, rise = int(steps[major]), int(steps[minor])
    # Only the steps at which the line is beside neither of the two borders it runs across.
    border = (-int(start[major])) * int(signs[major])
    far = (limits[major] - 1 - int(start[major])) * int(signs[major])
    first, last = max(0, min(border, far)), min(length, max(border, far))
    along = np.arange(first, last + 1)
    whole = max(length, 1)
    across = (2 * along * rise + whole - 1) // (2 * whole)  # rounded to the nearest, halves down
    pixels = np.empty((2, len(along)), dtype=np.int64)
    pixels[major] = start[major] + signs[major] * along
    pixels[minor] = start[minor] + signs[minor] * across
    inside = (pixels[minor] >= 0) & (pixels[minor] < limits[minor])
    return pixels[0, inside], pixels[1, inside]
