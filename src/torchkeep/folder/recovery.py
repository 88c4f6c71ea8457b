"""What dead writers left: a checkpoint renamed aside goes back, the rest goes."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from torchkeep.errors import CorruptError, FormatError, NotFoundError
from torchkeep.folder.commit import ASIDE
from torchkeep.folder.committed import identity_at, read_record
from torchkeep.folder.durable import fsync_path
from torchkeep.folder.removal import discard
from torchkeep.folder.renames import NOREPLACE, rename
from torchkeep.folder.staging import STAGING
from torchkeep.folder.turns import alone_in, try_lock

_LEFTOVER = re.compile(r"\.(staging|trash)-[0-9a-f]{16}|\.aside-[0-9a-f]{16}-.+", re.DOTALL)


def restore_aside(target: Path) -> None:
    """Put back a checkpoint that a dead writer renamed aside, if its final name is absent.

    Readers call it too; where they may not write, the checkpoint stays aside and absent.
    """
    if os.path.lexists(target):
        return
    with suppress(OSError):
        asides = target.parent.glob(f"{ASIDE}*-{glob.escape(target.name)}")
        for path in _to_restore(path for path in asides if _LEFTOVER.fullmatch(path.name)):
            if _final_name(path) == target and identity_at(path):
                rename(path, target, NOREPLACE)
                fsync_path(target.parent)


def _final_name(aside: Path) -> Path:
    return aside.with_name(aside.name[len(ASIDE) + 17 :])


def recover(parent: Path) -> None:
    """Undo and clean what dead writers left in a folder: asides whose final name is absent go back, the rest goes.

    What cannot be removed stays for a person.

    Raises:
        OSError: The folder cannot be read or flushed, or an aside not renamed.
    """
    with alone_in(parent):
        left = [path for path in sorted(parent.iterdir()) if _LEFTOVER.fullmatch(path.name) and not path.is_symlink()]
        restored = _to_restore(path for path in left if path.name.startswith(ASIDE))
        for path in restored:
            rename(path, _final_name(path), NOREPLACE)
        if left:
            # A writer that was killed flushed nothing: its renames must last before what they replaced goes.
            fsync_path(parent)
        for path in left:
            if path not in restored:
                with suppress(OSError):  # what cannot be removed must not keep anybody from saving
                    _delete_if_abandoned(path) if path.name.startswith(STAGING) else discard(path)


def _to_restore(asides: Iterable[Path]) -> set[Path]:
    """The newest aside of each final name that is absent; one without a record was being deleted.

    There are two of one name when an older one's deletion did not last until a power cut.
    """
    newest: dict[Path, tuple[int, Path]] = {}
    for path in asides:
        final, saved_at_ns = _final_name(path), _saved_at_ns(path)
        if saved_at_ns is not None and not os.path.lexists(final):
            newest[final] = max(newest.get(final, (-1, path)), (saved_at_ns, path))
    return {path for _, path in newest.values()}


def _saved_at_ns(aside: Path) -> int | None:
    try:
        return read_record(aside).saved_at_ns
    except NotFoundError:
        return None
    except (CorruptError, FormatError):
        return 0


def _delete_if_abandoned(staging: Path) -> None:
    try:
        descriptor = os.open(staging, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if try_lock(descriptor):
            discard(staging)
    finally:
        os.close(descriptor)
