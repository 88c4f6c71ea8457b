"""The stream form of ``torch.save`` before PyTorch 1.6: pickles one after another, then the storages' bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torchkeep.errors import CorruptError, FormatError
from torchkeep.formats.faults import MalformedError
from torchkeep.formats.pickle_machine import PickleMachine, Vocabulary
from torchkeep.formats.pickle_values import PlainVocabulary
from torchkeep.formats.regular_file import READ_AGAIN, ByteStream, RegularFile
from torchkeep.formats.storage_views import StorageView, check_booleans, read_range, read_view, to_native
from torchkeep.formats.torch_pickle import TorchVocabulary
from torchkeep.tensors import TensorSpec

MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_COUNT_BYTES = 8
_MAX_FAULTS = 20


@dataclass(frozen=True, slots=True)
class _Declared:
    nbytes: int
    item_bytes: int


class TorchLegacy:
    """A `Source` of one legacy torch file; opening reads the pickles and the storages' lengths, and no tensor.

    Storages of this form have no checksum: a flipped bit in one cannot be found.

    Args:
        file: The file, which the source closes.
        name: What the keys of its tensors say of the file, where a source has several.

    Raises:
        CorruptError: A pickle is damaged, or the file is shorter than its storages.
        FormatError: It is of a protocol that torch never published.
        UnsafeError: A pickle names something whose only use is to run or reach something.
        LimitError: A pickle asks for more than its size can justify.
    """

    format = "torch-legacy"

    def __init__(self, file: RegularFile, name: str = "") -> None:
        self._file = file
        self.path: Path = file.path
        self._declared: dict[str, _Declared] = {}
        stream = ByteStream(file.read, 0, file.size)
        plain = PlainVocabulary()
        self._load(stream, plain, "magic number")
        protocol = self._load(stream, plain, "protocol")
        if protocol != _PROTOCOL:
            raise FormatError(
                "a legacy torch file of an unknown protocol", where=self.path, remedy="save it again with torch"
            )
        self._system = self._load(stream, plain, "system information")
        self.tree = self._load(stream, TorchVocabulary(self, name), "object")
        keys = self._load(stream, plain, "storage keys")
        self._begins, self._end = self._place(keys, stream.position)
        self._refuse_hidden_archive()

    @property
    def metadata(self) -> Mapping[str, object]:
        """What the file says of the machine that wrote it, and how many bytes follow its end, if any."""
        said = {str(name): value for name, value in self._system.items()} if isinstance(self._system, dict) else {}
        extra = self._file.size - self._end
        return {**said, "trailing_bytes": extra} if extra else said

    def declare(self, key: str, nbytes: int, item_bytes: int) -> None:
        """Note that the object has a storage of that size; its place is known once the object is read."""
        known = self._declared.setdefault(key, _Declared(nbytes, item_bytes))
        if known.nbytes != nbytes:
            raise MalformedError(f"storage {key!r} has {known.nbytes:,} bytes, and elsewhere {nbytes:,}")

    def read_into(self, spec: TensorSpec, buffer: memoryview) -> None:
        """Read a tensor's bytes, C order, native endian.

        Raises:
            CorruptError: Bytes are absent, short, or the file was changed; the buffer may hold some of them.
        """
        if not isinstance(spec.key, StorageView) or buffer.nbytes != spec.nbytes:
            raise ValueError(f"{spec} is not of this source, or its buffer is not of {spec.nbytes:,} bytes")
        self._read_view(spec.key, buffer.cast("B"))

    def read_range_into(self, spec: TensorSpec, begin: int, buffer: memoryview) -> None:
        """Read a part of a tensor's bytes; see `Source.read_range_into`.

        Raises:
            CorruptError: As for `read_into`.
        """
        read_range(spec, begin, buffer, self._read_view)

    def _read_view(self, view: StorageView, flat: memoryview) -> None:
        at = self._begins[view.storage]
        read_view(view, lambda begin, out: self._file.read_into(at + begin, out), flat)
        # torch writes the storages of this form little-endian on every machine.
        to_native(view, flat, "little")
        check_booleans(view.dtype, flat, self.path)

    def close(self) -> None:
        """Let go of the file; harmless when called twice."""
        self._file.close()

    def _load(self, stream: ByteStream, vocabulary: Vocabulary, name: str) -> object:
        return PickleMachine(stream, vocabulary, self.path, name).load()

    def _place(self, keys: object, at: int) -> tuple[dict[str, int], int]:
        names = [str(key) for key in keys] if isinstance(keys, list) and _are_keys(keys) else None
        if names is None or len(set(names)) != len(names) or set(names) != set(self._declared):
            raise CorruptError(
                "the storages behind the object are not those that it names", where=self.path, remedy=READ_AGAIN
            )
        begins: dict[str, int] = {}
        faults = []
        for name in names:
            declared = self._declared[name]
            if at + _COUNT_BYTES + declared.nbytes > self._file.size:
                short = at + _COUNT_BYTES + declared.nbytes - self._file.size
                rest = len(names) - len(begins) - 1
                faults.append(f"the file ends {short:,} bytes before the end of storage {name!r}; {rest:,} more follow")
                break
            count = int.from_bytes(self._file.read(at, at + _COUNT_BYTES), "little")
            if count * declared.item_bytes != declared.nbytes:
                faults.append(f"storage {name!r} has {count:,} elements and should have {declared.nbytes:,} bytes")
            begins[name] = at + _COUNT_BYTES
            at += _COUNT_BYTES + declared.nbytes
        if faults:
            raise CorruptError(
                "the storages are damaged", where=self.path, faults=faults[:_MAX_FAULTS], remedy=READ_AGAIN
            )
        return begins, at

    def _refuse_hidden_archive(self) -> None:
        tail_at = max(self._end, self._file.size - (1 << 16))
        if b"PK\5\6" in self._file.read(tail_at, self._file.size):
            raise CorruptError(
                "a zip archive follows the checkpoint: readers would disagree about what is in it",
                where=self.path,
                remedy="ask for the checkpoint without it",
            )


def begins_as_legacy(file: RegularFile) -> bool:
    """Whether the first pickle of a file is torch's magic number.

    Raises:
        CorruptError, UnsafeError, LimitError, FormatError: It is a pickle, and a bad one.
    """
    stream = ByteStream(file.read, 0, file.size)
    first = PickleMachine(stream, PlainVocabulary(), file.path, "first pickle").load()
    return type(first) is int and first == MAGIC


def _are_keys(keys: list[object]) -> bool:
    return all(isinstance(key, (str, int)) for key in keys)
