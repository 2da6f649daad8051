"""WebDataset shards: tar archives of pictures with texts beside them."""

from __future__ import annotations

import json
import re
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
from seg_env.data.annotate.tar_members import Member, read_members

_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
"""The key of a member and its extension: WebDataset splits at the first dot of the file's name."""
_TEXT_ENDINGS = ("txt", "caption", "text")


class TarShards:
    """Tar archives in WebDataset's layout, such as img2dataset writes for LAION and COYO.

    Each archive is a shard. Members that follow each other and share a key are one sample::

        000000012.jpg   (or jpeg, png, webp, bmp)
        000000012.txt   the alternative text
        000000012.json  {"url": ..., "caption": ..., ...}

    Archives may be compressed by gzip. They are read forward in one pass; nothing is extracted.
    """

    def __init__(self, path: str) -> None:
        """Find the archives.

        Args:
            path: An archive, a folder of archives, or a pattern such as ``"/data/laion/*.tar"``.

        Raises:
            FileNotFoundError: There are none.
        """
        self._paths = find_files(path, (".tar", ".tar.gz", ".tgz"))

    def shards(self) -> list[Shard]:
        """One for each archive."""
        return [Shard(n, path.name, (str(path),)) for n, path in enumerate(self._paths)]

    def read(self, shard: Shard) -> Iterator[RawPicture | Rejected]:
        """The samples of an archive; see `seg_env.data.annotate.stages.ImageSource`."""
        key, members = "", dict[str, bytes]()
        for member in read_members(Path(shard.paths[0]), _most_bytes):
            if isinstance(member, Reason):
                yield Rejected(member)
                continue
            if (split := _split(member)) is None:
                continue
            if split[0] != key:
                yield from _sample(key, members)
                key, members = split[0], {}
            members.setdefault(split[1], member.data)
        yield from _sample(key, members)


def find_files(path: str, endings: tuple[str, ...]) -> list[Path]:
    """Files by name, folder or pattern, sorted.

    Raises:
        FileNotFoundError: There are none with one of the endings.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return [place.absolute()]
    folder, pattern = (place, "*") if place.is_dir() else (place.parent, place.name)
    found = sorted(
        each.absolute()
        for each in folder.glob(pattern)
        if each.name.endswith(endings) and each.is_file()
    )
    if not found:
        raise FileNotFoundError(f"{path!r} names no file that ends in {' or '.join(endings)}")
    return found


def _split(member: Member) -> tuple[str, str] | None:
    match = _NAME.fullmatch(member.name)
    return (match[1], match[2].lower()) if match else None


def _most_bytes(name: str) -> int:
    match = _NAME.fullmatch(name)
    ending = match[2].lower() if match else ""
    if ending in IMAGE_ENDINGS:
        return MOST_IMAGE_BYTES
    return MOST_TEXT_BYTES if ending == "json" or ending in _TEXT_ENDINGS else 0


def _sample(key: str, members: dict[str, bytes]) -> Iterator[RawPicture | Rejected]:
    if not members:
        return
    data = next((members[ending] for ending in IMAGE_ENDINGS if ending in members), None)
    if data is None:
        yield Rejected(Reason.NO_PICTURE)
        return
    record = _record(members.get("json", b"{}"))
    plain = next((members[ending] for ending in _TEXT_ENDINGS if ending in members), b"")
    text = plain.decode("utf-8", "replace") or text_of(record)
    yield RawPicture(key.rpartition("/")[2], data, text, kept_metadata(record))


def _record(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
