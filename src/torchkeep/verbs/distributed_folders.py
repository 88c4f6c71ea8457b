"""Writing what ``torch.distributed.checkpoint`` reads, without torch and a piece at a time.

A folder of it is one pickle, ``.metadata``, and files of objects one behind the other, each as ``torch.save`` writes
it: https://docs.pytorch.org/docs/stable/distributed.checkpoint.html, and ``filesystem.py`` there for the form.
"""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from torchkeep.errors import FormatError
from torchkeep.formats.dcp_folder import METADATA_NAME
from torchkeep.tensors import Described, Source, TensorSpec, name_of
from torchkeep.verbs.naming_pickles import Call, Instance, Name, NamingPickler
from torchkeep.verbs.torch_files import layout_call, size_call, write_torch_file

_CHUNK_BYTES = 64 << 20
_FILE = "__0_0.distcp"  # as its first rank's first
_VERSION = "1.0.0"
_MODULE = "torch.distributed.checkpoint.metadata"
_TENSORS = frozenset(("torch.sparse", "torch.quantized"))
_MAX_LISTED = 20


@dataclass(slots=True)
class Flat:
    """A tree as ``torch.distributed.checkpoint`` flattens it.

    Attributes:
        leaves: What is stored, by name: a `TensorSpec`, or any value, a tuple and a list without tensors whole.
        paths: The keys that lead to each: texts of mappings, numbers of lists.
        losses: What the form has no place for, one line each.
    """

    leaves: dict[str, object] = field(default_factory=dict)
    paths: dict[str, tuple[str | int, ...]] = field(default_factory=dict)
    losses: list[str] = field(default_factory=list)


def flatten(tree: object) -> Flat:
    """Flatten a tree by the names that ``torch.distributed.checkpoint.save`` would give its leaves.

    Raises:
        FormatError: The tree is no mapping with text for keys, or two leaves would have one name.

    Example:
        >>> flatten({"a": {"b": 1, 2: [3]}, "c": {}}).leaves
        {'a.b': 1, 'a.2': [3]}
    """
    if not isinstance(tree, Mapping) or not all(isinstance(key, str) for key in tree):
        raise FormatError(
            "a folder of torch.distributed.checkpoint holds a mapping of names", remedy="convert one entry of it"
        )
    flat = Flat()
    twice = []
    for path, leaf in _leaves((), tree, flat.losses):
        name = name_of(path)
        if name in flat.leaves:
            twice.append(f"{name!r}: {flat.paths[name]!r} and {path!r}")
        flat.leaves[name], flat.paths[name] = leaf, path
    if twice:
        raise FormatError(
            "two values would have one name in a folder of torch.distributed.checkpoint",
            faults=twice[:_MAX_LISTED],
            remedy="convert one entry of it",
        )
    return flat


def _leaves(
    path: tuple[str | int, ...], node: object, losses: list[str]
) -> Iterator[tuple[tuple[str | int, ...], object]]:
    if isinstance(node, Mapping):
        where = name_of(path)
        if not node and path:
            losses.append(f"{where}: an empty {type(node).__name__}")
        if type(node) not in {dict, OrderedDict}:
            losses.append(f"{where}: a {type(node).__name__} becomes a dict")
        if not all(isinstance(key, str) for key in node):
            losses.append(f"{where}: keys that are no text become text")
        for key, value in node.items():
            yield from _leaves((*path, str(key)), value, losses)
    elif isinstance(node, list) and _is_entered(node):
        for index, value in enumerate(node):
            yield from _leaves((*path, index), value, losses)
    else:
        yield path, node


def _is_entered(node: list[object]) -> bool:
    return any(
        isinstance(value, (Mapping, TensorSpec))
        or (isinstance(value, Described) and value.class_path in _TENSORS)
        or (isinstance(value, list) and _is_entered(value))
        for value in node
    )


