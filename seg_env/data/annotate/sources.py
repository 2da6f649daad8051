"""Sources of images, WebDataset archives, parquet tables and folders, and how images are decoded.

All of it is data from outside, which may be anything: sizes are checked before anything is read,
faults are reported by reason, and nothing is ever extracted: names in archives never become paths.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import tarfile
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, ClassVar, NamedTuple, Self, cast

import numpy as np
from PIL import ExifTags, Image, ImageOps

from seg_env.data.annotate.describing import clean_text
from seg_env.data.annotate.stages import DecodedImage, RawImage, Reason, Rejected, Shard
from seg_env.data.images import FORMATS
from seg_env.data.readers.hub import require

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp")
TEXT_ENDINGS = ("txt", "caption", "text")
"""Of alternative texts in archives."""
MOST_IMAGE_BYTES = 1 << 25
MOST_TEXT_BYTES = 1 << 20

TEXT_KEYS = ("caption", "text", "TEXT", "alt_text", "alt")
"""What LAION, COYO and img2dataset call the alternative text."""
KEPT_KEYS = {"url": "url", "URL": "url", "license": "license", "LICENSE": "license"}
"""What is kept of a record: where an image came from and under which licence."""
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes")
"""Columns of tables that hold images: bytes, or ``{"bytes", "path"}``."""
KEY_COLUMNS = ("key", "__key__", "id", "image_id", "sample_id", "SAMPLE_ID")
"""Columns that name a row."""


class _FileShards:
    """Files that are a shard each: one, those of a folder, or of a pattern like ``"/a/*.tar"``."""

    endings: ClassVar[tuple[str, ...]]

    def __init__(self, path: str) -> None:
        place = Path(path).expanduser()
        self._paths = [place.absolute()]
        if not place.is_file():
            folder, pattern = (place, "*") if place.is_dir() else (place.parent, place.name)
            self._paths = sorted(
                each.absolute()
                for each in folder.glob(pattern)
                if each.name.endswith(self.endings) and each.is_file()
            )
        if not self._paths:
            endings = " or ".join(self.endings)
            raise FileNotFoundError(f"{path!r} names no file that ends in {endings}")

    def shards(self) -> list[Shard]:
        """One for each file, by name."""
        return [Shard(n, path.name, (str(path),)) for n, path in enumerate(self._paths)]


class TarShards(_FileShards):
    """Tar archives in WebDataset's layout, such as img2dataset writes for LAION and COYO.

    Each archive is a shard. Members that follow each other and share a key are one sample::

        000000012.jpg   (or jpeg, png, webp, bmp)
        000000012.txt   the alternative text
        000000012.json  {"url": ..., "caption": ..., ...}

    As in WebDataset a key ends at the first dot. Where only what follows the last dot is one of
    these endings, the key ends there: ``img.001.png`` is an image ``img.001``, unless there is a
    sample ``img`` beside it, to which it then belongs (a segmentation map, for example).

    Archives may be compressed by gzip. They are read forward in one pass.
    """

    endings = (".tar", ".tar.gz", ".tgz")

    def read(self, shard: Shard) -> Iterator[RawImage | Rejected]:
        """The samples of an archive; see `seg_env.data.annotate.stages.ImageSource`."""
        plain, dotted = _Group(), _Group()  # so 7.seg.png does not part 7.jpg from 7.txt
        for member in _read_members(Path(shard.paths[0])):
            if isinstance(member, Reason):
                yield Rejected(member)
                continue
            name, data = member
            if name.dotted:
                if dotted.is_closed_by(name):
                    yield from dotted.sample(beside=plain.key)
                    dotted = _Group(name.key)
                dotted.members[name.ending] = data
            else:
                if plain.is_closed_by(name):
                    yield from plain.sample()
                    if not dotted.is_about(name.key):
                        yield from dotted.sample(beside=plain.key)
                        dotted = _Group()
                    plain = _Group(name.key)
                plain.members[name.ending] = data
        yield from plain.sample()
        yield from dotted.sample(beside=plain.key)


class _Name(NamedTuple):
    """The name of a member, taken apart."""

    key: str
    ending: str
    dotted: bool
    """Whether the key has dots, which WebDataset would not allow."""


def _split(name: str) -> _Name | None:
    """The parts of a name; None if it does not end like an image, a text or a record."""
    endings = (*IMAGE_ENDINGS, *TEXT_ENDINGS, "json")
    folder, slash, file = name.rpartition("/")
    key, _, ending = file.partition(".")
    if key and ending.lower() in endings:
        return _Name(folder + slash + key, ending.lower(), dotted=False)
    key, _, ending = file.rpartition(".")
    if ending.lower() in endings and len(ending) < len(file):
        return _Name(folder + slash + key, ending.lower(), dotted=True)
    return None


@dataclass
class _Group:
    """Members that follow each other and share a key."""

    key: str | None = None
    members: dict[str, bytes] = field(default_factory=dict)

    def is_closed_by(self, name: _Name) -> bool:
        return name.key != self.key or name.ending in self.members

    def is_about(self, key: str | None) -> bool:
        """Whether it adds to the sample of another key: 7.seg.png is about 7."""
        return self.key is not None and key is not None and self.key.startswith(f"{key}.")

    def sample(self, beside: str | None = None) -> Iterator[RawImage | Rejected]:
        """The image with its texts, or a fault if there is none; nothing if about ``beside``.

        Dotted texts alone, such as ``7.meta.json``, are no failed download.
        """
        if self.key is None or self.is_about(beside):
            return
        members, key = self.members, self.key.rpartition("/")[2]
        data = next((members[ending] for ending in IMAGE_ENDINGS if ending in members), None)
        if data is not None:
            text = next((members[ending] for ending in TEXT_ENDINGS if ending in members), b"")
            yield _raw_image(key, data, text, _record(members.get("json", b"")))
        elif members and "." not in key:
            yield Rejected(Reason.NO_IMAGE)


class _Header(tarfile.TarInfo):
    """A header of an archive that is not trusted.

    `tarfile` itself takes a broken header behind the first for the end of the archive, reads
    extended headers of any size into memory, and in older releases of Python takes time and memory
    that grow with the square of their size.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """Read a header; only the mark at the end ends an archive."""
        block = b""
        try:
            block = cast("IO[bytes]", archive.fileobj).read(tarfile.BLOCKSIZE)
            if len(block) < tarfile.BLOCKSIZE:
                raise EOFError("no mark at the end")
            return cls.frombuf(block, "utf-8", "replace")._proc_member(archive)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        except tarfile.HeaderError as error:
            if any(block):
                raise ValueError(str(error)) from error
            raise  # the mark

    def _proc_member(self, archive: tarfile.TarFile) -> Self:
        """What `tarfile` calls for every header; subclasses may override it."""
        if self.size < 0 or self.type == tarfile.GNUTYPE_SPARSE:
            raise ValueError("below 0 bytes, or with holes as no image has them")
        if self.type == tarfile.XGLTYPE:  # about all members: passed over like one
            return self._proc_builtin(archive)  # type: ignore[attr-defined, no-any-return]
        if self.type in (*_PAX, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            if self.size > 1 << 16:
                raise ValueError(f"an extended header of {self.size} bytes")
            if self.type in _PAX:
                return self._read_pax(archive)
        return super()._proc_member(archive)  # type: ignore[misc, no-any-return]

    def _read_pax(self, archive: tarfile.TarFile) -> Self:
        """The member behind this extended header, with the name and size that it gives."""
        content = cast("IO[bytes]", archive.fileobj).read(_padded(self.size))[: self.size]
        if len(content) < self.size:
            raise EOFError("half an extended header")
        given = _pax_records(content)
        if "GNU.sparse.major" in given:
            raise ValueError("with holes")
        member = self.fromtarfile(archive)
        member.name = given.get("path", member.name)
        size = given.get("size", f"{member.size}")
        if not (size.isascii() and size.isdigit() and len(size) < 20):
            raise ValueError(f"{size} bytes")
        member.size = int(size)
        if member.isreg() or member.type not in tarfile.SUPPORTED_TYPES:
            archive.offset = member.offset_data + _padded(member.size)
        return member


_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
"""Types of extended headers."""


def _padded(size: int) -> int:
    return size + -size % tarfile.BLOCKSIZE


def _pax_records(content: bytes) -> dict[str, str]:
    """The records ``"<length> <key>=<value>"``, each on a line, of an extended header."""
    found: dict[str, str] = {}
    while content.strip(b"\0"):
        length, space, _ = content.partition(b" ")
        if not space or not length.isdigit() or len(length) > 6 or int(length) <= len(length) + 1:
            raise ValueError("a record without its length")
        record, content = content[len(length) + 1 : int(length)], content[int(length) :]
        key, _, value = record.rstrip(b"\n").partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    return found


def _read_members(path: Path) -> Iterator[tuple[_Name, bytes] | Reason]:
    """Names and contents of the files of an archive that have an ending that is read.

    A reason stands for each that is left out, and perhaps last for the rest of the archive. Raises
    OSError only where the file cannot be opened, or the disk fails.
    """
    with ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(path.open("rb"))
        end, beyond = path.stat().st_size, Reason.TRUNCATED
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if zipped:
            # Images hardly compress at all; 64 MiB are allowed in any case.
            end, beyond = 20 * end + (1 << 26), Reason.BOMB
            file = cast("IO[bytes]", stack.enter_context(gzip.GzipFile(fileobj=file)))
        try:
            archive = tarfile.TarFile(
                fileobj=file, tarinfo=_Header, encoding="utf-8", errors="replace"
            )
            while (member := archive.next()) is not None:
                # Or they would all be kept.
                archive.members.clear()  # type: ignore[attr-defined]
                if member.islnk() or member.issym() or member.isdev():
                    yield Reason.NOT_A_FILE
                elif member.isdir():
                    continue
                elif member.offset_data + member.size > end:
                    yield beyond
                    return
                elif not member.isreg():
                    continue
                elif leads_out(member.name):
                    yield Reason.UNSAFE_NAME
                elif (name := _split(member.name)) is not None:
                    most = MOST_IMAGE_BYTES if name.ending in IMAGE_ENDINGS else MOST_TEXT_BYTES
                    if member.size > most:
                        yield Reason.TOO_MANY_BYTES
                    else:
                        yield name, cast("IO[bytes]", archive.extractfile(member)).read()
        except (EOFError, tarfile.ReadError):
            yield Reason.TRUNCATED
        except (gzip.BadGzipFile, zlib.error, ValueError, RecursionError):
            yield Reason.CORRUPT


def leads_out(name: str) -> bool:
    """Whether a name would, as a path, lead out of a folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or "\0" in name


class ParquetShards(_FileShards):
    """Parquet files with encoded images, such as img2dataset writes for LAION and COYO.

    Each file is a shard. One column holds the image (``image``, ``jpg``, ...), as bytes or as
    ``{"bytes", "path"}``; one may hold the alternative text (``caption``, ``text``, ``TEXT``, ...).
    Tables that list addresses only, as LAION and COYO publish them, have to be downloaded first,
    for example by img2dataset. Needs ``pip install 'simpleseg-rl[hub]'``.
    """

    endings = (".parquet",)

    def __init__(self, path: str) -> None:
        """Find the files; ImportError if ``pyarrow`` is missing."""
        require("pyarrow.parquet")
        super().__init__(path)

    def read(self, shard: Shard) -> Iterator[RawImage | Rejected]:
        """The rows of a file; see `seg_env.data.annotate.stages.ImageSource`.

        Raises:
            ValueError: The table is sound and has no column of images.
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
                if file.metadata.row_group(group).total_byte_size > 1 << 33:
                    yield Rejected(Reason.TOO_MANY_BYTES)
                    continue
                try:
                    for batch in file.iter_batches(16, row_groups=[group], columns=columns):
                        yield from (_row_image(row, columns) for row in batch.to_pylist())
                except broken:
                    yield Rejected(Reason.CORRUPT_TABLE)


def _columns(names: list[str], path: Path) -> list[str]:
    """The column of images, then those with a name, a text and what is kept."""
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    if image is None:
        hint = "; it lists addresses: download them first, for example by img2dataset"
        raise ValueError(
            f"{path} has no column of images ({', '.join(IMAGE_COLUMNS)}) among "
            f"{', '.join(names)}{hint if {'url', 'URL'} & set(names) else ''}"
        )
    return [image, *(n for n in (*KEY_COLUMNS, *TEXT_KEYS, *KEPT_KEYS) if n in names)]


def _row_image(row: dict[str, Any], columns: list[str]) -> RawImage | Rejected:
    image = row[columns[0]]
    data = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(data, bytes) or not data:
        return Rejected(Reason.NO_IMAGE)
    if len(data) > MOST_IMAGE_BYTES:
        return Rejected(Reason.TOO_MANY_BYTES)
    keys = (row[name] for name in columns if name in KEY_COLUMNS)
    key = next((str(key)[:200] for key in keys if key is not None), "")
    return _raw_image(key, data, b"", row)


class Folder:
    """Images below a folder in the order of their names, so many to a shard.

    A text beside an image (``dog.txt`` for ``dog.jpg``) is what the source says about it, and
    ``dog.json`` may hold a caption, a URL and a licence. Links that lead out of the folder are not
    followed.
    """

    def __init__(self, path: str, per_shard: int = 1000) -> None:
        """Name the folder, which must exist; it is searched by `shards`."""
        self._root = Path(path).expanduser().absolute()
        self._per_shard = per_shard
        if not self._root.is_dir():
            raise FileNotFoundError(f"{path!r} is no folder")
        if per_shard < 1:
            raise ValueError(f"per_shard={per_shard}; a shard has at least 1 image")

    def shards(self) -> list[Shard]:
        """The images by name, cut into equal parts; FileNotFoundError if there are none."""
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

    def read(self, shard: Shard) -> Iterator[RawImage | Rejected]:
        """The images of a part; see `seg_env.data.annotate.stages.ImageSource`."""
        for name in shard.paths:
            path = Path(name)
            data = self._content(path, MOST_IMAGE_BYTES)
            if isinstance(data, Reason):
                yield Rejected(data)
                continue
            text, record = (
                content if isinstance(content, bytes) else b""
                for content in (
                    self._content(path.with_suffix(ending), MOST_TEXT_BYTES)
                    for ending in (".txt", ".json")
                )
            )
            yield _raw_image(str(path.relative_to(self._root)), data, text, _record(record))

    def _content(self, path: Path, most: int) -> bytes | Reason:
        """The content of a file, or why it is not read."""
        try:
            real = path.resolve()
            if not real.is_relative_to(self._root.resolve()):
                return Reason.NOT_A_FILE
            if not real.is_file():
                return Reason.NO_IMAGE
            with real.open("rb") as file:
                data = file.read(most + 1)
        except RuntimeError:  # how Python up to 3.12 reports a link that leads to itself
            return Reason.NOT_A_FILE
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM):
                return Reason.UNREADABLE
            raise  # the disk's failure, not this file's: it stops the run
        return data if len(data) <= most else Reason.TOO_MANY_BYTES


