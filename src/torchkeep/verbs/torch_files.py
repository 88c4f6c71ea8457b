"""Writing what `torch.load` reads, without torch and a piece at a time: a pickle, and a zip member for each storage.

The form is that of ``torch.save`` since torch 1.6: https://pytorch.org/docs/stable/notes/serialization.html
"""

from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from torchkeep.errors import FormatError
from torchkeep.folder.draft import PIECE_BYTES
from torchkeep.tensors import Described, TensorSpec, bits_of
from torchkeep.verbs.naming_pickles import Call, Name, NamingPickler

_FOLDER = "archive"
_VERSION = b"3\n"
_ALIGNMENT = 64  # of storages in the file, as torch writes them
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
_QUANTIZED = {"qint8": "QInt8Storage", "quint8": "QUInt8Storage", "qint32": "QInt32Storage"}
_NOT_TORCHS = ("float6_e2m3", "float6_e3m2")
Pieces = Callable[[], Iterable[memoryview]]
ReadRange = Callable[[TensorSpec, int, memoryview], None]


def write_torch_file(
    file: BinaryIO, tree: object, read: ReadRange, progress: Callable[[int], object] | None = None
) -> None:
    """Write a tree as ``torch.save`` would the values it is of; no tensor is held whole, tied ones are stored once.

    Args:
        file: Open for writing, seekable, at the 0 of its `tell`.
        tree: Plain values, `TensorSpec` at the tensors, `Described` of torch's own classes.
        read: Reads bytes of a tensor, as `Source.read_range_into`.
        progress: Told how many bytes more are written.

    Raises:
        FormatError: A value cannot be pickled by a class that is importable, or torch has no such dtype.
        CorruptError: Bytes are absent or differ from their checksum.
    """
    stream = io.BytesIO()
    pickler = _Pickler(stream, read)
    try:
        pickler.dump(tree)
    except (pickle.PicklingError, AttributeError, TypeError, RecursionError) as error:
        raise FormatError(f"a value cannot be pickled: {error}", remedy="convert one entry of it") from error
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _add(archive, "data.pkl", len(stream.getvalue()), lambda: [memoryview(stream.getvalue())])
        _add(archive, "byteorder", len(sys.byteorder), lambda: [memoryview(sys.byteorder.encode("ascii"))])
        for key, (nbytes, pieces) in pickler.storages.items():
            _add(archive, f"data/{key}", nbytes, pieces, progress)
        _add(archive, "version", len(_VERSION), lambda: [memoryview(_VERSION)])


def open_for_writing(descriptor: int) -> BinaryIO:
    """A descriptor as the file that `write_torch_file` takes; closing it leaves the descriptor open."""
    return os.fdopen(os.dup(descriptor), "wb")


@dataclass(frozen=True, slots=True, eq=False)
class _Storage:
    """Memory beside the pickle, by torch's persistent id."""

    identity: tuple[object, ...]


def _no_hooks() -> OrderedDict[str, object]:
    """A dict of its own: torch makes it the parameter's."""
    return OrderedDict()


def _rebuild(name: str, *args: object) -> Call:
    return Call(Name("torch._utils", name), args)


