"""How a checkpoint goes: out of sight in one rename, then its record, then the rest."""

from __future__ import annotations

import errno
import secrets
import shutil
import sys
from pathlib import Path

from torchkeep.errors import ConflictError
from torchkeep.folder.durable import fsync_path
from torchkeep.folder.record import RECORD_NAME

TRASH = ".trash-"


def remove(folder: Path) -> None:
    """Remove a checkpoint: out of sight first, then its record, then the rest.

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
    discard(trash)


def discard(hidden: Path) -> None:
    """Delete a folder or file that is durably out of sight: a record first, so that no half of it is ever put back."""
    if hidden.is_dir():
        (hidden / RECORD_NAME).unlink(missing_ok=True)
    delete_tree(hidden)


def delete_tree(path: Path) -> None:
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
