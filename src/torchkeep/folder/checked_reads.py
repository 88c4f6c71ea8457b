"""Reading many tensors of one checkpoint in a few threads, every chunk compared with its digest on the way.

What lies side by side in a file is read by one call, into the places it goes to or, when nothing is kept, into a buffer
that is used again and stays in the core's cache while it is hashed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import xxhash

from torchkeep.folder.aligned_file import BounceBuffers
from torchkeep.folder.digests import chunk_ranges, digest_of
from torchkeep.folder.parallel import in_parallel
from torchkeep.folder.record import StoredTensor

READ_BYTES = 2**20  # read by one call
_UNIT_BYTES = 8 * 2**20  # what a thread takes at once, if chunks are not larger
_MOST_BUFFERS = 512  # of one call; the system allows 1,024
DIFFER = "differ from their digest"


Memory: TypeAlias = Callable[[int], memoryview]


@dataclass(frozen=True, slots=True)
class Parts:
    """The chunks of wanted tensors, in the order of their files and by columns: many small ones are a few lists.

    Attributes:
        indexes: Which of the wanted tensors each is of.
        firsts: Where it begins in the tensor.
        lasts: Where it ends there.
        places: Where it begins in the shard's data.
        digests: Its digest.
    """

    indexes: list[int] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)
    lasts: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)

    def nbytes(self, each: int) -> int:
        """Bytes of one of them."""
        return self.lasts[each] - self.firsts[each]


def parts_of(wanted: Sequence[StoredTensor]) -> Parts:
    """The chunks of some tensors."""
    found = Parts()
    for index in sorted(range(len(wanted)), key=lambda i: (wanted[i].shard, wanted[i].begin)):
        stored = wanted[index]
        for (first, last), digest in zip(chunk_ranges(stored.nbytes), stored.chunks, strict=True):
            found.indexes.append(index)
            found.firsts.append(first)
            found.lasts.append(last)
            found.places.append(stored.begin + first)
            found.digests.append(digest)
    return found


def units_of(parts: Parts, wanted: Sequence[StoredTensor]) -> Iterator[range]:
    """Gather what lies side by side in one shard into what threads take at once: positions in `parts`. Pure."""
    begin, size = 0, 0
    for each in range(len(parts.indexes)):
        nbytes = parts.nbytes(each)
        if each > begin:
            same_file = wanted[parts.indexes[each]].shard == wanted[parts.indexes[each - 1]].shard
            follows = same_file and parts.places[each] == parts.places[each - 1] + parts.nbytes(each - 1)
            if not (follows and size + nbytes <= _UNIT_BYTES):
                yield range(begin, each)
                begin, size = each, 0
        size += nbytes
    if parts.indexes:
        yield range(begin, len(parts.indexes))


def faults_of(
    wanted: Sequence[StoredTensor],
    place: Callable[[StoredTensor], tuple[int, int]],
    threads: int,
    memory: Memory | None = None,
) -> dict[int, str]:
    """Read and check tensors.

    Args:
        wanted: Which.
        place: The descriptor of a tensor's file, and where in the file its bytes begin.
        threads: Threads that read and hash.
        memory: By position in `wanted`, where its bytes go; None to check them only. Asked while they are read, by
            the threads.

    Returns:
        For those that are damaged, by their position in `wanted`, the first fault.
    """
    buffers = BounceBuffers()
    parts = parts_of(wanted)
    found: list[tuple[int, int, str]] = []

    def read(unit: range) -> None:
        first = wanted[parts.indexes[unit[0]]]
        descriptor, begin = place(first)
        with buffers.lend(READ_BYTES) as bounce:
            for call in _calls(parts, unit):
                found.extend(_read(descriptor, begin - first.begin, parts, call, memory, bounce.data[:READ_BYTES]))

    in_parallel(read, units_of(parts, wanted), threads)
    return {index: fault for index, _, fault in sorted(found, reverse=True)}


def _calls(parts: Parts, unit: range) -> Iterator[range]:
    """What of a unit one call reads: a large part alone, small ones together."""
    begin, size = unit.start, 0
    for each in unit:
        if each > begin and (size + parts.nbytes(each) > READ_BYTES or each - begin == _MOST_BUFFERS):
            yield range(begin, each)
            begin, size = each, 0
        size += parts.nbytes(each)
    yield range(begin, unit.stop)


def _read(
    descriptor: int, offset: int, parts: Parts, call: range, memory: Memory | None, scratch: memoryview
) -> Iterator[tuple[int, int, str]]:
    if len(call) == 1:
        index, first, last = parts.indexes[call[0]], parts.firsts[call[0]], parts.lasts[call[0]]
        into = None if memory is None else memory(index)[first:last]
        begin = offset + parts.places[call[0]]
        fault = fault_of_chunk(descriptor, begin, last - first, parts.digests[call[0]], into, scratch)
        if fault:
            yield index, first, said(first, last, fault)
        return
    pieces, used = [], 0
    for each in call:
        nbytes = parts.nbytes(each)
        kept = None if memory is None else memory(parts.indexes[each])[parts.firsts[each] : parts.lasts[each]]
        pieces.append(scratch[used : used + nbytes] if kept is None else kept)
        used += nbytes
    in_one = [scratch[:used]] if memory is None else pieces
    if os.preadv(descriptor, in_one, offset + parts.places[call[0]]) != used:
        for each, piece in zip(call, pieces, strict=True):
            if fault := fill(descriptor, offset + parts.places[each], piece):
                yield parts.indexes[each], parts.firsts[each], fault
                return
    for each, piece in zip(call, pieces, strict=True):
        if digest_of(piece) != parts.digests[each]:
            first, last = parts.firsts[each], parts.lasts[each]
            yield parts.indexes[each], first, said(first, last, DIFFER)


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
