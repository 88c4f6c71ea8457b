"""One writer per run folder: a POSIX record lock or else a lease, a registry for this process, and who holds it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from contextlib import suppress
from pathlib import Path

from torchkeep.errors import ConflictError
from torchkeep.folder.lease import Lease, describe, describe_holder

LOCK_NAME = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}

# A record lock belongs to the process, and closing any descriptor of the file drops it: so one descriptor per folder,
# and this registry answers for a second manager in the same process.
_held: dict[tuple[int, int], int] = {}  # device and inode to the process: a forked child has a copy, and holds nothing
_guard = threading.Lock()


class RunLock:
    """The right to write in a run folder, held until `release` or the end of the process.

    A child process does not inherit it. The file's text (host, process, time) is information for people only.

    Raises:
        ConflictError: Another process, or another manager of this one, holds it; the message says which.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor, self._lease = -1, None
        self._owner_pid = os.getpid()
        with _guard:
            status = folder.stat()
            self._key = (status.st_dev, status.st_ino)
            if _held.get(self._key) == self._owner_pid:
                raise ConflictError(
                    "another manager of this process is writing here",
                    where=folder,
                    remedy="close it (leave its `with` block) first, or use another run folder",
                )
            self._descriptor, self._lease = _acquire(folder)
            _held[self._key] = self._owner_pid

    @property
    def is_held(self) -> bool:
        """Whether this process holds it: False once released, and in a forked child."""
        return (self._descriptor >= 0 or self._lease is not None) and os.getpid() == self._owner_pid

    def require_folder(self, folder: Path) -> None:
        """Make sure that the locked folder is still the one at its path, and that a lease was not taken over.

        Raises:
            ConflictError: It was removed or replaced, so the lock keeps nobody out; or somebody took the lease over.
        """
        try:
            status = folder.stat()
            same = (status.st_dev, status.st_ino) == self._key and (folder / LOCK_NAME).exists()
        except OSError:
            same = False
        if not same:
            raise ConflictError(
                "the run folder was removed or replaced while it was in use", where=folder, remedy="make a new manager"
            )
        if self._lease is not None:
            self._lease.check()

    def release(self) -> None:
        """Let others write; harmless when called twice, and in a forked child, which holds nothing."""
        with _guard:
            if not self.is_held:
                return
            # Forgotten before they are given up: an interrupt may come between any two steps, and a number that was
            # closed may by then be another file's.
            descriptor, lease = self._descriptor, self._lease
            self._descriptor, self._lease = -1, None
            _held.pop(self._key, None)
            if descriptor >= 0:
                os.close(descriptor)
            if lease is not None:
                lease.release()


def _acquire(folder: Path) -> tuple[int, Lease | None]:
    """A descriptor that holds the lock, or, where the file system has none, a lease."""
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 4096)
        os.close(descriptor)
        if error.errno in _NO_LOCKS:
            return -1, Lease(folder)
        if error.errno not in {errno.EACCES, errno.EAGAIN}:
            raise
        raise ConflictError(
            f"{_describe(holder)} is writing here",
            where=folder,
            remedy="wait for it, stop it, or use another run folder",
        ) from error
    with suppress(OSError):  # a full disk: the lock holds without it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(describe_holder()).encode("ascii"), 0)
    return descriptor, None


def _describe(holder: bytes) -> str:
    try:
        facts = json.loads(holder)
    except ValueError:
        facts = None
    return describe(facts if isinstance(facts, dict) else {})
