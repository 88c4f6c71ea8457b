"""Writing what `torch.load` reads, a piece at a time: a pickle that names storages, beside one zip member for each."""

from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import torch

from torchkeep.errors import FormatError
from torchkeep.live.build import Builder
from torchkeep.live.memory import bytes_of
from torchkeep.tensors import DTYPE_NAMES, Source, TensorSpec

_FOLDER = "archive"
_VERSION = b"3\n"
_ALIGNMENT = 64  # of storages in the file, as torch writes them
_PIECE_BYTES = 4 << 20
_LOCAL_HEADER_BYTES = 30
_ZIP64_EXTRA_BYTES = 20
_PADDING_ID = b"FB"  # as torch calls the extra field that aligns
_STORAGES = {  # by dtype; the others have a dtype beside an untyped storage
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
    "complex128": "ComplexDoubleStorage",
    "complex64": "ComplexFloatStorage",
}
_NO_HOOKS: OrderedDict[str, object] = OrderedDict()
Pieces = Callable[[], Iterable[memoryview]]


def write_torch_file(
    file: BinaryIO, tree: object, source: Source, progress: Callable[[int], object] | None = None
) -> None:
    """Write a tree as ``torch.save`` would the values it is of; no tensor is held whole, tied ones are stored once.

    Args:
        file: Open for writing, at its beginning, seekable.
        tree: Plain values, `TensorSpec` at the tensors, `Described` of torch's own classes.
        source: Where the tensors are.
        progress: Told how many bytes more are written.

    Raises:
        FormatError: A value cannot be pickled by a class that is importable, or torch has no such dtype.
        CorruptError: Bytes are absent or differ from their checksum.
    """
    stream = io.BytesIO()
    pickler = _Pickler(stream, source)
    try:
        pickler.dump(_Lazy(source).value(tree))
    except (pickle.PicklingError, AttributeError, TypeError, RecursionError) as error:
        raise FormatError(f"a value cannot be pickled: {error}", remedy="convert one entry of it") from error
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _add(archive, "data.pkl", stream.getbuffer().nbytes, lambda: [stream.getbuffer()])
        _add(archive, "byteorder", len(sys.byteorder), lambda: [memoryview(sys.byteorder.encode("ascii"))])
        for key, (nbytes, pieces) in pickler.storages.items():
            _add(archive, f"data/{key}", nbytes, pieces, progress)
        _add(archive, "version", len(_VERSION), lambda: [memoryview(_VERSION)])


class _Lazy(Builder):
    """Makes torch's own values and leaves tensors as they are described."""

    def value(self, node: object) -> Any:  # noqa: ANN401 - whatever was saved
        return node if isinstance(node, TensorSpec) else super().value(node)

    def _state(self, node: Any) -> dict[str, Any]:  # noqa: ANN401 - as above
        # Sparse and quantised tensors are made of their parts.
        return Builder(self.source)._state(node)  # noqa: SLF001 - the same class


class _Storage:
    """A storage that holds one tensor in C order; torch's persistent id for it."""

    def __init__(self, identity: tuple[object, ...]) -> None:
        self.identity = identity


