"""Writing one file from several threads, past the page cache: whole blocks with O_DIRECT where that works.

Each thread fills a page-aligned bounce buffer and writes whole blocks from it. A block that two threads have bytes of
is a seam: its parts are gathered and it is written once, at the end. The last block is padded and the file cut to its
size.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Bytes = np.ndarray[Any, np.dtype[np.uint8]]

BLOCK_BYTES = max(4096, mmap.PAGESIZE)
BOUNCE_BYTES = 2 * 2**20  # a large page, on most systems
_STRIDE_BYTES = 2**19  # copied and hashed at once: both find it in the core's cache
_DIRECT_FROM_BYTES = 2**20  # below that a wait for the disk costs more than the page cache
_O_DIRECT: int = getattr(os, "O_DIRECT", 0)  # Linux


def as_bytes(buffer: memoryview) -> Bytes:
    """A buffer as an array of bytes over the same memory; numpy copies without the interpreter's lock."""
    import numpy as np

    return np.frombuffer(buffer, np.uint8)


def map_pages(nbytes: int) -> mmap.mmap:
    """Page-aligned memory for the disk to read.

    A forked process does not get it: the disk may be reading it, and a copy on write would take the page away (open(2),
    O_DIRECT).
    """
    if not hasattr(mmap, "MADV_DONTFORK"):
        return mmap.mmap(-1, nbytes)
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_DONTFORK)
    return pages


def _bounce_buffer(nbytes: int) -> Bytes:
    """A buffer; one of full size lies in one large page where there are any, which the disk takes as one piece."""
    if nbytes < BOUNCE_BYTES:
        return as_bytes(memoryview(map_pages(nbytes)))
    pages = map_pages(2 * BOUNCE_BYTES)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # the kernel may be built without
            pages.madvise(mmap.MADV_HUGEPAGE)
    whole = as_bytes(memoryview(pages))
    begin = -whole.ctypes.data % BOUNCE_BYTES
    return whole[begin : begin + BOUNCE_BYTES]


class BounceBuffers:
    """Page-aligned buffers of `BOUNCE_BYTES`, made when first needed and lent to one thread at a time."""

    def __init__(self) -> None:
        self._idle: list[Bytes] = []

    @contextmanager
    def lend(self, nbytes: int) -> Iterator[Bytes]:
        """A buffer of at least `nbytes` in whole blocks, at most `BOUNCE_BYTES`; its content is undefined."""
        size = min(_up(nbytes), BOUNCE_BYTES)
        try:
            buffer = self._idle.pop()
        except IndexError:
            buffer = _bounce_buffer(size)
        if len(buffer) < size:
            buffer = _bounce_buffer(size)
        try:
            yield buffer
        finally:
            self._idle.append(buffer)


class AlignedFile:
    """An open, empty file of a size that is known, written by position from several threads.

    Args:
        descriptor: Open for writing; it stays the caller's.
        nbytes: What the file will hold. Room for it is taken at once, where the file system can.

    Raises:
        OSError: There is no room.
    """

    def __init__(self, descriptor: int, nbytes: int) -> None:
        self.descriptor = descriptor
        self.nbytes = nbytes
        self._seams: dict[int, bytearray] = {}
        self._turning = threading.Lock()
        self._is_direct = False
        if nbytes >= _DIRECT_FROM_BYTES and _O_DIRECT:
            self._set_direct(wanted=True)
        _allocate(descriptor, nbytes)

    def _set_direct(self, *, wanted: bool) -> None:
        with self._turning:
            flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
            with suppress(OSError):  # the file system does not do it
                fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags | _O_DIRECT if wanted else flags & ~_O_DIRECT)
                self._is_direct = wanted

    def write(self, data: Bytes, at: int) -> None:
        """Write whole blocks at a multiple of their size; a file that refuses them unbuffered is buffered from then on.

        Raises:
            OSError: The system refused.
        """
        while len(data):
            was_direct = self._is_direct
            try:
                count = os.pwrite(self.descriptor, data.data, at)
            except OSError as error:
                if error.errno != errno.EINVAL or not was_direct:
                    raise
                self._set_direct(wanted=False)
                continue
            data, at = data[count:], at + count

    def put_seam(self, data: Bytes, at: int) -> None:
        """Keep bytes of one block for `finish`, which writes it with those that other threads have of it.

        They do not reach beyond the block, and every byte of it is given once.
        """
        # Without a lock: setdefault gives all threads one buffer, of which they write disjoint parts.
        block, offset = at - at % BLOCK_BYTES, at % BLOCK_BYTES
        self._seams.setdefault(block, bytearray(BLOCK_BYTES))[offset : offset + len(data)] = data.data

    def finish(self, buffers: BounceBuffers) -> None:
        """Write the seams and cut the padding off; what is written is not flushed yet."""
        with buffers.lend(BLOCK_BYTES) as bounce:
            for at, block in sorted(self._seams.items()):
                bounce[:BLOCK_BYTES] = as_bytes(memoryview(block))
                self.write(bounce[:BLOCK_BYTES], at)
        os.ftruncate(self.descriptor, self.nbytes)


