"""Writing the bytes of shards: spans of many files in a few threads, every byte copied once and digested on the way."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from torchkeep.folder.aligned_file import BLOCK_BYTES, AlignedFile, BounceBuffers, Run, as_bytes, write_in_place
from torchkeep.folder.digests import CHUNK_BYTES, chunk_ranges, count_chunks, digest_of, shard_digest
from torchkeep.folder.draft import DraftTensor
from torchkeep.folder.parallel import in_parallel
from torchkeep.folder.record import Shard, StoredTensor
from torchkeep.folder.shards import file_order, header_of

PLAIN_METADATA = {"format": "pt"}  # transformers asks for it
if TYPE_CHECKING:
    from torchkeep.folder.aligned_file import Bytes

_SPAN_BYTES = 16 * 2**20  # small enough that threads end together


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks of a file, in its order and by columns: thousands of small tensors are four lists, not objects.

    Attributes:
        tensors: Each one's tensor.
        begins: Where it begins in the tensor.
        ends: Where it ends there.
        places: Where it begins in the file.
    """

    tensors: list[str] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def nbytes(self, span: range) -> int:
        """Bytes of some that follow each other."""
        return self.places[span[-1]] + self.ends[span[-1]] - self.begins[span[-1]] - self.places[span[0]] if span else 0


def chunks_of(sizes: Mapping[str, int], begin: int) -> Chunks:
    """The chunks of tensors, given in the order of the file with their bytes, the first of which begins at `begin`."""
    found = Chunks()
    for name, nbytes in sizes.items():
        for first, last in chunk_ranges(nbytes):
            found.tensors.append(name)
            found.begins.append(first)
            found.ends.append(last)
            found.places.append(begin + first)
        begin += nbytes
    return found


def spans_of(chunks: Chunks, whole: AbstractSet[str] = frozenset()) -> Iterator[range]:
    """Cut what follows each other in a file into spans for threads, never within a chunk. Pure.

    Args:
        chunks: The chunks of the file.
        whole: Tensors whose parts are not read apart.

    Example:
        >>> list(spans_of(chunks_of({"a": 40 * 2**20, "b": 8, "c": 0}, 4096)))
        [range(0, 1), range(1, 2)]
    """
    first, count = 0, len(chunks.tensors)
    for index in range(count):
        following = index + 1
        if following < count and chunks.tensors[index] == chunks.tensors[following] and chunks.tensors[index] in whole:
            continue
        if following == count or chunks.nbytes(range(first, following)) >= _SPAN_BYTES:
            yield range(first, following)
            first = following


def write_span(
    file: AlignedFile, chunks: Chunks, span: range, drafts: Mapping[str, DraftTensor], buffers: BounceBuffers
) -> list[str]:
    """Write one span; the digest of each chunk is of the very bytes that are written."""
    kept = _kept_in_one(chunks, span, drafts)
    if kept is not None:
        write_in_place(file, kept, chunks.places[span[0]])
        return [_known(drafts[chunks.tensors[each]], chunks.begins[each]) for each in span]
    digests: list[str] = []
    reading: str | None = None  # the tensor that `data` is of
    data = as_bytes(memoryview(b""))
    # The bounce buffer makes digest and file agree even if somebody changes the tensor meanwhile.
    with buffers.lend(chunks.nbytes(span) + 1) as bounce:
        run = Run(file, chunks.places[span[0]], bounce)
        for each in span:
            name, begin, end = chunks.tensors[each], chunks.begins[each], chunks.ends[each]
            draft, state = drafts[name], xxhash.xxh3_128()
            if draft.fill is None and name != reading:
                reading, data = name, as_bytes(draft.read())
            whole = [data[begin:end]]
            for part in whole if draft.fill is None else map(as_bytes, draft.pieces(begin, end)):
                for piece in run.put(part):
                    state.update(piece.data)
            digests.append(state.hexdigest())
        run.close()
    return digests


def _kept_in_one(chunks: Chunks, span: range, drafts: Mapping[str, DraftTensor]) -> Bytes | None:
    """The bytes of a span where they lie side by side, as in the file, in memory that can be written from as it is."""
    first, place = drafts[chunks.tensors[span[0]]].held, chunks.places[span[0]]
    if first is None:
        return None
    begin = first.offset + chunks.begins[span[0]]
    for each in span:
        held = drafts[chunks.tensors[each]].held
        if held is None or held.memory is not first.memory:
            return None
        if held.offset + chunks.begins[each] - chunks.places[each] != begin - place:
            return None
    memory = as_bytes(first.memory)[begin : begin + chunks.nbytes(span)]
    return memory if (memory.ctypes.data - place) % BLOCK_BYTES == 0 else None


