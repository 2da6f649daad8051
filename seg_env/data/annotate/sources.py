"""Sources of images (WebDataset archives, parquet tables, folders), and decoding of images.

None of the data is trusted: sizes are checked before anything is read, faults are reported by
reason, and nothing is ever extracted, so names in archives never become paths.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import tarfile
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

from PIL import Image

from seg_env.data.annotate.describing import clean_text
from seg_env.data.annotate.stages import DecodedImage, RawImage, Reason, Shard, check_whole
from seg_env.data.images import FORMATS, orientation, read_image
from seg_env.data.records import Record, RecordError, decode_text

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp")
TEXT_ENDINGS = ("txt", "caption", "text")
"""Endings of alternative texts in archives."""
READ_ENDINGS = tuple(f".{ending}" for ending in (*IMAGE_ENDINGS, *TEXT_ENDINGS, "json"))
"""Endings of all members of archives that are read."""
LEAST_SIDE, MOST_PIXELS = 32, 1 << 25
"""Images with a shorter side or more pixels (2**25 take 100 MB) are left out."""
MOST_IMAGE_BYTES = 1 << 25
MOST_TEXT_BYTES = 1 << 20
MOST_HEADER_BYTES = 1 << 14
"""Of all headers of one member of an archive."""

TEXT_KEYS = ("caption", "text", "TEXT", "alt_text", "alt")
"""Names of the alternative text in LAION, COYO and img2dataset."""
KEPT_KEYS = ("url", "URL", "license", "LICENSE")
"""Fields of a record that are kept: where an image came from and under which licence."""
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes")
"""Columns of tables that hold images: bytes, or ``{"bytes", "path"}``."""
KEY_COLUMNS = ("key", "__key__", "id", "image_id", "sample_id", "SAMPLE_ID")
"""Columns that name a row."""

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")


class Files:
    """Images in files: tar archives, parquet tables, or a folder of images.

    Archives and tables are given as one file, a folder or a pattern such as ``"/a/*.tar"``; each is
    a shard. Images below a folder are taken in the order of their names, ``per_shard`` to a shard;
    ``dog.txt`` beside ``dog.jpg`` is its alternative text, and ``dog.json`` its record, as in
    archives. Links that lead out of the folder are not followed. See `read_tar` and `read_parquet`.
    """

    def __init__(self, path: str, per_shard: int = 1000) -> None:
        """Set the path of the files; `shards` looks for them."""
        check_whole(1, per_shard=per_shard)
        self._path, self._per_shard = Path(path).expanduser().absolute(), per_shard

    def shards(self) -> list[Shard]:
        """The files by name; FileNotFoundError if there are none."""
        place, found = self._path, [self._path]
        if not place.is_file():
            folder, pattern = (place, "*") if place.is_dir() else (place.parent, place.name)
            found = sorted(each for each in folder.glob(pattern) if each.is_file())
        archives = [each for each in found if each.name.endswith(TAR_ENDINGS)]
        tables = [each for each in found if each.name.endswith(".parquet")]
        if place.is_dir():  # img2dataset writes a table of addresses beside each folder of images
            tables = [each for each in tables if not each.with_suffix("").is_dir()]
        if archives or tables:
            return [Shard(each.name, (str(each),)) for each in archives or tables]
        images = sorted(
            os.path.join(folder, name)
            for folder, _, names in os.walk(place)
            for name in names
            if name.lower().rpartition(".")[2] in IMAGE_ENDINGS
        )
        if not images:
            raise FileNotFoundError(
                f"{str(place)!r} names no images; give a folder of images, a .tar or .parquet "
                "file, or a folder or a quoted pattern of those, such as '/data/*.tar'"
            )
        starts = range(0, len(images), self._per_shard)
        return [Shard(f"files {n}", tuple(images[n : n + self._per_shard])) for n in starts]

    def read(self, shard: Shard) -> Iterator[RawImage | Reason]:
        """The images of a shard; see `seg_env.data.annotate.stages.ImageSource`."""
        paths = [Path(path) for path in shard.paths]
        if paths[0].name.endswith(TAR_ENDINGS):
            return read_tar(paths[0])
        if paths[0].name.endswith(".parquet"):
            return read_parquet(paths[0])
        return (self._read_image(path) for path in paths)

    def _read_image(self, path: Path) -> RawImage | Reason:
        data = self._content(path, MOST_IMAGE_BYTES)
        if isinstance(data, Reason):
            return data
        beside = (self._content(path.with_suffix(e), MOST_TEXT_BYTES) for e in (".txt", ".json"))
        text, record = (each if isinstance(each, bytes) else b"" for each in beside)
        return _raw_image(str(path.relative_to(self._path)), data, text, record)

    def _content(self, path: Path, most: int) -> bytes | Reason:
        """The content of a file, or why it is not read."""
        try:
            if not path.resolve().is_relative_to(self._path.resolve()):
                return Reason.NOT_A_FILE
            if not path.is_file():
                return Reason.NO_IMAGE
            with path.open("rb") as file:
                data = file.read(most + 1)
        except RuntimeError:  # how Python up to 3.12 reports a link that leads to itself
            return Reason.NOT_A_FILE
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG):
                return Reason.UNREADABLE
            raise  # the disk's failure, not this file's: it stops the run
        return data if len(data) <= most else Reason.TOO_MANY_BYTES


def read_tar(path: Path) -> Iterator[RawImage | Reason]:
    """The samples of an archive as WebDataset lays it out, and img2dataset for LAION and COYO.

    Members that follow each other and share a key, the name up to the first dot, are one sample::

        000000012.jpg   (or jpeg, png, webp, bmp)
        000000012.txt   the alternative text
        000000012.json  {"url": ..., "caption": ..., ...}

    A member with further dots in its name (``img.001.png``) is a sample by itself, unless there is
    an image ``img``, to which it then belongs (as a segmentation map, for example, or as its text
    ``img.caption.txt``). A text or record ``img`` without an image applies to all such samples that
    have none of their own.

    The archive may be compressed by gzip. It is read forward in one pass.
    """
    group, members = "", dict[str, bytes]()
    for member in _read_members(path):
        if isinstance(member, Reason):
            yield member
            continue
        name, data = member
        folder, slash, file = name.rpartition("/")
        key, _, ending = file.partition(".")
        key, ending = folder + slash + key, ending.lower()
        is_full = sum(map(len, members.values())) > 2 * MOST_IMAGE_BYTES
        if key != group or ending in members or is_full:
            yield from _samples(group, members)
            group, members = key, {}
        members[ending] = data
    yield from _samples(group, members)


def _samples(key: str, members: Mapping[str, bytes]) -> Iterator[RawImage | Reason]:
    """The image of the members with one key, or one image for each name with further dots."""
    parts: dict[str, dict[str, bytes]] = defaultdict(dict)
    for endings, data in members.items():
        further, _, ending = endings.rpartition(".")
        parts[further][ending] = data
    plain = parts.pop("", {})
    if _first(plain, IMAGE_ENDINGS) is not None:
        said = (parts[further] for further in TEXT_KEYS if further in parts)
        parts, plain = {"": plain}, next(said, {})
    elif plain and all(_first(part, IMAGE_ENDINGS) is None for part in parts.values()):
        yield Reason.NO_IMAGE  # others, such as 7.meta.json, are no failed download
    name = key.rpartition("/")[2]
    for further, part in parts.items():
        if (image := _first(part, IMAGE_ENDINGS)) is not None:
            text = _first(part, TEXT_ENDINGS) or _first(plain, TEXT_ENDINGS) or b""
            record = part.get("json") or plain.get("json", b"")
            whole = f"{name}.{further}" if further else name
            yield _raw_image(whole, image, text, record)


def _first(members: Mapping[str, bytes], endings: Iterable[str]) -> bytes | None:
    """The first member with one of some endings, in their order; None if there is none."""
    return next((members[ending] for ending in endings if ending in members), None)


def _read_members(path: Path) -> Iterator[tuple[str, bytes] | Reason]:
    """Names and contents of an archive's files that have one of `READ_ENDINGS`.

    A reason is yielded for each that is left out, and perhaps a last one for the rest of the
    archive. Raises OSError only if the file cannot be opened, or the disk fails.
    """
    with path.open("rb") as opened:
        file: IO[bytes] | gzip.GzipFile = opened
        end, beyond = path.stat().st_size, Reason.TRUNCATED
        if opened.peek(2).startswith(b"\x1f\x8b"):
            # Images hardly compress at all; 64 MiB are allowed in any case.
            end, beyond = 20 * end + (1 << 26), Reason.BOMB
            file = gzip.GzipFile(fileobj=opened)
        bounded: Any = _BoundedFile(file)
        try:
            archive = tarfile.TarFile(fileobj=bounded, encoding="utf-8", errors="replace")
            while (member := archive.next()) is not None:
                # Otherwise all members and their common headers would be kept in memory.
                archive.members.clear()  # type: ignore[attr-defined]
                archive.pax_headers = {}
                name = member.name.lower()
                bounded.left = most = (
                    MOST_IMAGE_BYTES if name.endswith(IMAGE_ENDINGS) else MOST_TEXT_BYTES
                )
                if member.size < 0 or member.issparse():
                    yield Reason.CORRUPT
                    return
                if member.islnk() or member.issym() or member.isdev():
                    yield Reason.NOT_A_FILE
                elif not member.isdir() and member.offset_data + member.size > end:
                    yield beyond
                    return
                elif member.isreg() and leads_out(member.name):
                    yield Reason.UNSAFE_NAME
                elif member.isreg() and name.endswith(READ_ENDINGS):
                    if member.size > most:
                        yield Reason.TOO_MANY_BYTES
                    else:
                        data = bounded.read(member.size)
                        if bounded.ended:
                            break
                        yield member.name, data
                bounded.left = MOST_HEADER_BYTES
        except EOFError:  # of the compressed archive
            yield Reason.TRUNCATED
        except (gzip.BadGzipFile, zlib.error, ValueError):
            yield Reason.CORRUPT
        except tarfile.ReadError:
            yield Reason.TRUNCATED if bounded.ended else Reason.CORRUPT
        else:  # tarfile takes a broken header for the end of an archive
            if bounded.ended:
                yield Reason.TRUNCATED
            elif any(bounded.last):
                yield Reason.CORRUPT


class _BoundedFile:
    """An untrusted archive for `tarfile`, read only forwards, and only ``left`` bytes of it.

    `tarfile` itself reads headers of whatever size they claim, and follows negative sizes.
    """

    def __init__(self, file: IO[bytes] | gzip.GzipFile) -> None:
        self._file = file
        self.left = MOST_HEADER_BYTES
        """Bytes that may be read."""
        self.last = b""
        """The bytes read last."""
        self.ended = False
        """Whether that was less than asked for."""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise ValueError(f"{size} bytes of {self.left} that are allowed")
        self.left -= size
        self.last = self._file.read(size)
        self.ended = len(self.last) < size
        return self.last

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, position: int) -> int:
        if position < self.tell():
            raise ValueError(f"back to {position}")
        return self._file.seek(position)


def leads_out(name: str) -> bool:
    """Whether a name would, as a path, lead out of a folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or "\0" in name


