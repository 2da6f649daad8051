"""Images from outside: every layout is read, nothing does harm, all faults are counted."""

import gzip
import io
import json
import os
import struct
import tarfile
import tracemalloc
import zlib
from collections import Counter

import numpy as np
import pyarrow
import pytest
from annotate_fixtures import encoded, tar_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from seg_env.data.annotate import load_stage
from seg_env.data.annotate.sources import Files, leads_out, open_image
from seg_env.data.annotate.stages import ImageSource, RawImage, Reason


def read(source):
    """All images of a source, and its faults counted."""
    assert isinstance(source, ImageSource)
    found = [each for shard in source.shards() for each in source.read(shard)]
    faults = Counter(each for each in found if isinstance(each, Reason))
    return [each for each in found if isinstance(each, RawImage)], dict(faults)


def read_tar(tmp_path, content):
    path = tmp_path / "shard.tar"
    path.write_bytes(content)
    return read(Files(str(path)))


def open_bytes(data):
    return open_image(RawImage("key", data))


SAMPLES = [
    ("a/000.jpg", encoded(form="JPEG")),
    ("a/000.txt", "a café".encode()),
    ("a/000.json", json.dumps({"url": "http://x/1", "caption": "no", "NSFW": "U"}).encode()),
    ("a/001.json", json.dumps({"caption": "a dog", "LICENSE": "CC0"}).encode()),
    ("a/001.PNG", encoded(seed=1)),
    ("a/001.cls", b"3"),
    ("a/002.txt", b"a failed download"),
    ("README", b"nothing"),
    ("a/003.webp", encoded(form="WEBP", seed=2)),
]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_webdataset_archives(tmp_path, form, compress):
    images, faults = read_tar(tmp_path, compress(tar_bytes(SAMPLES, form)))
    assert [each.key for each in images] == ["000", "001", "003"]
    assert [each.text for each in images] == ["a café", "a dog", ""]
    assert [each.data for each in images] == [SAMPLES[0][1], SAMPLES[4][1], SAMPLES[8][1]]
    assert [each.metadata for each in images] == [{"url": "http://x/1"}, {"license": "CC0"}, {}]
    assert faults == {Reason.NO_IMAGE: 1}


def test_names_with_dots_are_images_too_and_part_no_sample(tmp_path):
    members = [
        ("7.jpg", encoded(form="JPEG")),
        ("7.seg.png", encoded(seed=1)),
        ("7.txt", b"a cat"),
        ("8.depth.png", encoded(seed=7)),
        ("8.jpg", encoded(form="JPEG", seed=8)),
        ("img.001.json", b"{}"),
        ("img.001.png", encoded(seed=2)),
        ("img.001.txt", b"a dog"),
        ("img.v1.2.PNG", encoded(seed=3)),
        ("img.v1.meta.json", b"{}"),
        ("twice.png", encoded(seed=4)),
        ("twice.png", encoded(seed=5)),
        (".hidden.png", encoded(seed=6)),
    ]
    images, faults = read_tar(tmp_path, tar_bytes(members))
    texts = {each.key: each.text for each in images}
    assert texts == {
        "7": "a cat", "8": "", "img.001": "a dog", "img.v1.2": "", "twice": "", ".hidden": ""
    }  # fmt: skip
    assert len(images) == len(texts) + 1, "both images of a name that comes twice"
    assert not faults


def test_captions_beside_names_with_dots(tmp_path):
    members = [
        ("1.caption.txt", b"of one"),
        ("1.jpg", encoded(form="JPEG")),
        ("1.boxes.txt", b"0 0.5 0.5"),
        ("2.input.jpg", encoded(form="JPEG", seed=1)),
        ("2.json", b'{"url": "http://x/2", "caption": "no"}'),
        ("2.txt", b"of two"),
        ("3.a.png", encoded(seed=2)),
        ("3.a.txt", b"of the first"),
        ("3.b.png", encoded(seed=3)),
        ("3.json", b'{"caption": "of three"}'),
        ("4.caption.txt", b"no"),
        ("4.png", encoded(seed=4)),
        ("4.text", b"of four"),
        ("5.text.txt", b"a failed download"),
        ("5.txt", b"a failed download"),
    ]
    images, faults = read_tar(tmp_path, tar_bytes(members))
    assert {each.key: each.text for each in images} == {
        "1": "of one", "2.input": "of two", "3.a": "of the first", "3.b": "of three", "4": "of four"
    }  # fmt: skip
    assert images[1].metadata == {"url": "http://x/2"}
    assert faults == {Reason.NO_IMAGE: 1}


