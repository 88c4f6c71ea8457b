"""`verify`: read a checkpoint, all of it or a share, and compare it with what was written."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torchkeep.errors import CheckpointError, CorruptError, LimitError, UnsafeError
from torchkeep.folder.parallel import default_threads, in_parallel
from torchkeep.folder.read import FolderSource
from torchkeep.folder.runs import is_step_name
from torchkeep.folder.verified import remember
from torchkeep.tensors import Source, TensorSpec, bits_of, tensors_of
from torchkeep.verbs.arguments import threads_of
from torchkeep.verbs.name_hash import fault_of_name, hash_in
from torchkeep.verbs.sources import open_source

if TYPE_CHECKING:
    from torchkeep.arithmetic.ranges import Progress

_STRENGTH = {"torchkeep": "digests", "torch-zip": "crc32", "torchscript": "crc32", "torch-dcp": "crc32"}
_PIECE_BYTES = 4 << 20
_RANGE_BYTES = 64 << 20  # of a chunk, and what a thread takes at once
_BATCH_BYTES = 512 << 20  # of a torchkeep checkpoint, read between two words of progress
BY_NAME = "sha256 in the name"


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found; true when nothing is wrong.

    Attributes:
        path: The file or folder.
        format: Its format; "" when it is too damaged to say.
        checked: What bytes were compared with: ``"digests"``, ``"crc32"``, ``"sha256 in the name"``, or
            ``"structure"`` for want of a checksum.
        tensor_count: Tensors in it.
        total_bytes: Bytes of tensors read and compared.
        faults: One line each.
        share: The share of its bytes that was to be read, from 0 to 1.
    """

    path: Path
    format: str
    checked: str
    tensor_count: int
    total_bytes: int
    faults: tuple[str, ...] = ()
    share: float = 1.0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        if not self.ok:
            return "\n".join([f"{self.path}: damaged", *(f"  {fault}" for fault in self.faults)])
        compared = f"checked by {self.checked}"
        if self.checked == "structure":
            compared = "read, which the format has no checksum for"
        extent = f"{self.total_bytes:,} bytes {compared}"
        if not self.share:
            extent = "its structure and sizes checked, no tensor read"
        elif self.share < 1:
            extent = f"{self.total_bytes:,} bytes, {self.share:.1%} of it, {compared}"
        plural = "" if self.tensor_count == 1 else "s"
        return f"{self.path}: ok, {self.tensor_count:,} tensor{plural}, {extent}"


