"""Whether a run will be able to save and to resume, found out before it has anything to lose."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torchkeep.errors import CheckpointError, FormatError
from torchkeep.folder.aligned_file import fallocate
from torchkeep.folder.durable import fsync_path
from torchkeep.folder.removal import TRASH, delete_tree
from torchkeep.manager.scratch import first_difference, leaves_of, scratch
from torchkeep.manager.session import Session
from torchkeep.tensors import format_bytes

_NO_FALLOCATE = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@dataclass(frozen=True, slots=True)
class Preflight:
    """What `preflight` found out; it raised if anything was wrong.

    Attributes:
        checkpoint_bytes: An estimate of one checkpoint, its optimizers' state included.
        peak_bytes: The most that the run will take at once; None if retention lets it grow.
        free_bytes: What the file system has left for this user.
        notes: What is not wrong, and worth knowing.
    """

    checkpoint_bytes: int
    peak_bytes: int | None
    free_bytes: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        peak = "grows with the run" if self.peak_bytes is None else f"at most {format_bytes(self.peak_bytes)} at once"
        head = f"{format_bytes(self.checkpoint_bytes)} per checkpoint, {peak}, {format_bytes(self.free_bytes)} free"
        return "\n".join([head, *self.notes])


def preflight(session: Session) -> Preflight:
    """Try everything once in an owned run folder; see `CheckpointManager.preflight`."""
    from torchkeep.live.estimate import estimate
    from torchkeep.live.unregistered import unregistered

    expected, folder = estimate(session.state), session.folder.path
    one = expected.frozen_bytes + expected.changing_bytes
    kept = session.retain.most_bytes(expected.changing_bytes)
    # The new checkpoint is committed before an old one goes.
    peak = None if kept is None else expected.frozen_bytes + kept + expected.changing_bytes
    faults: list[str] = []
    notes: list[str] = []
    place = folder / f"{TRASH}{secrets.token_hex(8)}"
    try:
        place.mkdir()
        if not _can_link(place):
            notes.append("this file system makes no hard links: what does not change is written again at each save")
        faults += _space_faults(place, one if peak is None else peak, grows=peak is None)
    except OSError as error:
        faults.append(f"the run folder cannot be written: {os.strerror(error.errno or 0)}")
    finally:
        if place.exists():
            delete_tree(place)
    faults += _round_trip_faults(session)
    if peak is None:
        more = (free_bytes(folder) - expected.frozen_bytes) // max(1, expected.changing_bytes)
        notes.append(f"retention lets the run grow: {more:,} checkpoints fit")
    notes += unregistered(session.state)
    if faults:
        raise CheckpointError("this run could not save or resume", where=folder, faults=faults)
    return Preflight(one, peak, free_bytes(folder), tuple(notes))


def free_bytes(folder: Path) -> int:
    """What a user without privileges may still write, quotas apart."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _can_link(place: Path) -> bool:
    (place / "one").touch()
    try:
        os.link(place / "one", place / "two")
    except OSError:
        return False
    return True


def _space_faults(place: Path, needed_bytes: int, *, grows: bool) -> Iterator[str]:
    """Reserve the space for a moment: only that asks the quota too. Where it cannot be reserved, compare numbers."""
    what = "one checkpoint takes" if grows else "checkpoints take"
    descriptor = os.open(place / "space", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        error = fallocate(descriptor, needed_bytes)
    finally:
        os.close(descriptor)
        (place / "space").unlink()
        fsync_path(place)
    if error == errno.EDQUOT:
        yield f"the quota does not allow the {format_bytes(needed_bytes)} that {what}"
    elif error == errno.ENOSPC or (error in _NO_FALLOCATE and free_bytes(place) < needed_bytes):
        yield f"{what} {format_bytes(needed_bytes)}, and {format_bytes(free_bytes(place))} are free"
    elif error == errno.EFBIG:
        yield f"a file of {format_bytes(needed_bytes)} is larger than this process may write"


def _round_trip_faults(session: Session) -> list[str]:
    """Save everything, load it back into the very objects, and look whether anything is not as it was."""
    try:
        with scratch(session) as saved:
            before = leaves_of(session.held)
            saved.restore()
            after = leaves_of(session.held)
    except FormatError as error:
        return list(error.faults) or [error.what]
    except CheckpointError as error:
        return [error.what, *error.faults]
    entries = dict.fromkeys(map(_entry, (*before, *after)))
    faults = []
    for entry in entries:
        sides = [{name: text for name, text in each.items() if _entry(name) == entry} for each in (before, after)]
        found = first_difference(*sides)
        if found is not None:
            faults.append(f"{found[0]} does not come back: {found[1]}")
    return faults


def _entry(name: str) -> str:
    """The entry that a leaf belongs to."""
    return name.partition(".")[0]
