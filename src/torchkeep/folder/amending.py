"""What may change in a committed checkpoint: its tags, and that its optimizers go. Each change is one rename."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from torchkeep.errors import typed
from torchkeep.folder.commit import commit
from torchkeep.folder.committed import read_record, tags_of
from torchkeep.folder.durable import fsync_path, write_durably
from torchkeep.folder.record import RECORD_NAME, Record, encode_record
from torchkeep.folder.references import references_in
from torchkeep.folder.shards import stems_of
from torchkeep.folder.staging import StagingFolder
from torchkeep.folder.tags import tags_from
from torchkeep.folder.turns import alone_in


def change_tags(checkpoint: Path, add: Iterable[str] = (), remove: Iterable[str] = ()) -> tuple[str, ...]:
    """Give a checkpoint tags and take some away, durably; all it has then.

    Raises:
        ValueError: One to add cannot be a tag; nothing was changed.
        NotFoundError, CorruptError, FormatError: There is no good record there.
        CheckpointError: The operating system refused; the tags are as before.
    """
    new = tags_from(add)
    with typed("the tags were not changed", checkpoint), alone_in(checkpoint.parent):
        record = read_record(checkpoint)
        gone = set(remove)
        tags = [tag for tag in dict.fromkeys((*tags_of(record), *new)) if tag not in gone]
        provenance = {name: value for name, value in record.provenance.items() if name != "tags"}
        _replace_record(checkpoint, replace(record, provenance=provenance | ({"tags": tags} if tags else {})))
    return tuple(tags)


def _replace_record(checkpoint: Path, record: Record) -> None:
    staging = StagingFolder(checkpoint.parent, as_file=True)
    try:
        data = memoryview(encode_record(record))
        while data:
            data = data[os.write(staging.descriptor, data) :]
        os.fchmod(staging.descriptor, 0o444)
        os.fsync(staging.descriptor)
        staging.path.rename(checkpoint / RECORD_NAME)
        fsync_path(checkpoint)
    finally:
        staging.discard()


def without_optimizers(record: Record) -> Record:
    """What the record of a checkpoint is once its optimizers are gone; a tensor that another entry uses stays."""
    goes = [name for name, entry in record.entries.items() if entry.kind == "optimizer"]
    entries = {name: entry for name, entry in record.entries.items() if name not in goes}
    used = {group for entry in entries.values() for group, _ in references_in(entry.tree)}
    groups = {group for group in record.tensors if group not in goes or group in used}
    stems = stems_of(record.tensors)
    kept_indexes = {f"{stems[group]}.safetensors.index.json" for group in groups}
    return replace(
        record,
        entries=entries,
        tensors={group: tensors for group, tensors in record.tensors.items() if group in groups},
        shards={file: shard for file, shard in record.shards.items() if shard.group in groups},
        indexes={file: digest for file, digest in record.indexes.items() if file in kept_indexes},
        provenance={**record.provenance, "without": goes},
    )


def drop_optimizers(checkpoint: Path) -> None:
    """Replace a checkpoint by itself without its optimizers, its other shards linked.

    Raises:
        OSError: A link could not be made, or the like; the checkpoint is as before.
        ConflictError: Somebody put files of their own into it; likewise.
    """
    record = without_optimizers(read_record(checkpoint))
    staging = StagingFolder(checkpoint.parent)
    try:
        for file in (*record.shards, *record.indexes):
            os.link(checkpoint / file, staging.path / file, follow_symlinks=False)
        write_durably(staging.path / RECORD_NAME, encode_record(record))
        commit(staging, checkpoint, record, record.id)
    finally:
        with suppress(OSError):
            staging.discard()
