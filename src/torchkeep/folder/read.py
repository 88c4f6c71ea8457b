"""Reading our own checkpoints as a `Source`: every file opened first, every byte checked against the record."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, cast

from torchkeep.errors import CorruptError, NotFoundError, typed
from torchkeep.folder.checked_reads import READ_BYTES, Memory, fault_of_chunk, faults_of, fill, said
from torchkeep.folder.committed import read_record
from torchkeep.folder.digests import chunk_ranges, digest_of
from torchkeep.folder.record import Record, StoredTensor, decode_record
from torchkeep.folder.shards import file_order, header_of, single_file_names
from torchkeep.folder.values import decode
from torchkeep.tensors import Described, Extent, TensorSpec, check_range

Key: TypeAlias = tuple[str, str]  # of our own tensors: group and name
RECORD_KEY = "torchkeep"  # of a single file's __metadata__


class FolderSource:
    """An open torchkeep checkpoint: a folder, or a single file that carries its record.

    All shards are opened at once, so that a checkpoint that is removed meanwhile stays readable.

    Raises:
        NotFoundError: There is no checkpoint, or it went away while it was opened.
        CorruptError: A file is absent or short, or the record, a header or an index is not what was written.
        FormatError: It was written by a newer torchkeep.
    """

    def __init__(
        self, path: Path, record: Record, descriptors: Mapping[str, int], data_begins: Mapping[str, int]
    ) -> None:
        self.path = path
        self.record = record
        self._descriptors = dict(descriptors)
        self._data_begins = data_begins
        self._checked: set[tuple[object, int]] = set()
        self.format = "torchkeep"
        try:
            self.tree = _tree_of(record, path)
        except BaseException:
            self.close()
            raise

    @property
    def metadata(self) -> Mapping[str, object]:
        """The record's facts beside the tree."""
        record = self.record
        facts = {"id": record.id, "saved_at_ns": record.saved_at_ns, "provenance": record.provenance}
        return {**facts, "whole": record.whole}

    def read_into(self, spec: TensorSpec, buffer: memoryview) -> None:
        """Read one tensor and check its digests on the way; see `Source.read_into`."""
        flat = buffer.cast("B")
        self.read_each([spec], lambda _: flat)

    def read_each(self, specs: Sequence[TensorSpec], memory: Memory, threads: int = 1) -> None:
        """Read tensors into memory that does not overlap, and check their digests on the way.

        Args:
            specs: Which.
            memory: By position in `specs`, the bytes to fill; asked while they are read, by the threads.
            threads: Threads that read.

        Raises:
            CorruptError: It lists every tensor that differs. Buffers may hold some of the bytes.
        """
        faults = self._faults([cast("Key", spec.key) for spec in specs], threads, memory)
        if len(faults) == 1:
            raise CorruptError(faults[0], where=self.path, remedy=_REMEDY)
        if faults:
            raise _damaged(self.path, faults)

    def read_range_into(self, spec: TensorSpec, begin: int, buffer: memoryview) -> None:
        """Read a part of a tensor; the chunks that it lies in are compared with their digests first, each once.

        Raises:
            CorruptError: A chunk differs from its digest.
        """
        check_range(spec, begin, buffer)
        group, name = cast("tuple[str, str]", spec.key)
        stored, flat = self.record.tensors[group][name], buffer.cast("B")
        descriptor, data_begin = self._place_of(stored)
        for (first, last), expected in zip(chunk_ranges(stored.nbytes), stored.chunks, strict=True):
            low, high = max(first, begin), min(last, begin + flat.nbytes)
            if low >= high:
                continue
            piece, is_whole = flat[low - begin : high - begin], (low, high) == (first, last)
            fault = None
            with typed("cannot be read", self.path):
                if is_whole or (spec.key, first) not in self._checked:
                    into = piece if is_whole else None
                    scratch = memoryview(bytearray(min(READ_BYTES, last - first)))
                    fault = fault_of_chunk(descriptor, data_begin + first, last - first, expected, into, scratch)
                if fault is None and not is_whole:
                    fault = fill(descriptor, data_begin + low, piece)
            if fault:
                what = f"{stored.shard or self.path.name}: {group}.{name}: {said(first, last, fault)}"
                raise CorruptError(what, where=self.path, remedy=_REMEDY)
            self._checked.add((spec.key, first))

    def check_range(self, spec: TensorSpec, begin: int, end: int) -> None:
        """Compare the chunks that lie in a part of a tensor with their digests, without keeping their bytes.

        Raises:
            CorruptError: The first that differs.
        """
        group, name = cast("tuple[str, str]", spec.key)
        stored = self.record.tensors[group][name]
        descriptor, data_begin = self._place_of(stored)
        scratch = memoryview(bytearray(min(READ_BYTES, stored.nbytes)))
        for (first, last), expected in zip(chunk_ranges(stored.nbytes), stored.chunks, strict=True):
            if first < end and last > begin:
                with typed("cannot be read", self.path):
                    fault = fault_of_chunk(descriptor, data_begin + first, last - first, expected, None, scratch)
                if fault:
                    what = f"{stored.shard or self.path.name}: {group}.{name}: {said(first, last, fault)}"
                    raise CorruptError(what, where=self.path, remedy=_REMEDY)

    def place_of(self, spec: TensorSpec) -> tuple[int, int, int, int]:
        """Where a tensor's bytes are: device, inode, and the range in the file; equal for what checkpoints share."""
        extent = self.extent_of(spec)
        status = os.fstat(extent.descriptor)
        return status.st_dev, status.st_ino, extent.begin, extent.begin + spec.nbytes

    def extent_of(self, spec: TensorSpec) -> Extent:
        """Where a tensor lies in its file."""
        group, name = cast("tuple[str, str]", spec.key)
        return Extent(*self._place_of(self.record.tensors[group][name]))

    def check(self, specs: Iterable[TensorSpec], threads: int = 1) -> None:
        """Check the digests of some tensors without keeping their bytes.

        Raises:
            CorruptError: It lists every tensor that differs.
        """
        faults = self._faults(list(dict.fromkeys(cast("Key", spec.key) for spec in specs)), threads)
        if faults:
            raise _damaged(self.path, faults)

    def check_all(self, threads: int = 1) -> None:
        """Check every tensor of the checkpoint; headers, indexes and the record were checked when it was opened."""
        self.check(self.specs(), threads)

    def specs(self) -> list[TensorSpec]:
        """Every tensor that is stored, by group and name; tied ones are one, and random states are there too."""
        tensors = self.record.tensors.items()
        return [TensorSpec(t.dtype, t.shape, (group, name)) for group, of in tensors for name, t in of.items()]

    def close(self) -> None:
        """Close all files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def _faults(self, keys: Sequence[Key], threads: int, memory: Memory | None = None) -> list[str]:
        """Read and check tensors by their keys; a line for each that is damaged, in order."""
        reads = [self.record.tensors[group][name] for group, name in keys]
        with typed("cannot be read", self.path):
            found = faults_of(reads, self._place_of, threads, memory)
        return [
            f"{reads[index].shard or self.path.name}: {'.'.join(keys[index])}: {fault}"
            for index, fault in sorted(found.items())
        ]

    def _place_of(self, stored: StoredTensor) -> tuple[int, int]:
        """The file of a tensor, and where in it its bytes begin."""
        descriptor = self._descriptors.get(stored.shard)
        if descriptor is None:
            raise NotFoundError("the checkpoint was closed", where=self.path)
        return descriptor, self._data_begins[stored.shard] + stored.begin


_REMEDY = "use an older checkpoint, or copy this one again from where it came"


def _damaged(path: Path, faults: list[str]) -> CorruptError:
    count = f"{len(faults)} of its parts {'is' if len(faults) == 1 else 'are'}"
    return CorruptError(f"{count} damaged", where=path, faults=faults, remedy=_REMEDY)


def open_folder(path: Path, read_as: Callable[[Record], Record] | None = None) -> FolderSource:
    """Open a committed checkpoint folder; see `FolderSource`.

    Args:
        path: The folder.
        read_as: Gives the record that is read instead of the one that is there.
    """
    record = read_record(path) if read_as is None else read_as(read_record(path))
    if not record.shards and any(record.tensors.values()):
        raise CorruptError("the record is damaged: it is that of a single file", where=path, remedy=_REMEDY)
    descriptors: dict[str, int] = {}
    begins: dict[str, int] = {}
    faults: list[str] = []
    try:
        data_bytes = dict.fromkeys(record.shards, 0)
        for tensor in (tensor for tensors in record.tensors.values() for tensor in tensors.values()):
            data_bytes[tensor.shard] += tensor.nbytes
        for file, shard in record.shards.items():
            begins[file] = shard.nbytes - data_bytes[file]
            fault = _open_shard(path / file, shard.nbytes, shard.header, begins[file], descriptors)
            faults += [f"{file}: {fault}"] if fault else []
        faults += [
            fault for file, digest in record.indexes.items() if (fault := _fault_of_small_file(path / file, digest))
        ]
        if faults and not path.exists():
            raise NotFoundError("the checkpoint was removed while it was opened", where=path)
        if faults:
            raise _damaged(path, faults)
        return FolderSource(path, record, descriptors, begins)
    except BaseException:
        for descriptor in descriptors.values():
            os.close(descriptor)
        raise


def _open_shard(path: Path, nbytes: int, header: str, begin: int, descriptors: dict[str, int]) -> str | None:
    """Open a shard into `descriptors`; the fault of its kind, size or header, or None."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ELOOP, errno.ENXIO}:
            return "absent" if error.errno == errno.ENOENT else "not a plain file"
        raise
    descriptors[path.name] = descriptor
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return "not a plain file"
    if status.st_size != nbytes:
        return f"{status.st_size} bytes where {nbytes} were written"
    if digest_of(os.pread(descriptor, begin, 0)) != header:
        return "its header differs from its digest"
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)  # a longer read-ahead
    return None