class _Pickler(NamingPickler):
    def __init__(self, stream: io.BytesIO, read: ReadRange) -> None:
        super().__init__(stream)
        self.storages: dict[str, tuple[int, Pieces]] = {}
        self._read_range = read
        self._by_key: dict[tuple[object, ...], tuple[_Storage, tuple[object, ...]]] = {}

    def save(self, value: object, save_persistent_id: bool = True) -> None:  # noqa: FBT001, FBT002 - as pickle calls it
        """Write one value: tensors and torch's own as what makes them, everything else as pickle does."""
        if isinstance(value, _Storage):
            self.save(self._by_key[value.identity][1])
            self.write(pickle.BINPERSID)
        elif isinstance(value, (TensorSpec, Described)):
            known = self.memo.get(id(value))
            if known is not None:
                self.write(self.get(known[0]))
                return
            self.save(self._tensor(value) if isinstance(value, TensorSpec) else self._described(value))
            self.memoize(value)
        else:
            super().save(value, save_persistent_id)

    def _tensor(self, spec: TensorSpec) -> Call:
        if spec.dtype in _NOT_TORCHS:
            raise FormatError(f"torch has no {spec.dtype}", remedy="convert to safetensors or a folder")
        storage = self._storage_of(spec, _STORAGES.get(spec.dtype))
        # torch writes the parameter's flag with the parameter, not with its data.
        requires_grad = spec.requires_grad and not spec.parameter
        args = (storage, 0, spec.shape, strides_of(spec), requires_grad, _no_hooks())
        if spec.dtype in _STORAGES:
            made = _rebuild("_rebuild_tensor_v2", *args)
        else:
            made = _rebuild("_rebuild_tensor_v3", *args, Name("torch", spec.dtype))
        return _rebuild("_rebuild_parameter", made, spec.requires_grad, _no_hooks()) if spec.parameter else made

    def _described(self, value: Described) -> object:
        first = value.args[0] if value.args else None
        state = value.state if isinstance(value.state, Mapping) else {}
        match value.class_path:
            case "torch.dtype":
                return Name("torch", str(first))
            case "torch.Size":
                return size_call(first)
            case "torch.device":
                return Call(Name("torch", "device"), (str(first),))
            case "numpy.ndarray" if isinstance(first, TensorSpec):
                return self._array(first)
            case "torch.sparse":
                return _sparse(state)
            case "torch.quantized":
                return self._quantized(state)
        raise FormatError(f"a {value.class_path} cannot be written", remedy="convert one entry of it")

    def _array(self, spec: TensorSpec) -> object:
        import numpy as np

        return np.frombuffer(self._read(spec), np.dtype(spec.dtype)).reshape(spec.shape)

    def _quantized(self, state: Mapping[str, Any]) -> Call:
        values = state["values"]
        storage = self._storage_of(values, _QUANTIZED[state["dtype"]])
        scheme = Name("torch", str(state["scheme"]))
        if "scale" in state:
            quantizer: tuple[object, ...] = (scheme, state["scale"], state["zero_point"])
        else:
            quantizer = (scheme, state["scales"], state["zero_points"], state["axis"])
        args = (storage, 0, values.shape, strides_of(values), quantizer, False, _no_hooks())
        return _rebuild("_rebuild_qtensor", *args)

    def _storage_of(self, spec: TensorSpec, kind: str | None) -> _Storage:
        identity = (spec.key, spec.dtype, spec.shape, spec.memory_format, kind)
        known = self._by_key.get(identity)
        if known is not None:
            return known[0]
        key, storage = str(len(self.storages)), _Storage(identity)
        owner = Name("torch.storage", "UntypedStorage") if kind is None else Name("torch", kind)
        count = spec.nbytes if kind is None else spec.numel
        self._by_key[identity] = (storage, ("storage", owner, key, "cpu", count))
        self.storages[key] = (spec.nbytes, lambda: self._pieces(spec))
        return storage

    def _pieces(self, spec: TensorSpec) -> Iterator[memoryview]:
        if spec.memory_format != "contiguous":
            # Elements stand in another order; such tensors are images and kernels, and small.
            yield self._reordered(spec)
            return
        buffer = memoryview(bytearray(min(PIECE_BYTES, spec.nbytes)))
        for at in range(0, spec.nbytes, PIECE_BYTES):
            piece = buffer[: min(PIECE_BYTES, spec.nbytes - at)]
            self._read_range(spec, at, piece)
            yield piece

    def _reordered(self, spec: TensorSpec) -> memoryview:
        import numpy as np

        item_bytes = bits_of(spec.dtype) // 8
        array = np.frombuffer(self._read(spec), np.dtype(f"V{item_bytes}")).reshape(spec.shape)
        return memoryview(np.ascontiguousarray(array.transpose(_order(spec))).tobytes())

    def _read(self, spec: TensorSpec) -> bytearray:
        content = bytearray(spec.nbytes)
        self._read_range(spec, 0, memoryview(content))
        return content


def size_call(sizes: object) -> Call:
    """A ``torch.Size``."""
    return Call(Name("torch", "Size"), (tuple(sizes) if isinstance(sizes, (tuple, list)) else (),))


def layout_call(name: str) -> Call:
    """A ``torch.layout``."""
    return Call(Name("torch.serialization", "_get_layout"), (f"torch.{name}",))


def _sparse(state: Mapping[str, Any]) -> Call:
    layout = layout_call(state["layout"])
    shape = size_call(state["shape"])
    if state["layout"] == "sparse_coo":
        data: tuple[object, ...] = (state["indices"], state["values"], shape, bool(state.get("coalesced")))
    else:
        data = (state["compressed"], state["plain"], state["values"], shape)
    return _rebuild("_rebuild_sparse_tensor", layout, data)


def _order(spec: TensorSpec) -> tuple[int, ...]:
    """The axes from the outermost to the innermost in memory."""
    inner = tuple(range(2, len(spec.shape)))
    return tuple(range(len(spec.shape))) if spec.memory_format == "contiguous" else (0, *inner, 1)


def strides_of(spec: TensorSpec) -> tuple[int, ...]:
    """The strides of a tensor that is alone in its memory, in elements.

    Example:
        >>> strides_of(TensorSpec("float32", (2, 3, 4, 5), memory_format="channels_last"))
        (60, 1, 15, 3)
    """
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
