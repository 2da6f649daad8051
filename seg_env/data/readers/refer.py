"""RefCOCO, RefCOCO+, RefCOCOg, RefCLEF and gRefCOCO as they lie on disk.

The data itself is not ours to distribute: users point to their own copy.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Unpack

from seg_env.data.folders import folder_of
from seg_env.data.readers.annotated_images import Entry, Options
from seg_env.data.readers.coco import CocoImages
from seg_env.data.readers.safe_pickle import load_plain_pickle
from seg_env.data.records import (
    Id,
    Record,
    RecordError,
    describe,
    garbage_collection_paused,
    read_json,
)
from seg_env.geometry.limits import check_limit, limits

DEFAULT_SPLIT_BY = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd", "refclef": "unc"}
"""The data sets, and the partition that papers report on."""
EMBEDDED_NAME = "embedded-sample"


class Reference(NamedTuple):
    """One entry of ``refs(*)``."""

    id: int
    image_id: Id
    category_id: Id | None
    """None where the category is that of the objects."""
    annotation_ids: tuple[Id, ...]
    """Empty where it refers to nothing."""
    sentences: dict[Id, str]
    """By id, or by their number where they have none."""


class Refer(CocoImages[Reference]):
    """One split of a data set of the RefCOCO family: one sample for each sentence.

    On disk, as the ``refer`` API and its data have it::

        <data_root>/
          refcoco/      instances.json  refs(unc).p  refs(google).p
          refcoco+/     instances.json  refs(unc).p
          refcocog/     instances.json  refs(umd).p  refs(google).p
          refclef/      instances.json  refs(unc).p  refs(berkeley).p
          images/mscoco/images/train2014/COCO_train2014_000000581857.jpg ...
          images/saiapr_tc-12/38/images/38685.jpg ...                     (refclef)

    ``images/coco_2014/train2014``, ``images/train2014``, ``train2014`` and ``saiapr_tc-12`` are
    found too, and ``refs(*).json`` is read instead of a pickle. ``refs(*)`` is a list of ``{ref_id,
    ann_id, image_id, category_id, split, sentences: [{sent_id, sent}]}``, and ``instances.json``
    COCO's ``{images, annotations, categories}``. Outlines are drawn on the pixels as they are
    stored, whatever EXIF data say.

    Metadata holds ``ref_id``, ``ann_id``, ``sent_id``, ``image_id``, ``category_id``, ``category``,
    ``file_name`` and ``image_ann_ids`` (all annotated objects of the image, see `object_target`),
    and ``sentences`` where samples are references.
    """

    sentence_key = "sent_id"

    def __init__(
        self,
        data_root: str | os.PathLike[str],
        name: str = "refcoco",
        split: str = "train",
        split_by: str | None = None,
        image_root: str | os.PathLike[str] | None = None,
        *,
        per_reference: bool = False,
        **options: Unpack[Options],
    ) -> None:
        """Read the files of one split.

        ``split_by`` names who made the partition: ``"unc"``, ``"umd"``, ``"google"`` or
        ``"berkeley"``, by default that of `DEFAULT_SPLIT_BY` or the only one there is. With
        ``per_reference`` a reference is one sample, with its first sentence (the longest would be
        the easiest question).
        """
        known = (*DEFAULT_SPLIT_BY, "grefcoco")
        if name not in known:
            raise ValueError(f"unknown data set {name!r}; there are {', '.join(known)}")
        super().__init__(name, split, per_reference=per_reference, **options)
        self._several = name == "grefcoco"  # a reference names a list of objects
        root = Path(data_root).expanduser().absolute()
        path, self.split_by = _find_references(root, name, split_by)
        instances_path = root / name / "instances.json"
        if not instances_path.is_file():
            raise _missing(instances_path, root, name)
        references = self._read_references(path)
        sentences = sum(len(reference.sentences) for reference in references)
        if root != embedded_root():
            check_counts(name, self.split_by, split, len(references), sentences)
        self._read_instances(instances_path, {reference.image_id for reference in references})
        names = [image.file_name for image in islice(self._images.values(), 1000)]
        self.image_root = _find_images(root, name, image_root, names)
        for reference in references:
            with self._reading_record(1 if per_reference else len(reference.sentences)):
                self._check_links(reference, path)
                self._ask(reference, reference.sentences)

    @garbage_collection_paused()
    def _read_references(self, path: Path) -> list[Reference]:
        """Read the references of the split from ``refs(*).p`` or ``refs(*).json``.

        Nothing in the file is executed, see `seg_env.data.readers.safe_pickle`.

        Raises:
            ValueError: The split is not in the file (names those that are), or the file is
                malformed, or unfolds to more than ``unfolding`` times its own size.
        """
        splits: Counter[str] = Counter()
        references: dict[int, Reference] = {}
        room = _Room(path.stat().st_size * limits().unfolding)
        for row, values in enumerate(_load(path, self._encoding)):
            record = Record(values, f"{path}: record {row}")
            with self._reading_record():
                found = record.text("split")
                splits[found] += 1
                if found != self.split:
                    continue
                reference = _reference(record, self._several, room)
                if reference.id in references:
                    raise RecordError(f"{record.where}: ref_id {reference.id} appears twice")
                references[reference.id] = reference
        if self.split not in splits:
            listed = [f"{name[:40]!r} ({n} references)" for name, n in splits.most_common(20)]
            present = ", ".join(listed) or "no references"
            raise ValueError(f"{path} has no split {self.split!r}; it has {present}")
        return list(references.values())

    def _check_links(self, reference: Reference, path: Path) -> None:
        """Raise when a reference names an object or an image that is not there."""
        image_id, named = reference.image_id, reference.annotation_ids
        missing = [each for each in named if each not in self._annotations.get(image_id, {})]
        if missing or image_id not in self._images:
            what = "".join(f"annotation {each} of " for each in (missing or named)[:1])
            problem = f"names {what}image {image_id}, which is not in {self._path}"
            raise RecordError(f"{path}: ref_id {reference.id} {problem}")

    def _read(self, key: Reference) -> Entry:
        number, image_id, category_id, ids, sentences = key
        of_image = self._annotations.get(image_id, {})
        categories = [of_image[each].category_id for each in ids]
        if category_id is not None:
            categories = [category_id]
        described: dict[str, Any] = {
            "ann_id": list(ids),
            "category_id": categories,
            "category": ["" if k is None else self._categories.get(k, "") for k in categories],
        }
        if self._several:
            described["no_target"] = not ids
        else:
            described = {name: values[0] for name, values in described.items()}
        metadata = {"ref_id": number, **described, "image_ann_ids": list(of_image)}
        identifier = f"{self.name}-{self.split_by}-{self.split}-{number}"
        return self._entry(identifier, image_id, ids, sentences, metadata)

    def _image_name(self, key: Reference) -> str:
        return self._images[key.image_id].file_name


class GRefCoco(Refer):
    """One split of gRefCOCO (Liu et al. 2023, arXiv 2306.00968): one sample for each sentence.

    On disk, as the ``grefer`` API has it::

        <data_root>/
          grefcoco/     instances.json  grefs(unc).json   (or .p)
          images/train2014/COCO_train2014_000000581857.jpg ...   (or where `Refer` looks)

    ``grefs(*)`` differs from ``refs(*)`` of RefCOCO in that ``ann_id`` is a list: several ids ask
    for the union of their objects, and ``[-1]`` means that nothing in the image is referred to
    (``no_target``). Then the target is empty, and ``[]`` is the right answer.

    Metadata is as that of `Refer`, but ``ann_id``, ``category_id`` and ``category`` are lists, and
    ``no_target`` is added.
    """

    def __init__(
        self,
        data_root: str | os.PathLike[str],
        split: str = "train",
        split_by: str | None = None,
        image_root: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        """Read the files of one split; arguments and errors are those of `Refer`."""
        super().__init__(data_root, "grefcoco", split, split_by, image_root, **options)


def embedded_root() -> Path:
    """The folder of the embedded sample, laid out as a ``data_root``."""
    return Path(__file__).parents[1] / "embedded"


def load_refer(
    name: str,
    split: str = "train",
    split_by: str | None = None,
    data_root: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Refer:
    """Open a data set of the RefCOCO family, or the embedded sample where there is none.

    ``data_root`` is by default the folder in the variable ``SIMPLESEG_DATA``. With neither, the
    sample that comes with the package is opened, with a warning; its ``name`` is
    ``"embedded-sample"``, so that no score on it is mistaken for one on the real data.
    """
    if root := data_root or os.environ.get("SIMPLESEG_DATA"):
        return Refer(root, name, split, split_by, **options)
    dataset = Refer(embedded_root(), name, split, split_by, **options)
    dataset.name = EMBEDDED_NAME
    warnings.warn(
        f"the embedded sample of procedural scenes stands in for {name}: it has its form, not its "
        f"content. Name the folder of your copy by data_root= or by SIMPLESEG_DATA",
        stacklevel=2,
    )
    return dataset


# --- where files lie ------------------------------------------------------------------------------

COCO_FOLDERS = (
    "images/mscoco/images/train2014",
    "images/coco_2014/train2014",
    "images/train2014",
    "train2014",
)
CLEF_FOLDERS = ("images/saiapr_tc-12", "saiapr_tc-12")


def _find_references(root: Path, name: str, split_by: str | None) -> tuple[Path, str]:
    """The file of references, JSON rather than a pickle, and who made its partition."""
    wanted = split_by or DEFAULT_SPLIT_BY.get(name, "unc")
    prefix = _prefix(name)
    present = {
        path.stem.removeprefix(f"{prefix}(").removesuffix(")"): path
        for suffix in ("p", "json")
        for path in (root / name).glob(f"{prefix}(*).{suffix}")
    }
    if split_by is None and wanted not in present and len(present) == 1:
        (wanted,) = present
    if wanted in present:
        return present[wanted], wanted
    there = f"split_by can be {', '.join(sorted(present))}. " if present else ""
    raise _missing(root / name / f"{prefix}({wanted}).p", root, name, there)


def _find_images(
    root: Path, name: str, image_root: str | os.PathLike[str] | None, names: list[str]
) -> Path:
    """The folder in which an image of the split lies, or should if the split has none."""
    if image_root is not None:
        folders = [Path(image_root).expanduser()]
    else:
        places = CLEF_FOLDERS if name == "refclef" else COCO_FOLDERS
        folders = [root / place for place in places]
    if found := folder_of(names, folders) if names else folders[0]:
        return found
    looked = "Looked in " + ", ".join(str(folder) for folder in folders) + ". "
    raise _missing(folders[0] / names[0], root, name, looked)


def _prefix(name: str) -> str:
    return "grefs" if name == "grefcoco" else "refs"


def _missing(path: Path, root: Path, name: str, hint: str = "") -> FileNotFoundError:
    """The error of a file that is not there, with the layout expected."""
    folder, example = COCO_FOLDERS[0], "COCO_train2014_000000581857.jpg"
    if name == "refclef":
        folder, example = CLEF_FOLDERS[0], "38/images/38685.jpg"
    return FileNotFoundError(
        f"{path} is missing. {hint}data_root is {str(root)!r}; expected there:\n"
        "<data_root>/\n"
        f"  {name}/\n"
        "    instances.json\n"
        f"    {_prefix(name)}({DEFAULT_SPLIT_BY.get(name, 'unc')}).p   (or .json)\n"
        f"  {folder}/\n"
        f"    {example} ..."
    )


# --- the file of references -----------------------------------------------------------------------

SENTENCE_SIZE = 64
"""Bytes that count for a sentence besides its text, which may be empty."""


@dataclass
class _Room:
    """Bytes that a file may still unfold to; what is refused later counts too: it takes time."""

    left: int

    def take(self, size: int, where: str) -> None:
        self.left -= size
        if self.left < 0:
            most = limits().unfolding
            what = f"{where}: the file unfolds to more than {most} times its own size"
            check_limit("unfolding", most + 1, what)


def _load(path: Path, encoding: str | None) -> list[Any]:
    size = path.stat().st_size
    check_limit("pickle_bytes", size, f"{path} has {size} bytes")
    if path.suffix == ".json":
        records = read_json(path, encoding=encoding)
    else:
        records = load_plain_pickle(path.read_bytes(), str(path))
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected a list of references, got {describe(records)}")
    return records


def _reference(record: Record, several: bool, room: _Room) -> Reference:
    identifier, image_id = record.integer("ref_id"), record.identifier("image_id")
    alone = several or record.get("category_id") is None
    category_id = None if alone else record.identifier("category_id")
    listed = record.get("ann_id")
    if not several or not isinstance(listed, list):  # the reader published with it takes both
        listed = [record.identifier("ann_id")]
    if not isinstance(listed, list) or not 1 <= len(listed) <= limits().objects:
        problem = f"must be a list of 1 to {limits().objects} integers, [-1] for no target"
        raise record.error("ann_id", problem)
    room.take(8 * len(listed), record.where)
    each_alone = (Record({"ann_id": each}, record.where) for each in listed)
    annotation_ids = tuple(each.identifier("ann_id") for each in each_alone)
    if several and annotation_ids == (-1,):
        annotation_ids = ()
    return Reference(identifier, image_id, category_id, annotation_ids, _sentences(record, room))


def _sentences(record: Record, room: _Room) -> dict[Id, str]:
    listed = record.items("sentences")
    found: dict[Id, str] = {}
    for number, each in enumerate(listed):
        sentence = Record(each, f"{record.where}, sentence {number}")
        identifier = number if sentence.get("sent_id") is None else sentence.identifier("sent_id")
        text = sentence.text("sent")
        room.take(len(text) + SENTENCE_SIZE, sentence.where)
        found[identifier] = text
    if len(found) < len(listed):
        raise RecordError(f"{record.where}: a sent_id appears twice")
    return found


# --- what was published ---------------------------------------------------------------------------

OFFICIAL_COUNTS: dict[tuple[str, str, str], tuple[int, int | None]] = {
    ("refcoco", "unc", "train"): (42404, 120624),
    ("refcoco", "unc", "val"): (3811, 10834),
    ("refcoco", "unc", "testA"): (1975, 5657),
    ("refcoco", "unc", "testB"): (1810, 5095),
    ("refcoco", "google", "train"): (40000, None),
    ("refcoco", "google", "val"): (5000, None),
    ("refcoco", "google", "test"): (5000, None),
    ("refcoco+", "unc", "train"): (42278, 120191),
    ("refcoco+", "unc", "val"): (3805, 10758),
    ("refcoco+", "unc", "testA"): (1975, 5726),
    ("refcoco+", "unc", "testB"): (1798, 4889),
    ("refcocog", "umd", "train"): (42226, 80512),
    ("refcocog", "umd", "val"): (2573, 4896),
    ("refcocog", "umd", "test"): (5023, 9602),
    ("refcocog", "google", "train"): (44822, 85474),
    ("refcocog", "google", "val"): (5000, 9536),
}
"""``(references, sentences)`` by data set, partition and split; None where not published.

Numbers of references: the tables of TensorFlow Datasets (``ref_coco``), counted from the same
files. Numbers of sentences: Yu et al. 2016 (arXiv 1608.00272) and the papers that evaluate on them;
per data set they add up to 142,210 (RefCOCO), 141,564 (RefCOCO+) and 95,010 (RefCOCOg).
"""


class CountWarning(UserWarning):
    """A split does not have the published number of references or sentences."""


def check_counts(name: str, split_by: str, split: str, references: int, sentences: int) -> None:
    """Warn (`CountWarning`) when a split differs from the published one in `OFFICIAL_COUNTS`."""
    found = references, sentences
    expected_references, expected_sentences = OFFICIAL_COUNTS.get((name, split_by, split), found)
    if references == expected_references and expected_sentences in (None, sentences):
        return
    published = f"{expected_references} references"
    if expected_sentences is not None:
        published += f" and {expected_sentences} sentences"
    warnings.warn(
        f"{name} ({split_by}) {split} was published with {published}; this copy has {references} "
        f"and {sentences}: scores on it cannot be compared with published ones",
        CountWarning,
        stacklevel=3,
    )
