"""What dead writers left: a checkpoint renamed aside goes back, the rest goes."""

from __future__ import annotations

import glob
import os
import re
from contextlib import suppress
from pathlib import Path

from torchkeep.errors import ConflictError
from torchkeep.folder.commit import ASIDE
from torchkeep.folder.committed import identity_at
from torchkeep.folder.durable import fsync_path
from torchkeep.folder.removal import delete_tree, remove
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
        for path in target.parent.glob(f"{ASIDE}*-{glob.escape(target.name)}"):
            if _LEFTOVER.fullmatch(path.name) and _final_name(path) == target and identity_at(path):
                rename(path, target, NOREPLACE)
                fsync_path(target.parent)


def _final_name(aside: Path) -> Path:
    return aside.with_name(aside.name[len(ASIDE) + 17 :])


def recover(parent: Path) -> None:
    """Undo and clean what dead writers left in a folder: asides whose final name is absent go back, the rest goes.

    What cannot be removed stays for a person.
    """
    with alone_in(parent):
        for path in sorted(parent.iterdir()):
            if _LEFTOVER.fullmatch(path.name) and not path.is_symlink():
                _recover_one(path)


def _recover_one(path: Path) -> None:
    if path.name.startswith(ASIDE) and not os.path.lexists(_final_name(path)):
        rename(path, _final_name(path), NOREPLACE)
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
        if try_lock(descriptor):
            delete_tree(staging)
    finally:
        os.close(descriptor)
