"""The commit protocol of docs/format.md: when a checkpoint exists, and how one comes, is replaced and goes.

Nothing here knows what a checkpoint holds. The order of calls in `commit` and `remove` is what the guarantees rest on.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from torchkeep.errors import CheckpointError, ConflictError, CorruptError, FormatError, NotFoundError
from torchkeep.folder.record import CONTENT_NAME, FILE_NAME, RECORD_BEGIN, RECORD_NAME, Record, decode_record

STAGING, ASIDE, TRASH, DAMAGED = ".staging-", ".aside-", ".trash-", ".damaged-"
_LEFTOVER = re.compile(r"\.(staging|trash)-[0-9a-f]{16}|\.aside-[0-9a-f]{16}-.+", re.DOTALL)
_AT_FDCWD, _RENAME_NOREPLACE, _RENAME_EXCHANGE = -100, 1, 2
_LONGEST_WAIT_SECONDS = 60.0
_NOT_SUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY}


def read_record(folder: Path) -> Record:
    """The record of a committed checkpoint: a folder is one exactly when this returns.

    Raises:
        NotFoundError: There is no such folder, or no record in it.
        CorruptError: The record is not whole by its own digest.
        FormatError: It was written by a newer torchkeep.
    """
    path = folder / RECORD_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError("no torchkeep checkpoint here", where=folder) from error
    except OSError as error:
        if error.errno not in {errno.ELOOP, errno.ENXIO}:
            raise
        raise CorruptError("the record is not a plain file", where=path) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CorruptError("the record is not a plain file", where=path)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read()
    finally:
        os.close(descriptor)
    return decode_record(data, str(path))


class Identity(NamedTuple):
    """Which save a checkpoint is of, and when that began, in nanoseconds since 1970."""

    id: str
    saved_at_ns: int


def identity_at(folder: Path) -> str | None:
    """The id of the checkpoint at a path; None if there is none that can be read."""
    try:
        return read_record(folder).id
    except (NotFoundError, CorruptError, FormatError):
        return None


def fsync_path(path: Path) -> None:
    """Flush a file or folder to the disk; an error is final, since a second try can report success for lost bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Write a small new file and fsync it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_parents(folder: Path) -> None:
    """Make a folder and those above it, each durable in the one that holds it."""
    absent = []
    while not folder.is_dir():
        absent.append(folder)
        if folder.parent == folder:
            break
        folder = folder.parent
    for made in reversed(absent):
        with suppress(FileExistsError):
            made.mkdir()
        fsync_path(made.parent)


