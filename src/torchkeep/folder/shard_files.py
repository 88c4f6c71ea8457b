"""Writing the bytes of shards: spans of many files in a few threads, every byte copied once and digested on the way."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
class Chunk:
    """A range of one tensor's bytes that has a digest of its own, and where it begins in the file."""

    tensor: str
    begin: int
    end: int
    at: int


def spans_of(tensors: Iterable[tuple[str, int, bool]], begin: int) -> Iterator[tuple[Chunk, ...]]:
    """Cut what follows each other in a file into spans for threads, never within a chunk. Pure.

    Args:
        tensors: Name, bytes, and whether parts may be read apart, in the order of the file.
        begin: Where the first one begins.

    Example:
        >>> [len(span) for span in spans_of([("a", 40 * 2**20, True), ("b", 8, True), ("c", 0, True)], 4096)]
        [1, 1]
    """
    span: list[Chunk] = []
    at = begin
    for name, nbytes, is_divisible in tensors:
        for first, last in chunk_ranges(nbytes):
            span.append(Chunk(name, first, last, at + first))
            if at + last - span[0].at >= _SPAN_BYTES and (is_divisible or last == nbytes):
                yield tuple(span)
                span = []
        at += nbytes
    if span:
        yield tuple(span)


def write_span(
    file: AlignedFile, span: Sequence[Chunk], drafts: Mapping[str, DraftTensor], buffers: BounceBuffers
) -> list[str]:
    """Write one span; the digest of each chunk is of the very bytes that are written."""
    kept = _kept_in_one(span, drafts)
    if kept is not None:
        write_in_place(file, kept, span[0].at)
        return [_known(drafts[chunk.tensor], chunk) for chunk in span]
    digests: list[str] = []
    read_name, data = "", as_bytes(memoryview(b""))
    # The bounce buffer makes digest and file agree even if somebody changes the tensor meanwhile.
    with buffers.lend(span[-1].end - span[-1].begin + span[-1].at - span[0].at + 1) as bounce:
        run = Run(file, span[0].at, bounce)
        for chunk in span:
            draft, state = drafts[chunk.tensor], xxhash.xxh3_128()
            if draft.fill is None and (chunk.tensor != read_name or not digests):
                read_name, data = chunk.tensor, as_bytes(draft.read())
            whole = [data[chunk.begin : chunk.end]]
            for part in whole if draft.fill is None else map(as_bytes, draft.pieces(chunk.begin, chunk.end)):
                for piece in run.put(part):
                    state.update(piece.data)
            digests.append(state.hexdigest())
        run.close()
    return digests


def _kept_in_one(span: Sequence[Chunk], drafts: Mapping[str, DraftTensor]) -> Bytes | None:
    """The bytes of a span where they lie side by side, as in the file, in memory that can be written from as it is."""
    first = drafts[span[0].tensor].held
    if first is None:
        return None
    begin = first.offset + span[0].begin
    shift = begin - span[0].at
    for chunk in span:
        held = drafts[chunk.tensor].held
        if held is None or held.memory is not first.memory or held.offset + chunk.begin - chunk.at != shift:
            return None
    last = span[-1]
    memory = as_bytes(first.memory)[begin : last.at + last.end - last.begin + shift]
    return memory if (memory.ctypes.data - span[0].at) % BLOCK_BYTES == 0 else None


def _known(draft: DraftTensor, chunk: Chunk) -> str:
    return draft.held.digests[chunk.begin // CHUNK_BYTES] if draft.held is not None else ""


def write_data(
    file: AlignedFile, header: bytes, drafts: Mapping[str, DraftTensor], order: Sequence[str], threads: int
) -> dict[str, StoredTensor]:
    """Write a header and the tensors after it, in a few threads; nothing is flushed."""
    buffers = BounceBuffers()
    layout = Layout(header, drafts, order)
    layout.write_header(file, buffers)
    in_parallel(lambda span: layout.keep(span, write_span(file, span, drafts, buffers)), layout.spans(), threads)
    file.finish(buffers)
    return layout.stored("")


@dataclass(slots=True)
class Layout:
    """Where everything stands in one file, and the digests that are known so far."""

    header: bytes
    drafts: Mapping[str, DraftTensor]
    order: Sequence[str]
    digests: dict[int, str] = field(default_factory=dict)  # by where their chunks begin

    @property
    def nbytes(self) -> int:
        """The file's size."""
        return len(self.header) + sum(self.drafts[name].spec.nbytes for name in self.order)

    def spans(self) -> list[tuple[Chunk, ...]]:
        """What there is to write after the header."""
        tensors = ((name, self.drafts[name].spec.nbytes, self.drafts[name].is_divisible) for name in self.order)
        return list(spans_of(tensors, len(self.header)))

    def write_header(self, file: AlignedFile, buffers: BounceBuffers) -> None:
        """Write the header."""
        with buffers.lend(len(self.header)) as bounce:
            run = Run(file, 0, bounce)
            for _ in run.put(as_bytes(memoryview(self.header))):
                pass
            run.close()

    def keep(self, span: Iterable[Chunk], digests: Iterable[str]) -> None:
        """Remember the digests of a span that was written."""
        for chunk, digest in zip(span, digests, strict=True):
            self.digests[chunk.at] = digest

    def digest(self) -> str:
        """The shard's digest, once all tensors are written."""
        return shard_digest(digest_of(self.header), self._in_order())

    def stored(self, file: str) -> dict[str, StoredTensor]:
        """Where each tensor lies, once all are written and the file has its name."""
        placed, begin, digests = {}, 0, self._in_order()
        for name in self.order:
            spec = self.drafts[name].spec
            end = begin + spec.nbytes
            chunks = tuple(islice(digests, count_chunks(end - begin)))
            placed[name] = StoredTensor(spec.dtype, spec.shape, file, begin, end, chunks)
            begin = end
        return placed

    def _in_order(self) -> Iterator[str]:
        return (self.digests[at] for at in sorted(self.digests))


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
        self.nbytes = sum(spec.nbytes for spec in specs.values())
        self.spans = self._layout.spans() or [()]
        self._left = len(self.spans)
        self._lock = threading.Lock()
        self._descriptor = -1
        self._file: AlignedFile | None = None

    def write(self, span: Sequence[Chunk], buffers: BounceBuffers) -> None:
        """Write one of `spans`; the first makes the file, the last flushes and closes it.

        Raises:
            OSError: The system refused; call `close`.
        """
        with self._lock:
            file = self._file = self._file or self._open(buffers)
        if span:
            self._layout.keep(span, write_span(file, span, self._layout.drafts, buffers))
        with self._lock:
            self._left -= 1
            is_last = self._left == 0
        if is_last:
            file.finish(buffers)
            self._flush()

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

    def write(item: tuple[ShardFile, tuple[Chunk, ...]]) -> None:
        item[0].write(item[1], buffers)
        progress.add(sum(chunk.end - chunk.begin for chunk in item[1]))

    try:
        in_parallel(write, [(file, span) for file in files for span in file.spans], threads)
    finally:
        for file in files:
            file.close()
    return [file.written for file in files if file.written is not None]
