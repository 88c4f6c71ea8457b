"""What a save leaves alone: files of others, folders with guests, and the inside of checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

from torchkeep.errors import ConflictError, CorruptError, FormatError, NotFoundError
from torchkeep.folder.committed import read_summary
from torchkeep.folder.record import CONTENT_NAME, FILE_NAME, RECORD_BEGIN, RECORD_NAME


def refuse_foreign(folder: Path, target: Path | None = None) -> None:
    """Refuse to replace what torchkeep did not write: a file, a folder without a record, or a record with guests.

    Raises:
        ConflictError: It names `target`, or `folder` where that is the same, and the files that are not torchkeep's.
    """
    if not _has_record(folder):
        raise in_the_way("folder" if folder.is_dir() else "file", target or folder)
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
        read_summary(folder)
    except NotFoundError:
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


def in_the_way(kind: str, path: Path) -> ConflictError:
    """The refusal to replace what is there."""
    return ConflictError(
        f"a {kind} that torchkeep did not write is in the way; it was left as it is",
        where=path,
        remedy="choose another path, or move it away",
    )
