"""A file that is only read, by position: no shared cursor, so that threads read at once."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from torchkeep.errors import CorruptError, FormatError, NotFoundError, typed
from torchkeep.formats.faults import MalformedError
from torchkeep.tensors import Extent

_READ_AHEAD_BYTES = 1 << 18
_MAX_LINE_BYTES = 1 << 16

READ_AGAIN = "copy or download the file again and compare its size with the original"


class RegularFile:
    """One regular file, opened without following it anywhere that blocks.

    Attributes:
        path: Where it is.
        size: Its bytes when it was opened.
        version: Size and time of the last change: equal for files with the same bytes.

    Raises:
        NotFoundError: Nothing is at the path.
        FormatError: It is a folder, a pipe, a socket or a device.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _require_regular(path, _stat(path).st_mode)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        opened = os.fstat(self._descriptor)
        self.size = opened.st_size
        self.version = (opened.st_size, opened.st_mtime_ns)
        if not stat.S_ISREG(opened.st_mode):
            self.close()
            _require_regular(path, opened.st_mode)

    def read(self, begin: int, end: int) -> bytes:
        """The bytes from `begin` to `end`; memory is taken only once the range is known to lie in the file."""
        if not 0 <= begin <= end <= self.size:
            raise CorruptError(
                f"bytes {begin:,} to {end:,} are wanted and the file has {self.size:,}",
                where=self.path,
                remedy=READ_AGAIN,
            )
        content = bytearray(end - begin)
        self.read_into(begin, memoryview(content))
        return bytes(content)

    def read_into(self, begin: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes that stand at `begin`.

        Raises:
            CorruptError: The file is shorter than that, or was changed since it was opened.
            NotFoundError: It was closed.
        """
        self._refuse_closed()
        rest, at = buffer.cast("B"), begin
        while rest:
            with typed("cannot be read", self.path):
                count = os.preadv(self._descriptor, [rest], at)
            if count == 0:
                raise CorruptError(f"the file ends {len(rest):,} bytes too early", where=self.path, remedy=READ_AGAIN)
            rest, at = rest[count:], at + count
        now = os.fstat(self._descriptor)
        if (now.st_size, now.st_mtime_ns) != self.version:
            raise CorruptError(
                "the file was changed while it was read", where=self.path, remedy="open it again when it is complete"
            )

    def extent(self, begin: int) -> Extent:
        """What stands at `begin`, for whoever maps it.

        Raises:
            NotFoundError: It was closed.
        """
        self._refuse_closed()
        return Extent(self._descriptor, begin)

    def _refuse_closed(self) -> None:
        if self._descriptor < 0:
            raise NotFoundError("this source was closed", where=self.path, remedy="open it again")

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            self.close()

    def close(self) -> None:
        """Let go of the file; harmless when called twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class FilePart(RegularFile):
    """A range of an open file, read as if it were a file of its own; it is closed with the whole."""

    def __init__(self, whole: RegularFile, begin: int, end: int) -> None:
        self.path = whole.path
        self.size = end - begin
        self.version = whole.version
        self._whole = whole
        self._begin = begin

    def read_into(self, begin: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes that stand at `begin` of the part.

        Raises:
            CorruptError: The part or the file is shorter than that, or the file was changed since it was opened.
            NotFoundError: It was closed.
        """
        if not 0 <= begin <= self.size - buffer.nbytes:
            raise CorruptError(
                f"bytes {begin:,} to {begin + buffer.nbytes:,} are wanted and the part has {self.size:,}",
                where=self.path,
                remedy=READ_AGAIN,
            )
        self._whole.read_into(self._begin + begin, buffer)

    def extent(self, begin: int) -> Extent:
        """What stands at `begin` of the part, in the whole."""
        return self._whole.extent(self._begin + begin)

    def close(self) -> None:
        """Leave the file to whoever opened it."""


class ByteStream:
    """Bytes taken in order from a `begin` to an `end`, read ahead in pieces."""

    def __init__(self, read: Callable[[int, int], bytes], begin: int, end: int) -> None:
        self._read = read
        self._ahead = b""
        self._at = 0
        self._next = begin
        self._end = end

    @property
    def position(self) -> int:
        """Where the next byte stands."""
        return self._next - len(self._ahead) + self._at

    @property
    def remaining(self) -> int:
        """How many bytes are left."""
        return self._end - self.position

    def take(self, count: int) -> bytes:
        """The next `count` bytes.

        Raises:
            MalformedError: Fewer are left.
        """
        stop = self._at + count
        if stop > len(self._ahead):
            if count > self.remaining:
                raise MalformedError(f"{count:,} bytes should follow and {self.remaining:,} are left")
            self._fetch(count)
            stop = count
        taken = self._ahead[self._at : stop]
        self._at = stop
        return taken

    def take_line(self) -> bytes:
        """The bytes up to the next newline, which is taken too.

        Raises:
            MalformedError: No newline follows within 64 KiB.
        """
        found = self._ahead.find(b"\n", self._at)
        if found < 0:
            self._fetch(min(_MAX_LINE_BYTES, self.remaining))
            found = self._ahead.find(b"\n")
        if found < 0 or found - self._at > _MAX_LINE_BYTES:
            raise MalformedError("a line of text does not end")
        line = self._ahead[self._at : found]
        self._at = found + 1
        return line

    def _fetch(self, count: int) -> None:
        begin = self.position
        self._next = min(begin + max(count, _READ_AHEAD_BYTES), self._end)
        self._ahead = self._read(begin, self._next)
        self._at = 0


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError("nothing is there", where=path, remedy="check the path for a typing error") from None


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise FormatError("this is not a regular file", where=path, remedy="name a checkpoint file or its folder")