class Staging:
    """A `.staging-*` folder or file that only its living writer holds.

    The lock (`flock` on it) dies with the process, so what a dead writer left is known from what a living one is
    writing. Where `flock` does not work, leftovers stay for a person to remove.
    """

    def __init__(self, parent: Path, *, as_file: bool = False) -> None:
        self.id = secrets.token_hex(16)
        while True:
            self.path = parent / f"{STAGING}{secrets.token_hex(8)}"
            if as_file:
                self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            else:
                self.path.mkdir(mode=0o755)
                try:
                    self.descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue  # a cleaner was faster
            # A cleaner that came between the two calls holds the lock or has taken the name away: make another.
            if _lock(self.descriptor) is not False and os.path.lexists(self.path):
                return
            os.close(self.descriptor)

    def discard(self) -> None:
        """Let go of the lock, and remove what was staged and is still under the staging name."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor < 0:
            return
        try:
            # After an exchange the replaced checkpoint may still be there under this name.
            if self.path.exists() and os.path.samestat(self.path.lstat(), os.fstat(descriptor)):
                _delete(self.path)
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Try to lock a file without waiting: True, False when somebody holds it, None when locks do not work there."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def commit(staging: Staging, target: Path, record: Record, replaces: str | None) -> None:
    """Give a complete, flushed staging folder its final name; the rename is the commit point.

    Over an existing torchkeep checkpoint the two are exchanged and the old one is removed. A checkpoint that came
    since this save began, by a save that began later, stays.

    Args:
        staging: What was staged.
        target: The final path.
        record: Its record.
        replaces: The id of the checkpoint that was at `target` when this save began; clocks do not matter for it.

    Raises:
        ConflictError: At `target` is something that torchkeep did not write, or a newer save. It is as before.
    """
    fsync_path(staging.path)
    with _alone_in(target.parent):
        with suppress(OSError):
            target.rmdir()  # an empty folder is nobody's data
        if _rename(staging.path, target, _RENAME_NOREPLACE):
            _flush_parent(target)
        else:
            _replace(staging.path, target, record, replaces)
    staging.discard()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Let one writer at a time look at a folder and rename in it; cleaners take the same lock (`flock` on the folder).

    It is held for a few calls and dies with the process. Where locks do not work, or somebody keeps it for a minute,
    things go on without: a rename is still atomic, and only the order of several writers is open.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
        while _lock(descriptor) is False and time.monotonic() < deadline:
            time.sleep(0.005)
        yield
    finally:
        os.close(descriptor)


def _replace(staged: Path, target: Path, record: Record, replaces: str | None) -> None:
    _refuse_newer_folder(target, target, record, replaces)
    if _rename(staged, target, _RENAME_EXCHANGE):
        try:
            _refuse_newer_folder(staged, target, record, replaces)  # somebody else may have put a folder there
        except ConflictError:
            _rename(staged, target, _RENAME_EXCHANGE)
            raise
        replaced = staged
    else:
        replaced = _replace_aside(staged, target)
    _flush_parent(target)
    with suppress(OSError, ConflictError):  # committed: what cannot be removed now is a leftover for `recover`
        remove(replaced)


def _replace_aside(staged: Path, target: Path) -> Path:
    """Replace without exchange: where the old one is now. A crash in between is undone by `recover`."""
    aside = target.with_name(f"{ASIDE}{secrets.token_hex(8)}-{target.name}")
    target.rename(aside)
    fsync_path(target.parent)
    try:
        staged.rename(target)
    except OSError:
        _rename(aside, target, _RENAME_NOREPLACE)
        raise
    return aside


def _flush_parent(target: Path) -> None:
    try:
        fsync_path(target.parent)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint is in place, but its folder could not be flushed: {os.strerror(error.errno or 0)}",
            where=target,
            remedy="it may not survive a power cut; save again to another disk",
        ) from error


def _refuse_newer_folder(folder: Path, target: Path, record: Record, replaces: str | None) -> None:
    refuse_foreign(folder, target)
    try:
        there = read_record(folder)
    except (CorruptError, NotFoundError):
        return
    _refuse_newer(Identity(there.id, there.saved_at_ns), record.saved_at_ns, replaces, target)


def _refuse_newer(there: Identity, saved_at_ns: int, replaces: str | None, target: Path) -> None:
    if there.id != replaces and there.saved_at_ns > saved_at_ns:
        raise ConflictError("a save that began later is already here; it was left as it is", where=target)


def refuse_foreign(folder: Path, target: Path | None = None) -> None:
    """Refuse to replace what torchkeep did not write: a file, a folder without a record, or a record with guests.

    Raises:
        ConflictError: It names `target`, or `folder` where that is the same, and the files that are not torchkeep's.
    """
    if not _has_record(folder):
        raise _in_the_way("folder" if folder.is_dir() else "file", target or folder)
    guests = sorted(name for name in os.listdir(folder) if name != RECORD_NAME and not FILE_NAME.fullmatch(name))
    if guests:
        raise ConflictError(
            "replacing this checkpoint would remove files that torchkeep did not write; nothing was done",
            where=target or folder,
            faults=guests[:10],
            remedy="move them away, or save to another path",
        )


def _has_record(folder: Path) -> bool:
    """Whether a folder holds a record of ours, whole or damaged; a file of the same name may be anybody's."""
    try:
        read_record(folder)
    except (NotFoundError, OSError):
        return False
    except FormatError:
        return True
    except CorruptError:
        path = folder / RECORD_NAME
        begin = path.read_bytes()[: len(RECORD_BEGIN)] if path.is_file() else b""
        return begin == RECORD_BEGIN or any(CONTENT_NAME.fullmatch(name) for name in os.listdir(folder))
    return True


def refuse_inside_checkpoint(target: Path) -> None:
    """Refuse to save into a folder that is a checkpoint: it would go when that is replaced or removed.

    Raises:
        ConflictError: It names the checkpoint.
    """
    for above in target.parents:
        if os.path.lexists(above / RECORD_NAME):
            raise ConflictError("this would be inside a checkpoint", where=above, remedy="save beside it")


def _in_the_way(kind: str, path: Path) -> ConflictError:
    return ConflictError(
        f"a {kind} that torchkeep did not write is in the way; it was left as it is",
        where=path,
        remedy="choose another path, or move it away",
    )


