"""The commit protocol of docs/format.md: how a complete, flushed checkpoint gets its final name.

Nothing here knows what a checkpoint holds. The order of calls is what the guarantees rest on.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torchkeep.errors import CheckpointError, ConflictError, CorruptError, NotFoundError
from torchkeep.folder.committed import Identity, read_summary
from torchkeep.folder.durable import fsync_path
from torchkeep.folder.record import Record
from torchkeep.folder.refusals import in_the_way, refuse_foreign
from torchkeep.folder.removal import discard
from torchkeep.folder.renames import EXCHANGE, NOREPLACE, rename
from torchkeep.folder.staging import StagingFolder
from torchkeep.folder.turns import alone_in

ASIDE = ".aside-"


def commit(staging: StagingFolder, target: Path, record: Record, replaces: str | None) -> None:
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
    with alone_in(target.parent):
        with suppress(OSError):
            target.rmdir()  # an empty folder is nobody's data
        if rename(staging.path, target, NOREPLACE):
            _flush_parent(target)
        else:
            _replace(staging.path, target, record, replaces)
    staging.discard()


def _replace(staged: Path, target: Path, record: Record, replaces: str | None) -> None:
    _refuse_newer_folder(target, target, record, replaces)
    if rename(staged, target, EXCHANGE):
        try:
            _refuse_newer_folder(staged, target, record, replaces)  # somebody else may have put a folder there
        except BaseException:
            rename(staged, target, EXCHANGE)
            raise
        replaced = staged
    else:
        replaced = _replace_aside(staged, target)
    _flush_parent(target)
    with suppress(OSError):  # committed: what cannot be deleted now is a leftover for `recover`
        discard(replaced)


def _replace_aside(staged: Path, target: Path) -> Path:
    """Replace without exchange: where the old one is now. A crash in between is undone by `recover`.

    Whichever of the two renames lasts, one of the two is whole; so one flush of the parent does for both.
    """
    aside = target.with_name(f"{ASIDE}{secrets.token_hex(8)}-{target.name}")
    target.rename(aside)
    try:
        staged.rename(target)
    except OSError:
        rename(aside, target, NOREPLACE)
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
        there = read_summary(folder)
    except (CorruptError, NotFoundError):
        return
    _refuse_newer(Identity(there.id, there.saved_at_ns), record.saved_at_ns, replaces, target)


def _refuse_newer(there: Identity, saved_at_ns: int, replaces: str | None, target: Path) -> None:
    if there.id != replaces and there.saved_at_ns > saved_at_ns:
        raise ConflictError("a save that began later is already here; it was left as it is", where=target)


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
    with alone_in(target.parent):
        if not rename(staged, target, NOREPLACE):
            there = identify(target) if target.is_file() else None
            if there is None:
                raise in_the_way("folder" if target.is_dir() else "file", target)
            _refuse_newer(there, saved.saved_at_ns, replaces, target)
            staged.replace(target)
        _flush_parent(target)
