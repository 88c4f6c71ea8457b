"""The central directory of a zip archive, read strictly: one reading of the bytes, or none."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from torchkeep.errors import CorruptError, FormatError, LimitError
from torchkeep.formats.faults import MalformedError
from torchkeep.formats.regular_file import READ_AGAIN, RegularFile

STORED, DEFLATED = 0, 8

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_COMMENT_BYTES = 0xFFFF
_MAX_MEMBERS = 500_000
_MAX_FAULTS = 20
_ENCRYPTED, _SIZES_FOLLOW, _PATCHED = 0x2041, 0x8, 0x20
_FREE_INFLATED_BYTES = 16 << 20
_MAX_RATIO = 200


@dataclass(frozen=True, slots=True)
class Member:
    """One file in the archive: `size` bytes, stored as `stored_bytes` behind a local header at `header_at`."""

    name: str
    header_at: int
    size: int
    stored_bytes: int
    crc32: int
    method: int
    flags: int


def read_directory(file: RegularFile) -> dict[str, Member]:
    """All members by name.

    Raises:
        CorruptError: The directory is absent, cut short, ambiguous, or names a member twice or outside of the file.
        FormatError: A member is encrypted or compressed with another method than deflate.
        LimitError: There are more members, or more bytes in one, than the file's size can justify.
    """
    try:
        begin, end, count = _find_directory(file)
        if count > _MAX_MEMBERS:
            raise LimitError(
                f"the archive has {count:,} members", where=file.path, remedy="save fewer tensors in one file"
            )
        members = list(_members(file.read(begin, end), count))
    except MalformedError as fault:
        raise CorruptError(
            "the zip archive is damaged", where=file.path, faults=[str(fault)], remedy=READ_AGAIN
        ) from None
    _check_methods(file, members)
    faults = [*_duplicates(members), *_overlaps(members, begin)]
    if faults:
        raise CorruptError(
            "the zip archive is damaged", where=file.path, faults=faults[:_MAX_FAULTS], remedy=READ_AGAIN
        )
    return {member.name: member for member in members}


def data_begin(file: RegularFile, member: Member) -> int:
    """Where a member's bytes begin, behind its local header.

    Raises:
        CorruptError: The local header says something else than the directory.
    """
    fields = _LOCAL.unpack(file.read(member.header_at, member.header_at + _LOCAL.size))
    signature, _version, flags, method, _time, _date, crc32, stored_bytes, size, name_bytes, extra_bytes = fields
    name_at = member.header_at + _LOCAL.size
    name = file.read(name_at, min(name_at + name_bytes, file.size))
    begin: int = name_at + name_bytes + extra_bytes
    agrees = (
        signature == b"PK\3\4"
        and name == member.name.encode("utf-8", "surrogateescape")
        and (flags, method) == (member.flags, member.method)
        and begin + member.stored_bytes <= file.size
    )
    if not flags & _SIZES_FOLLOW and 0xFFFFFFFF not in {stored_bytes, size}:
        agrees = agrees and (stored_bytes, size, crc32) == (member.stored_bytes, member.size, member.crc32)
    if not agrees:
        raise CorruptError(
            f"the local header of {member.name!r} disagrees with the archive's directory",
            where=file.path,
            remedy=READ_AGAIN,
        )
    return begin


def read_member(file: RegularFile, member: Member) -> bytes:
    """A member whole, in memory, checked against its CRC.

    Raises:
        CorruptError: Its bytes are absent, short, or differ from the checksum.
    """
    begin = data_begin(file, member)
    content = file.read(begin, begin + member.stored_bytes)
    if member.method == DEFLATED:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = inflate.decompress(content, member.size + 1)
        except zlib.error as fault:
            raise CorruptError(
                f"{member.name!r} does not inflate: {fault}", where=file.path, remedy=READ_AGAIN
            ) from None
        if len(content) != member.size or inflate.unconsumed_tail or not inflate.eof:
            raise CorruptError(f"{member.name!r} does not inflate to its size", where=file.path, remedy=READ_AGAIN)
    check_crc32(file, member, zlib.crc32(content))
    return content


def check_crc32(file: RegularFile, member: Member, crc32: int) -> None:
    """Compare a member's checksum; 0 stands for one that was not computed when the file was written.

    Raises:
        CorruptError: It differs.
    """
    if member.crc32 not in {0, crc32}:
        raise CorruptError(
            f"{member.name!r} is damaged: its CRC-32 is {crc32:08x}, and {member.crc32:08x} was recorded",
            where=file.path,
            remedy=READ_AGAIN,
        )


def _find_directory(file: RegularFile) -> tuple[int, int, int]:
    tail_at = max(0, file.size - _END.size - _MAX_COMMENT_BYTES)
    tail = file.read(tail_at, file.size)
    ends = [at for at in _occurrences(tail, b"PK\5\6") if _closes(tail, at)]
    if not ends:
        raise MalformedError("it has no directory at its end: the file is cut short, or bytes were added to it")
    if len(ends) > 1:
        raise MalformedError("it has two directories: readers would disagree about what is in it")
    end_at = tail_at + ends[0]
    disk, first_disk, on_disk, count, size, begin = _END.unpack_from(tail, ends[0])[1:7]
    locator_at = end_at - _END64_LOCATOR.size
    if locator_at >= 0 and file.read(locator_at, locator_at + 4) == b"PK\6\7":
        _, disk, end64_at, _ = _END64_LOCATOR.unpack(file.read(locator_at, end_at))
        if end64_at + _END64.size > locator_at:
            raise MalformedError("its 64-bit directory lies outside of the file")
        fields = _END64.unpack(file.read(end64_at, end64_at + _END64.size))
        signature, _, _, _, disk64, first_disk, on_disk64, count64, size64, begin64 = fields
        narrow = [(on_disk, on_disk64, 0xFFFF), (count, count64, 0xFFFF), (size, size64, 0xFFFFFFFF)]
        narrow.append((begin, begin64, 0xFFFFFFFF))
        if signature != b"PK\6\6" or any(short not in {full, most} for short, full, most in narrow):
            raise MalformedError("its 32-bit and 64-bit directories disagree")
        disk, on_disk, count, size, begin, end_at = disk or disk64, on_disk64, count64, size64, begin64, end64_at
    if disk or first_disk or on_disk != count:
        raise MalformedError("it is one part of a split archive")
    if begin + size != end_at or count * _CENTRAL.size > size:
        raise MalformedError("its directory does not stand where its end says: bytes were added or lost")
    return begin, begin + size, count


def _occurrences(tail: bytes, signature: bytes) -> Iterator[int]:
    at = tail.find(signature)
    while at >= 0:
        yield at
        at = tail.find(signature, at + 1)


def _closes(tail: bytes, at: int) -> bool:
    return at + _END.size <= len(tail) and at + _END.size + _END.unpack_from(tail, at)[7] == len(tail)


def _members(directory: bytes, count: int) -> Iterator[Member]:
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(directory):
            raise MalformedError("its directory is cut short")
        fields = _CENTRAL.unpack_from(directory, at)
        signature, _, _, flags, method, _, _, crc32, stored, size, name_n, extra_n, comment_n, disk, _, _, header_at = (
            fields
        )
        name_at = at + _CENTRAL.size
        extra_at = name_at + name_n
        at = extra_at + extra_n + comment_n
        if signature != b"PK\1\2" or at > len(directory) or disk not in {0, 0xFFFF}:
            raise MalformedError("an entry of its directory is broken")
        name = directory[name_at:extra_at].decode("utf-8", "surrogateescape")
        if "\0" in name:
            raise MalformedError(f"a member's name holds a NUL: {name[:80]!r}")
        if 0xFFFFFFFF in {stored, size, header_at}:
            size, stored, header_at = _wide(directory[extra_at : extra_at + extra_n], size, stored, header_at)
        yield Member(name, header_at, size, stored, crc32, method, flags)
    if at != len(directory):
        raise MalformedError("its directory holds more entries than its end says")


def _wide(extra: bytes, *narrow: int) -> list[int]:
    """The 64-bit values that stand in an entry's extra field for those of 0xFFFFFFFF."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            wanted = [value == 0xFFFFFFFF for value in narrow]
            if length < 8 * sum(wanted) or at + 4 + length > len(extra):
                break
            full = iter(struct.unpack_from(f"<{sum(wanted)}Q", extra, at + 4))
            return [next(full) if wide else value for value, wide in zip(narrow, wanted, strict=True)]
        at += 4 + length
    raise MalformedError("an entry of its directory has no 64-bit sizes")


