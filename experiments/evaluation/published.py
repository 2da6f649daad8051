"""Figures that others published for the RefCOCO family, to stand beside ours."""

from __future__ import annotations

from seg_env.data.readers.refer import OFFICIAL_COUNTS

SOURCE = "SimpleSeg, arXiv 2601.19228"

COLUMNS = (
    ("refcoco", "val"),
    ("refcoco", "testA"),
    ("refcoco", "testB"),
    ("refcoco+", "val"),
    ("refcoco+", "testA"),
    ("refcoco+", "testB"),
    ("refcocog", "val"),
    ("refcocog", "test"),
)
"""Data set and split of each figure; refcoco and refcoco+ split by unc, refcocog by umd."""

SEGMENTATION_CIOU = {
    "SimpleSeg, Qwen2.5-VL": (80.9, 77.8, 75.2, 72.4, 77.3, 66.1, 73.3, 74.1),
    "SimpleSeg, Kimi-VL": (80.0, 80.6, 76.2, 70.4, 76.2, 67.1, 72.8, 74.7),
}
"""cIoU in per cent for each of `COLUMNS`."""

AVERAGE_CIOU = {
    "SimpleSeg, Qwen2.5-VL": 74.6,
    "SimpleSeg, Kimi-VL": 74.8,
    "Text4Seg": 71.4,
    "Text4Seg with SAM": 75.4,
    "LISA": 69.9,
}
"""cIoU in per cent over all of `COLUMNS`."""

AVERAGE_BOX_ACCURACY = {
    "SimpleSeg, Qwen2.5-VL": 86.7,
    "SimpleSeg, Kimi-VL": 86.5,
    "Text4Seg with SAM": 87.1,
}
"""REC accuracy at box IoU 0.5 in per cent over all of `COLUMNS`."""

SPLIT_BY = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
"""Whose split they use."""


def published_table(
    dataset: str, split: str, split_by: str, questions: int, ciou: float, box_accuracy: float
) -> str | None:
    """A table of published figures with ours in its place, as markdown.

    Args:
        dataset: Name of the data set that was measured on.
        split: Its split.
        split_by: Whose split.
        questions: How many questions were scored.
        ciou: Ours, in [0, 1].
        box_accuracy: REC accuracy of ours, in [0, 1].

    Returns:
        None where nothing was published about that data set; the embedded sample is such a one.
    """
    if dataset not in SPLIT_BY:
        return None
    place = (dataset, split)
    ours = [f"**{100 * ciou:.1f}**" if column == place else "" for column in COLUMNS]
    heading = [f"{name} {part}" for name, part in COLUMNS]
    lines = [
        f"cIoU in per cent; every row but the last is a published figure ({SOURCE}).",
        "",
        _row(["", *heading, "average", "average REC"]),
        _row(["---", *["---:"] * (len(COLUMNS) + 2)]),
    ]
    for name, average in AVERAGE_CIOU.items():
        figures = SEGMENTATION_CIOU.get(name, ("",) * len(COLUMNS))
        lines.append(_row([name, *figures, average, AVERAGE_BOX_ACCURACY.get(name, "")]))
    lines.append(_row(["this run", *ours, "", ""]))
    remarks = [
        f"REC accuracy at 0.5 of this run, from the outline: {100 * box_accuracy:.1f}.",
        "The published refcoco val and testA of Qwen2.5-VL look swapped at their source.",
        _comparable(place, split_by, questions),
    ]
    return "\n".join([*lines, "", *(f"- {remark}" for remark in remarks)])


def _comparable(place: tuple[str, str], split_by: str, questions: int) -> str:
    """Whether ours may stand beside the published figures."""
    dataset, split = place
    if place not in COLUMNS or split_by != SPLIT_BY[dataset]:
        return f"**Not comparable:** nothing is published about {dataset} ({split_by}), {split}."
    _, sentences = OFFICIAL_COUNTS[dataset, split_by, split]
    if questions != sentences:
        return f"**Not comparable:** {questions} of the {sentences} questions were scored."
    return "Comparable: all questions of the split were scored."


def _row(cells: list[object] | list[str]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
