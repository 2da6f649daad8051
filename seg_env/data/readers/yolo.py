"""Outlines in YOLO's form: a text file of fractions for each image."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Unpack

import numpy as np

from seg_env.data.folders import counterpart, image_folder, images_in
from seg_env.data.images import image_size
from seg_env.data.readers.annotated_images import AnnotatedImages, Entry, Options
from seg_env.data.records import RecordError, describe, located, read_text
from seg_env.data.segmentations import object_target
from seg_env.types import Target


class Outline(NamedTuple):
    """A line of a label file."""

    category: int
    points: list[float]
    """x, y, x, y, ... as shares of width and height."""
    where: str


class Yolo(AnnotatedImages[tuple[str, tuple[int, ...]]]):
    """A folder labelled for YOLO's segmentation: one sample for each image and class in it.

    On disk, as Ultralytics, Roboflow and CVAT write it::

        <data_root>/
          data.yaml             names: [cat, dog]   train: images/train   val: images/val
          images/train/0.jpg    or train/images/0.jpg, or images/0.jpg if there are no splits
          labels/train/0.txt    class x1 y1 x2 y2 ...

    Each line of a label outlines one object in shares of the width and height of the image as EXIF
    data turn it. The ``.yaml``, of any name, lists ``names`` by class; without one, ``classes.txt``
    has one per line. The folders it gives are looked for in ``data_root``, which may be the
    ``.yaml`` itself.

    The expression is the name of the class, the target all its objects in the image; with
    ``per_annotation`` each line is a sample. Boxes (four numbers), outlines of the same class
    beside them, and images without a label are skipped and counted.

    Metadata holds ``file_name``, ``category``, ``category_id`` and ``lines`` (numbers from 0).
    """

    def __init__(
        self,
        data_root: str | os.PathLike[str],
        split: str = "train",
        *,
        per_annotation: bool = False,
        **options: Unpack[Options],
    ) -> None:
        """Read the labels of a split."""
        super().__init__("yolo", split, **options)
        self.image_root, self._names, stated = read_config(Path(data_root), split, self._encoding)
        self.per_annotation = per_annotation
        for path in images_in(image_folder(self.image_root, split, stated)):
            image = path.relative_to(self.image_root).as_posix()
            if not counterpart(self.image_root, image, "labels", ".txt").is_file():
                self.unused["images without a label file"] += 1
                continue
            with self._reading_record():
                groups: dict[int, list[int]] = {}
                boxes = set()
                for number, each in enumerate(self._outlines(image)):
                    key = number if per_annotation else each.category
                    if len(each.points) == 4:
                        self.unused["boxes"] += 1
                        boxes.add(key)
                    else:
                        groups.setdefault(key, []).append(number)
                for key, group in groups.items():
                    if key in boxes:  # a target is never a part of what is asked for
                        self.unused["outlines of a class that has boxes beside them"] += len(group)
                    else:
                        self._ask((image, tuple(group)))

    def _outlines(self, image: str) -> list[Outline]:
        """The lines of a label that are not blank."""
        path = counterpart(self.image_root, image, "labels", ".txt")
        found = []
        for number, line in enumerate(read_text(path, self._encoding).splitlines(), 1):
            where = f"{path}: line {number}"
            if not (words := line.split()):
                continue
            with located(f"{where}: expected a class and numbers"):
                category, points = int(words[0]), [float(word) for word in words[1:]]
            if len(points) < 4 or len(points) % 2:
                problem = f"{len(points)} numbers after the class"
                raise RecordError(f"{where}: {problem}; an outline has x, y pairs, three or more")
            if category not in self._names:
                raise RecordError(f"{where}: the class {category} has no name; add it to 'names'")
            found.append(Outline(category, points, where))
        return found

    def _read(self, key: tuple[str, tuple[int, ...]]) -> Entry:
        image, group = key
        outlines = self._outlines(image)
        size = image_size(self.image_root / image, upright=True)
        if group[-1] >= len(outlines):
            raise RecordError(
                f"the label of {image} has changed since it was opened; open it again"
            )
        category = outlines[group[0]].category
        rest = [each for k, each in enumerate(outlines) if k not in group]
        return Entry(
            id=f"{self.name}-{self.split}-{image}-{group[0] if self.per_annotation else category}",
            sentences={0: self._names[category]},
            image=self.image_root / image,
            size=size,
            target=partial(_filled, [outlines[k] for k in group], size),
            metadata={
                "file_name": image,
                "category": self._names[category],
                "category_id": category,
                "lines": list(group),
            },
            others=[partial(_filled, [each], size) for each in rest if len(each.points) > 4],
            upright=True,
        )

    def _image_name(self, key: tuple[str, tuple[int, ...]]) -> str:
        return key[0]


def _filled(outlines: list[Outline], size: tuple[int, int]) -> Target:
    polygons = [
        (np.reshape(each.points, (-1, 2)) * size[::-1]).ravel().tolist() for each in outlines
    ]
    return object_target(polygons, size, outlines[0].where)


def read_config(
    root: Path, split: str, encoding: str | None = None
) -> tuple[Path, dict[int, str], list[str]]:
    """The folder of a data set, its classes, and where below it the images of a split should lie.

    If ``val`` is the same folder as ``train``, ``val`` counts as not given.
    """
    root = root.expanduser().absolute()
    files = [root] if root.is_file() else sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    root = root.parent if root.is_file() else root
    for path in files:
        text = read_text(path, encoding, "config_bytes")
        config = _load_yaml(text, path)
        if isinstance(config, dict) and "names" in config:
            place = config.get(split)
            if split != "train" and place == config.get("train"):
                place = None
            # Roboflow writes ../train/images for what lies beside the file.
            place = place.replace("\\", "/").removeprefix("../") if isinstance(place, str) else ""
            if ".." in place or Path(place).is_absolute():
                raise RecordError(f"{path}: {split} {place[:80]!r} leads out of {root}")
            return root, _names(config["names"], path), [place] if place else []
    path = root / "classes.txt"
    if not path.is_file():
        raise FileNotFoundError(
            f"{root} has no .yaml with 'names', and no classes.txt: write 'names: [cat, dog]', the "
            f"names of the classes, into {root / 'data.yaml'}"
        )
    return root, _names(read_text(path, encoding, "config_bytes").splitlines(), path), []


def _load_yaml(text: str, path: Path) -> Any:
    """Parse YAML without language-specific tags; all words stay text, so "no" is a name."""
    import yaml

    class Words(yaml.SafeLoader):  # type: ignore[misc]  # it has no types
        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    try:
        return yaml.load(text, Words)
    except (yaml.YAMLError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise RecordError(f"{path} is not valid YAML: {problem}") from error


def _names(given: Any, path: Path) -> dict[int, str]:
    """Names by class, from a list or a mapping."""
    names = dict(enumerate(given)) if isinstance(given, list) else given
    with located(f"{path}: 'names' must list names, or map whole numbers to names"):
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ValueError(f"got {describe(given)}")
        return {int(key): name.strip() for key, name in names.items()}