def _fault_of_small_file(path: Path, digest: str) -> str | None:
    try:
        data = path.read_bytes() if path.is_file() else None
    except FileNotFoundError:
        data = None
    if data is None:
        return f"{path.name}: absent"
    return None if digest_of(data) == digest else f"{path.name}: differs from its digest"


def open_file(path: Path, record_text: str) -> FolderSource:
    """Open a single safetensors file that carries its record; its header must be the one that the record gives.

    Args:
        path: The file.
        record_text: ``__metadata__["torchkeep"]``.
    """
    record = decode_record(record_text.encode("utf-8", "replace"), f"{path} (__metadata__)")
    specs = {g: {n: TensorSpec(t.dtype, t.shape) for n, t in group.items()} for g, group in record.tensors.items()}
    header = single_file_header(specs, record_text)
    nbytes = len(header) + record.tensor_bytes
    descriptors: dict[str, int] = {}
    fault = _open_shard(path, nbytes, digest_of(header), len(header), descriptors)
    if fault:
        for descriptor in descriptors.values():
            os.close(descriptor)
        raise _damaged(path, [fault])
    return FolderSource(path, record, {"": descriptors[path.name]}, {"": len(header)})


def single_file_header(specs: Mapping[str, Mapping[str, TensorSpec]], record_text: str) -> bytes:
    """The header of a single file: that of a shard with all groups in it, and with the record in its metadata."""
    names = single_file_names(specs)
    merged = {names[group, name]: spec for group, of in specs.items() for name, spec in of.items()}
    return header_of(merged, file_order(merged), {"format": "pt", RECORD_KEY: record_text})