def verify(
    path: str | os.PathLike[str],
    *,
    share: float = 1.0,
    io_threads: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Read a checkpoint of any format and compare it with the checksums that the format, or the file's name, has.

    Args:
        path: As for `open`.
        share: How much of the bytes is read, from 0 to 1. 0 checks records, headers, sizes and structure in
            milliseconds; in between, chunks are drawn by chance, others each time.
        io_threads: Threads that read and hash; by default one per processor, at most 8.
        progress: Called with bytes done and bytes in all.

    Returns:
        What was checked and every fault found. Damage does not raise. A whole read of a file that is named as
        torchvision names weights (``resnet50-0676ba61.pth``) is compared with that sha256 too. What a whole read of a
        run's checkpoint found is noted in the run folder, for ``torchkeep ls``.

    Raises:
        NotFoundError: There is nothing at the path.
        FormatError: It is of no known format.
        UnsafeError, LimitError: It wants something run, or asks for too much.
        ValueError: `share` is not from 0 to 1.

    Example:
        >>> import tempfile, torch, torchkeep as tk
        >>> saved = tk.save({"w": torch.zeros(4)}, tempfile.mkdtemp() + "/ckpt")
        >>> result = tk.verify(saved.path)
        >>> result.ok, result.checked, result.tensor_count
        (True, 'digests', 1)
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is a number from 0 to 1; not {share!r}")
    try:
        source = open_source(path)
    except CorruptError as error:
        return Verification(Path(path), "", "structure", 0, 0, error.faults or (error.what,), share)
    try:
        specs = source.specs() if isinstance(source, FolderSource) else list(tensors_of(source.tree).values())
        distinct = list({spec.key: spec for spec in specs}.values())
        found = Verification(
            Path(path), source.format, _STRENGTH.get(source.format, "structure"), len(distinct), 0, (), share
        )
        threads = threads_of(io_threads, default_threads)
        if isinstance(source, FolderSource) and share == 1:
            found = _read_all(source, distinct, found, threads, progress)
            _remember(source, found)
            return found
        return _read(source, distinct, found, threads, progress) if share else found
    finally:
        source.close()


def _remember(source: FolderSource, found: Verification) -> None:
    """Note what was found beside a run's checkpoint, for `ls` to tell."""
    if is_step_name(source.path.name):
        remember(source.path, source.record.id, source.record.shards, ok=found.ok, at_ns=time.time_ns())


def _read_all(
    source: FolderSource, specs: Sequence[TensorSpec], found: Verification, threads: int, progress: Progress | None
) -> Verification:
    """Read all of a torchkeep checkpoint, neighbours together, in batches so that progress can be told."""
    faults: list[str] = []
    done_bytes, total_bytes = 0, sum(spec.nbytes for spec in specs)
    batch: list[TensorSpec] = []
    held_bytes = 0
    for position, spec in enumerate(specs, 1):
        batch.append(spec)
        held_bytes += spec.nbytes
        if held_bytes < _BATCH_BYTES and position < len(specs):
            continue
        try:
            source.check(batch, threads)
        except CorruptError as error:
            faults += error.faults or (error.what,)
        done_bytes, held_bytes, batch = done_bytes + held_bytes, 0, []
        if progress is not None:
            progress(done_bytes, total_bytes)
    return replace(found, total_bytes=total_bytes, faults=tuple(faults))


@dataclass(frozen=True, slots=True)
class _Unit:
    """What one thread takes at once: a range of a tensor, or a file whose sha256 its name tells."""

    nbytes: int
    read: Callable[[], str | None]


def _read(
    source: Source, specs: Sequence[TensorSpec], found: Verification, threads: int, progress: Progress | None
) -> Verification:
    """Read what is to be read, in parallel, and gather the faults."""
    units = _drawn(_units_of(source, specs), found.share)
    total_bytes = sum(unit.nbytes for unit in units)
    expected = hash_in(source.path.name) if found.share == 1 and source.path.is_file() else None
    told = _counted(progress, total_bytes)

    def work(unit: _Unit) -> str | None:
        fault = unit.read()
        told(unit.nbytes)
        return fault

    named = [] if expected is None else [_Unit(0, lambda: fault_of_name(source.path, expected))]
    faults = [fault for fault in in_parallel(work, [*named, *units], threads) if fault]
    checked = found.checked if expected is None or faults else BY_NAME
    return replace(found, checked=checked, total_bytes=total_bytes, faults=tuple(dict.fromkeys(faults)))


def _units_of(source: Source, specs: Sequence[TensorSpec]) -> list[_Unit]:
    units = []
    for spec in specs:
        step = _RANGE_BYTES - _RANGE_BYTES % max(bits_of(spec.dtype) // 8, 1)
        for begin in range(0, spec.nbytes, step) if spec.nbytes else (0,):
            end = min(begin + step, spec.nbytes)
            units.append(_Unit(end - begin, _reader(source, spec, begin, end)))
    return units


def _reader(source: Source, spec: TensorSpec, begin: int, end: int) -> Callable[[], str | None]:
    def read() -> str | None:
        try:
            if isinstance(source, FolderSource):
                source.check_range(spec, begin, end)
            elif spec.nbytes <= _PIECE_BYTES:
                source.read_into(spec, memoryview(bytearray(spec.nbytes)))
            else:
                buffer = memoryview(bytearray(min(_PIECE_BYTES, end - begin)))
                for at in range(begin, end, _PIECE_BYTES):
                    source.read_range_into(spec, at, buffer[: min(_PIECE_BYTES, end - at)])
        except (UnsafeError, LimitError):
            raise
        except CheckpointError as error:
            return "; ".join([error.what, *error.faults])
        return None

    return read


def _drawn(units: list[_Unit], share: float) -> list[_Unit]:
    """The units to read: all, or some by chance that hold at least the share of the bytes."""
    if share == 1:
        return units
    wanted = share * sum(unit.nbytes for unit in units)
    random.shuffle(units)
    chosen, held = [], 0
    for unit in units:
        if held >= wanted:
            break
        chosen.append(unit)
        held += unit.nbytes
    return chosen


def _counted(progress: Progress | None, total_bytes: int) -> Callable[[int], object]:
    done_bytes, counting = 0, threading.Lock()

    def more(count: int) -> None:
        nonlocal done_bytes
        with counting:
            done_bytes += count
            if progress is not None:
                progress(done_bytes, total_bytes)

    return more