def test_texts_in_unicode_of_any_kind_and_no_other_encoding(tmp_path):
    members = []
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "gbk"):
        members += [
            (f"txt-{encoding}.png", encoded()),
            (f"txt-{encoding}.txt", "\u676f\u5b50: a cup".encode(encoding)),
            (f"json-{encoding}.png", encoded()),
            (f"json-{encoding}.json", '{"caption": "\u676f\u5b50: a cup"}'.encode(encoding)),
        ]
    images, faults = read_tar(tmp_path, tar_bytes(members))
    assert {each.text for each in images} == {"\u676f\u5b50: a cup"}
    assert (len(images), faults) == (7, {Reason.ENCODING: 3})
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in members:
        (folder / name).write_bytes(content)
    images, faults = read(Files(str(folder)))
    assert {each.text for each in images} == {"\u676f\u5b50: a cup"}
    assert (len(images), faults) == (7, {Reason.ENCODING: 3})


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_longer_than_a_header(tmp_path, form):
    long = "folder/" * 30 + "x" * 120
    images, faults = read_tar(tmp_path, tar_bytes([(f"{long}.png", encoded())], form))
    assert images[0].key == "x" * 120
    assert not faults


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, None


def test_members_that_would_do_harm_are_counted_and_passed_over(tmp_path):
    members = [
        ("ok.png", encoded()),
        ("../evil.png", encoded()),
        ("/etc/evil.png", encoded()),
        ("a\\..\\..\\evil.png", encoded()),
        special("link.png", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard.png", tarfile.LNKTYPE, "/etc/passwd"),
        special("device.png", tarfile.CHRTYPE),
        special("folder.png", tarfile.DIRTYPE),
        ("huge.png", b"\0" * ((1 << 25) + 1)),
        ("last.png", encoded()),
    ]
    images, faults = read_tar(tmp_path, tar_bytes(members))
    assert [each.key for each in images] == ["ok", "last"]
    assert faults == {Reason.UNSAFE_NAME: 3, Reason.NOT_A_FILE: 3, Reason.TOO_MANY_BYTES: 1}
    assert sorted(os.listdir(tmp_path)) == ["shard.tar"]


@pytest.mark.parametrize("name", ["/a", "../a", "a/../../b", "a\\..\\b", "\\a", "a\0b"])
def test_names_that_lead_out(name):
    assert leads_out(name)
    assert not leads_out("a/b..c/d.png")


def test_an_archive_cut_anywhere_gives_what_came_before(tmp_path):
    whole = tar_bytes([(f"{n}.png", encoded(seed=n)) for n in range(3)])
    full, faults = read_tar(tmp_path, whole)
    assert (len(full), faults) == (3, {})
    for cut in range(0, len(whole) - 10_240, 997):
        images, faults = read_tar(tmp_path, whole[:cut])
        assert faults == {Reason.TRUNCATED: 1}
        assert [p.data for p in images] == [p.data for p in full[: len(images)]]


def test_a_compressed_archive_cut_short(tmp_path):
    whole = gzip.compress(tar_bytes([(f"{n}.png", encoded(seed=n)) for n in range(3)]))
    images, faults = read_tar(tmp_path, whole[: len(whole) * 2 // 3])
    assert len(images) in (1, 2)
    assert faults == {Reason.TRUNCATED: 1}


def test_half_an_archive_that_was_compressed(tmp_path):
    whole = tar_bytes([("0.png", encoded()), ("1.png", encoded(seed=1))])
    images, faults = read_tar(tmp_path, gzip.compress(whole[: len(whole) // 2]))
    assert [each.data for each in images] == [encoded()]
    assert faults == {Reason.TRUNCATED: 1}


def test_an_archive_of_rubbish(tmp_path):
    assert read_tar(tmp_path, os.urandom(5000)) == ([], {Reason.CORRUPT: 1})
    assert read_tar(tmp_path, b"\x1f\x8b" + os.urandom(5000)) == ([], {Reason.CORRUPT: 1})
    assert read_tar(tmp_path, b"") == ([], {Reason.TRUNCATED: 1})


@given(data=st.data())
@settings(max_examples=60)
def test_flipped_bytes_never_raise(tmp_path_factory, data):
    content = bytearray(tar_bytes(SAMPLES, tarfile.PAX_FORMAT))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    images, _ = read_tar(tmp_path_factory.mktemp("tar"), bytes(content))
    for each in images:
        open_image(each)


def extended_header(size, kind=tarfile.XHDTYPE):
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_an_extended_header_is_not_read_into_memory_for_its_claim(tmp_path, kind):
    bomb = gzip.compress(extended_header(1 << 30, kind) + bytes(1 << 24))
    tracemalloc.start()
    assert read_tar(tmp_path, bomb) == ([], {Reason.CORRUPT: 1})
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [b"0 path=a\n", b"99999999 path=a\n", b"rubbish", b"17 size=99999999999999999999\n", b"5 a=b"],
)
def test_extended_headers_of_rubbish(tmp_path, content):
    padded = content + bytes(-len(content) % 512)
    after = tar_bytes([("a.png", encoded())])
    _, faults = read_tar(tmp_path, extended_header(len(content)) + padded + after)
    assert set(faults) <= {Reason.CORRUPT, Reason.TRUNCATED, Reason.UNSAFE_NAME}


def global_header(**records):
    return pax_header(tarfile.XGLTYPE, **records)


def pax_header(kind=tarfile.XHDTYPE, **records):
    content = b""
    for key, value in records.items():
        record = f" {key}={value}\n".encode()
        length = len(record) + 2
        content += f"{length:02d}".encode() + record
    return extended_header(len(content), kind) + content + bytes(-len(content) % 512)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("size", [-512, -1024, "1e3", "9" * 30])
def test_sizes_that_are_none_do_not_turn_the_reader_back(tmp_path, size, compress):
    content = pax_header(size=size) + tar_bytes([("a.png", encoded())])
    images, faults = read_tar(tmp_path, compress(content))
    assert not any(each.data for each in images)
    assert list(faults.values()) == [1]
    negative = tarfile.TarInfo("a.png")
    negative.size = -512
    content = negative.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    assert read_tar(tmp_path, compress(content)) == ([], {Reason.CORRUPT: 1})
    _, faults = read_tar(tmp_path, compress(global_header(size=9) + content))
    assert faults == {Reason.CORRUPT: 1}


def test_sizes_and_names_in_extended_headers_hold(tmp_path):
    image = encoded()
    member = tarfile.TarInfo("short.png")  # whose own header says 0 bytes
    content = pax_header(size=len(image), path="a/long.png") + member.tobuf()
    content += image + bytes(-len(image) % 512) + tar_bytes([("b.png", image)])
    images, faults = read_tar(tmp_path, content)
    assert [(each.key, each.data) for each in images] == [("long", image), ("b", image)]
    assert not faults


def test_a_chain_of_extended_headers_is_given_up(tmp_path):
    chain = pax_header(path="a.png") * 5000 + tar_bytes([("b.png", encoded())])
    assert read_tar(tmp_path, chain) == ([], {Reason.CORRUPT: 1})


def test_headers_about_all_members_change_nothing_and_are_not_kept(tmp_path):
    archive = tar_bytes([("a.png", encoded()), ("b.png", encoded())])
    images, faults = read_tar(tmp_path, global_header(comment="a commit") + archive)
    assert [each.key for each in images] == ["a", "b"]
    assert not faults
    images, _ = read_tar(tmp_path, global_header(path="../evil.png") + archive)
    assert [each.key for each in images] == ["b"]
    member = tarfile.TarInfo("a.bin").tobuf()
    many = b"".join(global_header(**{"x" * 60 + str(n): "y" * 20}) + member for n in range(5000))
    content = gzip.compress(many + archive)
    tracemalloc.start()
    assert len(read_tar(tmp_path, content)[0]) == 2
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE])
def test_files_with_holes_are_not_read(tmp_path, kind):
    header = extended_header(0, kind)
    if kind == tarfile.XHDTYPE:
        header = pax_header(**{"GNU.sparse.major": 1, "GNU.sparse.minor": 0})
    content = header + tar_bytes([("a.png", encoded())])
    assert read_tar(tmp_path, content) == ([], {Reason.CORRUPT: 1})


def test_a_member_that_claims_more_than_the_archive_has_is_not_looked_for(tmp_path):
    member = tarfile.TarInfo("a.bin")
    member.size = 1 << 62
    content = member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    assert read_tar(tmp_path, content) == ([], {Reason.TRUNCATED: 1})


def test_an_archive_that_unpacks_without_end_is_given_up(tmp_path):
    member = tarfile.TarInfo("a.bin")
    member.size = 1 << 40
    bomb = gzip.compress(member.tobuf() + bytes(1 << 27), compresslevel=9)
    assert read_tar(tmp_path, bomb) == ([], {Reason.BOMB: 1})


def test_several_archives_by_folder_and_pattern(tmp_path):
    for number in (2, 1):
        (tmp_path / f"part-{number}.tar").write_bytes(tar_bytes([(f"{number}.png", encoded())]))
    (tmp_path / "other.txt").write_text("no archive")
    for path in (tmp_path, tmp_path / "part-*.tar"):
        source = Files(str(path))
        assert [shard.name for shard in source.shards()] == ["part-1.tar", "part-2.tar"]
        assert [each.key for each in read(source)[0]] == ["1", "2"]


@pytest.mark.parametrize("name", ["a.png", "*.png", "*.tgz", "missing", "empty"])
def test_other_places_are_told_what_a_source_is(tmp_path, name):
    (tmp_path / "a.png").write_bytes(encoded())
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"names no images; give a folder"):
        Files(str(tmp_path / name)).shards()


def test_a_folder_of_images_with_texts(tmp_path):
    web = tmp_path / "web"
    (web / "deep").mkdir(parents=True)
    for number in range(5):
        (web / f"deep/{number}.JPG").write_bytes(encoded(form="JPEG", seed=number))
    (web / "a.png").write_bytes(encoded())
    (web / "deep.parquet").write_bytes(b"addresses of the images in the folder of that name")
    (web / "a.txt").write_text("the text")
    (web / "a.json").write_text('{"url": "http://x", "caption": "another"}')
    (web / "deep/0.json").write_text('{"caption": "a record alone"}')
    (tmp_path / "secret.txt").write_text("secret")
    (web / "deep/1.txt").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "secret.png").write_bytes(encoded(seed=9))
    (web / "z.png").symlink_to(tmp_path / "secret.png")
    source = Files(str(web), per_shard=3)
    assert [len(shard.paths) for shard in source.shards()] == [3, 3, 1]
    images, faults = read(source)
    assert [each.key for each in images] == ["a.png", *(f"deep/{n}.JPG" for n in range(5))]
    assert [each.text for each in images] == ["the text", "a record alone", "", "", "", ""]
    assert [each.metadata for each in images] == [{"url": "http://x"}, *[{}] * 5]
    assert faults == {Reason.NOT_A_FILE: 1}
    assert Files(str(web / "deep.parquet")).shards()[0].name == "deep.parquet"


def test_links_that_loop_and_names_too_long_for_a_text_cost_themselves_only(tmp_path):
    (tmp_path / "loop.png").symlink_to("loop.png")
    for beside in ("a.txt", "a.json"):
        (tmp_path / beside).symlink_to(beside)
    long = "x" * 251  # with .json it has more bytes than a name may have
    for name in ("a.png", f"{long}.png"):
        (tmp_path / name).write_bytes(encoded())
    images, faults = read(Files(str(tmp_path)))
    assert [(each.key, each.text) for each in images] == [("a.png", ""), (f"{long}.png", "")]
    assert sum(faults.values()) == 1
    assert set(faults) <= {Reason.NOT_A_FILE, Reason.NO_IMAGE}  # as this Python sees a loop


def test_parquet_with_images(tmp_path):
    image = encoded()
    laion = [{"key": "7", "jpg": image, "caption": "a cat", "url": "http://x", "status": "success"}]
    laion += [{**laion[0], "key": "8", "jpg": None, "status": "failed"}]
    hub = [{"image": {"bytes": image, "path": "x.png"}, "text": None, "id": 3}]
    for number, rows in enumerate((laion, hub)):
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{number}.parquet")
    images, faults = read(load_stage(f'parquet{{"path": "{tmp_path}"}}', ImageSource))
    assert [(each.key, each.text) for each in images] == [("7", "a cat"), ("3", "")]
    assert all(each.data == image for each in images)
    assert images[0].metadata == {"url": "http://x"}
    assert faults == {Reason.NO_IMAGE: 1}


def test_corrupt_parquet_costs_the_row_group_only(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [{"image": encoded(seed=n), "key": str(n)} for n in range(9)]
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, path, row_group_size=3, compression="zstd", use_dictionary=False)
    group = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = group.data_page_offset
    content[start : start + 200] = os.urandom(200)
    path.write_bytes(content)
    source = load_stage(f'parquet{{"path": "{path}"}}', ImageSource)
    images, faults = read(source)
    assert [each.key for each in images] == ["0", "1", "2", "6", "7", "8"]
    assert faults == {Reason.CORRUPT_TABLE: 1}
    for rubbish in (b"", b"PAR1" + os.urandom(300) + b"PAR1", bytes(content[:-100])):
        path.write_bytes(rubbish)
        assert read(source) == ([], {Reason.CORRUPT_TABLE: 1})


def test_parquet_of_addresses_says_what_to_do(tmp_path):
    parquet.write_table(pyarrow.table({"url": ["http://x"], "text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="img2dataset"):
        read(load_stage(f'parquet{{"path": "{tmp_path}"}}', ImageSource))


@pytest.mark.parametrize(
    ("form", "suffix"), [("PNG", ".png"), ("JPEG", ".jpg"), ("WEBP", ".webp"), ("BMP", ".bmp")]
)
def test_images_keep_their_bytes(form, suffix):
    data = encoded(form=form)
    opened = open_bytes(data)
    assert (opened.data, opened.suffix, opened.size) == (data, suffix, (40, 60))


def test_a_turned_photo_is_stored_upright():
    pixels = np.zeros((40, 80, 3), dtype=np.uint8)
    pixels[:20] = 255
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a private place"
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, exif=exif)
    opened = open_bytes(buffer.getvalue())
    assert opened.size == (80, 40)
    assert opened.image[:, 25:].mean() > 250  # what was above is now on the right
    assert opened.image[:, :15].mean() < 5
    with Image.open(io.BytesIO(opened.data)) as stored:
        np.testing.assert_array_equal(np.array(stored), opened.image)
        assert not stored.getexif()


def png_claiming(width, height):
    """A PNG of a few bytes that says it is large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = zlib.compress(bytes(100))
    chunks = b""
    for kind, body in ((b"IHDR", header), (b"IDAT", content), (b"IEND", b"")):
        check = struct.pack(">I", zlib.crc32(kind + body))
        chunks += struct.pack(">I", len(body)) + kind + body + check
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("side", [6_000, 10_000, 60_000])
def test_decompression_bombs_are_not_decoded(side):
    tracemalloc.start()
    assert open_bytes(png_claiming(side, side)) == Reason.TOO_MANY_PIXELS
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.UNREADABLE),
        (b"<html>404</html>", Reason.UNREADABLE),
        (encoded()[:300], Reason.UNREADABLE),
        (encoded(form="JPEG")[:300], Reason.UNREADABLE),
        (encoded(form="GIF"), Reason.UNREADABLE),
        (encoded(form="TIFF"), Reason.UNREADABLE),
        (encoded(height=20), Reason.TOO_SMALL),
    ],
)
def test_what_is_no_image(data, reason):
    assert open_bytes(data) == reason


def test_memory_does_not_grow_with_the_archive(tmp_path):
    content = os.urandom(1 << 20)
    path = tmp_path / "shard.tar"
    path.write_bytes(tar_bytes([(f"{n}.jpg", content) for n in range(30)]))
    source = Files(str(path))
    tracemalloc.start()
    assert sum(len(each.data) for each in source.read(source.shards()[0])) == 30 << 20
    assert tracemalloc.get_traced_memory()[1] < 6 << 20
    tracemalloc.stop()
