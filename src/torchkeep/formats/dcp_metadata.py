"""The ``.metadata`` of a ``torch.distributed.checkpoint`` folder: which object lies where, and how they were nested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from torchkeep.errors import CorruptError, FormatError, LimitError
from torchkeep.formats.chunk_cover import Box, why_not_whole
from torchkeep.formats.faults import ExcessError, MalformedError
from torchkeep.formats.pickle_machine import PickleMachine
from torchkeep.formats.regular_file import READ_AGAIN, ByteStream, RegularFile
from torchkeep.formats.torch_pickle import TorchVocabulary, dtype_name, sizes
from torchkeep.tensors import DTYPE_NAMES, Described, bits_of

_MAX_METADATA_BYTES = 512 << 20
_MAX_FAULTS = 20


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of bytes in a file of the folder that holds one object, as ``torch.save`` writes it."""

    file: str
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """One tensor and the chunks that it is stored in; chunks without elements are left out."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[tuple[Box, Piece], ...]


@dataclass(slots=True)
class Layout:
    """What ``.metadata`` says.

    Attributes:
        tensors: The tensors, by the name that they are stored under.
        values: Where everything else is, by name.
        described: Tensors of dtypes that only torch has; they are not read.
        paths: The keys that led to each name before the names were flattened; empty where that was not recorded.
        version: The version of the format, where it is given.
    """

    tensors: dict[str, SavedTensor] = field(default_factory=dict)
    values: dict[str, Piece] = field(default_factory=dict)
    described: dict[str, Described] = field(default_factory=dict)
    paths: dict[str, object] = field(default_factory=dict)
    version: object = None


def read_layout(file: RegularFile) -> Layout:
    """Read ``.metadata`` without running anything of it, and check that each tensor's chunks are the whole of it.

    Raises:
        CorruptError: It is damaged, or says what cannot be; all faults at once.
        FormatError: It is another kind of pickle, or objects are compressed by an extension.
        UnsafeError: It names something whose only use is to run or reach something.
        LimitError: It has over 512 MiB, or asks for more than its size can justify.
    """
    if file.size > _MAX_METADATA_BYTES:
        raise LimitError(
            f"it has {file.size:,} bytes and {_MAX_METADATA_BYTES:,} are allowed",
            where=file.path,
            remedy="save fewer, larger tensors",
        )
    stream = ByteStream(file.read, 0, file.size)
    said = _fields(PickleMachine(stream, TorchVocabulary(_NoStorages()), file.path, "metadata").load(), "Metadata")
    if said is None:
        raise FormatError(
            "a pickle that is not the metadata of torch.distributed.checkpoint",
            where=file.path,
            remedy="name a checkpoint",
        )
    faults = [f"it goes on for {stream.remaining:,} bytes behind its end"] if stream.remaining else []
    try:
        layout = _interpret(said, faults)
    except ExcessError as fault:
        raise LimitError(str(fault), where=file.path, remedy="save it again with fewer ranks") from None
    except CompressedError as fault:
        raise FormatError(str(fault), where=file.path, remedy="save it without extensions") from None
    if faults:
        more = [f"and {len(faults) - _MAX_FAULTS:,} more"] if len(faults) > _MAX_FAULTS else []
        raise CorruptError(
            "the metadata is damaged", where=file.path, faults=[*faults[:_MAX_FAULTS], *more], remedy=READ_AGAIN
        )
    return layout


class CompressedError(Exception):
    """Objects went through an extension that changes their bytes."""


class _NoStorages:
    def declare(self, key: str, _nbytes: int, _item_bytes: int) -> None:
        raise MalformedError(f"storage {key!r} is named where none can be")


def _interpret(said: Mapping[str, object], faults: list[str]) -> Layout:
    entries, stored, paths = (said.get(name) for name in ("state_dict_metadata", "storage_data", "planner_data"))
    layout = Layout(paths=paths if isinstance(paths, dict) else {}, version=said.get("version"))
    if not isinstance(entries, dict) or not isinstance(stored, dict):
        faults.append("it does not say what is stored, or where")
        return layout
    pieces = dict(_pieces(stored, faults))
    faults += _overlapping(pieces)
    for name, entry in entries.items():
        try:
            _take(layout, name, entry, pieces)
        except MalformedError as fault:
            faults.append(f"{str(name)[:80]!r}: {fault}")
    return layout


def _take(layout: Layout, name: object, entry: object, pieces: Mapping[tuple[str, object], Piece]) -> None:
    if not isinstance(name, str):
        raise MalformedError("it is not a name")
    if _is_of(entry, "BytesStorageMetadata"):
        layout.values[name] = _piece_of(pieces, name, None)
        return
    said = _fields(entry, "TensorStorageMetadata")
    chunks = said.get("chunks") if said else None
    if said is None or not isinstance(chunks, list):
        raise MalformedError("it is neither a tensor nor a value")
    shape = sizes(said.get("size"))
    dtype = _dtype_of(said.get("properties"))
    if dtype not in DTYPE_NAMES or bits_of(dtype) % 8:
        layout.described[name] = Described("torch.Tensor", (), {}, {"dtype": dtype, "shape": shape})
        return
    boxes = [_box_of(chunk) for chunk in chunks]
    fault = why_not_whole(shape, boxes)
    if fault:
        raise MalformedError(fault)
    placed = []
    for box in boxes:
        if not box.numel:
            continue
        piece = _piece_of(pieces, name, box.offsets, only=len(boxes) == 1)
        nbytes = box.numel * bits_of(dtype) // 8
        if nbytes > piece.end - piece.begin:
            raise MalformedError(f"a chunk of {nbytes:,} bytes is stored in {piece.end - piece.begin:,}")
        placed.append((box, piece))
    layout.tensors[name] = SavedTensor(dtype, shape, tuple(placed))


def _piece_of(
    pieces: Mapping[tuple[str, object], Piece], name: str, offsets: tuple[int, ...] | None, *, only: bool = False
) -> Piece:
    piece = pieces.get((name, offsets)) or (pieces.get((name, None)) if only else None)
    if piece is None:
        raise MalformedError("it is stored nowhere" if offsets is None else f"its chunk at {offsets} is stored nowhere")
    return piece


def _pieces(stored: Mapping[object, object], faults: list[str]) -> Iterator[tuple[tuple[str, object], Piece]]:
    seen: set[tuple[str, object]] = set()
    for index, info in stored.items():
        at, where = _fields(index, "MetadataIndex"), _fields(info, "_StorageInfo")
        name = at.get("fqn") if at else None
        if at is None or where is None or not isinstance(name, str):
            faults.append("a place is given for something that has no name")
            continue
        try:
            key = name, None if at.get("offset") is None else sizes(at["offset"])
            piece = _piece(where)
        except MalformedError as fault:
            faults.append(f"{name[:80]!r}: {fault}")
            continue
        if key in seen:
            faults.append(f"{name[:80]!r}: it is stored twice")
        seen.add(key)
        yield key, piece


def _piece(where: Mapping[str, object]) -> Piece:
    if where.get("transform_descriptors"):
        raise CompressedError("its objects are compressed or encrypted by an extension")
    file, begin, length = (where.get(name) for name in ("relative_path", "offset", "length"))
    if not isinstance(file, str) or type(begin) is not int or type(length) is not int or begin < 0 or length < 0:
        raise MalformedError("its place is not a file and a range of bytes")
    return Piece(file, begin, begin + length)


def _overlapping(pieces: Mapping[tuple[str, object], Piece]) -> Iterator[str]:
    in_order = sorted(pieces.items(), key=lambda item: (item[1].file, item[1].begin))
    for ((name, _), piece), ((next_name, _), next_piece) in pairwise(in_order):
        if piece.file == next_piece.file and piece.end > next_piece.begin:
            yield f"{name[:80]!r} and {next_name[:80]!r} are stored in the same bytes of {piece.file[:80]!r}"


def _box_of(chunk: object) -> Box:
    said = _fields(chunk, "ChunkStorageMetadata")
    if said is None:
        raise MalformedError("a chunk has no sizes")
    return Box(sizes(said.get("offsets")), sizes(said.get("sizes")))


def _dtype_of(properties: object) -> str:
    state = properties.state if isinstance(properties, Described) and _is_of(properties, "TensorProperties") else None
    dtype = dtype_name(state[0]) if isinstance(state, tuple) and state else ""
    if not dtype:
        raise MalformedError("it has no dtype")
    return dtype


def _is_of(value: object, name: str) -> bool:
    # The classes moved between modules of torch.distributed, and their names stayed.
    return (
        isinstance(value, Described)
        and value.class_path.startswith("torch.distributed.")
        and (value.class_path.rpartition(".")[2] == name)
    )


def _fields(value: object, name: str) -> Mapping[str, object] | None:
    state = value.state if isinstance(value, Described) and _is_of(value, name) else None
    return state if isinstance(state, dict) else None
