"""Zip archives and legacy streams that a loader must survive."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable

from tests.hostile import pickles

FOUR_FLOATS = struct.pack("<4f", 1, 2, 3, 4)
LEGACY_HEAD = b"".join(
    pickles.stream(body)
    for body in (
        b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19",
        b"M\xe9\x03",
        b"}" + pickles.text("little_endian") + b"\x88s",
    )
)


def zipped(members: Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of members in order; names may repeat."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return made.getvalue()


def torch_zip(data_pkl: bytes, storage: bytes = FOUR_FLOATS, *others: tuple[str, bytes]) -> bytes:
    """A torch archive around a pickle, with one storage."""
    return zipped([("a/data.pkl", data_pkl), ("a/data/0", storage), ("a/version", b"3\n"), *others])


def good_zip() -> bytes:
    """A torch archive of one tensor of four floats."""
    return torch_zip(pickles.tensor((4,), (1,)))


def legacy(data_pkl: bytes, storage: bytes = FOUR_FLOATS, numel: int = 4) -> bytes:
    """A legacy stream around a pickle, with one storage."""
    identifier = pickles.storage()[:-2] + b"NtQ"
    keys = pickles.stream(b"]" + pickles.text("0") + b"a")
    body = data_pkl.replace(pickles.storage(), identifier)
    return LEGACY_HEAD + body + keys + struct.pack("<q", numel) + storage


def patched(archive: bytes, at: int, replacement: bytes) -> bytes:
    """The archive with some bytes replaced."""
    return archive[:at] + replacement + archive[at + len(replacement) :]


def central(archive: bytes, field: int, replacement: bytes, entry: int = 0) -> bytes:
    """The archive with a field of an entry in its directory replaced."""
    at = -1
    for _ in range(entry + 1):
        at = archive.index(b"PK\1\2", at + 1)
    return patched(archive, at + field, replacement)


def bomb() -> bytes:
    """64: one storage that inflates a thousand times, and says so."""
    return zipped([("a/data.pkl", pickles.tensor((4,), (1,))), ("a/data/0", bytes(64 << 20))], zipfile.ZIP_DEFLATED)


def lying_bomb() -> bytes:
    """64, 66: a pickle that inflates to more than it says."""
    archive = zipped([("a/data.pkl", bytes(1 << 20))], zipfile.ZIP_DEFLATED)
    return central(patched(archive, 22, struct.pack("<I", 100)), 24, struct.pack("<I", 100))


def overlapping() -> bytes:
    """67: two entries whose bytes are the same."""
    archive = zipped([("a/data.pkl", b"N."), ("a/data/0", FOUR_FLOATS)])
    return central(archive, 42, struct.pack("<I", 0), entry=1)


def wide_lie() -> bytes:
    """66: a Zip64 size of 2^63."""
    archive = torch_zip(b"N.")
    begin = archive.index(b"PK\1\2")
    name_end = begin + 46 + len("a/data.pkl")
    extra = struct.pack("<2HQ", 1, 8, 1 << 63)
    grown = archive[:name_end] + extra + archive[name_end:]
    grown = central(grown, 24, struct.pack("<I", 0xFFFFFFFF))
    grown = central(grown, 30, struct.pack("<H", len(extra)))
    end = grown.rindex(b"PK\5\6")
    size = struct.unpack_from("<I", grown, end + 12)[0]
    return patched(grown, end + 12, struct.pack("<I", size + len(extra)))


def without_crc(archive: bytes) -> bytes:
    """61: checksums of zero, as ``compute_crc32=False`` leaves them."""
    for crc in {zlib.crc32(FOUR_FLOATS), zlib.crc32(pickles.tensor((4,), (1,))), zlib.crc32(b"3\n")}:
        archive = archive.replace(struct.pack("<I", crc), bytes(4))
    return archive


def many_members(count: int) -> bytes:
    """68: very many members of nothing."""
    return zipped([("a/data.pkl", b"N."), *((f"a/data/{index}", b"") for index in range(count))])


def twice(name: str) -> bytes:
    """56, 57: a member that is there twice."""
    with warnings.catch_warnings(action="ignore"):
        return torch_zip(pickles.stream(b"N"), FOUR_FLOATS, (name, b"N."))


def symlinked() -> bytes:
    """70: a member that says that it is a symbolic link out of the archive."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02N.")
        link = zipfile.ZipInfo("a/data/0")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    return made.getvalue()
