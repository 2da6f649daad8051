"""Tables for a terminal and for a report, from the same cells."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

Cells = Sequence[Sequence[str]]
"""A row of titles, and rows of texts."""


def terminal_table(cells: Cells, title: str, caption: str | None = None) -> Table:
    """A table to be printed by rich."""
    table = Table(*cells[0], title=title, caption=caption)
    for row in cells[1:]:
        table.add_row(*row)
    return table


def markdown_table(cells: Cells, labels: int = 1) -> str:
    """A table of Markdown whose first columns are labels, the others figures."""
    ruler = ["---"] * labels + ["---:"] * (len(cells[0]) - labels)
    return "\n".join(f"| {' | '.join(row)} |" for row in (cells[0], ruler, *cells[1:]))
