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

    As in WebDataset a name ends at its first dot. Where what follows is none of these endings and
    what follows the last dot is, the name ends there: ``img.001.png`` is a picture ``img.001``.

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
            elif (name := _split(member.name)) is not None:
                group = dotted if name.dotted else plain
                if name.key != group.key or name.ending in group.members:
                    yield from group.sample(silent=name.dotted)
                    group.begin(name.key)
                group.members[name.ending] = member.data
        yield from plain.sample()
        yield from dotted.sample(silent=True)


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

    def begin(self, key: str) -> None:
        """Forget the members: those of another key follow."""
        self.key, self.members = key, {}

    def sample(self, *, silent: bool = False) -> Iterator[RawPicture | Rejected]:
        """The picture with its texts; without one a fault, unless ``silent``.

        Dotted texts alone are silent: ``7.meta.json`` is more about 7, not a failed download.
        """
        members = self.members
        data = next((members[ending] for ending in IMAGE_ENDINGS if ending in members), None)
        if self.key is None or data is None:
            if members and not silent:
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
