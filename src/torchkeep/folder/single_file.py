"""A checkpoint as one safetensors file to send to someone: the same record, in its metadata."""

from __future__ import annotations

import json
import os
from pathlib import Path

from torchkeep.errors import CheckpointError, CorruptError
from torchkeep.folder.aligned_file import AlignedFile
from torchkeep.folder.commit import publish_file
from torchkeep.folder.committed import Identity
from torchkeep.folder.digests import chunk_digests
from torchkeep.folder.draft import Draft, DraftTensor, Name
from torchkeep.folder.durable import make_parents
from torchkeep.folder.parallel import in_parallel
from torchkeep.folder.read import RECORD_KEY, single_file_header
from torchkeep.folder.record import Record, StoredTensor, decode_record, encode_record
from torchkeep.folder.recovery import recover
from torchkeep.folder.shard_files import write_data
from torchkeep.folder.shards import file_order, single_file_names
from torchkeep.folder.staging import StagingFolder
from torchkeep.folder.write import Saved, not_saved

MAX_HEADER_BYTES = 100_000_000  # what safetensors readers accept


def save_file(target: Path, draft: Draft, threads: int) -> Saved:
    """Save a draft as one file, durably; it replaces only a file that torchkeep wrote.

    Raises:
        ConflictError: Another file, a folder, or a save that began later is at the target; it is as before.
        CheckpointError: The operating system refused, or a tensor changed while it was saved; likewise.
    """
    names = single_file_names(draft.groups)
    merged = {names[group, name]: tensor for group, of in draft.groups.items() for name, tensor in of.items()}
    with not_saved(target):
        replaces = there.id if target.is_file() and (there := _identify(target)) else None
        placed = place(merged, threads)
        make_parents(target.parent)
        recover(target.parent)
        staging = StagingFolder(target.parent, as_file=True)
        try:
            record = record_of(draft, {key: placed[name] for key, name in names.items()}, staging.id)
            text = encode_record(record).decode("ascii")
            specs = {group: {name: tensor.spec for name, tensor in of.items()} for group, of in draft.groups.items()}
            header = single_file_header(specs, text)
            if len(header) > MAX_HEADER_BYTES:
                raise CheckpointError("too many tensors for one file", where=target, remedy="save a folder instead")
            _write(staging.descriptor, header, merged, placed, threads)
            publish_file(staging.path, target, Identity(record.id, record.saved_at_ns), replaces, _identify)
        finally:
            staging.discard()
    return Saved(target, record, len(header) + draft.tensor_bytes, 0)


def place(merged: dict[str, DraftTensor], threads: int) -> dict[str, StoredTensor]:
    """Where tensors would lie one after the other, widest elements first, with their digests."""
    order = file_order({name: tensor.spec for name, tensor in merged.items()})
    digests = in_parallel(lambda name: chunk_digests(merged[name].read()), order, threads)
    placed, position = {}, 0
    for name, chunks in zip(order, digests, strict=True):
        spec = merged[name].spec
        placed[name] = StoredTensor(spec.dtype, spec.shape, "", position, position + spec.nbytes, chunks)
        position += spec.nbytes
    return placed


def record_of(draft: Draft, placed: dict[Name, StoredTensor], identity: str) -> Record:
    """The record of a draft that goes into one file."""
    return Record(
        id=identity,
        saved_at_ns=draft.saved_at_ns,
        step=draft.step,
        metrics=draft.metrics,
        provenance=draft.provenance,
        whole=draft.whole,
        entries=draft.entries,
        rng=draft.rng,
        tensors={group: {name: placed[group, name] for name in of} for group, of in draft.groups.items()},
        shards={},
        indexes={},
    )


def _write(
    descriptor: int, header: bytes, merged: dict[str, DraftTensor], placed: dict[str, StoredTensor], threads: int
) -> None:
    """The record goes first and holds the digests, so what is written is compared with what was digested."""
    file = AlignedFile(descriptor, len(header) + sum(tensor.nbytes for tensor in placed.values()))
    written = write_data(file, header, merged, list(placed), threads)
    changed = [name for name, tensor in written.items() if tensor.chunks != placed[name].chunks]
    if changed:
        raise CheckpointError("tensors changed while they were saved", faults=changed, remedy="save between two steps")
    os.fsync(descriptor)


def _identify(path: Path) -> Identity | None:
    """Which save a file is of: None if torchkeep did not write it, by its first bytes; no id if it is damaged."""
    with path.open("rb") as file:
        header = file.read(min(int.from_bytes(file.read(8), "little"), MAX_HEADER_BYTES))
    if not header.startswith(b'{"__metadata__":{"format":"pt","' + RECORD_KEY.encode("ascii") + b'":'):
        return None
    try:
        text = str(json.loads(header)["__metadata__"][RECORD_KEY])
        record = decode_record(text.encode("utf-8", "replace"), str(path))
    except (ValueError, RecursionError, CorruptError):
        return Identity("", 0)
    return Identity(record.id, record.saved_at_ns)
