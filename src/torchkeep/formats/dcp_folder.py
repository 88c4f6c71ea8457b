"""Folders of ``torch.distributed.checkpoint``: tensors cut over the files of many ranks, put together while reading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchkeep.errors import CheckpointError, CorruptError, FormatError, LimitError, NotFoundError
from torchkeep.formats.chunk_cover import Box, boxes_of_range
from torchkeep.formats.dcp_metadata import Layout, Piece, read_layout
from torchkeep.formats.folder_members import why_not_a_member
from torchkeep.formats.nesting import nest
from torchkeep.formats.regular_file import READ_AGAIN, FilePart, RegularFile
from torchkeep.formats.storage_views import StorageView, part_of
from torchkeep.formats.torch_zip import TorchZip
from torchkeep.tensors import Source, TensorSpec, check_range

if TYPE_CHECKING:
    import numpy as np

METADATA_NAME = ".metadata"
_MAX_FAULTS = 20
_PIECE_BYTES = 16 << 20
_MAX_VALUE_BYTES = 1 << 30


class DistributedFolder:
    """A `Source` of one folder that ``torch.distributed.checkpoint.save`` wrote, nested as it was saved.

    Opening reads ``.metadata`` and the values that are no tensors. Files are open only while they are read: there is
    one for each rank that saved.

    Raises:
        CorruptError: The metadata or a value is damaged, chunks of a tensor overlap or leave something out, or files
            are absent, short, or outside of the folder; all faults at once.
        FormatError: Objects are compressed.
        UnsafeError: A pickle names something whose only use is to run or reach something.
        LimitError: A pickle asks for more than its size can justify, or values that are no tensors have over 1 GiB.
    """

    format = "torch-dcp"

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._is_open = True
        metadata = RegularFile(folder / METADATA_NAME)
        try:
            self._layout: Layout = read_layout(metadata)
        finally:
            metadata.close()
        self._versions = self._check_files()
        self._checked: dict[Piece, set[str]] = {}
        self.metadata: Mapping[str, object] = {"version": self._layout.version, "files": len(self._versions)}
        self.tree: object = self._nest()

    def read_into(self, spec: TensorSpec, buffer: memoryview) -> None:
        """Read a tensor's bytes, C order, native endian, each chunk to its place; at most 16 MiB are taken beside it.

        Raises:
            CorruptError: Bytes are absent, short, or differ from the checksum of their chunk, a chunk is not of the
                tensor, or a file was changed; the buffer may hold some of them.
            NotFoundError: The source was closed.
        """
        key = spec.key
        layout = self._layout
        is_ours = key.file in layout.values if isinstance(key, StorageView) else key in layout.tensors
        if buffer.nbytes != spec.nbytes or not is_ours:
            raise ValueError(f"{spec} is not of this source, or its buffer is not of {spec.nbytes:,} bytes")
        if not self._is_open:
            raise NotFoundError("this source was closed", where=self.path, remedy="open it again")
        if not buffer.nbytes:
            return
        flat = buffer.cast("B")
        if isinstance(key, StorageView):
            with self._opened(key.file, layout.values[key.file]) as value:
                value.read_into(spec, flat)
            return
        for box, piece in layout.tensors[str(key)].chunks:
            with self._opened_chunk(spec, box, piece) as (chunk, held):
                _read_chunk(chunk, held, box, spec.shape, flat)

    def read_range_into(self, spec: TensorSpec, begin: int, buffer: memoryview) -> None:
        """Read a part of a tensor's bytes, from the chunks that it lies in; see `Source.read_range_into`.

        Raises:
            CorruptError, NotFoundError: As for `read_into`.
        """
        check_range(spec, begin, buffer)
        key, layout = spec.key, self._layout
        if not self._is_open:
            raise NotFoundError("this source was closed", where=self.path, remedy="open it again")
        if isinstance(key, StorageView) and key.file in layout.values:
            with self._opened(key.file, layout.values[key.file]) as value:
                value.read_range_into(spec, begin, buffer)
            return
        if key not in layout.tensors:
            raise ValueError(f"{spec} is not of this source")
        item_bytes = spec.nbytes // max(spec.numel, 1)
        flat, first = buffer.cast("B"), begin // max(item_bytes, 1)
        wanted = []
        for box in boxes_of_range(spec.shape, first, first + buffer.nbytes // max(item_bytes, 1)):
            wanted.append((box, flat[: box.numel * item_bytes]))
            flat = flat[box.numel * item_bytes :]
        for whole, piece in layout.tensors[str(key)].chunks:
            shared = [(box, part, into) for box, into in wanted if (part := whole.within(box))]
            if not shared:
                continue
            with self._opened_chunk(spec, whole, piece) as (chunk, held):
                for box, part, into in shared:
                    _read_chunk(chunk, _block(held, part.seen_from(whole)), part.seen_from(box), box.sizes, into)

    @contextmanager
    def _opened_chunk(self, spec: TensorSpec, box: Box, piece: Piece) -> Iterator[tuple[Source, TensorSpec]]:
        """One chunk of a tensor, and what it holds."""
        with self._opened(str(spec.key), piece) as chunk:
            held = chunk.tree
            if not isinstance(held, TensorSpec) or (held.dtype, held.shape) != (spec.dtype, box.sizes):
                raise CorruptError(
                    f"the chunk of {spec.key!r} at {box.offsets} should be {spec.dtype} {box.sizes} and is {held}",
                    where=chunk.path,
                    remedy=READ_AGAIN,
                )
            yield chunk, held

    def close(self) -> None:
        """Read no more; harmless when called twice."""
        self._is_open = False

    def _check_files(self) -> dict[str, tuple[int, int]]:
        """What each file was when the folder was opened, by name."""
        ends: dict[str, int] = {}
        for piece in self._pieces():
            ends[piece.file] = max(piece.end, ends.get(piece.file, 0))
        versions: dict[str, tuple[int, int]] = {}
        faults = []
        for name, end in ends.items():
            fault = why_not_a_member(self.path, name)
            if fault is None:
                file = RegularFile(self.path / name)
                file.close()
                versions[name] = file.version
                if end > file.size:
                    fault = f"it has {file.size:,} bytes and objects up to byte {end:,}"
            if fault is not None:
                faults.append(f"{name[:80]!r}: {fault}")
        if faults:
            more = [f"and {len(faults) - _MAX_FAULTS:,} more"] if len(faults) > _MAX_FAULTS else []
            raise CorruptError(
                "the metadata and its files disagree",
                where=self.path,
                faults=[*faults[:_MAX_FAULTS], *more],
                remedy="copy the folder again, with the files of all ranks",
            )
        return versions

    def _pieces(self) -> Iterator[Piece]:
        yield from self._layout.values.values()
        for tensor in self._layout.tensors.values():
            yield from (piece for _, piece in tensor.chunks)

    def _nest(self) -> object:
        layout = self._layout
        leaves: dict[str, object] = dict(layout.described)
        leaves |= {name: TensorSpec(tensor.dtype, tensor.shape, name) for name, tensor in layout.tensors.items()}
        value_bytes = sum(piece.end - piece.begin for piece in layout.values.values())
        if value_bytes > _MAX_VALUE_BYTES:
            raise LimitError(
                f"values that are no tensors have {value_bytes:,} bytes and {_MAX_VALUE_BYTES:,} are allowed",
                where=self.path,
                remedy="save large values as tensors",
            )
        for name, piece in sorted(layout.values.items(), key=lambda item: (item[1].file, item[1].begin)):
            with self._opened(name, piece) as value:
                leaves[name] = value.tree
        names = layout.paths or leaves
        in_order = {name: leaves[name] for name in (*(name for name in names if name in leaves), *leaves)}
        tree, faults = nest(in_order, layout.paths)
        if faults:
            raise CorruptError(
                "the metadata is damaged", where=self.path, faults=faults[:_MAX_FAULTS], remedy=READ_AGAIN
            )
        return tree

    @contextmanager
    def _opened(self, name: str, piece: Piece) -> Iterator[Source]:
        """One object, opened as the torch file that it is; its file is closed after it."""
        file = RegularFile(self.path / piece.file)
        try:
            if file.version != self._versions[piece.file]:
                raise CorruptError(
                    "the file was changed since the folder was opened", where=file.path, remedy="open the folder again"
                )
            try:
                checked = self._checked.setdefault(piece, set())
                source = TorchZip(FilePart(file, piece.begin, piece.end), name, checked)
            except CheckpointError as error:
                raise type(error)(
                    f"{name[:80]!r}: {error.what}", where=error.where, faults=error.faults, remedy=error.remedy
                ) from None
            if source.is_compressed:
                # Each of a million objects could inflate a thousand times.
                raise FormatError(
                    f"{name[:80]!r}: it is compressed, which torch.save never does",
                    where=file.path,
                    remedy="save it again with torch.distributed.checkpoint",
                )
            yield source
        finally:
            file.close()


def _read_chunk(chunk: Source, held: TensorSpec, box: Box, shape: tuple[int, ...], flat: memoryview) -> None:
    """Read a chunk to its place in the tensor: in one piece where that stands in one, else by way of small pieces."""
    begin = box.begin_in(shape)
    if begin is not None:
        at = begin * held.nbytes // held.numel
        chunk.read_into(held, flat[at : at + held.nbytes])
        return
    import numpy as np

    item_bytes = held.nbytes // held.numel
    unit = np.dtype(f"u{item_bytes}" if item_bytes <= 8 else f"V{item_bytes}")
    whole = np.frombuffer(flat, unit).reshape(shape)
    place = tuple(slice(at, at + size) for at, size in zip(box.offsets, box.sizes, strict=True))
    _scatter(chunk, held, whole[place])


def _scatter(chunk: Source, held: TensorSpec, out: np.ndarray[Any, Any]) -> None:
    import numpy as np

    if held.nbytes <= _PIECE_BYTES:
        content = bytearray(held.nbytes)
        chunk.read_into(held, memoryview(content))
        out[...] = np.frombuffer(content, out.dtype).reshape(held.shape)
        return
    axis = next(axis for axis, size in enumerate(held.shape) if size > 1)
    middle = held.shape[axis] // 2
    before, behind = (slice(None),) * axis + (slice(middle),), (slice(None),) * axis + (slice(middle, None),)
    _scatter(chunk, _part(held, axis, 0, middle), out[before])
    _scatter(chunk, _part(held, axis, middle, held.shape[axis]), out[behind])


def _part(held: TensorSpec, axis: int, start: int, end: int) -> TensorSpec:
    """The elements of a tensor from `start` to `end` of one axis, as a tensor of the same storage."""
    offsets = tuple(start if at == axis else 0 for at in range(len(held.shape)))
    return _block(held, Box(offsets, (*held.shape[:axis], end - start, *held.shape[axis + 1 :])))


def _block(held: TensorSpec, box: Box) -> TensorSpec:
    """A block of a tensor's elements, as a tensor of the same storage."""
    if not isinstance(held.key, StorageView):
        raise ValueError(f"{held} is not a view of a storage")
    return replace(held, shape=box.sizes, key=part_of(held.key, box))
