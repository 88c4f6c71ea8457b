"""safetensors files: a JSON header, then the tensors' bytes without gaps."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from torchkeep.errors import CorruptError, FormatError, LimitError
from torchkeep.formats.regular_file import READ_AGAIN, RegularFile
from torchkeep.formats.storage_views import StorageView, check_booleans, to_native
from torchkeep.tensors import DTYPE_OF_CODE, Extent, TensorSpec, bits_of, check_range

_LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
_MAX_TENSORS = 262_144
_MAX_SIZE = 1 << 62
_MAX_RANK = 64
_MAX_FAULTS = 20
_FIELDS = frozenset({"dtype", "shape", "data_offsets"})


class SafetensorsFile:
    """A `Source` of one safetensors file; opening reads its header, and no tensor.

    The format has no checksum: a flipped bit in a tensor cannot be found.

    Raises:
        CorruptError: The header is damaged, or tensors do not cover the data exactly; all faults at once.
        FormatError: A dtype or a field is not known.
        LimitError: The header is over 100 MB or has over 262,144 tensors.
    """

    format = "safetensors"

    def __init__(self, file: RegularFile) -> None:
        self._file = file
        self.path: Path = file.path
        header = _Header(file)
        self._data_at = header.data_at
        self._ranges = header.ranges
        self.metadata: Mapping[str, object] = {"__metadata__": header.metadata}
        self.tree: dict[str, TensorSpec] = header.specs

    def read_into(self, spec: TensorSpec, buffer: memoryview) -> None:
        """Read a tensor's bytes, C order, native endian.

        Raises:
            CorruptError: Bytes are absent or short, or the file was changed; the buffer may hold some of them.
        """
        if buffer.nbytes != spec.nbytes:
            raise ValueError(f"the buffer for {spec} is not of {spec.nbytes:,} bytes")
        self.read_range_into(spec, 0, buffer)

    def read_range_into(self, spec: TensorSpec, begin: int, buffer: memoryview) -> None:
        """Read a part of a tensor's bytes; see `Source.read_range_into`.

        Raises:
            CorruptError: As for `read_into`.
        """
        if spec.key not in self._ranges:
            raise ValueError(f"{spec} is not of this source")
        check_range(spec, begin, buffer)
        flat = buffer.cast("B")
        self._file.read_into(self._data_at + self._ranges[str(spec.key)][0] + begin, flat)
        if sys.byteorder == "big":
            to_native(StorageView("", spec.dtype, 0, (spec.numel,), (1,)), flat, "little")
        check_booleans(spec.dtype, flat, self.path)

    def extent_of(self, spec: TensorSpec) -> Extent | None:
        """Where a tensor lies in the file; None where bytes have to be put in order or looked at."""
        if spec.dtype == "bool" or sys.byteorder != "little":
            return None
        return self._file.extent(self._data_at + self._ranges[str(spec.key)][0])

    def check(self, _specs: Iterable[TensorSpec], _threads: int = 1) -> None:
        """Ask whether the file is still the one that was opened: there are no checksums.

        Raises:
            CorruptError: It was changed.
        """
        self._file.read_into(0, memoryview(bytearray()))

    def close(self) -> None:
        """Let go of the file; harmless when called twice."""
        self._file.close()


class _Header:
    """The header of a file, read and checked."""

    def __init__(self, file: RegularFile) -> None:
        self._file = file
        self.faults: list[str] = []
        self.specs: dict[str, TensorSpec] = {}
        self.ranges: dict[str, tuple[int, int]] = {}
        self.metadata: dict[str, str] = {}
        entries = self._parse(self._read())
        for name, entry in entries.items():
            if name == "__metadata__":
                self._take_metadata(entry)
            else:
                self._take_tensor(name, entry)
        if not self.faults:
            self._check_cover()
        self._raise(self.faults)

    def _read(self) -> bytes:
        size = self._file.size
        length = int.from_bytes(self._file.read(0, min(_LENGTH_BYTES, size)), "little")
        if size < _LENGTH_BYTES:
            self._raise([f"the file has {size} bytes, and 8 for the header's length come first"])
        if length > MAX_HEADER_BYTES and length <= size:
            raise LimitError(
                f"the header has {length:,} bytes and {MAX_HEADER_BYTES:,} are allowed",
                where=self._file.path,
                remedy="split the file into shards",
            )
        if length < 2 or length > size - _LENGTH_BYTES:
            self._raise(
                [f"the header should have {length:,} bytes, and the file has {size - _LENGTH_BYTES:,} after its length"]
            )
        self.data_at = _LENGTH_BYTES + length
        header = self._file.read(_LENGTH_BYTES, self.data_at).rstrip(b" ")
        if not header.startswith(b"{"):
            self._raise([f"the header begins with {header[:4]!r}, not with {{"])
        if header.count(b"{") > _MAX_TENSORS + 2:
            raise LimitError(
                f"the header has more than {_MAX_TENSORS:,} tensors",
                where=self._file.path,
                remedy="split the file into shards",
            )
        return header

    def _parse(self, header: bytes) -> dict[str, object]:
        try:
            text = header.decode("utf-8")
            parsed = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
            # A lone surrogate can be written in JSON and is no text.
            _no_surrogates(parsed)
        except RecursionError:
            self._raise(["the header is nested too deeply"])
        except ValueError as fault:
            self._raise([f"the header is not the JSON of a safetensors file: {str(fault)[:200]}"])
        return dict(parsed)

    def _take_metadata(self, entry: object) -> None:
        if isinstance(entry, dict) and all(isinstance(value, str) for value in entry.values()):
            self.metadata = entry
        else:
            self.faults.append("__metadata__ is not an object of texts")

    def _take_tensor(self, name: str, entry: object) -> None:
        label = repr(name[:80])
        if not isinstance(entry, dict) or set(entry) != _FIELDS:
            fields = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
            self.faults.append(f"{label} has {str(fields)[:80]}, not data_offsets, dtype and shape")
            return
        code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        dtype = DTYPE_OF_CODE.get(code) if isinstance(code, str) else None
        if dtype is None:
            raise FormatError(
                f"{label} has the unknown dtype {str(code)[:40]!r}", where=self._file.path, remedy="update torchkeep"
            )
        if not _are_sizes(shape, _MAX_RANK):
            self.faults.append(f"{label} has the shape {str(shape)[:80]}")
            return
        if not _are_sizes(offsets, 2) or len(offsets) != 2:
            self.faults.append(f"{label} has the offsets {str(offsets)[:80]}")
            return
        spec, bits = _spec(name, code, dtype, tuple(shape))
        begin, end = offsets
        if spec is None:
            self.faults.append(f"{label} of {code} does not fill whole bytes")
        elif begin > end or (end - begin) * 8 != bits:
            self.faults.append(f"{label} takes {bits // 8:,} bytes and has the offsets {begin:,} to {end:,}")
        else:
            self.specs[name] = spec
            self.ranges[name] = (begin, end)

    def _check_cover(self) -> None:
        at = 0
        for name, (begin, end) in sorted(self.ranges.items(), key=lambda item: item[1]):
            if begin != at:
                what = "overlaps the one before it" if begin < at else "leaves a hole before it"
                self.faults.append(f"{name[:80]!r} begins at {begin:,} and {what}, which ends at {at:,}")
            at = max(at, end)
        held = self._file.size - self.data_at
        if at != held:
            self.faults.append(f"the tensors end at byte {at:,} of the data and the file has {held:,}")

    def _raise(self, faults: list[str]) -> None:
        if faults:
            more = [f"and {len(faults) - _MAX_FAULTS:,} more"] if len(faults) > _MAX_FAULTS else []
            raise CorruptError(
                "the safetensors file is damaged",
                where=self._file.path,
                faults=[*faults[:_MAX_FAULTS], *more],
                remedy=READ_AGAIN,
            )


def _spec(name: str, code: str, dtype: str, shape: tuple[int, ...]) -> tuple[TensorSpec | None, int]:
    if code == "F4":
        # The header counts halves of a byte, torch counts bytes.
        if not shape or shape[-1] % 2:
            return None, 0
        shape = (*shape[:-1], shape[-1] // 2)
    spec = TensorSpec(dtype, shape, name)
    bits = spec.numel * bits_of(dtype)
    return (None if bits % 8 else spec), bits


def _are_sizes(value: object, most: int) -> bool:
    if not isinstance(value, list) or len(value) > most:
        return False
    return all(type(size) is int and 0 <= size < _MAX_SIZE for size in value)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:80]!r} is there twice")
    return made


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is no JSON")


def _no_surrogates(names: Mapping[str, object]) -> None:
    for name in names:
        name.encode("utf-8")
