"""How many references and sentences each split has where it was published.

Numbers of references: the tables of TensorFlow Datasets (``ref_coco``), counted from the same
files. Numbers of sentences: Yu et al. 2016 (arXiv 1608.00272) and the papers that evaluate on them;
per data set they add up to 142,210 (RefCOCO), 141,564 (RefCOCO+) and 95,010 (RefCOCOg).
"""

from __future__ import annotations

import warnings

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
"""``(references, sentences)`` by data set, partition and split; None where not published."""


class CountWarning(UserWarning):
    """A split has not the published number of references or sentences."""


def check_counts(name: str, split_by: str, split: str, references: int, sentences: int) -> None:
    """Warn (`CountWarning`) when a split differs from what was published.

    Scores on another selection cannot be compared with published ones. Nothing is said about splits
    that `OFFICIAL_COUNTS` does not list.
    """
    official = OFFICIAL_COUNTS.get((name, split_by, split))
    if official is None:
        return
    expected_references, expected_sentences = official
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