def _record(content: bytes) -> dict[str, Any]:
    """The JSON object in a record; an empty one where it holds anything else."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _raw_image(key: str, data: bytes, text: bytes, record: Mapping[str, Any]) -> RawImage:
    """An image with its text, or that of its record, and what is kept of the record."""
    said = (record.get(name) for name in TEXT_KEYS)
    recorded = next((value for value in said if isinstance(value, str) and value), "")
    kept = {
        name: clean_text(record[column])
        for column, name in KEPT_KEYS.items()
        if isinstance(record.get(column), str)
    }
    return RawImage(key, data, text.decode("utf-8", "replace") or recorded, kept)


def open_image(
    raw: RawImage, least_side: int = 32, most_pixels: int = 1 << 25
) -> DecodedImage | Rejected:
    """Decode an image, or say why it is none.

    The size is read first: nothing is allocated for an image of more than ``most_pixels`` (2**25
    take 100 MB). An image that its EXIF data say is to be turned is turned and encoded anew,
    because data sets read pixels as they are stored; all others keep their bytes.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _decode(raw, least_side, most_pixels)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return Rejected(Reason.TOO_MANY_PIXELS)
    except MemoryError:
        raise
    except Exception:  # decoders raise OSError, SyntaxError, struct.error, ...
        return Rejected(Reason.UNREADABLE)


