"""Rows of tables of the Hugging Face hub: parquet files on disk, or through ``datasets``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

BATCH_ROWS = 32
"""Rows that are decoded at a time; with photos, some megabytes."""


class Rows(Protocol):
    """A table whose rows are read one by one."""

    columns: tuple[str, ...]
    """Names of the columns."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def row(self, index: int, columns: Sequence[str]) -> dict[str, Any]:
        """Some columns of one row; a picture is ``{"bytes", "path"}``."""
        ...

    def walk(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Some columns of all rows in order."""
        ...

    def where(self, index: int) -> str:
        """What errors call a row."""
        ...


class ParquetRows:
    """Parquet files one after another; no file stays open, and a few rows are kept decoded."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read the footers.

        Raises:
            ImportError: ``pyarrow`` is missing; names the extra.
            ValueError: A file is no parquet, or has other columns than the first.
        """
        parquet = require("pyarrow.parquet")
        self.columns: tuple[str, ...] = ()
        self._groups: list[tuple[Path, int, int, int]] = []  # file, row group, first row, rows
        self._length = 0
        for path in paths:
            try:
                with parquet.ParquetFile(path) as file:
                    names = tuple(file.schema_arrow.names)
                    sizes = [
                        file.metadata.row_group(group).num_rows
                        for group in range(file.num_row_groups)
                    ]
            except (ValueError, OSError) as error:
                raise ValueError(f"{path} cannot be read as parquet: {error}") from error
            if self.columns and set(names) != set(self.columns):
                raise ValueError(f"{path} has other columns than {paths[0]}: {', '.join(names)}")
            self.columns = names
            for group, size in enumerate(sizes):
                self._groups.append((path, group, self._length, size))
                self._length += size
        self._cached: tuple[tuple[str, ...], int, list[dict[str, Any]]] = ((), 0, [])

    def __len__(self) -> int:
        """Number of rows in all files."""
        return self._length

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the decoded rows."""
        return {**self.__dict__, "_cached": ((), 0, [])}

    def row(self, index: int, columns: Sequence[str]) -> dict[str, Any]:
        """See `Rows`."""
        wanted = tuple(columns)
        cached, first, rows = self._cached
        if cached != wanted or not first <= index < first + len(rows):
            first, rows = next(
                (start, batch)
                for start, batch in self._batches(self._group_of(index), wanted)
                if start <= index < start + len(batch)
            )
            self._cached = (wanted, first, rows)
        return rows[index - first]

    def walk(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """See `Rows`."""
        for group in range(len(self._groups)):
            for _, rows in self._batches(group, tuple(columns)):
                yield from rows

    def where(self, index: int) -> str:
        """See `Rows`."""
        path, _, first, _ = self._groups[self._group_of(index)]
        base = next(start for place, _, start, _ in self._groups if place == path)
        return f"{path}: row {index - min(base, first)}"

    def _group_of(self, index: int) -> int:
        for number, (_, _, first, size) in enumerate(self._groups):
            if first <= index < first + size:
                return number
        raise IndexError(f"row {index} is outside of {self._length} rows")

    def _batches(
        self, group: int, columns: tuple[str, ...]
    ) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        path, number, first, _ = self._groups[group]
        try:
            with require("pyarrow.parquet").ParquetFile(path) as file:
                batches = file.iter_batches(
                    batch_size=BATCH_ROWS, row_groups=[number], columns=list(columns)
                )
                for batch in batches:
                    yield first, batch.to_pylist()
                    first += batch.num_rows
        except OSError as error:
            raise ValueError(f"{path}: row group {number} cannot be read: {error}") from error


class HubRows:
    """A data set of the hub, downloaded and cached by ``datasets``."""

    def __init__(self, identifier: str, split: str) -> None:
        """Download, or find in the cache.

        Raises:
            ImportError: ``datasets`` is missing; names the extra.
            ValueError: There is no such data set or split.
        """
        datasets = require("datasets")
        self._identifier = identifier
        table = datasets.load_dataset(identifier, split=split)
        for name, feature in table.features.items():
            if isinstance(feature, datasets.Image):
                table = table.cast_column(name, datasets.Image(decode=False))
        self._table = table
        self.columns: tuple[str, ...] = tuple(table.column_names)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._table)

    def row(self, index: int, columns: Sequence[str]) -> dict[str, Any]:
        """See `Rows`."""
        return dict(self._table.select_columns(list(columns))[index])

    def walk(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """See `Rows`."""
        return iter(self._table.select_columns(list(columns)))

    def where(self, index: int) -> str:
        """See `Rows`."""
        return f"{self._identifier}: row {index}"


def require(module: str) -> Any:
    """Import a module of the extra ``hub``.

    Raises:
        ImportError: It is not installed; says how to.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"data sets of the hub need {module.partition('.')[0]}: pip install 'simpleseg-rl[hub]'"
        ) from error