def read_parquet(path: Path) -> Iterator[RawImage | Reason]:
    """The rows of a file with encoded images, such as img2dataset writes for LAION and COYO.

    One column holds the image (``image``, ``jpg``, ...), as bytes or as ``{"bytes", "path"}``; one
    may hold the alternative text (``caption``, ``text``, ``TEXT``, ...). Images of tables that only
    list addresses, as LAION and COYO publish them, have to be downloaded first, for example by
    img2dataset.

    Raises:
        ValueError: The table is sound and has no column of images.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    broken = (ArrowException, OSError, ValueError, KeyError)
    with path.open("rb") as opened:  # a file that has disappeared is no corrupt one
        try:
            file = ParquetFile(opened, buffer_size=1 << 20)
        except broken:
            yield Reason.CORRUPT_TABLE
            return
        columns = _columns(file.schema_arrow.names, path)
        for group in range(file.num_row_groups):
            if file.metadata.row_group(group).total_byte_size > 1 << 33:
                yield Reason.TOO_MANY_BYTES
                continue
            try:
                for batch in file.iter_batches(16, row_groups=[group], columns=columns):
                    yield from (_row_image(row, columns) for row in batch.to_pylist())
            except broken:
                yield Reason.CORRUPT_TABLE


def _columns(names: list[str], path: Path) -> list[str]:
    """The column of images, then those of names, texts and the fields that are kept."""
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    if image is None:
        raise ValueError(
            f"{path} has no column of images ({', '.join(IMAGE_COLUMNS)}) among {', '.join(names)}"
            "; images at listed addresses have to be downloaded first, for example by img2dataset"
        )
    return [image, *(n for n in (*KEY_COLUMNS, *TEXT_KEYS, *KEPT_KEYS) if n in names)]


def _row_image(row: dict[str, Any], columns: list[str]) -> RawImage | Reason:
    image = row[columns[0]]
    data = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(data, bytes) or not data:
        return Reason.NO_IMAGE
    if len(data) > MOST_IMAGE_BYTES:
        return Reason.TOO_MANY_BYTES
    keys = (row[name] for name in columns if name in KEY_COLUMNS)
    key = next((str(key)[:200] for key in keys if key is not None), "")
    return _raw_image(key, data, b"", row)


def _record(content: str) -> dict[str, Any]:
    """The JSON object in a record; an empty one where it holds anything else."""
    try:
        return dict(Record.parse(content, "record").values)
    except RecordError:
        return {}


def _raw_image(
    key: str, data: bytes, text: bytes, record: bytes | Mapping[str, Any]
) -> RawImage | Reason:
    """An image with its text, else that of its record, and the fields kept of the record."""
    try:
        described = decode_text(text, key)
        record = _record(decode_text(record, key)) if isinstance(record, bytes) else record
    except RecordError:
        return Reason.ENCODING
    said = (record.get(name) for name in TEXT_KEYS)
    recorded = next((value for value in said if isinstance(value, str) and value), "")
    kept = {name.lower(): record[name] for name in KEPT_KEYS if isinstance(record.get(name), str)}
    metadata = {name: clean_text(value) for name, value in kept.items()}
    return RawImage(key, data, described or recorded, metadata)


def open_image(raw: RawImage) -> DecodedImage | Reason:
    """Decode an image, or say why it is left out.

    The size is read first: nothing is allocated for an image of more than `MOST_PIXELS`. If EXIF
    data say that an image is to be turned, it is turned and encoded anew, because data sets read
    pixels as they are stored; all others keep their bytes.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _decode(raw)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return Reason.TOO_MANY_PIXELS
    except MemoryError:
        raise
    except Exception:  # decoders raise OSError, SyntaxError, struct.error, ...
        return Reason.UNREADABLE


def _decode(raw: RawImage) -> DecodedImage | Reason:
    with Image.open(io.BytesIO(raw.data), formats=FORMATS) as file:
        if file.width * file.height > MOST_PIXELS:
            return Reason.TOO_MANY_PIXELS
        if min(file.width, file.height) < LEAST_SIDE:
            return Reason.TOO_SMALL
        turn = orientation(file)
        size = (file.height, file.width) if turn < 5 else (file.width, file.height)
        pixels = read_image(raw.data, size, raw.key, upright=True)
        if turn == 1:
            suffix = ".jpg" if file.format in ("JPEG", "MPO") else f".{file.format}".lower()
            return DecodedImage(**vars(raw), suffix=suffix, image=pixels)
    buffer = io.BytesIO()  # of the pixels alone: EXIF data may say where a photo was taken
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    return _decode(replace(raw, data=buffer.getvalue()))