class _Pickler(pickle.Pickler):
    def __init__(self, stream: io.BytesIO, source: Source) -> None:
        super().__init__(stream, protocol=2)
        self._source = source
        self._by_key: dict[tuple[object, ...], tuple[_Storage, tuple[object, ...]]] = {}
        self._live: dict[int, tuple[torch.UntypedStorage, str]] = {}
        self.storages: dict[str, tuple[int, Pieces]] = {}

    def reducer_override(self, value: object) -> Any:  # noqa: ANN401 - what pickle wants
        if not isinstance(value, TensorSpec):
            return NotImplemented
        dtype = _dtype_of(value)
        storage = self._storage_of(value)
        strides = _strides(value)
        # torch writes the parameter's flag with the parameter, not with its data.
        common = (
            storage,
            0,
            value.shape,
            strides,
            value.requires_grad and not value.parameter,
            _NO_HOOKS.copy(),
        )
        rebuild: Any = torch._utils  # noqa: SLF001 - the functions that torch.load looks for
        if value.dtype in _STORAGES:
            made: tuple[object, ...] = (rebuild._rebuild_tensor_v2, common)  # noqa: SLF001
        else:
            made = (rebuild._rebuild_tensor_v3, (*common, dtype))  # noqa: SLF001
        if not value.parameter:
            return made
        data = _Reduced(made)
        return rebuild._rebuild_parameter, (data, value.requires_grad, _NO_HOOKS.copy())  # noqa: SLF001

    def persistent_id(self, value: object) -> object:
        if isinstance(value, _Storage):
            return self._by_key[value.identity][1]
        if isinstance(value, torch.storage.TypedStorage):
            typed: Any = value
            return self._live_id(typed._untyped_storage, typed.pickle_storage_type(), typed._size())  # noqa: SLF001
        if isinstance(value, torch.UntypedStorage):
            return self._live_id(value, "UntypedStorage", value.nbytes())
        return None

    def _storage_of(self, spec: TensorSpec) -> _Storage:
        identity = (spec.key, spec.dtype, spec.shape, spec.memory_format)
        known = self._by_key.get(identity)
        if known is not None:
            return known[0]
        key = str(len(self.storages))
        kind = getattr(torch, _STORAGES.get(spec.dtype, "UntypedStorage"))
        count = spec.numel if spec.dtype in _STORAGES else spec.nbytes
        storage = _Storage(identity)
        self._by_key[identity] = (storage, ("storage", kind, key, "cpu", count))
        self.storages[key] = (spec.nbytes, lambda: self._pieces(spec))
        return storage

    def _live_id(self, storage: torch.UntypedStorage, kind: str, count: int) -> object:
        known = self._live.get(storage.data_ptr())
        if known is None:
            known = (storage, str(len(self.storages)))
            self._live[storage.data_ptr()] = known
            held = torch.empty(0, dtype=torch.uint8).set_(storage)
            self.storages[known[1]] = (storage.nbytes(), lambda: [bytes_of(held)])
        return ("storage", getattr(torch, kind), known[1], "cpu", count)

    def _pieces(self, spec: TensorSpec) -> Iterator[memoryview]:
        if spec.memory_format != "contiguous":
            # Elements stand in another order; such tensors are images and kernels, and small.
            yield bytes_of(Builder(self._source).tensor(spec).detach().permute(_order(spec)))
            return
        buffer = memoryview(bytearray(min(_PIECE_BYTES, spec.nbytes)))
        for at in range(0, spec.nbytes, _PIECE_BYTES):
            piece = buffer[: min(_PIECE_BYTES, spec.nbytes - at)]
            self._source.read_range_into(spec, at, piece)
            yield piece


class _Reduced:
    """A value that pickles as the call it is given."""

    def __init__(self, made: tuple[object, ...]) -> None:
        self._made = made

    def __reduce__(self) -> Any:  # noqa: ANN401 - what pickle wants
        return self._made


def _dtype_of(spec: TensorSpec) -> torch.dtype:
    dtype = getattr(torch, spec.dtype, None)
    if spec.dtype not in DTYPE_NAMES or not isinstance(dtype, torch.dtype):
        raise FormatError(f"torch has no {spec.dtype}", remedy="convert to safetensors or a folder")
    return dtype


def _order(spec: TensorSpec) -> tuple[int, ...]:
    """The axes from the outermost to the innermost in memory."""
    inner = tuple(range(2, len(spec.shape)))
    return tuple(range(len(spec.shape))) if spec.memory_format == "contiguous" else (0, *inner, 1)


def _strides(spec: TensorSpec) -> tuple[int, ...]:
    strides, step = [0] * len(spec.shape), 1
    for axis in reversed(_order(spec)):
        strides[axis] = step
        step *= max(spec.shape[axis], 1)
    return tuple(strides)


def _add(
    archive: zipfile.ZipFile, name: str, nbytes: int, pieces: Pieces, progress: Callable[[int], object] | None = None
) -> None:
    """Add a member whose bytes begin at a multiple of 64."""
    info = zipfile.ZipInfo(f"{_FOLDER}/{name}")
    is_large = nbytes >= zipfile.ZIP64_LIMIT
    begin = archive.fp.tell() + _LOCAL_HEADER_BYTES + len(info.filename) + _ZIP64_EXTRA_BYTES * is_large + 4  # type: ignore[union-attr]
    padding = -begin % _ALIGNMENT
    info.extra = _PADDING_ID + padding.to_bytes(2, "little") + b"Z" * padding
    info.file_size = nbytes
    with archive.open(info, "w", force_zip64=is_large) as member:
        for piece in pieces():
            member.write(piece)
            if progress is not None:
                progress(piece.nbytes)


def open_for_writing(descriptor: int) -> BinaryIO:
    """A descriptor as the file that `write_torch_file` takes; closing it leaves the descriptor open."""
    return os.fdopen(os.dup(descriptor), "wb")