class Run:
    """Bytes that follow each other in a file, from any position on: gathered in a bounce buffer, written in blocks."""

    def __init__(self, file: AlignedFile, at: int, bounce: Bytes) -> None:
        self._file = file
        self._bounce = bounce
        self._first = at  # where the bytes in the buffer begin, and where they end
        self._end = at

    def put(self, data: Bytes) -> Iterator[Bytes]:
        """Append bytes; gives them piece by piece as they lie in the buffer, and will be written, before they are."""
        import numpy as np

        position = 0
        while position < len(data):
            at = self._end - self._base
            count = min(len(data) - position, len(self._bounce) - at, _STRIDE_BYTES)
            piece = self._bounce[at : at + count]
            np.copyto(piece, data[position : position + count])
            yield piece
            position += count
            self._end += count
            if at + count == len(self._bounce):
                self._write_blocks()

    def close(self) -> None:
        """Write what is left."""
        self._write_blocks()

    @property
    def _base(self) -> int:
        return self._first - self._first % BLOCK_BYTES

    def _write_blocks(self) -> None:
        base, first, end = self._base, self._first, self._end
        whole_begin, whole_end = _up(first), end - end % BLOCK_BYTES
        if first < whole_begin:
            self._file.put_seam(self._bounce[first - base : min(whole_begin, end) - base], first)
        if whole_begin < whole_end:
            self._file.write(self._bounce[whole_begin - base : whole_end - base], whole_begin)
        if whole_begin <= whole_end < end:
            self._file.put_seam(self._bounce[whole_end - base : end - base], whole_end)
        self._first = end


def write_in_place(file: AlignedFile, data: Bytes, at: int) -> None:
    """Write bytes from where they lie, without a copy: their address and `at` are equal modulo the block size."""
    end = at + len(data)
    whole_begin, whole_end = min(_up(at), end), max(end - end % BLOCK_BYTES, min(_up(at), end))
    if at < whole_begin:
        file.put_seam(data[: whole_begin - at], at)
    for begin in range(whole_begin, whole_end, BOUNCE_BYTES):
        file.write(data[begin - at : min(begin + BOUNCE_BYTES, whole_end) - at], begin)
    if whole_end < end:
        file.put_seam(data[whole_end - at :], whole_end)


def _up(position: int) -> int:
    return -(-position // BLOCK_BYTES) * BLOCK_BYTES


def _allocate(descriptor: int, nbytes: int) -> None:
    """Take room for a file, so that a full disk is known before hours of writing, and in one piece."""
    error = fallocate(descriptor, nbytes) if nbytes >= _DIRECT_FROM_BYTES else 0
    if error in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        raise OSError(error, os.strerror(error))


def fallocate(descriptor: int, nbytes: int) -> int:
    """Linux's `fallocate`: the number of its error, 0 for none, ENOSYS where there is no such call.

    Not `posix_fallocate`: where the file system cannot, the C library would write every block.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if not nbytes:
        return 0
    if not sys.platform.startswith("linux") or not hasattr(library, "fallocate64"):
        return errno.ENOSYS
    while library.fallocate64(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(nbytes)):
        error = ctypes.get_errno()
        if error != errno.EINTR:
            return error
    return 0