def _decode(raw: RawImage, least_side: int, most_pixels: int) -> DecodedImage | Rejected:
    with Image.open(io.BytesIO(raw.data), formats=FORMATS) as file:
        if file.width * file.height > most_pixels:
            return Rejected(Reason.TOO_MANY_PIXELS)
        if min(file.width, file.height) < least_side:
            return Rejected(Reason.TOO_SMALL)
        if _orientation(file) not in range(2, 9):
            pixels = np.array(file.convert("RGB"))
            suffix = ".jpg" if file.format in ("JPEG", "MPO") else f".{file.format}".lower()
            return DecodedImage(raw.key, raw.data, suffix, pixels, raw.text, raw.metadata)
        upright = ImageOps.exif_transpose(file).convert("RGB")
    upright.info.clear()  # what would be saved with it: EXIF data, perhaps a place
    buffer = io.BytesIO()
    upright.save(buffer, "JPEG", quality=95, subsampling=0)
    with Image.open(buffer) as file:
        pixels = np.array(file.convert("RGB"))
    return DecodedImage(raw.key, buffer.getvalue(), ".jpg", pixels, raw.text, raw.metadata)


def _orientation(file: Image.Image) -> int:
    try:
        return int(file.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # an image with damaged EXIF data is still an image
        return 1
