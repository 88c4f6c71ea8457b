"""What a disk may hold after a power cut: a model of a file system that promises only what `fsync` promises.

A trace of system calls is turned into operations: bytes of a file, and names in a folder. An operation is durable
once its file or folder has been flushed; at a power cut any subset of the others may be there. A rename is one
operation; the name of a new file, its bytes and its size are several, and a write may have got half-way.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

TRACED = (
    *("openat", "mkdir", "write", "pwrite64", "ftruncate", "fallocate", "fsync", "close"),
    *("linkat", "rename", "renameat2", "unlink", "unlinkat", "rmdir", "pwritev", "fdatasync", "sync_file_range"),
)
_CALL = re.compile(r"(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)")


@dataclass(frozen=True, eq=False)
class Bytes:
    """Bytes that come into a file, or another size of it."""

    begin: int
    data: bytes = b""
    size: int | None = None
    cuts: bool = False

    def put_into(self, content: bytearray) -> None:
        end = self.begin + len(self.data) if self.size is None else self.size
        content.extend(bytes(max(0, end - len(content))))
        content[self.begin : self.begin + len(self.data)] = self.data
        if self.cuts:
            del content[end:]


@dataclass
class Disk:
    """Files by inode, as what came into them, and folders by inode, as names to inodes; 0 is the root."""

    files: dict[int, tuple[Bytes, ...]] = field(default_factory=dict)
    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})

    def copy(self) -> Disk:
        """Another disk with the same content."""
        return Disk(dict(self.files), {inode: dict(names) for inode, names in self.folders.items()})

    def walk(self, inode: int = 0, at: str = "") -> Iterator[tuple[str, int]]:
        """Every path that can be reached, with its inode."""
        for name, child in self.folders[inode].items():
            yield f"{at}{name}", child
            if child in self.folders:
                yield from self.walk(child, f"{at}{name}/")

    def write_to(self, root: Path, times: Mapping[int, int]) -> None:
        """Make it real, hard links included; `times` are those of files that were there before the trace."""
        real: dict[int, Path] = {}
        for path, inode in self.walk():
            target = root / path
            if inode in self.folders:
                target.mkdir()
            elif inode in real:
                os.link(real[inode], target)
            else:
                content = bytearray()
                for each in self.files.get(inode, ()):
                    each.put_into(content)
                target.write_bytes(content)
                os.utime(target, ns=(times.get(inode, 0), times.get(inode, 0)))
                real[inode] = target


@dataclass(frozen=True)
class Operation:
    """One change, of a file's bytes or of a folder's names, durable once `inode` is flushed; `at` is its place."""

    at: int
    inode: int
    change: Bytes | Mapping[str, int | None]

    def apply(self, disk: Disk) -> None:
        """Let a disk have it."""
        if isinstance(self.change, Bytes):
            disk.files[self.inode] = (*disk.files.get(self.inode, ()), self.change)
            return
        names = disk.folders[self.inode]
        for name, inode in self.change.items():
            if inode is None:
                names.pop(name, None)
            else:
                names[name] = inode


def disk_of(root: Path) -> tuple[Disk, dict[int, int]]:
    """A real folder as a disk, and the times of its files."""
    disk, times = Disk(), {}
    inodes = {root.stat().st_ino: 0}
    for folder, names, files in os.walk(root):
        here = inodes[Path(folder).stat().st_ino]
        for name in (*names, *files):
            path = Path(folder, name)
            status = path.stat()
            inode = inodes.setdefault(status.st_ino, len(inodes))
            disk.folders[here][name] = inode
            if name in files:
                disk.files[inode] = (Bytes(0, path.read_bytes()),)
                times[inode] = status.st_mtime_ns
            else:
                disk.folders[inode] = {}
    return disk, times


class Trace:
    """The operations and flushes of a trace of strace, as numbered events, over what was there before.

    Args:
        root: The folder that is traced; what happens elsewhere is left out.
        before: The disk before the trace.
        lines: What strace wrote, of one process or of several one after the other.
        flushed: Whether what was there before had been flushed.

    Attributes:
        before: The part of it that is durable.
        operations: In order.
        flushes: Place in the trace to the inode that is flushed there.
    """

    def __init__(self, root: Path, before: Disk, lines: Iterable[str], *, flushed: bool = True) -> None:
        self.before = before.copy()
        self.operations: list[Operation] = []
        self.flushes: dict[int, int] = {}
        for inode, content in () if flushed else before.files.items():
            self.operations += [Operation(-1, inode, each) for each in content]
            self.before.files[inode] = ()
        self._root = str(root)
        self._now = before.copy()
        self._open: dict[int, int] = {}
        self._positions: dict[int, int] = {}
        self.length = 0
        for line in lines:
            call = _CALL.match(line)
            if call and int(call[3]) >= 0:
                self._take(self.length, call[1], call[2].split(", "), int(call[3]))
            self.length += 1

    def _place(self, folder: str, name: str) -> tuple[int, str] | None:
        """Folder and last name of a path in the trace; None when it lies elsewhere."""
        path = bytes.fromhex(name.strip('"').replace("\\x", "")).decode()
        if path.startswith("/"):
            if not path.startswith(self._root + "/") and path != self._root:
                return None
            start, path = 0, path[len(self._root) :].strip("/")
        elif folder.isdigit() and int(folder) in self._open:
            start = self._open[int(folder)]
        else:
            return None
        *above, last = path.split("/")
        for each in above:
            start = self._now.folders[start][each]
        return start, last

    def _keep(self, at: int, inode: int, change: Bytes | Mapping[str, int | None]) -> None:
        operation = Operation(at, inode, change)
        operation.apply(self._now)
        self.operations.append(operation)

    def _new(self) -> int:
        return 1 + max([*self._now.files, *self._now.folders])

    def _take(self, at: int, call: str, args: list[str], result: int) -> None:
        descriptor = int(args[0]) if args[0].isdigit() else -1
        if call == "openat":
            self._take_open(at, args, result)
        elif call == "close":
            self._open.pop(descriptor, None)
        elif call == "fsync" and descriptor in self._open:
            self.flushes[at] = self._open[descriptor]
        elif call in {"pwrite64", "write"} and descriptor in self._open:
            data = bytes.fromhex(args[1].strip('"').replace("\\x", ""))[:result]
            begin = int(args[3]) if call == "pwrite64" else self._positions.get(descriptor, 0)
            self._positions[descriptor] = begin + len(data)
            half = len(data) // 2
            self._keep(at, self._open[descriptor], Bytes(begin, data[:half]))
            self._keep(at, self._open[descriptor], Bytes(begin + half, data[half:]))
        elif call == "ftruncate":
            self._keep(at, self._open[descriptor], Bytes(0, size=int(args[1]), cuts=True))
        elif call == "fallocate":
            self._keep(at, self._open[descriptor], Bytes(0, size=int(args[2]) + int(args[3])))
        elif call in {"mkdir", "unlink", "rmdir", "unlinkat", "rename", "renameat2", "linkat"}:
            self._take_names(at, call, args)
        elif call in {"pwritev", "fdatasync", "sync_file_range"}:
            raise NotImplementedError(call)

    def _take_open(self, at: int, args: list[str], result: int) -> None:
        place = self._place(args[0], args[1])
        if place is None:
            self._open.pop(result, None)
            return
        folder, name = place
        inode = folder if not name else self._now.folders[folder].get(name)
        if inode is None:
            assert "O_CREAT" in args[2], args
            inode = self._new()
            self._now.files[inode] = ()
            self._keep(at, folder, {name: inode})
        self._open[result], self._positions[result] = inode, 0

    def _take_names(self, at: int, call: str, args: list[str]) -> None:
        if call in {"mkdir", "unlink", "rmdir"}:
            args = ["AT_FDCWD", *args]
        elif call == "rename":
            args = ["AT_FDCWD", args[0], "AT_FDCWD", args[1]]
        place = self._place(args[0], args[1])
        if place is None:
            return
        folder, name = place
        if call == "mkdir":
            inode = self._new()
            self._now.folders[inode] = {}
            self.before.folders[inode] = {}  # nothing leads to it yet
            self._keep(at, folder, {name: inode})
            return
        inode = self._now.folders[folder][name]
        if call in {"unlink", "rmdir", "unlinkat"}:
            self._keep(at, folder, {name: None})
            return
        to_folder, to_name = self._place(args[2], args[3]) or (-1, "")
        if call == "linkat":
            self._keep(at, to_folder, {to_name: inode})
            return
        assert folder == to_folder, "a rename into another folder is not modelled"
        other = self._now.folders[folder].get(to_name) if "RENAME_EXCHANGE" in args[-1] else None
        self._keep(at, folder, {name: other, to_name: inode})

    def states(self, samples: int, without: int | None = None) -> Iterator[tuple[Disk, bool]]:
        """Every disk that a power cut may leave, and whether that was after the last call.

        What is pending is most just before each flush and at the end: a cut at any other place leaves one of the same.

        Args:
            samples: Where more subsets of the pending operations exist, so many random ones are given, and each
                operation alone, and all but each.
            without: A flush, by its place, that is taken not to have happened.
        """
        flushes = {at: inode for at, inode in self.flushes.items() if at != without}
        drawn = random.Random(0)
        for cut in (*flushes, self.length):
            done = [operation for operation in self.operations if operation.at < cut]
            pending = [
                index
                for index, operation in enumerate(done)
                if not any(inode == operation.inode and operation.at < at < cut for at, inode in flushes.items())
            ]
            for chosen in _subsets(pending, samples, drawn):
                lost = set(pending) - chosen
                disk = self.before.copy()
                for index, operation in enumerate(done):
                    if index not in lost:
                        operation.apply(disk)
                yield disk, cut == self.length


def _subsets(pending: list[int], samples: int, drawn: random.Random) -> Iterator[set[int]]:
    if 2 ** len(pending) <= samples:
        for kept in product((False, True), repeat=len(pending)):
            yield {index for index, keep in zip(pending, kept, strict=True) if keep}
        return
    everything = set(pending)
    yield set()
    yield everything
    for index in pending:
        yield {index}
        yield everything - {index}
    for _ in range(samples):
        share = drawn.random()
        yield {index for index in pending if drawn.random() < share}