def _rename(old: Path, new: Path, flag: int) -> bool:
    """`renameat2` with a flag. False: the new name is taken (NOREPLACE), or the file system cannot exchange."""
    error = _renameat2(old, new, flag)
    if error == 0:
        return True
    if flag == _RENAME_NOREPLACE and error in _NOT_SUPPORTED:
        if os.path.lexists(new):
            return False
        old.rename(new)  # a folder that is not empty is not replaced by rename either
        return True
    taken = flag == _RENAME_NOREPLACE and error in {errno.EEXIST, errno.ENOTEMPTY}
    if taken or (flag == _RENAME_EXCHANGE and error in _NOT_SUPPORTED):
        return False
    raise OSError(error, os.strerror(error), str(old), None, str(new))


def _renameat2(old: Path, new: Path, flag: int) -> int:
    if not sys.platform.startswith("linux"):
        return errno.ENOSYS
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return errno.ENOSYS
    done = library.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flag)
    return 0 if done == 0 else ctypes.get_errno()


def publish_file(
    staged: Path, target: Path, saved: Identity, replaces: str | None, identify: Callable[[Path], Identity | None]
) -> None:
    """Give a complete, flushed file its final name; it replaces only a file that torchkeep wrote, and not a newer one.

    Args:
        staged: The file as it was staged.
        target: Its final path.
        saved: Which save it is of.
        replaces: As for `commit`.
        identify: Tells which save a file that is there is of; None for a file that torchkeep did not write.

    Raises:
        ConflictError: Something else, or a newer save, is there; it is as before.
    """
    with _alone_in(target.parent):
        if not _rename(staged, target, _RENAME_NOREPLACE):
            there = identify(target) if target.is_file() else None
            if there is None:
                raise _in_the_way("folder" if target.is_dir() else "file", target)
            _refuse_newer(there, saved.saved_at_ns, replaces, target)
            staged.replace(target)
        _flush_parent(target)


def remove(folder: Path) -> None:
    """Remove a checkpoint or a leftover: out of sight first, then its record, then the rest.

    Raises:
        ConflictError: It cannot be renamed (a mount point) and has no record to unlink first.
    """
    trash = folder.with_name(f"{TRASH}{secrets.token_hex(8)}")
    try:
        folder.rename(trash)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if not (folder / RECORD_NAME).exists():
            raise ConflictError("cannot be renamed, so it cannot be removed in one step", where=folder) from error
        trash = folder
    fsync_path(folder.parent)
    with suppress(FileNotFoundError):
        (trash / RECORD_NAME).unlink()
    _delete(trash)


def _delete(path: Path) -> None:
    """Delete a file or folder; what somebody else deletes at the same time is no error."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
    elif sys.version_info >= (3, 12):
        shutil.rmtree(path, onexc=lambda _function, _path, error: _raise_unless_gone(error))
    else:
        shutil.rmtree(path, onerror=lambda _function, _path, failure: _raise_unless_gone(failure[1]))


def _raise_unless_gone(error: BaseException) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def restore_aside(target: Path) -> None:
    """Put back a checkpoint that a dead writer renamed aside, if its final name is absent.

    Readers call it too; where they may not write, the checkpoint stays aside and absent.
    """
    if os.path.lexists(target):
        return
    with suppress(OSError):
        for path in target.parent.glob(f"{ASIDE}*-{glob.escape(target.name)}"):
            if _LEFTOVER.fullmatch(path.name) and _final_name(path) == target and identity_at(path):
                _rename(path, target, _RENAME_NOREPLACE)
                fsync_path(target.parent)


def _final_name(aside: Path) -> Path:
    return aside.with_name(aside.name[len(ASIDE) + 17 :])


def recover(parent: Path) -> None:
    """Undo and clean what dead writers left in a folder: asides whose final name is absent go back, the rest goes.

    What cannot be removed stays for a person.
    """
    with _alone_in(parent):
        for path in sorted(parent.iterdir()):
            if _LEFTOVER.fullmatch(path.name) and not path.is_symlink():
                _recover_one(path)


def _recover_one(path: Path) -> None:
    if path.name.startswith(ASIDE) and not os.path.lexists(_final_name(path)):
        _rename(path, _final_name(path), _RENAME_NOREPLACE)
        fsync_path(path.parent)
        return
    with suppress(OSError, ConflictError):  # what cannot be removed must not keep anybody from saving
        if path.name.startswith(STAGING):
            _delete_if_abandoned(path)
        else:
            remove(path)


def _delete_if_abandoned(staging: Path) -> None:
    try:
        descriptor = os.open(staging, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if _lock(descriptor):
            _delete(staging)
    finally:
        os.close(descriptor)
