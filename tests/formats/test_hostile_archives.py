"""Bad zip archives and legacy streams: one reading of the bytes, or a typed error."""

from __future__ import annotations

import struct
import zipfile

import pytest
from tests.hostile import archives
from tests.hostile.pickles import stream, tensor
from tests.hostile.refusal import open_and_read, refused

from torchkeep.errors import CorruptError, FormatError, LimitError

GOOD_ZIP = archives.good_zip()
ZIPS = {
    "53 no directory": (GOOD_ZIP[:-22], CorruptError, "no directory at its end"),
    "54 two directories": (
        archives.patched(GOOD_ZIP, len(GOOD_ZIP) - 2, struct.pack("<H", 22)) + GOOD_ZIP[-22:],
        CorruptError,
        "two directories",
    ),
    "55 junk behind": (GOOD_ZIP + b"junk", CorruptError, "no directory at its end"),
    "55 junk before": (b"PK\3\4junk" + GOOD_ZIP, CorruptError, "bytes were added or lost"),
    "58 name differs": (GOOD_ZIP.replace(b"a/data/0", b"a/data/1", 1), CorruptError, "disagrees"),
    "58 size differs": (archives.patched(GOOD_ZIP, 22, b"\1"), CorruptError, "disagrees"),
    "59 flag 0x20": (archives.central(GOOD_ZIP, 8, b"\x20"), FormatError, "encrypted or patched"),
    "59 flag 0x40": (archives.central(GOOD_ZIP, 8, b"\x41"), FormatError, "encrypted or patched"),
    "60 CRC of the pickle": (GOOD_ZIP.replace(b"FloatStorage", b"floatStorage"), CorruptError, "CRC-32"),
    "60 CRC of a storage": (GOOD_ZIP.replace(archives.FOUR_FLOATS, bytes(16)), CorruptError, "'a/data/0' is damaged"),
    "62 encrypted": (archives.central(GOOD_ZIP, 8, b"\1"), FormatError, "encrypted"),
    "64 bomb": (archives.bomb(), LimitError, "would inflate from"),
    "64 lying bomb": (archives.lying_bomb(), CorruptError, "does not inflate to its size"),
    "65 bzip2": (archives.central(GOOD_ZIP, 10, b"\x0c"), FormatError, "zip method 12"),
    "66 size 2^63": (archives.wide_lie(), LimitError, "9,223,372,036,854,775,808"),
    "67 overlap": (archives.overlapping(), CorruptError, "overlaps"),
    "69 NUL in a name": (GOOD_ZIP.replace(b"a/data/0", b"a/data\0" + b"0"), CorruptError, "NUL"),
    "73 no data.pkl": (archives.zipped([("x.txt", b"")]), FormatError, "without data.pkl"),
    "101 npz": (archives.zipped([("x.npy", b"")]), FormatError, "an archive of numpy arrays"),
    "two checkpoints": (archives.zipped([("a/data.pkl", b"N."), ("b/data.pkl", b"N.")]), CorruptError, "holds two"),
    "76 byteorder middle": (archives.torch_zip(stream(b"N"), b"", ("a/byteorder", b"middle")), FormatError, "'middle'"),
    "version 99": (archives.zipped([("a/data.pkl", b"N."), ("a/version", b"99")]), FormatError, "version '99'"),
    "a version of 1 MB": (archives.zipped([("a/data.pkl", b"N."), ("a/version", bytes(2_000))]), CorruptError, "2,000"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "kind", "words"), ZIPS.values(), ids=ZIPS)
def test_a_bad_archive_is_refused(tmp_path, content, kind, words):
    (tmp_path / "x").write_bytes(content)
    refused(tmp_path / "x", kind, words)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["a/data.pkl", "a/data/0"])
def test_56_57_a_member_that_is_there_twice_is_refused(tmp_path, name):
    content = archives.torch_zip(stream(b"N"), archives.FOUR_FLOATS, (name, b"N."))
    (tmp_path / "x").write_bytes(content)
    refused(tmp_path / "x", CorruptError, f"'{name}' is there twice")


GOOD_FILES = {
    "61 no checksums": archives.without_crc(GOOD_ZIP),
    "63 deflated": archives.zipped(
        [("a/data.pkl", tensor((4,), (1,))), ("a/data/0", archives.FOUR_FLOATS)], zipfile.ZIP_DEFLATED
    ),
    "69 a member ../x": archives.torch_zip(tensor((4,), (1,)), archives.FOUR_FLOATS, ("../x", b"")),
    "75 no version": archives.zipped([("a/data.pkl", tensor((4,), (1,))), ("a/data/0", archives.FOUR_FLOATS)]),
    "77 alignment 2^62": archives.torch_zip(
        tensor((4,), (1,)), archives.FOUR_FLOATS, ("a/.storage_alignment", b"4" * 19)
    ),
    "108 a huge shape with 0": archives.torch_zip(tensor((1 << 40, 0), (1, 1))),
    "112 views by the thousand": archives.torch_zip(stream(b"(" + tensor((4,), (1,))[2:-1] * 2_000 + b"l")),
    "legacy": archives.legacy(tensor((4,), (1,))),
    "trailing bytes behind legacy": archives.legacy(tensor((4,), (1,))) + bytes(100),
}


@pytest.mark.parametrize("content", GOOD_FILES.values(), ids=GOOD_FILES)
def test_an_odd_file_of_torch_opens(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    open_and_read(tmp_path / "x")


LEGACY = {
    "truncated storage": (
        archives.legacy(tensor((4,), (1,)))[:-1],
        CorruptError,
        "ends 1 bytes before the end of storage '0'",
    ),
    "another count": (archives.legacy(tensor((4,), (1,)), numel=3), CorruptError, "has 3 elements"),
    "no keys": (archives.LEGACY_HEAD + stream(b"N") + stream(b"N"), CorruptError, "not those that it names"),
    "keys of another object": (archives.legacy(stream(b"N")), CorruptError, "not those that it names"),
    "another protocol": (
        archives.LEGACY_HEAD[:17].replace(b"M", b"M") + stream(b"K\x01"),
        FormatError,
        "unknown protocol",
    ),
    "79 a zip behind": (archives.legacy(tensor((4,), (1,))) + GOOD_ZIP, CorruptError, "a zip archive follows"),
}


@pytest.mark.parametrize(("content", "kind", "words"), LEGACY.values(), ids=LEGACY)
def test_a_bad_legacy_stream_is_refused(tmp_path, content, kind, words):
    (tmp_path / "x").write_bytes(content)
    refused(tmp_path / "x", kind, words)