def write_distributed(
    folder: Path, flat: Flat, source: Source, progress: Callable[[int], object] | None = None
) -> None:
    """Write a flattened tree; no tensor is held whole.

    A tensor of more than 64 MiB is stored as rows in several chunks, as those of a sharded one are, so that a rank
    that wants a part of it need not read all.

    Args:
        folder: An empty folder.
        flat: Its leaves are plain values, `TensorSpec` at the tensors, `Described` of torch's own classes.
        source: Where the tensors are.
        progress: Told how many bytes more are written.

    Raises:
        FormatError: A value cannot be pickled by a class that is importable, or torch has no such dtype.
        CorruptError: Bytes are absent or differ from their checksum.
    """

    def read(spec: TensorSpec, begin: int, buffer: memoryview) -> None:
        rows = spec.key if isinstance(spec.key, _Rows) else _Rows(spec, 0)
        source.read_range_into(rows.whole, rows.begin_bytes + begin, buffer)

    entries: dict[str, Instance] = {}
    places: dict[Instance, Instance] = {}
    with (folder / _FILE).open("wb") as file:
        for name, leaf in flat.leaves.items():
            chunks = list(_chunks(leaf)) if isinstance(leaf, TensorSpec) else []
            entries[name] = _tensor_entry(leaf, chunks) if isinstance(leaf, TensorSpec) else _of("BytesStorageMetadata")
            for index, part in enumerate(chunks or [leaf]):
                begin = file.tell()
                write_torch_file(cast("BinaryIO", _Tail(file)), part, read, progress)
                offset = {"offset": size_call(_offsets(part))} if isinstance(part, TensorSpec) else {}
                hint = {"index": index if chunks else None}
                places[_of("MetadataIndex", fqn=name, **offset, **hint)] = _place(begin, file.tell())
    stream = io.BytesIO()
    NamingPickler(stream).dump(
        _of(
            "Metadata",
            state_dict_metadata=entries,
            planner_data=flat.paths,
            storage_data=places,
            storage_meta=None,
            version=_VERSION,
        )
    )
    (folder / METADATA_NAME).write_bytes(stream.getbuffer())


@dataclass(frozen=True, slots=True)
class _Rows:
    """Some rows of a tensor, as the key of a tensor: its bytes from one on."""

    whole: TensorSpec
    begin_bytes: int
    first: int = 0


def _chunks(spec: TensorSpec) -> Iterator[TensorSpec]:
    """A tensor as rows of it, as many as have 64 MiB; one without dimensions is one."""
    count = spec.shape[0] if spec.shape else 1
    row_bytes = spec.nbytes // count if count else 0
    rows = max(1, _CHUNK_BYTES // row_bytes) if row_bytes else max(1, count)
    for first in range(0, max(1, count), rows):
        shape = (min(rows, count - first), *spec.shape[1:]) if spec.shape else ()
        yield TensorSpec(spec.dtype, shape, _Rows(spec, first * row_bytes, first))


def _offsets(chunk: TensorSpec) -> tuple[int, ...]:
    first = chunk.key.first if isinstance(chunk.key, _Rows) else 0
    return (first, *(0 for _ in chunk.shape[1:])) if chunk.shape else ()


def _tensor_entry(spec: TensorSpec, chunks: list[TensorSpec]) -> Instance:
    contiguous = Call(Name(_MODULE, "_MEM_FORMAT_ENCODING"), (0,))
    properties = (Name("torch", spec.dtype), layout_call("strided"), spec.requires_grad, contiguous, False)
    return _of(
        "TensorStorageMetadata",
        properties=Instance(Name(_MODULE, "TensorProperties"), properties),
        size=size_call(spec.shape),
        chunks=[
            _of("ChunkStorageMetadata", offsets=size_call(_offsets(chunk)), sizes=size_call(chunk.shape))
            for chunk in chunks
        ],
    )


def _place(begin: int, end: int) -> Instance:
    info = Name("torch.distributed.checkpoint.filesystem", "_StorageInfo")
    return Instance(info, {"relative_path": _FILE, "offset": begin, "length": end - begin})


def _of(name: str, **attributes: object) -> Instance:
    return Instance(Name(_MODULE, name), attributes)


class _Tail:
    """A file from where it ends on, as a file of its own: offsets in a zip count from its own beginning."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._begin = file, file.tell()
        self.write, self.flush = file.write, file.flush

    def tell(self) -> int:
        return self._file.tell() - self._begin

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = self._begin + offset if whence == os.SEEK_SET else offset
        return self._file.seek(at, whence) - self._begin
