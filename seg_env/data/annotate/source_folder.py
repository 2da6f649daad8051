"""A folder of pictures, at any depth."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seg_env.data.annotate.nouns import RawPicture, Reason, Rejected, Shard
from seg_env.data.annotate.sidecars import (
    IMAGE_ENDINGS,
    MOST_IMAGE_BYTES,
    MOST_TEXT_BYTES,
    kept_metadata,
    text_of,
)

_OF_THIS_NAME = (errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM)
"""What is wrong with one file; any other failure is the disk's, which stops the run."""


class Folder:
    """Pictures below a folder in the order of their names, so many to a shard.

    A text beside a picture (``dog.txt`` for ``dog.jpg``) is what the source says about it, and
    ``dog.json`` may hold a caption, a URL and a licence. Links that lead out of the folder are not
    followed.
    """

    def __init__(self, path: str, per_shard: int = 1000) -> None:
        """Name the folder; it is searched by `shards`.

        Args:
            path: The folder.
            per_shard: Pictures in a shard.

        Raises:
            FileNotFoundError: There is no such folder.
            ValueError: ``per_shard`` is below 1.
        """
        self._root = Path(path).expanduser().absolute()
        self._per_shard = per_shard
        if not self._root.is_dir():
            raise FileNotFoundError(f"{path!r} is no folder")
        if per_shard < 1:
            raise ValueError(f"per_shard={per_shard}; a shard has at least 1 picture")

    def shards(self) -> list[Shard]:
        """The pictures by name, cut into equal parts.

        Raises:
            FileNotFoundError: There is no picture.
        """
        found = sorted(
            os.path.join(folder, name)
            for folder, _, names in os.walk(self._root)
            for name in names
            if name.lower().rpartition(".")[2] in IMAGE_ENDINGS
        )
        if not found:
            raise FileNotFoundError(
                f"{self._root} holds no file that ends in {', '.join(IMAGE_ENDINGS)}"
            )
        starts = range(0, len(found), self._per_shard)
        return [
            Shard(n, f"files {start}", tuple(found[start : start + self._per_shard]))
            for n, start in enumerate(starts)
        ]

    def read(self, shard: Shard) -> Iterator[RawPicture | Rejected]:
        """The pictures of a part; see `seg_env.data.annotate.stages.ImageSource`."""
        for name in shard.paths:
            path = Path(name)
            data = self._content(path, MOST_IMAGE_BYTES)
            if isinstance(data, Reason):
                yield Rejected(data)
                continue
            record = self._record(path.with_suffix(".json"))
            text = self._content(path.with_suffix(".txt"), MOST_TEXT_BYTES)
            plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else ""
            key = str(path.relative_to(self._root))
            yield RawPicture(key, data, plain or text_of(record), kept_metadata(record))

    def _content(self, path: Path, most: int) -> bytes | Reason:
        """The content of a file, or why it is not read."""
        try:
            real = path.resolve()
            if not real.is_relative_to(self._root.resolve()):
                return Reason.NOT_A_FILE
            if not real.is_file():
                return Reason.NO_PICTURE
            with real.open("rb") as file:
                data = file.read(most + 1)
        except RuntimeError:  # how Python up to 3.12 reports a link that leads to itself
            return Reason.NOT_A_FILE
        except OSError as error:
            if error.errno not in _OF_THIS_NAME:
                raise
            return Reason.UNREADABLE
        return data if len(data) <= most else Reason.TOO_MANY_BYTES

    def _record(self, path: Path) -> dict[str, Any]:
        content = self._content(path, MOST_TEXT_BYTES)
        try:
            found = json.loads(content) if isinstance(content, bytes) else {}
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}
