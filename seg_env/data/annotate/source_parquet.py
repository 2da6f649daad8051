"""Parquet tables with the pictures in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seg_env.data.annotate.nouns import RawPicture, Reason, Rejected, Shard
from seg_env.data.annotate.sidecars import (
    KEPT_KEYS,
    MOST_IMAGE_BYTES,
    TEXT_KEYS,
    kept_metadata,
    text_of,
)
from seg_env.data.annotate.source_tar import find_files
from seg_env.data.readers.hub import require

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes")
"""Columns that hold pictures: bytes, or ``{"bytes", "path"}``."""
KEY_COLUMNS = ("key", "__key__", "id", "image_id", "sample_id", "SAMPLE_ID")
"""Columns that name a row."""
MOST_GROUP_BYTES = 1 << 33
"""Row groups that unpack to more are not read."""
_BATCH = 16


class ParquetShards:
    """Parquet files with encoded pictures, such as img2dataset writes for LAION and COYO.

    Each file is a shard. One column holds the picture (``image``, ``jpg``, ...), as bytes or as
    ``{"bytes", "path"}``; one may hold the alternative text (``caption``, ``text``, ``TEXT``, ...).
    Tables that list addresses only, as LAION and COYO publish them, have to be downloaded first,
    for example by img2dataset. Needs ``pip install 'simpleseg-rl[hub]'``.
    """

    def __init__(self, path: str) -> None:
        """Find the files.

        Args:
            path: A file, a folder of files, or a pattern.

        Raises:
            FileNotFoundError: There are none.
            ImportError: ``pyarrow`` is missing; names the extra.
        """
        require("pyarrow.parquet")
        self._paths = find_files(path, (".parquet",))

    def shards(self) -> list[Shard]:
        """One for each file."""
        return [Shard(n, path.name, (str(path),)) for n, path in enumerate(self._paths)]

    def read(self, shard: Shard) -> Iterator[RawPicture | Rejected]:
        """The rows of a file; see `seg_env.data.annotate.stages.ImageSource`.

        Raises:
            ValueError: The table is sound and has no column of pictures.
        """
        path = Path(shard.paths[0])
        broken = (require("pyarrow").ArrowException, OSError, ValueError, KeyError)
        with path.open("rb") as opened:  # a file that has disappeared is no corrupt one
            try:
                file = require("pyarrow.parquet").ParquetFile(opened, buffer_size=1 << 20)
            except broken:
                yield Rejected(Reason.CORRUPT_TABLE)
                return
            columns = _columns(file.schema_arrow.names, path)
            for group in range(file.num_row_groups):
                if file.metadata.row_group(group).total_byte_size > MOST_GROUP_BYTES:
                    yield Rejected(Reason.TOO_MANY_BYTES)
                    continue
                try:
                    for batch in file.iter_batches(_BATCH, row_groups=[group], columns=columns):
                        yield from (_sample(row, columns) for row in batch.to_pylist())
                except broken:
                    yield Rejected(Reason.CORRUPT_TABLE)


def _columns(names: list[str], path: Path) -> list[str]:
    """The column of pictures, then those with a name, a text and what is kept."""
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    if image is None:
        hint = "; it lists addresses: download them first, for example by img2dataset"
        raise ValueError(
            f"{path} has no column of pictures ({', '.join(IMAGE_COLUMNS)}) among "
            f"{', '.join(names)}{hint if {'url', 'URL'} & set(names) else ''}"
        )
    return [image, *(n for n in (*KEY_COLUMNS, *TEXT_KEYS, *KEPT_KEYS) if n in names)]


def _sample(row: dict[str, Any], columns: list[str]) -> RawPicture | Rejected:
    image = row[columns[0]]
    data = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(data, bytes) or not data:
        return Rejected(Reason.NO_PICTURE)
    if len(data) > MOST_IMAGE_BYTES:
        return Rejected(Reason.TOO_MANY_BYTES)
    keys = (row[name] for name in columns if name in KEY_COLUMNS)
    key = next((str(key)[:200] for key in keys if key is not None), "")
    return RawPicture(key, data, text_of(row), kept_metadata(row))