def _check_methods(file: RegularFile, members: list[Member]) -> None:
    remedy = "unpack the archive and pack it again without compression"
    for member in members:
        if member.flags & (_ENCRYPTED | _PATCHED):
            raise FormatError(
                f"{member.name!r} in the zip archive is encrypted or patched", where=file.path, remedy=remedy
            )
        if member.method not in {STORED, DEFLATED}:
            raise FormatError(
                f"{member.name!r} is compressed with zip method {member.method}", where=file.path, remedy=remedy
            )
        if member.size > max(_FREE_INFLATED_BYTES, member.stored_bytes * _MAX_RATIO):
            raise LimitError(
                f"{member.name!r} would inflate from {member.stored_bytes:,} to {member.size:,} bytes",
                where=file.path,
                remedy=remedy,
            )


def _duplicates(members: list[Member]) -> Iterator[str]:
    names: set[str] = set()
    for member in members:
        if member.name in names:
            yield f"{member.name!r} is there twice"
        names.add(member.name)


def _overlaps(members: list[Member], directory_at: int) -> Iterator[str]:
    in_order = sorted(members, key=lambda member: member.header_at)
    ends = [member.header_at for member in in_order[1:]] + [directory_at]
    for member, next_at in zip(in_order, ends, strict=True):
        name_bytes = len(member.name.encode("utf-8", "surrogateescape"))
        if member.header_at + _LOCAL.size + name_bytes + member.stored_bytes > next_at:
            yield f"{member.name!r} overlaps what stands behind it"
        if member.method == STORED and member.size != member.stored_bytes:
            yield f"{member.name!r} is stored in {member.stored_bytes:,} bytes and has {member.size:,}"