def _known(draft: DraftTensor, begin: int) -> str:
    return draft.held.digests[begin // CHUNK_BYTES] if draft.held is not None else ""


def write_data(
    file: AlignedFile, header: bytes, drafts: Mapping[str, DraftTensor], order: Sequence[str], threads: int
) -> dict[str, StoredTensor]:
    """Write a header and the tensors after it, in a few threads; nothing is flushed."""
    buffers = BounceBuffers()
    layout = Layout(header, drafts, order)
    layout.write_header(file, buffers)
    in_parallel(lambda span: layout.write(file, span, buffers), layout.spans, threads)
    file.finish(buffers)
    return layout.stored("")


class Layout:
    """Where everything stands in one file, and the digests that are known so far.

    Args:
        header: What the file begins with.
        drafts: Its tensors.
        order: Their order.

    Attributes:
        header: As given.
        order: As given.
        nbytes: The file's size.
        chunks: What the tensors are digested in.
        spans: What there is to write after the header: positions in `chunks`.
    """

    def __init__(self, header: bytes, drafts: Mapping[str, DraftTensor], order: Sequence[str]) -> None:
        self.header, self.order = header, order
        self._drafts = drafts
        sizes = {name: drafts[name].spec.nbytes for name in order}
        self.nbytes = len(header) + sum(sizes.values())
        self.chunks = chunks_of(sizes, len(header))
        self.spans = list(spans_of(self.chunks, {name for name in order if not drafts[name].is_divisible}))
        self._digests = [""] * len(self.chunks.tensors)

    def write_header(self, file: AlignedFile, buffers: BounceBuffers) -> None:
        """Write the header."""
        with buffers.lend(len(self.header)) as bounce:
            run = Run(file, 0, bounce)
            for _ in run.put(as_bytes(memoryview(self.header))):
                pass
            run.close()

    def write(self, file: AlignedFile, span: range, buffers: BounceBuffers) -> None:
        """Write one span."""
        self._digests[span.start : span.stop] = write_span(file, self.chunks, span, self._drafts, buffers)

    def digest(self) -> str:
        """The shard's digest, once all tensors are written."""
        return shard_digest(digest_of(self.header), self._digests)

    def stored(self, file: str) -> dict[str, StoredTensor]:
        """Where each tensor lies, once all are written and the file has its name."""
        placed, begin, digests = {}, 0, iter(self._digests)
        for name in self.order:
            spec = self._drafts[name].spec
            end = begin + spec.nbytes
            chunks = tuple(islice(digests, count_chunks(end - begin)))
            placed[name] = StoredTensor(spec.dtype, spec.shape, file, begin, end, chunks)
            begin = end
        return placed


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A shard on the disk, flushed: its file, its facts, and where everything stands in it."""

    path: Path
    shard: Shard
    layout: Layout


class ShardFile:
    """One new shard on its way to the disk; spans of it are written by several threads, and the last one flushes it.

    Args:
        path: A name that is free.
        group: The group it belongs to.
        drafts: Its tensors.
        splits: How often it was the part that stayed.
    """

    def __init__(self, path: Path, group: str, drafts: Mapping[str, DraftTensor], splits: int) -> None:
        self.written: WrittenShard | None = None
        self._path, self._group, self._splits = path, group, splits
        specs = {name: draft.spec for name, draft in drafts.items()}
        order = file_order(specs)
        self._layout = Layout(header_of(specs, order, PLAIN_METADATA), drafts, order)
        self.spans = self._layout.spans or [range(0)]
        self._left = len(self.spans)
        self._lock = threading.Lock()
        self._descriptor = -1
        self._file: AlignedFile | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self._layout.nbytes - len(self._layout.header)

    def write(self, span: range, buffers: BounceBuffers) -> int:
        """Write one of `spans`; the first makes the file, the last flushes and closes it. Gives the bytes written.

        Raises:
            OSError: The system refused; call `close`.
        """
        with self._lock:
            file = self._file = self._file or self._open(buffers)
        if span:
            self._layout.write(file, span, buffers)
        with self._lock:
            self._left -= 1
            is_last = self._left == 0
        if is_last:
            file.finish(buffers)
            self._flush()
        return self._layout.chunks.nbytes(span)

    def _open(self, buffers: BounceBuffers) -> AlignedFile:
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        file = AlignedFile(self._descriptor, self._layout.nbytes)
        self._layout.write_header(file, buffers)
        return file

    def _flush(self) -> None:
        os.fchmod(self._descriptor, 0o444)
        os.fsync(self._descriptor)
        status = os.fstat(self._descriptor)
        self.close()
        header, digest = digest_of(self._layout.header), self._layout.digest()
        shard = Shard(self._group, status.st_size, status.st_mtime_ns, header, digest, self._splits)
        self.written = WrittenShard(self._path, shard, self._layout)

    def close(self) -> None:
        """Let go of the file, whether it is written or not."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


@dataclass(slots=True)
class Progress:
    """How far the writing of a save is; other threads may read it.

    Attributes:
        total_bytes: What will be written, once that is decided.
        done_bytes: What has been.
    """

    total_bytes: int | None = None
    done_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, nbytes: int) -> None:
        """Count bytes that were written."""
        with self._lock:
            self.done_bytes += nbytes


def write_shards(files: Sequence[ShardFile], threads: int, progress: Progress) -> list[WrittenShard]:
    """Write and flush new shards, spans of all of them side by side.

    Raises:
        OSError: The system refused; a failed fsync is not tried again. Files are closed and stay where they are.
    """
    buffers = BounceBuffers()
    progress.total_bytes = (progress.total_bytes or 0) + sum(file.nbytes for file in files)

    def write(item: tuple[ShardFile, range]) -> None:
        progress.add(item[0].write(item[1], buffers))

    try:
        in_parallel(write, [(file, span) for file in files for span in file.spans], threads)
    finally:
        for file in files:
            file.close()
    return [file.written for file in files if file.written is not None]
