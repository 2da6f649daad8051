"""Tables for a terminal and for a report, from the same headings and rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

Rows = Iterable[Sequence[object]]


def terminal_table(
    headings: Sequence[str],
    rows: Rows,
    sides: str = "l",
    *,
    title: str | None = None,
    caption: str | None = None,
) -> Table:
    """A table to be printed by rich; ``sides`` are those of `markdown_table`."""
    # Narrow, and folded where it still does not fit: a figure that is cut off would mislead.
    table = Table(
        title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    for heading, side in zip(headings, sides.ljust(len(headings), "r"), strict=True):
        table.add_column(heading, justify="left" if side == "l" else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    return table


def markdown_table(headings: Sequence[str], rows: Rows, sides: str = "l") -> str:
    """A table of Markdown.

    ``sides`` has an l or r for the first columns, left or right; the others are figures, right.
    """
    ruler = ["---" if side == "l" else "---:" for side in sides.ljust(len(headings), "r")]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (headings, ruler, *rows))
