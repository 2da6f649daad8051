"""WebDataset shards: tar archives of pictures with texts beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from seg_env.data.annotate.nouns import RawPicture, Reason, Rejected, Shard
from seg_env.data.annotate.sidecars import (
    IMAGE_ENDINGS,
    MOST_IMAGE_BYTES,
    MOST_TEXT_BYTES,
    kept_metadata,
    text_of,
)
from seg_env.data.annotate.tar_members import read_members

_TEXT_ENDINGS = ("txt", "caption", "text")
_ENDINGS = (*IMAGE_ENDINGS, *_TEXT_ENDINGS, "json")
"""What is read of a sample."""


class TarShards:
    """Tar archives in WebDataset's layout, such as img2dataset writes for LAION and COYO.

    Each archive is a shard. Members that follow each other and share a key are one sample::

        000000012.jpg   (or jpeg, png, webp, bmp)
        000000012.txt   the alternative text
        000000012.json  {"url": ..., "caption": ..., ...}

    As in WebDataset a key ends at the first dot. Where what follows is none of these endings and
    what follows the last dot is, the key ends there: ``img.001.png`` is a picture ``img.001``,
    unless there is a sample ``img`` beside it, whose segmentation map or the like it then is.

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
        plain, dotted = _Group(), _Group()  # so 7.seg.png does not part 7.jpg from 7.txt
        for member in read_members(Path(shard.paths[0]), _most_bytes):
            if isinstance(member, Reason):
                yield Rejected(member)
                continue
            name = _split(member.name)
            if name is None:
                continue
            group = dotted if name.dotted else plain
            if name.key != group.key or name.ending in group.members:
                if not name.dotted:
                    yield from plain.sample()
                if name.dotted or not dotted.belongs_to(name.key):
                    yield from dotted.sample(beside=plain.key)
                    dotted.begin(None)
                group.begin(name.key)
            group.members[name.ending] = member.data
        yield from plain.sample()
        yield from dotted.sample(beside=plain.key)


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


class _Name(NamedTuple):
    """The name of a member, taken apart."""

    key: str
    """What the members of a sample share."""
    ending: str
    """One of those that are read."""
    dotted: bool
    """Whether the key has dots, which WebDataset would not allow."""


def _split(name: str) -> _Name | None:
    """The parts of a name; None if it has no ending that is read."""
    folder, slash, file = name.rpartition("/")
    key, _, ending = file.partition(".")
    if key and ending.lower() in _ENDINGS:
        return _Name(folder + slash + key, ending.lower(), dotted=False)
    key, _, ending = file.rpartition(".")
    if ending.lower() in _ENDINGS and len(ending) < len(file):
        return _Name(folder + slash + key, ending.lower(), dotted=True)
    return None


def _most_bytes(name: str) -> int:
    parts = _split(name)
    if parts is None:
        return 0
    return MOST_IMAGE_BYTES if parts.ending in IMAGE_ENDINGS else MOST_TEXT_BYTES


@dataclass
class _Group:
    """Members that follow each other and share a key."""

    key: str | None = None
    members: dict[str, bytes] = field(default_factory=dict)

    def begin(self, key: str | None) -> None:
        """Forget the members: those of another key follow."""
        self.key, self.members = key, {}

    def belongs_to(self, key: str | None) -> bool:
        """Whether the members are more about the sample of another key: 7.seg.png is about 7."""
        return self.key is not None and key is not None and self.key.startswith(f"{key}.")

    def sample(self, beside: str | None = None) -> Iterator[RawPicture | Rejected]:
        """The picture with its texts, or a fault if there is none.

        Args:
            beside: Key of the sample beside it, of whose members there is nothing to say, nor of
                dotted texts alone: ``7.meta.json`` is no failed download.
        """
        members = self.members
        data = next((members[ending] for ending in IMAGE_ENDINGS if ending in members), None)
        if self.key is None or self.belongs_to(beside):
            return
        if data is None:
            if members and "." not in self.key.rpartition("/")[2]:
                yield Rejected(Reason.NO_PICTURE)
            return
        record = _record(members.get("json", b"{}"))
        plain = next((members[ending] for ending in _TEXT_ENDINGS if ending in members), b"")
        text = plain.decode("utf-8", "replace") or text_of(record)
        yield RawPicture(self.key.rpartition("/")[2], data, text, kept_metadata(record))


def _record(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
