"""Reading many tensors of one checkpoint in a few threads, every chunk compared with its digest on the way.

What lies side by side in a file is read by one call, into the places it goes to or, when nothing is kept, into a buffer
that is used again and stays in the core's cache while it is hashed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import xxhash

from torchkeep.folder.aligned_file import BounceBuffers
from torchkeep.folder.digests import chunk_ranges, digest_of
from torchkeep.folder.parallel import in_parallel
from torchkeep.folder.record import StoredTensor

READ_BYTES = 2**20  # read by one call
_UNIT_BYTES = 8 * 2**20  # what a thread takes at once, if chunks are not larger
_MOST_BUFFERS = 512  # of one call; the system allows 1,024
DIFFER = "differ from their digest"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A tensor to read and check: where it lies, and where its bytes go; None to check them only."""

    stored: StoredTensor
    buffer: memoryview | None


@dataclass(frozen=True, slots=True)
class Part:
    """One chunk of the wanted tensor at `index`: its range, where that begins in the shard, its digest."""

    index: int
    first: int
    last: int
    at: int
    digest: str

    @property
    def nbytes(self) -> int:
        """Bytes of it."""
        return self.last - self.first


def units_of(wanted: Sequence[Wanted]) -> Iterator[list[Part]]:
    """Gather chunks that lie side by side in one shard, in the order of files, into what threads take at once. Pure."""
    unit: list[Part] = []
    shard, size = "", 0
    for index in sorted(range(len(wanted)), key=lambda i: (wanted[i].stored.shard, wanted[i].stored.begin)):
        stored = wanted[index].stored
        for (first, last), digest in zip(chunk_ranges(stored.nbytes), stored.chunks, strict=True):
            part = Part(index, first, last, stored.begin + first, digest)
            follows = unit and stored.shard == shard and part.at == unit[-1].at + unit[-1].nbytes
            if unit and not (follows and size + part.nbytes <= _UNIT_BYTES):
                yield unit
                unit, size = [], 0
            unit.append(part)
            shard, size = stored.shard, size + part.nbytes
    if unit:
        yield unit


def faults_of(
    wanted: Sequence[Wanted], place: Callable[[StoredTensor], tuple[int, int]], threads: int
) -> dict[int, str]:
    """Read and check tensors.

    Args:
        wanted: Which, and where they go.
        place: The descriptor of a tensor's file, and where in the file its bytes begin.
        threads: Threads that read and hash.

    Returns:
        For those that are damaged, by their position in `wanted`, the first fault.
    """
    buffers = BounceBuffers()
    found: list[tuple[int, int, str]] = []

    def read(unit: list[Part]) -> None:
        descriptor, begin = place(wanted[unit[0].index].stored)
        offset = begin - wanted[unit[0].index].stored.begin
        with buffers.lend(READ_BYTES) as bounce:
            for parts in _calls(unit):
                found.extend(_read(descriptor, offset, parts, wanted, bounce.data[:READ_BYTES]))

    in_parallel(read, units_of(wanted), threads)
    return {index: fault for index, _, fault in sorted(found, reverse=True)}


def _calls(unit: Sequence[Part]) -> Iterator[list[Part]]:
    """The parts of a unit that one call reads: a large one alone, small ones together."""
    call: list[Part] = []
    size = 0
    for part in unit:
        if call and (size + part.nbytes > READ_BYTES or len(call) == _MOST_BUFFERS):
            yield call
            call, size = [], 0
        call.append(part)
        size += part.nbytes
    yield call


def _read(
    descriptor: int, offset: int, parts: Sequence[Part], wanted: Sequence[Wanted], scratch: memoryview
) -> Iterator[tuple[int, int, str]]:
    if len(parts) == 1:
        (part,) = parts
        buffer = wanted[part.index].buffer
        into = None if buffer is None else buffer[part.first : part.last]
        fault = fault_of_chunk(descriptor, offset + part.at, part.nbytes, part.digest, into, scratch)
        if fault:
            yield part.index, part.first, said(part.first, part.last, fault)
        return
    pieces, used = [], 0
    for part in parts:
        buffer = wanted[part.index].buffer
        pieces.append(scratch[used : used + part.nbytes] if buffer is None else buffer[part.first : part.last])
        used += part.nbytes
    in_one = [scratch[:used]] if all(wanted[part.index].buffer is None for part in parts) else pieces
    if os.preadv(descriptor, in_one, offset + parts[0].at) != used:
        for part, piece in zip(parts, pieces, strict=True):
            if fault := fill(descriptor, offset + part.at, piece):
                yield part.index, part.first, fault
                return
    for part, piece in zip(parts, pieces, strict=True):
        if digest_of(piece) != part.digest:
            yield part.index, part.first, said(part.first, part.last, DIFFER)


def said(first: int, last: int, fault: str) -> str:
    """A fault of a chunk with its range, where the fault itself does not say where it is."""
    return f"bytes {first} to {last} {fault}" if fault == DIFFER else fault


def fault_of_chunk(
    descriptor: int, begin: int, nbytes: int, expected: str, buffer: memoryview | None, scratch: memoryview
) -> str | None:
    """Read a chunk, into `buffer` if there is one, else over and over into `scratch`, and compare its digest."""
    state = xxhash.xxh3_128()
    for at in range(0, nbytes, READ_BYTES):
        wanted = min(READ_BYTES, nbytes - at)
        piece = scratch[:wanted] if buffer is None else buffer[at : at + wanted]
        if fault := fill(descriptor, begin + at, piece):
            return fault
        state.update(piece)
    return None if state.hexdigest() == expected else DIFFER


def fill(descriptor: int, begin: int, buffer: memoryview) -> str | None:
    """Read until `buffer` is full; the fault if the file ends before that."""
    while buffer:
        count = os.preadv(descriptor, [buffer], begin)
        if count == 0:
            return f"the file ends {len(buffer)} bytes early"
        buffer, begin = buffer[count:], begin + count
    return None
