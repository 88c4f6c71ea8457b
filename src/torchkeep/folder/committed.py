"""When a checkpoint exists: `read_record` is the one definition. Also what its record says it is."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torchkeep.errors import CorruptError, FormatError, NotFoundError
from torchkeep.folder.record import RECORD_NAME, Record, Summary, decode_record, decode_summary


def read_record(folder: Path) -> Record:
    """The record of a committed checkpoint: a folder is one exactly when this returns.

    Raises:
        NotFoundError: There is no such folder, or no record in it.
        CorruptError: The record is not whole by its own digest.
        FormatError: It was written by a newer torchkeep.
    """
    return decode_record(_read(folder), str(folder / RECORD_NAME))


def read_summary(folder: Path) -> Summary:
    """What lists a committed checkpoint, in a small part of the time of `read_record`; raises as that does."""
    return decode_summary(_read(folder), str(folder / RECORD_NAME))


def _read(folder: Path) -> bytes:
    path = folder / RECORD_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        remedy = "name a folder that torchkeep saved; torchkeep ls RUN lists those of a run"
        raise NotFoundError("no torchkeep checkpoint here", where=folder, remedy=remedy) from error
    except OSError as error:
        if error.errno not in {errno.ELOOP, errno.ENXIO}:
            raise
        raise CorruptError("the record is not a plain file", where=path) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CorruptError("the record is not a plain file", where=path)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


class Identity(NamedTuple):
    """Which save a checkpoint is of, and when that began, in nanoseconds since 1970."""

    id: str
    saved_at_ns: int


def identity_at(folder: Path) -> str | None:
    """The id of the checkpoint at a path; None if there is none that can be read."""
    try:
        return read_summary(folder).id
    except (NotFoundError, CorruptError, FormatError):
        return None


def tags_of(record: Record | Summary) -> tuple[str, ...]:
    """The tags of a checkpoint."""
    tags = record.provenance.get("tags")
    return tuple(str(tag) for tag in tags) if isinstance(tags, list) else ()


def nonfinite_of(record: Record | Summary | None) -> Mapping[str, Any]:
    """What a record says of NaN and inf in what trains: the first tensor, since which step, how many; empty if none."""
    found = record.provenance.get("nonfinite") if record is not None else None
    return found if isinstance(found, dict) else {}


def first_nonfinite(record: Record | Summary) -> str | None:
    """The first tensor of a run that held NaN or inf where training cannot go on with it; None if all are fine."""
    found = nonfinite_of(record)
    return str(found.get("first")) if found else None
