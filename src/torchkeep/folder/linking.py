"""Hard links to what did not change since the parent, and what makes one be refused: docs/format.md, "Commit"."""

from __future__ import annotations

import os
from collections.abc import Set as AbstractSet
from pathlib import Path

from torchkeep.errors import CorruptError
from torchkeep.folder.draft import Name
from torchkeep.folder.partition import ParentShard
from torchkeep.folder.read import digests_of_file
from torchkeep.folder.record import Record


def parent_shards(record: Record | None, group: str) -> list[ParentShard]:
    """The shards of one group in a record, as `partition` wants them."""
    if record is None:
        return []
    inside: dict[str, list[str]] = {}
    for name, tensor in sorted(record.tensors.get(group, {}).items(), key=lambda item: item[1].begin):
        inside.setdefault(tensor.shard, []).append(name)
    return [
        ParentShard(
            file,
            tuple(inside.get(file, ())),
            sum(record.tensors[group][n].nbytes for n in inside.get(file, ())),
            s.splits,
        )
        for file, s in record.shards.items()
        if s.group == group
    ]


def sequence_of(record: Record) -> int:
    """How many saves came before this one, as far as links go back: it turns the rotation."""
    sequence = record.provenance.get("sequence")
    return sequence if isinstance(sequence, int) else 0


def link_shard(source: Path, target: Path, record: Record, file: str, *, read_again: bool) -> str | None:
    """Make the link. None: done, and its content is the record's; else why it was not."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        return os.strerror(error.errno or 0).lower()
    expected, status = record.shards[file], target.lstat()
    looks_same = (status.st_size, status.st_mtime_ns) == (expected.nbytes, expected.mtime_ns)
    if looks_same and not read_again:
        return None
    fault = fault_of_shard(target, record, file)
    if fault is not None:
        target.unlink()
    return fault


def fault_of_shard(path: Path, record: Record, file: str) -> str | None:
    """Read a shard; why it cannot be linked, or None."""
    try:
        digests_of_file(path, record, file)
    except (CorruptError, OSError) as error:
        return f"the parent's file is damaged ({error})"
    return None


def read_one_again(folder: Path, record: Record, changed: AbstractSet[Name]) -> dict[str, str]:
    """Read one of the shards that the next save is going to link, in rotation, and tell what is wrong with it.

    Args:
        folder: The checkpoint.
        record: Its record.
        changed: Group and name of the tensors that changed lately; their shards are not linked.

    Returns:
        By the shard's file, why it must not be linked; empty when it is good.
    """
    written = {record.tensors[group][name].shard for group, name in changed}
    files = [file for file in record.shards if file not in written]
    if not files:
        return {}
    file = files[sequence_of(record) % len(files)]
    fault = fault_of_shard(folder / file, record, file)
    return {} if fault is None else {file: fault}