def digests_of_file(path: Path, record: Record, file: str) -> None:
    """Check one shard file, which may lie elsewhere than in its checkpoint, against its record.

    Raises:
        CorruptError: Something differs.
    """
    shard = record.shards[file]
    tensors = {n: t for n, t in record.tensors[shard.group].items() if t.shard == file}
    begin = shard.nbytes - sum(tensor.nbytes for tensor in tensors.values())
    descriptors: dict[str, int] = {}
    try:
        fault = _open_shard(path, shard.nbytes, shard.header, begin, descriptors)
        if fault is None:
            found = faults_of(list(tensors.values()), lambda tensor: (descriptors[path.name], begin + tensor.begin), 1)
            fault = next((f"{list(tensors)[index]}: {fault}" for index, fault in sorted(found.items())), None)
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)
    if fault:
        raise CorruptError(fault, where=path)


def _tree_of(record: Record, path: Path) -> object:
    leaf = leaf_decoder(record, path)
    if record.whole is not None:
        return decode(record.entries[record.whole].tree, leaf)
    return {name: decode(entry.tree, leaf) for name, entry in record.entries.items()}


def leaf_decoder(record: Record, path: Path) -> Callable[[str, object, Mapping[str, object]], object]:
    """The hook of `decode` that turns tensor nodes into `TensorSpec` and torch's types into `Described`."""

    def decode_leaf(tag: str, payload: object, node: Mapping[str, object]) -> object:
        if tag == "$tensor":
            return _spec_of(record, payload, node, path)
        if tag == "$numpy.tensor":
            return Described("numpy.ndarray", (decode(payload, decode_leaf),))
        if tag in {"$torch.dtype", "$torch.device"} and isinstance(payload, str):
            return Described(tag[1:], (payload,))
        if tag == "$torch.Size" and isinstance(payload, list):
            return Described("torch.Size", (tuple(payload),))
        if tag in {"$torch.sparse", "$torch.quantized"} and isinstance(payload, dict):
            return Described(tag[1:], state={key: decode(value, decode_leaf) for key, value in payload.items()})
        raise CorruptError(f"the record is damaged: {tag} does not go with {type(payload).__name__}", where=path)

    return decode_leaf


def _spec_of(record: Record, payload: object, node: Mapping[str, object], path: Path) -> TensorSpec:
    stored = None
    if isinstance(payload, list) and len(payload) == 2:  # noqa: PLR2004 - group and name
        group, name = map(str, payload)
        stored = record.tensors.get(group, {}).get(name)
    if stored is None:
        raise CorruptError(f"the record is damaged: no tensor is called {payload!r}", where=path)
    return TensorSpec(
        stored.dtype,
        stored.shape,
        (group, name),
        parameter=node.get("parameter") is True,
        requires_grad=node.get("requires_grad") is True,
        memory_format=str(node.get("memory_format", "contiguous")),
    )
