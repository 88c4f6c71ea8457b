"""The zip form of ``torch.save`` since PyTorch 1.6, and TorchScript: a pickle beside one member per storage."""

from __future__ import annotations

import sys
import threading
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from torchkeep.errors import CorruptError, FormatError
from torchkeep.formats.faults import MalformedError
from torchkeep.formats.pickle_machine import PickleMachine
from torchkeep.formats.regular_file import READ_AGAIN, ByteStream, RegularFile
from torchkeep.formats.storage_views import (
    StorageView,
    check_booleans,
    is_contiguous,
    read_range,
    read_view,
    to_native,
)
from torchkeep.formats.torch_pickle import TorchVocabulary
from torchkeep.formats.torchscript import with_transients
from torchkeep.formats.zip_directory import STORED, Member, check_crc32, data_begin, read_directory, read_member
from torchkeep.tensors import Extent, TensorSpec

_MAX_VERSION = 10
_PIECE_BYTES = 1 << 20
_MAX_CODE_BYTES = 16 << 20


class TorchZip:
    """A `Source` of one torch zip file; opening reads the directory and the pickle, and no tensor.

    Its format is ``"torch-zip"``, or ``"torchscript"`` for an archive that holds code, which is never run.

    Args:
        file: The file, which the source closes.
        name: What the keys of its tensors say of the file, where a source has several.
        checked: Members whose CRC-32 was compared when the file was open before; more are added.

    Raises:
        CorruptError: The archive or its pickle is damaged, or a storage is absent or of another size.
        FormatError: It holds no ``data.pkl``, or was written by a format version after 10.
        UnsafeError: The pickle names something whose only use is to run or reach something.
        LimitError: The archive or its pickle asks for more than its size can justify.
    """

    format: str = "torch-zip"

    def __init__(self, file: RegularFile, name: str = "", checked: set[str] | None = None) -> None:
        self._file = file
        self.path: Path = file.path
        self._members = read_directory(file)
        self._folder = self._find_folder()
        self._version = self._read_version()
        self._byteorder = self._read_byteorder()
        self._checked = set[str]() if checked is None else checked
        self._inflating = threading.Lock()
        self._inflated: tuple[str, bytes] = ("", b"")
        content = read_member(file, self._members[f"{self._folder}data.pkl"])
        stream = ByteStream(lambda begin, end: content[begin:end], 0, len(content))
        self.tree = PickleMachine(stream, TorchVocabulary(self, name), self.path, "data.pkl").load()
        if stream.remaining:
            raise CorruptError(
                f"data.pkl goes on for {stream.remaining:,} bytes behind its end", where=self.path, remedy=READ_AGAIN
            )
        if self._is_script:
            self.format = "torchscript"
            self.tree = with_transients(self.tree, self._code)

    @property
    def is_compressed(self) -> bool:
        """Whether a part of it is deflated, which ``torch.save`` never does."""
        return any(member.method != STORED for member in self._members.values())

    @property
    def metadata(self) -> Mapping[str, object]:
        """What the archive says of itself; ``torchscript`` is there for an archive that holds code (never run)."""
        said = {"version": self._version, "byteorder": self._byteorder, "archive": self._folder.rstrip("/")}
        return {**said, "torchscript": True} if self._is_script else said

    @property
    def _is_script(self) -> bool:
        return f"{self._folder}constants.pkl" in self._members

    def _code(self, file: str) -> str | None:
        member = self._members.get(f"{self._folder}code/{file}")
        if member is None or member.size > _MAX_CODE_BYTES:
            return None
        return read_member(self._file, member).decode("utf-8", "replace")

    def declare(self, key: str, nbytes: int, item_bytes: int) -> None:
        """Check that a storage which the pickle names is there in the size that it says."""
        member = self._members.get(f"{self._folder}data/{key}")
        if member is None:
            raise MalformedError(f"storage {key!r} is not in the archive")
        if not 0 <= member.size - nbytes < item_bytes:
            raise MalformedError(f"storage {key!r} should have {nbytes:,} bytes and has {member.size:,}")

    def read_into(self, spec: TensorSpec, buffer: memoryview) -> None:
        """Read a tensor's bytes, C order, native endian; the first read of a storage checks its CRC-32.

        Raises:
            CorruptError: Bytes are absent, short or differ from the checksum; the buffer may hold some of them.
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
        member = self._members[f"{self._folder}data/{view.storage}"]
        if member.method != STORED:
            content = self._inflate(member)
            read_view(view, lambda begin, out: _copy(content, begin, out), flat)
        else:
            self._read_stored(view, member, flat)
        to_native(view, flat, self._byteorder)
        check_booleans(view.dtype, flat, self.path)

    def extent_of(self, spec: TensorSpec) -> Extent | None:
        """Where a tensor lies in the file; None where bytes have to be put in order, inflated or looked at."""
        view = spec.key
        if not isinstance(view, StorageView) or view.dtype == "bool" or self._byteorder != sys.byteorder:
            return None
        member = self._members[f"{self._folder}data/{view.storage}"]
        if member.method != STORED or view.negated or view.conjugated or not is_contiguous(view.shape, view.stride):
            return None
        return self._file.extent(data_begin(self._file, member) + view.begin_bytes)

    def check(self, specs: Iterable[TensorSpec], _threads: int = 1) -> None:
        """Compare the storages of some tensors with their CRC-32, each once.

        Raises:
            CorruptError: One differs.
        """
        storages = {spec.key.storage for spec in specs if isinstance(spec.key, StorageView)}
        for member in (self._members[f"{self._folder}data/{storage}"] for storage in sorted(storages)):
            if member.name not in self._checked:
                self._check(member, data_begin(self._file, member))
                self._checked.add(member.name)

    def close(self) -> None:
        """Let go of the file; harmless when called twice."""
        self._file.close()

    def _read_stored(self, view: StorageView, member: Member, buffer: memoryview) -> None:
        at = data_begin(self._file, member)
        unchecked = member.name not in self._checked
        # Bytes that come in the order of the file, all of them, need not be read twice to be checked.
        in_order = is_contiguous(view.shape, view.stride) and buffer.nbytes == member.size
        if unchecked and not in_order:
            self._check(member, at)
        read_view(view, lambda begin, out: self._file.read_into(at + begin, out), buffer)
        if unchecked and in_order:
            check_crc32(self._file, member, zlib.crc32(buffer))
        self._checked.add(member.name)

    def _check(self, member: Member, at: int) -> None:
        piece = memoryview(bytearray(min(_PIECE_BYTES, member.size)))
        crc32 = 0
        for begin in range(0, member.size, _PIECE_BYTES):
            part = piece[: member.size - begin]
            self._file.read_into(at + begin, part)
            crc32 = zlib.crc32(part, crc32)
        check_crc32(self._file, member, crc32)

    def _inflate(self, member: Member) -> bytes:
        # One storage is kept, so that its many views do not inflate it many times.
        with self._inflating:
            if self._inflated[0] != member.name:
                self._inflated = (member.name, read_member(self._file, member))
            return self._inflated[1]

    def _find_folder(self) -> str:
        found = [name for name in self._members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if not found:
            what, remedy = _other_archive(self._members)
            raise FormatError(
                what,
                where=self.path,
                faults=[f"it holds {name[:80]!r}" for name in list(self._members)[:5]],
                remedy=remedy,
            )
        if len(found) > 1:
            raise CorruptError("the archive holds two checkpoints", where=self.path, faults=found, remedy="unpack one")
        return found[0].removesuffix("data.pkl")

    def _small(self, name: str) -> str | None:
        member = self._members.get(f"{self._folder}{name}")
        if member is None:
            return None
        if member.size > 100:
            raise CorruptError(f"{name} has {member.size:,} bytes", where=self.path, remedy=READ_AGAIN)
        return read_member(self._file, member).decode("latin-1").strip()

    def _read_version(self) -> str | None:
        version = self._small("version")
        if version is not None and not (version.isdecimal() and len(version) < 4 and int(version) <= _MAX_VERSION):
            raise FormatError(
                f"torch's file format version {version!r} is not known", where=self.path, remedy="update torchkeep"
            )
        return version

    def _read_byteorder(self) -> str:
        byteorder = self._small("byteorder") or "little"
        if byteorder not in {"little", "big"}:
            raise FormatError(f"the byte order is {byteorder!r}", where=self.path, remedy="little and big are known")
        return byteorder


def _other_archive(names: Collection[str]) -> tuple[str, str]:
    """What an archive without a pickle is, and what to do."""
    if any(name.endswith("/archive_format") for name in names):
        return (
            "a program of torch.export (.pt2), not a checkpoint",
            "torch.export.load runs what is in it: where you trust it, save its state_dict() and load that",
        )
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of numpy arrays (.npz)", "load it with numpy.load and save its arrays with torch"
    return "a zip archive without data.pkl, so not of torch.save", "unpack it and name the checkpoint inside"


def _copy(content: bytes, begin: int, out: memoryview) -> None:
    out[:] = content[begin : begin + out.nbytes]
